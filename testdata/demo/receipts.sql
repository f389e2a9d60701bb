-- What the application of the demonstration is counted by: every transaction of its two services leaves a receipt. The service
-- makes up `writer` and `number`; `id` comes from a sequence, and no constraint would keep a value from being there twice.
CREATE TABLE live.receipt (writer integer NOT NULL, number bigint NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (writer, number));
CREATE TABLE public.receipt (writer integer NOT NULL, number bigint NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (writer, number));
