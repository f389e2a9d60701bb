CREATE SCHEMA storm;

-- The bank: the sum over both tables never changes.
CREATE TABLE storm.account (id integer PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE storm.vault (id integer PRIMARY KEY, balance bigint NOT NULL, note text NOT NULL);
INSERT INTO storm.account SELECT i, 1000 FROM generate_series(1, 1000) i;
INSERT INTO storm.vault SELECT i, 10000, repeat(md5(i::text), 3) FROM generate_series(1, 100) i;

-- The ledger: dense per client, with a key and without one; and the last entry of each client.
CREATE TABLE storm.ledger (client integer, seq bigint, note text, PRIMARY KEY (client, seq));
CREATE TABLE storm.ledger_copy (client integer, seq bigint, note text);
ALTER TABLE storm.ledger_copy REPLICA IDENTITY FULL;
CREATE TABLE storm.latest (client integer PRIMARY KEY, seq bigint NOT NULL);

-- The clock: its row is locked until commit, so ticks are in commit order over all clients.
CREATE TABLE storm.clock (id integer PRIMARY KEY, tick bigint NOT NULL);
INSERT INTO storm.clock VALUES (1, 0);
CREATE TABLE storm.tick (tick bigint PRIMARY KEY, client integer NOT NULL, seq bigint NOT NULL);

-- Big transactions; the first two are truncated together.
CREATE TABLE storm.bulk (id bigint PRIMARY KEY, body text, n integer NOT NULL);
CREATE TABLE storm.bulk_note (id bigint PRIMARY KEY, note text);
CREATE TABLE storm.copied (batch bigint, row_number integer, body text, PRIMARY KEY (batch, row_number));
CREATE TABLE storm.woven (id bigint PRIMARY KEY, body text);
INSERT INTO storm.bulk SELECT -i, repeat(md5(i::text), 3), i FROM generate_series(1, 40000) i;
INSERT INTO storm.bulk_note SELECT -i, 'note ' || i FROM generate_series(1, 2000) i;

-- Values that live outside the row, by every kind of replica identity that has a key.
CREATE TABLE storm.document (
    id bigint PRIMARY KEY, body text, extra jsonb, small integer NOT NULL, price numeric, at timestamptz, tags text[], raw bytea);
CREATE TABLE storm.document_full (LIKE storm.document INCLUDING ALL);
CREATE TABLE storm.document_index (LIKE storm.document);
CREATE UNIQUE INDEX document_index_key ON storm.document_index (id);
ALTER TABLE storm.document_index ALTER id SET NOT NULL, REPLICA IDENTITY USING INDEX document_index_key;
ALTER TABLE storm.document ALTER body SET STORAGE EXTERNAL;
ALTER TABLE storm.document_full ALTER body SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
ALTER TABLE storm.document_index ALTER body SET STORAGE EXTERNAL;
INSERT INTO storm.document SELECT -i, repeat(md5(i::text), i % 400), jsonb_build_object('i', i), i, i / 7.0,
    timestamptz '2024-02-29 12:00:00.123456+00' + i * interval '1 hour', ARRAY['a,b', NULL, i::text], decode(md5(i::text), 'hex')
    FROM generate_series(1, 1000) i;
INSERT INTO storm.document_full SELECT * FROM storm.document;
INSERT INTO storm.document_index SELECT * FROM storm.document;

-- Keys and unique values that are swapped, a table without a key that holds equal rows, rows that move between partitions.
CREATE TABLE storm.place (id integer PRIMARY KEY, position integer NOT NULL UNIQUE, label text NOT NULL);
INSERT INTO storm.place SELECT i, i, 'p' || i FROM generate_series(1, 1000) i;
CREATE TABLE storm.bag (what text, n integer, at date);
ALTER TABLE storm.bag REPLICA IDENTITY FULL;
INSERT INTO storm.bag SELECT 'w' || i % 7, nullif(i % 5, 0), date '2024-01-01' + i % 3 FROM generate_series(1, 300) i;
CREATE TABLE storm.parted (id bigint, area integer, body text, PRIMARY KEY (id, area)) PARTITION BY LIST (area);
CREATE TABLE storm.parted_0 PARTITION OF storm.parted FOR VALUES IN (0);
CREATE TABLE storm.parted_1 PARTITION OF storm.parted FOR VALUES IN (1);
CREATE TABLE storm.parted_2 PARTITION OF storm.parted FOR VALUES IN (2);
INSERT INTO storm.parted SELECT -i, i % 3, md5(i::text) FROM generate_series(1, 600) i;

-- Never written again.
CREATE TABLE storm.idle (id integer PRIMARY KEY, note text);
INSERT INTO storm.idle SELECT i, 'idle' FROM generate_series(1, 10) i;
