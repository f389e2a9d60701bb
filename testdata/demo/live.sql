-- What the live writer of the demonstration writes to: a ledger with a key and its copy without one.
CREATE SCHEMA live;
CREATE TABLE live.account (id integer PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO live.account SELECT i, 1000 FROM generate_series(1, 1000) i;
CREATE TABLE live.ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, source integer NOT NULL REFERENCES live.account, target integer NOT NULL REFERENCES live.account, amount integer NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE live.ledger_copy (source integer, target integer, amount integer);
-- One transfer: the sum of all balances never changes, and the copy of the ledger keeps every row.
CREATE PROCEDURE live.transfer() LANGUAGE plpgsql AS $$
DECLARE
    a integer := 1 + floor(random() * 1000);
    b integer := 1 + floor(random() * 1000);
    n integer := 1 + floor(random() * 50);
BEGIN
    -- In the order of the keys, so that two writers never wait for each other in a circle.
    PERFORM FROM live.account WHERE id IN (a, b) ORDER BY id FOR UPDATE;
    UPDATE live.account SET balance = balance - n WHERE id = a;
    UPDATE live.account SET balance = balance + n WHERE id = b;
    INSERT INTO live.ledger (source, target, amount) VALUES (a, b, n);
    INSERT INTO live.ledger_copy VALUES (a, b, n);
    -- Old entries go, so that deletes are part of the load.
    IF n = 1 THEN
        DELETE FROM live.ledger WHERE id IN (SELECT id FROM live.ledger ORDER BY id LIMIT 1);
    END IF;
END $$;
