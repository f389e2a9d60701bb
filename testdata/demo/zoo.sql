-- The zoo: one small example of everything that a PostgreSQL schema can hold and a mover can lose.
-- Plain SQL for PostgreSQL 13 and later, no psql commands, no extensions; deterministic.
-- What makes a copy go wrong when it runs (triggers, rules) is created after the rows are in.

CREATE SCHEMA zoo;
COMMENT ON SCHEMA zoo IS 'one of everything';

-- Types -------------------------------------------------------------------------------------------

CREATE TYPE zoo.mood AS ENUM ('sad', 'it''s ok', 'neutral', 'happy', '"quoted"', 'naïve');
ALTER TYPE zoo.mood RENAME VALUE 'happy' TO 'glad, very';
CREATE DOMAIN zoo.email AS text CONSTRAINT email_has_at CHECK (VALUE LIKE '%@%');
CREATE DOMAIN zoo.positive AS numeric(12, 2) DEFAULT 1 NOT NULL CHECK (VALUE > 0);
CREATE DOMAIN zoo.tags AS text[];
CREATE TYPE zoo.point3 AS (x float8, y float8, z float8);
CREATE TYPE zoo.address AS (street text, city text, place zoo.point3, notes text[]);
ALTER TYPE zoo.address DROP ATTRIBUTE notes;
CREATE TYPE zoo.float_range AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE COLLATION zoo.bytewise (locale = 'C');

-- Functions ---------------------------------------------------------------------------------------

