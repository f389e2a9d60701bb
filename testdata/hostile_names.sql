-- Names that break whoever builds SQL, paths or messages by pasting text together. Every table has the
-- same three rows, so a table that is lost or mixed up with another one shows by its second column.
CREATE SCHEMA hostile;
DO $do$
DECLARE
    name text;
    names text[] := ARRAY[
        'a"b; drop table x;--', 'select', 'table', 'user', '%s', '%', '%2e%2e', '\', '''', '"', '''; --',
        '../../x', '..', '.', '/etc/passwd', 'A', 'a', 'con', 'nul', 'COM1', 'aux.txt', ' leading', 'trailing ',
        'two  blanks', E'new\nline', E'tab\there', E'cr\rhere', '$1', '$$', '{}', '{0}', '${HOME}', '`id`', '*', '?', 'a*b', '[a]', '~', '-rf', '--help', '#',
        U&'\00e9', U&'e\0301', 'ß', 'İ', 'зоопарк', '動物園', '🦊', '_tidemark', 'tidemark', 'snapshot', 'changes', 'a.b', 'x:y', 'a b', 'a%20b', '1', '0x',
        'null', 'NULL', 'true', E'\u200b', E'\u202egnp', repeat('x', 63), repeat('x', 62) || 'y', repeat('é', 31) || 'z'];
    number integer := 0;
BEGIN
    FOREACH name IN ARRAY names LOOP
        number := number + 1;
        EXECUTE format('CREATE TABLE hostile.%I (id integer PRIMARY KEY, which integer NOT NULL, %I text, %I text DEFAULT %L)',
                       name, name || '', left('c' || name, 20), name);
        EXECUTE format('INSERT INTO hostile.%I SELECT i, %s, %L, %L FROM generate_series(1, 3) i', name, number, name, name);
        EXECUTE format('COMMENT ON TABLE hostile.%I IS %L', name, name);
        CONTINUE WHEN name = 'tidemark';   -- the mover's own schema
        EXECUTE format('CREATE SCHEMA %I', name);
        EXECUTE format('CREATE TABLE %I.t (id integer PRIMARY KEY, which integer)', name);
        EXECUTE format('INSERT INTO %I.t VALUES (1, %s)', name, number);
    END LOOP;
END $do$;
CREATE TYPE hostile."enum'; drop" AS ENUM ('a''b', '"', ',', '{', E'\\', '', 'l23456789012345678901234567890123456789012345678901234567890123');
CREATE TABLE hostile.labels (id integer PRIMARY KEY, label hostile."enum'; drop", labels hostile."enum'; drop"[]);
INSERT INTO hostile.labels SELECT i, (enum_range(NULL::hostile."enum'; drop"))[i], enum_range(NULL::hostile."enum'; drop") FROM generate_series(1, 7) i;
CREATE SEQUENCE hostile."seq'""";
SELECT setval('hostile."seq''"""', 42);