CREATE FUNCTION zoo.initials(name text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT upper(left(name, 1)) $$;
COMMENT ON FUNCTION zoo.initials(text) IS 'used by an index and a generated column';
CREATE FUNCTION zoo.total(VARIADIC amounts numeric[]) RETURNS numeric
    LANGUAGE plpgsql IMMUTABLE
    AS $$ BEGIN RETURN (SELECT sum(a) FROM unnest(amounts) a); END $$;
CREATE PROCEDURE zoo.nothing() LANGUAGE sql AS $$ SELECT 1 $$;
CREATE AGGREGATE zoo.product(float8) (SFUNC = float8mul, STYPE = float8, INITCOND = '1');

-- Sequences: owned, free, cycling, descending, never used ------------------------------------------

CREATE SEQUENCE zoo.free_number START 1000 INCREMENT 7 CACHE 5;
CREATE SEQUENCE zoo.small_cycle AS smallint MINVALUE -3 MAXVALUE 3 START -3 CYCLE;
CREATE SEQUENCE zoo.down INCREMENT -1 MAXVALUE 100 MINVALUE -100 START 100;
CREATE SEQUENCE zoo.untouched;
COMMENT ON SEQUENCE zoo.free_number IS 'owned by nobody';
SELECT setval('zoo.free_number', 1000 + 7 * 41);
SELECT setval('zoo.small_cycle', 2, false);
SELECT setval('zoo.down', -5);

-- Keys, indexes, defaults, comments -----------------------------------------------------------------

CREATE TABLE zoo.keeper (
    id        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text NOT NULL,
    email     zoo.email UNIQUE,                      -- unique and nullable
    badge     uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    hired     date NOT NULL DEFAULT '2020-01-01',
    salary    zoo.positive,
    home      zoo.address,
    boss      integer,                               -- a foreign key to itself, below
    settings  jsonb NOT NULL DEFAULT '{}',
    nicknames zoo.tags,
    initial   text GENERATED ALWAYS AS (zoo.initials(name)) STORED
);
COMMENT ON TABLE zoo.keeper IS 'who works here; it''s a "test" \ of comments';
COMMENT ON COLUMN zoo.keeper.email IS E'two\nlines';
INSERT INTO zoo.keeper (name, email, badge, hired, salary, home, boss, settings, nicknames)
SELECT 'keeper ' || i,
       CASE WHEN i % 5 = 0 THEN NULL ELSE 'k' || i || '@zoo.example' END,
       md5('badge' || i)::uuid,
       date '2015-01-01' + i,
       i * 10.01,
       CASE WHEN i % 7 = 0 THEN NULL
            ELSE ROW ('street "' || i || '"', 'city, ' || i % 9, ROW (i, -i, i / 3.0::float8)::zoo.point3)::zoo.address END,
       CASE WHEN i % 10 = 1 THEN NULL ELSE i - (i - 1) % 10 END,
       jsonb_build_object('n', i, 'deep', jsonb_build_array(i, NULL, jsonb_build_object('k', 1.10)), 'naïve', E'tab\tquote"'),
       CASE WHEN i % 3 = 0 THEN NULL WHEN i % 3 = 1 THEN '{}'::text[] ELSE ARRAY['a,b', NULL, 'NULL', '"', '\', ''] END
FROM generate_series(1, 1000) i;
ALTER TABLE zoo.keeper ADD CONSTRAINT keeper_boss FOREIGN KEY (boss) REFERENCES zoo.keeper;
CREATE INDEX keeper_initial ON zoo.keeper (zoo.initials(name), hired DESC NULLS LAST);
CREATE INDEX keeper_unassigned ON zoo.keeper (hired) INCLUDE (name) WHERE boss IS NULL;
CREATE INDEX keeper_settings ON zoo.keeper USING gin (settings jsonb_path_ops);
CREATE INDEX keeper_name_bytes ON zoo.keeper (name COLLATE zoo.bytewise text_pattern_ops) WITH (fillfactor = 70);
CREATE INDEX keeper_badge_hash ON zoo.keeper USING hash (badge);
CREATE INDEX keeper_hired_brin ON zoo.keeper USING brin (hired) WITH (pages_per_range = 8);
CREATE UNIQUE INDEX keeper_badge ON zoo.keeper (badge);
ALTER TABLE zoo.keeper REPLICA IDENTITY USING INDEX keeper_badge;
COMMENT ON INDEX zoo.keeper_initial IS 'expression index';
COMMENT ON CONSTRAINT keeper_boss ON zoo.keeper IS 'a tree';
CREATE STATISTICS zoo.keeper_stats (dependencies) ON name, hired FROM zoo.keeper;

-- Identity by default, serial, types of every kind ---------------------------------------------------

CREATE TABLE zoo.animal (
    id       bigint GENERATED BY DEFAULT AS IDENTITY (START 10 INCREMENT 10) PRIMARY KEY,
    serial   serial NOT NULL,
    keeper   integer REFERENCES zoo.keeper ON DELETE SET NULL ON UPDATE CASCADE,
    mood     zoo.mood NOT NULL DEFAULT 'neutral',
    moods    zoo.mood[],
    gone     text,                                   -- dropped below
    weight   numeric,
    price    numeric(14, 4),
    tail     real,
    size     double precision,
    species  char(12),
    code     varchar(20),
    photo    bytea,
    born     timestamp(3),
    seen     timestamptz,
    feeding  time,
    every    interval,
    stay     tstzrange,
    scale    zoo.float_range,
    host     inet,
    flags    bit(5),
    story    text,
    is_shy   boolean,
    also_gone integer,                               -- dropped below
    layout   integer[][],
    CONSTRAINT animal_price CHECK (price IS NULL OR price >= 0)
);
INSERT INTO zoo.animal (keeper, mood, moods, gone, weight, price, tail, size, species, code, photo, born, seen,
                        feeding, every, stay, scale, host, flags, story, is_shy, also_gone, layout)
SELECT CASE WHEN i % 11 = 0 THEN NULL ELSE i % 1000 + 1 END,
       (enum_range(NULL::zoo.mood))[i % 6 + 1],
       CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN '{}' WHEN 2 THEN ARRAY['it''s ok', NULL]::zoo.mood[] ELSE ARRAY['"quoted"', 'glad, very']::zoo.mood[] END,
       'gone ' || i,
       CASE i % 50 WHEN 0 THEN NULL WHEN 1 THEN 'NaN'::numeric ELSE i * 1.10 + 0.00010 END,
       i % 9973 / 100.0,
       CASE i % 60 WHEN 0 THEN '-0' WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE (i / 7.0)::real END,
       CASE i % 61 WHEN 0 THEN '-0' WHEN 1 THEN 5e-324 WHEN 2 THEN 'Infinity' ELSE i / 7.0::float8 END,
       (ARRAY['wolf', 'bear', 'newt ', 'é', ''])[i % 5 + 1],
       'c-' || i,
       CASE WHEN i % 8 = 0 THEN NULL ELSE decode(md5('photo' || i), 'hex') || '\x00ff5c0a0d'::bytea END,
       CASE i % 70 WHEN 0 THEN 'infinity' WHEN 1 THEN '0044-03-15 12:00:00 BC' ELSE timestamp '2001-02-03 04:05:06.789' + i * interval '1.001 s' END,
       timestamptz '2024-10-27 00:30:00+00' + i * interval '17 min',
       CASE i % 40 WHEN 0 THEN '24:00:00' ELSE time '00:00' + i * interval '1.5 s' END,
       make_interval(months => i % 30 - 15, days => i % 50 - 25, secs => i / 3.0),
       CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN 'empty' WHEN 2 THEN tstzrange(NULL, NULL) ELSE tstzrange('2024-01-01Z', timestamptz '2024-01-02Z' + i * interval '1 h', '[]') END,
       zoo.float_range(i, i + 0.5, '(]'),
       ('10.' || i % 256 || '.' || i / 256 % 256 || '.7/' || 8 + i % 25)::inet,
       (i % 32)::bit(5),
       CASE WHEN i % 100 = 0 THEN repeat(md5(i::text), 400) ELSE E'line\nwith \\ backslash, tab\t and \\. number ' || i END,
       (ARRAY[true, false, NULL])[i % 3 + 1],
       i,
       CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN '{}' WHEN 2 THEN '[0:1]={7,8}'::int[] ELSE ARRAY[[i, NULL], [2, 3]] END
FROM generate_series(1, 5000) i;
ALTER TABLE zoo.animal DROP COLUMN gone, DROP COLUMN also_gone;
ALTER TABLE zoo.animal ADD COLUMN legs smallint NOT NULL DEFAULT 4;   -- a fast default: no rewrite
ALTER TABLE zoo.animal ALTER COLUMN photo SET STORAGE EXTERNAL;
UPDATE zoo.animal SET legs = 2 WHERE id % 130 = 0;
DELETE FROM zoo.animal WHERE id % 970 = 0;
CREATE INDEX animal_keeper ON zoo.animal (keeper);
CREATE INDEX animal_stay ON zoo.animal USING gist (stay);
CREATE UNIQUE INDEX animal_code ON zoo.animal (lower(code)) WHERE code IS NOT NULL;

-- A table without any key, with rows that are alike ----------------------------------------------------

CREATE TABLE zoo.visit (day date, gate smallint, note text);
INSERT INTO zoo.visit
SELECT date '2024-01-01' + i % 100, (i % 4)::smallint, CASE WHEN i % 6 = 0 THEN NULL WHEN i % 6 = 1 THEN '' ELSE 'n' || i % 7 END
FROM generate_series(1, 3000) i;
ALTER TABLE zoo.visit REPLICA IDENTITY FULL;

-- Partitions: list, then range, with default partitions; keys and foreign keys on and to the root ----------

CREATE TABLE zoo.ticket (
    region text NOT NULL,
    sold   timestamptz NOT NULL,
    id     bigint NOT NULL,
    price  numeric(8, 2) NOT NULL,
    keeper integer REFERENCES zoo.keeper,
    PRIMARY KEY (region, sold, id)
) PARTITION BY LIST (region);
CREATE TABLE zoo.ticket_eu PARTITION OF zoo.ticket FOR VALUES IN ('de', 'fr') PARTITION BY RANGE (sold);
CREATE TABLE zoo.ticket_eu_2023 PARTITION OF zoo.ticket_eu FOR VALUES FROM ('2023-01-01Z') TO ('2024-01-01Z');
CREATE TABLE zoo.ticket_eu_2024 (id bigint NOT NULL, junk text, price numeric(8, 2) NOT NULL, region text NOT NULL, keeper integer, sold timestamptz NOT NULL);
ALTER TABLE zoo.ticket_eu_2024 DROP COLUMN junk;         -- other column order, and a dropped one
ALTER TABLE zoo.ticket_eu ATTACH PARTITION zoo.ticket_eu_2024 FOR VALUES FROM ('2024-01-01Z') TO ('2025-01-01Z');
CREATE TABLE zoo.ticket_eu_rest PARTITION OF zoo.ticket_eu DEFAULT;
CREATE TABLE zoo.ticket_us PARTITION OF zoo.ticket FOR VALUES IN ('us');
CREATE TABLE zoo.ticket_rest PARTITION OF zoo.ticket DEFAULT;
CREATE INDEX ticket_price ON zoo.ticket (price);
INSERT INTO zoo.ticket
SELECT (ARRAY['de', 'fr', 'us', 'jp', 'x'])[i % 5 + 1], timestamptz '2022-11-01Z' + i * interval '4 h', i, i % 97 + 0.25,
       CASE WHEN i % 3 = 0 THEN NULL ELSE i % 1000 + 1 END
FROM generate_series(1, 6000) i;
CREATE TABLE zoo.refund (
    region text, sold timestamptz, ticket bigint, reason text NOT NULL,
    CONSTRAINT refund_ticket FOREIGN KEY (region, sold, ticket) REFERENCES zoo.ticket (region, sold, id)
);
INSERT INTO zoo.refund SELECT region, sold, id, 'reason ' || id % 3 FROM zoo.ticket WHERE id % 20 = 0;
CREATE TABLE zoo.hashed (id integer PRIMARY KEY, t text) PARTITION BY HASH (id);
CREATE TABLE zoo.hashed_0 PARTITION OF zoo.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE zoo.hashed_1 PARTITION OF zoo.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO zoo.hashed SELECT i, md5(i::text) FROM generate_series(1, 500) i;
CREATE TABLE zoo.childless (i integer) PARTITION BY RANGE (i);

-- Inheritance: the parent has rows of its own ------------------------------------------------------------

CREATE TABLE zoo.building (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE zoo.aviary (height numeric(5, 2)) INHERITS (zoo.building);
INSERT INTO zoo.building SELECT i, 'building ' || i FROM generate_series(1, 40) i;
INSERT INTO zoo.aviary SELECT 100 + i, 'aviary ' || i, i * 1.5 FROM generate_series(1, 40) i;

-- Foreign keys in a circle, deferrable keys, an exclusion constraint, a NOT VALID one -------------------------

CREATE TABLE zoo.hen (id integer PRIMARY KEY, egg integer NOT NULL);
CREATE TABLE zoo.egg (id integer PRIMARY KEY, hen integer NOT NULL REFERENCES zoo.hen DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE zoo.hen ADD CONSTRAINT hen_egg FOREIGN KEY (egg) REFERENCES zoo.egg DEFERRABLE INITIALLY DEFERRED;
BEGIN;
INSERT INTO zoo.hen SELECT i, 201 - i FROM generate_series(1, 200) i;
INSERT INTO zoo.egg SELECT i, 201 - i FROM generate_series(1, 200) i;
COMMIT;
CREATE TABLE zoo.queue_place (
    visitor text NOT NULL,
    place   integer NOT NULL,
    CONSTRAINT queue_place_key PRIMARY KEY (visitor),
    CONSTRAINT queue_place_place UNIQUE (place) DEFERRABLE INITIALLY IMMEDIATE
);
INSERT INTO zoo.queue_place SELECT 'v' || i, i FROM generate_series(1, 100) i;
UPDATE zoo.queue_place SET place = 101 - place;            -- swaps, which only a deferrable key allows
CREATE TABLE zoo.booking (
    room   int4range NOT NULL,
    during tsrange NOT NULL,
    CONSTRAINT booking_free EXCLUDE USING gist (room WITH &&, during WITH &&)
);
INSERT INTO zoo.booking SELECT int4range(i, i, '[]'), tsrange(timestamp '2024-01-01' + i * interval '1 h', timestamp '2024-01-01' + (i + 1) * interval '1 h') FROM generate_series(1, 200) i;
CREATE TABLE zoo.legacy (id integer PRIMARY KEY, amount integer, keeper integer);
INSERT INTO zoo.legacy SELECT i, i - 10, 100000 + i FROM generate_series(1, 50) i;
ALTER TABLE zoo.legacy ADD CONSTRAINT legacy_amount CHECK (amount > 0) NOT VALID;
ALTER TABLE zoo.legacy ADD CONSTRAINT legacy_keeper FOREIGN KEY (keeper) REFERENCES zoo.keeper NOT VALID;

-- Generated columns, also as the only source of an index -------------------------------------------------------

CREATE TABLE zoo.rectangle (
    width  integer NOT NULL,
    area   bigint GENERATED ALWAYS AS (width::bigint * height) STORED,
    height integer NOT NULL,
    id     integer PRIMARY KEY
);
INSERT INTO zoo.rectangle (id, width, height) SELECT i, i, 2 * i FROM generate_series(1, 300) i;
CREATE INDEX rectangle_area ON zoo.rectangle (area);

-- The odd ones -----------------------------------------------------------------------------------------------

CREATE UNLOGGED TABLE zoo.scratch (id integer PRIMARY KEY, t text);
INSERT INTO zoo.scratch SELECT i, 'unlogged ' || i FROM generate_series(1, 100) i;
CREATE TABLE zoo.nothing_at_all ();
INSERT INTO zoo.nothing_at_all DEFAULT VALUES;
INSERT INTO zoo.nothing_at_all DEFAULT VALUES;
INSERT INTO zoo.nothing_at_all DEFAULT VALUES;
CREATE TABLE zoo.empty (id integer PRIMARY KEY, t text NOT NULL DEFAULT 'nobody');
CREATE TABLE zoo.document (id integer PRIMARY KEY, raw json, body xml, words tsvector, flags varbit, mac macaddr, net cidr, place point, amount money);
INSERT INTO zoo.document
SELECT i, ('{"b": ' || i || ',  "a":1,"a":2, "u":"\u00e9"}')::json, NULL, to_tsvector('simple', 'one two three ' || i),
       repeat('10', i % 9)::varbit, '08:00:2b:01:02:03', ('192.168.' || i % 256 || '.0/24')::cidr, point(i, -i), (i * 1.25)::numeric::money
FROM generate_series(1, 300) i;
CREATE TABLE zoo.typed OF zoo.point3 (PRIMARY KEY (x));
INSERT INTO zoo.typed SELECT i, i, i FROM generate_series(1, 10) i;

CREATE SCHEMA "Odd ""Schema"".x";
CREATE TABLE "Odd ""Schema"".x"."a""b; drop table x;--" ("select" integer PRIMARY KEY, "from ""it""" text, " %s\" text);
INSERT INTO "Odd ""Schema"".x"."a""b; drop table x;--" SELECT i, 'r' || i, E'\\' || i FROM generate_series(1, 25) i;
CREATE INDEX "in dex;" ON "Odd ""Schema"".x"."a""b; drop table x;--" ("from ""it""");

-- Views, one on another; materialized, one of them never filled ---------------------------------------------------

CREATE VIEW zoo.shy AS SELECT a.id, a.species, k.name AS keeper FROM zoo.animal a LEFT JOIN zoo.keeper k ON k.id = a.keeper WHERE a.is_shy;
CREATE VIEW zoo.shy_count AS SELECT keeper, count(*) AS animals FROM zoo.shy GROUP BY keeper;
COMMENT ON VIEW zoo.shy IS 'a view';
CREATE MATERIALIZED VIEW zoo.sales AS SELECT region, sum(price) AS total, count(*) AS tickets FROM zoo.ticket GROUP BY region;
CREATE UNIQUE INDEX sales_region ON zoo.sales (region);
CREATE MATERIALIZED VIEW zoo.unfilled AS SELECT 1 AS one WITH NO DATA;

-- Triggers and rules that would change or double the rows if a copy let them run --------------------------------------

CREATE TABLE zoo.audit (id bigserial PRIMARY KEY, what text NOT NULL);
INSERT INTO zoo.audit (what) SELECT 'old entry ' || i FROM generate_series(1, 10) i;
CREATE TABLE zoo.touchy (id integer PRIMARY KEY, touched integer NOT NULL);
INSERT INTO zoo.touchy SELECT i, 0 FROM generate_series(1, 100) i;
CREATE FUNCTION zoo.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.touched := NEW.touched + 1;
    INSERT INTO zoo.audit (what) VALUES ('touched ' || NEW.id);
    RETURN NEW;
END $$;
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON zoo.touchy FOR EACH ROW EXECUTE FUNCTION zoo.touch();
COMMENT ON TRIGGER touch ON zoo.touchy IS 'must not fire while a copy is made';
CREATE TABLE zoo.watched (id integer PRIMARY KEY, t text);
INSERT INTO zoo.watched SELECT i, 'w' || i FROM generate_series(1, 30) i;
CREATE TRIGGER touch_disabled BEFORE INSERT ON zoo.watched FOR EACH ROW EXECUTE FUNCTION zoo.touch();
ALTER TABLE zoo.watched DISABLE TRIGGER touch_disabled;
CREATE RULE watched_twice AS ON INSERT TO zoo.watched DO ALSO INSERT INTO zoo.audit (what) VALUES ('rule');
CREATE RULE watched_keep AS ON DELETE TO zoo.watched DO INSTEAD NOTHING;
