-- The type matrix: every built-in type with the extreme and the treacherous values of hazards D50-D66
-- and of the hard cases of the proof. One table per family, each with `id` and a `note` that says what
-- the row is there for. For psql (it skips what the server's version does not know yet).
SELECT :SERVER_VERSION_NUM >= 140000 AS pg14, :SERVER_VERSION_NUM >= 160000 AS pg16, :SERVER_VERSION_NUM >= 170000 AS pg17 \gset
CREATE SCHEMA matrix;

CREATE TABLE matrix.integers (id integer PRIMARY KEY, note text, i2 smallint, i4 integer, i8 bigint, o oid, b boolean);
INSERT INTO matrix.integers VALUES
    (1, 'smallest', -32768, -2147483648, -9223372036854775808, 0, false),
    (2, 'largest', 32767, 2147483647, 9223372036854775807, 4294967295, true),
    (3, 'zero', 0, 0, 0, 2147483648, NULL),
    (4, 'beyond the whole numbers of a double', 1, 1, 9007199254740993, 1, true),
    (5, 'all null', NULL, NULL, NULL, NULL, NULL);

CREATE TABLE matrix.floats (id integer PRIMARY KEY, note text, f4 real, f8 double precision);
INSERT INTO matrix.floats VALUES
    (1, 'nan', 'NaN', 'NaN'), (2, 'infinity', 'Infinity', 'Infinity'), (3, '-infinity', '-Infinity', '-Infinity'),
    (4, 'minus zero', '-0', '-0'), (5, 'zero', 0, 0), (6, 'subnormal', 1e-45, 5e-324),
    (7, 'largest', 3.4028235e38, 1.7976931348623157e308), (8, 'smallest normal', 1.17549435e-38, 2.2250738585072014e-308),
    (9, 'needs 17 digits', 1.1, 0.30000000000000004), (10, 'nearly the same', 1.1000001, 0.3), (11, 'tiny', 1e-9, 1e-9),
    (12, 'tiny too', 2e-9, 2e-9), (13, 'null', NULL, NULL);
INSERT INTO matrix.floats SELECT 14, 'nan of another sign', '-NaN'::float8::real, -'NaN'::float8;

CREATE TABLE matrix.numerics (id integer PRIMARY KEY, note text, n numeric, n5_2 numeric(5, 2), n38_10 numeric(38, 10), n1000 numeric(1000, 500));
INSERT INTO matrix.numerics VALUES
    (1, 'nan', 'NaN', 'NaN', 'NaN', 'NaN'), (2, 'scale 1', 1.0, 1, 1, 1), (3, 'scale 2', 1.00, -1, -1, -1), (4, 'zero', 0, 0, 0, 0),
    (5, 'zero with scale', 0.000, -0.00, 0.0000000000, 0.0), (6, 'largest', 999.99, 999.99, 9999999999999999999999999999.9999999999, repeat('9', 500)::numeric),
    (7, 'smallest', -999.99, -999.99, -9999999999999999999999999999.9999999999, -0.1), (8, '10^40', 10::numeric ^ 40, 0.01, 0.0000000001, 1e-500),
    (9, '131072 digits', repeat('9', 131072)::numeric, 1, 1, 1), (10, '16383 decimals', ('0.' || repeat('0', 16382) || '1')::numeric, 1, 1, 1),
    (11, 'groups of four', 10000, 100, 100000000, 100010000), (12, 'groups of four', 0.0001, 0.1, 0.0001, 0.00010001), (13, 'null', NULL, NULL, NULL, NULL);
\if :pg14
INSERT INTO matrix.numerics VALUES (20, 'infinity', 'Infinity', NULL, NULL, NULL), (21, '-infinity', '-Infinity', NULL, NULL, NULL);
\endif
\if :pg16
CREATE TABLE matrix.numeric_scales (id integer PRIMARY KEY, note text, coarse numeric(3, -2), fine numeric(2, 5));
INSERT INTO matrix.numeric_scales VALUES (1, 'negative scale', 12345, 0.00012), (2, 'zero', 49, 0.000004);
\endif
CREATE TABLE matrix.money (id integer PRIMARY KEY, note text, m money);
INSERT INTO matrix.money VALUES (1, 'largest', '92233720368547758.07'), (2, 'smallest', '-92233720368547758.08'), (3, 'cent', '0.01'), (4, 'null', NULL);

CREATE TABLE matrix.texts (id integer PRIMARY KEY, note text, t text, v varchar(10), c char(5), n name, one "char", cc text COLLATE "C");
INSERT INTO matrix.texts VALUES
    (1, 'empty', '', '', '', '', '', ''), (2, 'null', NULL, NULL, NULL, NULL, NULL, NULL), (3, 'the word', 'NULL', 'null', 'NULL', 'NULL', 'N', '\N'),
    (4, 'backslash N', '\N', '\N', '\N', '\N', '\', '\N'), (5, 'end of copy', '\.', E'\\.\n', '\.', '\.', '.', E'\\.\n\\.'),
    (6, 'white space', E'tab\tline\nreturn\r', E' a ', ' a', ' a', E'\n', E'\x0b\x0c\x08\x07'), (7, 'trailing blank', 'a ', 'a ', 'a ', 'a ', ' ', 'a '),
    (8, 'line end', E'a\n', E'a\n', E'a\n', 'a', 'a', E'a\r\n'), (9, 'no blank', 'a', 'a', 'a', 'a', 'a', 'a'),
    (10, 'composed', U&'\00e9', U&'\00e9', U&'\00e9', U&'\00e9', 'e', U&'\00e9'), (11, 'decomposed', U&'e\0301', U&'e\0301', U&'e\0301', U&'e\0301', 'e', U&'e\0301'),
    (12, 'four bytes', U&'\+01F98A', U&'\+01F98A', U&'\+01F98A', U&'\+01F98A', 'x', U&'\+10FFFF'), (13, 'quotes', $q$'"''""$q$, $q$'"$q$, $q$'"$q$, $q$'"$q$, '''', $q$"$q$),
    (14, 'sentinels', '<null>', '__null__', 'None', 'nil', '0', 'DEFAULT_REPLACEMENT_STRING'), (15, 'format', '%s %n {} $1', '%d', '%', '%', '%', '${x}'),
    (16, 'separators', 'a|b,c;d', 'a|b', 'c,d', 'a|b', '|', E'\u001f\u001e'), (17, 'bidi', U&'\202Eabc\202C', U&'\200B', U&'\FEFF', U&'\FEFF', 'x', U&'\FEFFx'),
    (18, 'order', 'a-b', 'aB', '_', 'Z', 'z', 'ß'), (19, 'high byte', 'x', 'x', 'x', 'x', (-1)::int::"char", 'x'), (20, 'controls', E'\x01\x02\x1f\x7f', E'\x01', E'\x7f', E'\x01', E'\x01', E'\x1b[31m');
INSERT INTO matrix.texts SELECT 21, 'one megabyte', repeat('0123456789abcdef', 65536), 'x', 'x', 'x', 'x', repeat(U&'\00e9', 300000);
INSERT INTO matrix.texts SELECT 22, 'one megabyte that does not compress', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 32768) i), 'x', 'x', repeat('n', 63), 'x', 'x';

CREATE TABLE matrix.bytes (id integer PRIMARY KEY, note text, b bytea, f bit(3), v varbit, f64 bit(64));
INSERT INTO matrix.bytes VALUES (1, 'empty', '', B'000', B'', repeat('0', 64)::bit(64)), (2, 'null', NULL, NULL, NULL, NULL),
    (3, 'nul bytes', '\x000000', B'101', B'101', repeat('1', 64)::bit(64)), (4, 'looks like text', '\x5c4e', B'111', B'1010', 1::bit(64)), (5, 'eight', '\xff', B'001', B'11111111', (-1)::bigint::bit(64));
INSERT INTO matrix.bytes SELECT 6, 'all 256 bytes', decode(string_agg(lpad(to_hex(i), 2, '0'), '' ORDER BY i), 'hex'), B'010', repeat('10', 5000)::varbit, 5::bit(64) FROM generate_series(0, 255) i;
INSERT INTO matrix.bytes SELECT 10 + i, 'one byte', decode(lpad(to_hex(i), 2, '0'), 'hex'), NULL, i::bit(8)::varbit, NULL FROM generate_series(0, 255) i;
INSERT INTO matrix.bytes SELECT 300, 'two megabytes', decode(repeat('00ff5c0a', 524288), 'hex'), NULL, NULL, NULL;

CREATE TABLE matrix.times (id integer PRIMARY KEY, note text, d date, ts timestamp, tz timestamptz, t time, ttz timetz, ts0 timestamp(0), t3 time(3));
INSERT INTO matrix.times VALUES
    (1, 'infinity', 'infinity', 'infinity', 'infinity', '24:00:00', '24:00:00+15:59:59', 'infinity', '24:00'),
    (2, '-infinity', '-infinity', '-infinity', '-infinity', '00:00', '00:00-15:59:59', '-infinity', '00:00'),
    (3, 'largest', '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00', '23:59:59.999999', '23:59:59.999999+00', '294276-12-31', '23:59:59.999'),
    (4, 'smallest', '4713-11-24 BC', '4713-11-24 00:00:00 BC', '4713-11-24 00:00:00+00 BC', '00:00:00.000001', '09:00+01', '4713-11-24 BC', '0:0:0.001'),
    (5, 'same instant, other zone', '0001-01-01', '0001-01-01', '0001-01-01Z', '12:00', '10:00+02', '0001-01-01', '1:1:1'),
    (6, 'year before 1', '0001-12-31 BC', '0001-12-31 23:59:59.999999 BC', '0001-12-31 23:59:59+00 BC', '12:34:56.789', '12:34:56+05:30', '0001-12-31 BC', '1:1'),
    (7, 'end of nanoseconds', '2262-04-12', '2262-04-11 23:47:16.854776', '2262-04-11 23:47:16.854776Z', '1:2:3.123456', '1:2:3-03:30', '2262-04-12', '1:1'),
    (8, 'before nanoseconds', '1677-09-20', '1677-09-21 00:12:43.145223', '1677-09-21 00:12:43.145223Z', '1:2:3.123', '1:2:3+00:00:01', '1677-09-20', '1:1'),
    (9, 'epochs', '1970-01-01', '1970-01-01', '1970-01-01Z', '0:0', '0:0Z', '2000-01-01', '0:0'), (10, 'just before', '1999-12-31', '1999-12-31 23:59:59.999999', '1969-12-31 23:59:59.999999Z', '0:0', '0:0Z', '1999-12-31', '0:0'),
    (11, 'summer time', '2024-10-27', '2024-10-27 02:30', '2024-10-27 00:30Z', '2:30', '2:30+02', '2024-10-27', '2:30'), (12, 'summer time', '2024-10-27', '2024-10-27 02:30', '2024-10-27 01:30Z', '2:30', '2:30+01', '2024-10-27', '2:30'),
    (13, 'leap day', '2000-02-29', '2000-02-29', '2000-02-29 12:00+14', '0:0', '0:0+14', '2000-02-29', '0:0'), (14, 'null', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (15, 'end of arrow microseconds from 1970', '9999-12-31', '294247-01-10 04:00:54.775807', '294247-01-10 04:00:54.775807Z', '0:0', '0:0Z', '9999-12-31', '0:0');

CREATE TABLE matrix.intervals (id integer PRIMARY KEY, note text, i interval, s interval second(3), y interval year to month);
INSERT INTO matrix.intervals VALUES (1, 'month', '1 mon', '1.2345 s', '1-2'), (2, '30 days', '30 days', '0', '-1-2'), (3, 'day', '1 day', '59.999 s', '0'), (4, '24 hours', '24:00', NULL, NULL),
    (5, 'mixed signs', '-1 mon +2 days -03:04:05.678901', NULL, NULL), (6, 'largest', '178000000 years 2147483647 days 2147483647:59:59.999999', NULL, NULL),
    (7, 'smallest', '-178000000 years -2147483648 days -2147483647:59:59.999999', NULL, NULL), (8, 'microsecond', '0.000001 s', NULL, NULL), (9, 'zero', '0', '0', '0'), (10, 'null', NULL, NULL, NULL);
\if :pg17
INSERT INTO matrix.intervals VALUES (20, 'infinity', 'infinity', NULL, NULL), (21, '-infinity', '-infinity', NULL, NULL);
\endif

CREATE TABLE matrix.jsons (id integer PRIMARY KEY, note text, j json, b jsonb, p jsonpath);
INSERT INTO matrix.jsons VALUES (1, 'key order', '{"b":1, "aa" : 2}', '{"b":1,"aa":2}', '$.a'), (2, 'duplicates', '{"a":1,"a":2}', '{"a":1,"a":2}', '$'), (3, 'json null', 'null', 'null', '$[*]'),
    (4, 'null', NULL, NULL, NULL), (5, 'numbers', '[1.0,1.00,1e2,-0,9007199254740993]', '[1.0,1.00,1e2,-0,9007199254740993]', '$ ? (@ > 1)'), (6, 'empty', '{}', '{}', '$.**'), (7, 'empty', '[]', '[]', '$'),
    (8, 'large number', '1e400', '1e400', '$'), (9, 'escapes', '"\u00e9\ud83e\udd8a\"\\\/\b"', '"\u00e9\ud83e\udd8a\"\\\/\b"', '$'), (10, 'white space', E' \n{ "a" :\t1 } ', E' \n{ "a" :\t1 } ', '$'), (11, 'scalar', '"x"', 'true', '$');
INSERT INTO matrix.jsons VALUES (12, 'nul that only json takes', '{"a":"\u0000"}', NULL, NULL);
INSERT INTO matrix.jsons SELECT 13, 'deep', (repeat('[', 500) || repeat(']', 500))::json, (repeat('[', 500) || repeat(']', 500))::jsonb, NULL;

CREATE TYPE matrix.size AS ENUM ('S', 'M', 'X,L', 'a"b', '');
CREATE DOMAIN matrix.cents AS numeric(10, 2);
CREATE DOMAIN matrix.sizes AS matrix.size[];
CREATE TYPE matrix.pair AS (a integer, gone text, b text);
ALTER TYPE matrix.pair DROP ATTRIBUTE gone;
CREATE TYPE matrix.nest AS (p matrix.pair, ps matrix.pair[], s matrix.size, c matrix.cents);
CREATE DOMAIN matrix.pair_domain AS matrix.pair;
CREATE TABLE matrix.arrays (id integer PRIMARY KEY, note text, i integer[], t text[], n numeric[], f float8[], d date[], u uuid[], e matrix.size[], p matrix.pair[], b bytea[], j jsonb[]);
INSERT INTO matrix.arrays VALUES (1, 'empty', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'), (2, 'null', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (3, 'null inside', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}'), (4, 'words', '{1}', '{"NULL",null,"","\"","\\","a,b","{}"," x "}', '{1.0,1.00}', '{NaN,-0,Infinity}', '{infinity,"0044-03-15 BC"}', NULL, '{"X,L",S,"a\"b",""}', NULL, '{"\\x00","\\x"}', '{"null","[]"}'),
    (5, 'lower bounds', '[0:1]={7,8}', '[-5:-4]={a,b}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), (6, 'two dimensions', '{{1,2},{3,4}}', '{{NULL},{NULL}}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (7, 'flat', '{1,2,3,4}', '{a}', NULL, NULL, NULL, NULL, NULL, ARRAY[ROW(1, 'a,b')::matrix.pair, NULL, ROW(NULL, NULL)::matrix.pair], NULL, NULL), (8, 'six dimensions', '{{{{{{1}}}}}}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO matrix.arrays (id, note, i, u) SELECT 9, 'long', array_agg(g), array_agg(md5(g::text)::uuid) FROM generate_series(1, 20000) g;

CREATE TABLE matrix.composites (id integer PRIMARY KEY, note text, p matrix.pair, n matrix.nest, c matrix.cents, s matrix.sizes, d matrix.pair_domain);
INSERT INTO matrix.composites VALUES (1, 'all null inside', ROW(NULL, NULL), ROW(NULL, NULL, NULL, NULL), NULL, NULL, NULL), (2, 'null', NULL, NULL, NULL, NULL, NULL), (3, 'quotes', ROW(1, 'a"b,(c)\'), ROW(ROW(2, ''), ARRAY[ROW(3, NULL)::matrix.pair], 'X,L', 1.5), 99999999.99, '{S,NULL}', ROW(1, 'x'));

CREATE TABLE matrix.ranges (id integer PRIMARY KEY, note text, i int4range, l int8range, n numrange, d daterange, t tsrange, z tstzrange);
INSERT INTO matrix.ranges VALUES (1, 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', 'empty'), (2, 'null', NULL, NULL, NULL, NULL, NULL, NULL), (3, 'unbounded', '(,)', '(,)', '(,)', '(,)', '(,)', '(,)'), (4, 'canonical', '[1,5]', '(1,5)', '[1.0,2]', '[2024-01-01,2024-01-31]', '[2024-01-01,infinity]', '[-infinity,2024-01-01Z)'),
    (5, 'half', '(,5)', '[5,)', '[1.00,2]', '(,2024-01-01)', '(,2024-01-01]', '[2024-01-01Z,)'), (6, 'infinite bound', NULL, NULL, '[NaN,NaN]', '[-infinity,infinity]', '(-infinity,infinity)', NULL);
\if :pg14
CREATE TABLE matrix.multiranges (id integer PRIMARY KEY, note text, i int4multirange, n nummultirange, z tstzmultirange);
INSERT INTO matrix.multiranges VALUES (1, 'empty', '{}', '{}', '{}'), (2, 'null', NULL, NULL, NULL), (3, 'merged', '{[1,3),[3,5)}', '{[1.0,1.5],(2,)}', '{(,2024-01-01Z)}'), (4, 'whole', '{(,)}', '{(,)}', '{(,)}');
\endif

CREATE TABLE matrix.network (id integer PRIMARY KEY, note text, i inet, c cidr, m macaddr, m8 macaddr8);
INSERT INTO matrix.network VALUES (1, 'host bits', '10.1.2.3/24', '10.1.2.0/24', '08:00:2b:01:02:03', '08:00:2b:01:02:03'), (2, 'single', '10.1.2.3', '10.1.2.3/32', 'ff:ff:ff:ff:ff:ff', '08:00:2b:01:02:03:04:05'), (3, 'v6', '::1', '2001:db8::/32', '00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff:ff:ff'), (4, 'all', '0.0.0.0/0', '::/0', NULL, NULL), (5, 'v4 in v6', '::ffff:1.2.3.4/128', '0.0.0.0/0', NULL, NULL), (6, 'null', NULL, NULL, NULL, NULL);

CREATE TABLE matrix.geometry (id integer PRIMARY KEY, note text, p point, l line, s lseg, b box, h path, o path, g polygon, c circle);
INSERT INTO matrix.geometry VALUES (1, 'plain', '(1,2)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '((0,0),(1,1))', '[(0,0),(1,1)]', '((0,0),(1,0),(1,1))', '<(0,0),1>'), (2, 'odd numbers', '(NaN,-Infinity)', '{0,-1,1e300}', '[(1e-320,0),(0.1,0.2)]', '(Infinity,1),(0,-0)', '((1e300,0))', '[(0,0)]', '((0,0))', '<(1e-7,0),0>'), (3, 'null', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE matrix.others (id integer PRIMARY KEY, note text, u uuid, x xml, v tsvector, q tsquery, w pg_lsn, t tid, xi xid, r regclass, f regproc, ty regtype, ro regrole, ns regnamespace, sn txid_snapshot, x8 xid8);
INSERT INTO matrix.others (id, note, u, v, q, w, t, xi, r, f, ty, ro, ns, sn, x8) VALUES
    (1, 'first', '00000000-0000-0000-0000-000000000000', 'a:1A b:2', 'a & (b | !c:*)', '0/0', '(0,1)', '1', 'pg_class', 'now', 'integer', 'postgres', 'matrix', '1:2:', '1'),
    (2, 'last', 'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF', '''it''''s'' ''a b'':16383', '''it''''s'' <2> b', 'FFFFFFFF/FFFFFFFF', '(4294967295,65535)', '4294967295', 'matrix.others', 'array_length', 'matrix.size[]', NULL, 'public', '10:20:10,14,15', '18446744073709551615'),
    (3, 'null', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), (4, 'empty', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '', '', '16/B374D848', '(0,0)', '0', NULL, NULL, NULL, NULL, NULL, '1:1:', '0');
UPDATE matrix.others SET x = xmlparse(content '<a>é</a>') WHERE id = 1;

-- 1600 columns: the most that a table can have; and one with most columns dropped.
DO $do$ BEGIN
    EXECUTE 'CREATE TABLE matrix.wide (' || (SELECT string_agg('c' || i || CASE i % 4 WHEN 0 THEN ' integer' WHEN 1 THEN ' boolean' WHEN 2 THEN ' "char"' ELSE ' real' END, ', ' ORDER BY i) FROM generate_series(1, 1600) i) || ')';
    EXECUTE 'INSERT INTO matrix.wide SELECT ' || (SELECT string_agg(CASE i % 4 WHEN 0 THEN 'g + ' || i WHEN 1 THEN 'g % 2 = 0' WHEN 2 THEN 'NULL' ELSE 'g / 3.0' END, ', ' ORDER BY i) FROM generate_series(1, 1600) i) || ' FROM generate_series(1, 20) g';
    EXECUTE 'CREATE TABLE matrix.holes (' || (SELECT string_agg('c' || i || ' integer', ', ' ORDER BY i) FROM generate_series(1, 400) i) || ')';
    INSERT INTO matrix.holes SELECT FROM generate_series(1, 3);
    EXECUTE 'ALTER TABLE matrix.holes ' || (SELECT string_agg('DROP COLUMN c' || i, ', ' ORDER BY i) FROM generate_series(1, 400) i WHERE i % 50 <> 7);
    EXECUTE 'UPDATE matrix.holes SET c7 = 7, c57 = 57';
END $do$;
CREATE TABLE matrix.no_columns ();
INSERT INTO matrix.no_columns SELECT FROM generate_series(1, 4);
CREATE TABLE matrix.wide_keyed (id bigint PRIMARY KEY, filler text);
INSERT INTO matrix.wide_keyed SELECT i, repeat(md5(i::text), 40 * (i % 7)::integer) FROM generate_series(1, 2000) i;

-- Types of extensions have another OID in every database.
CREATE SCHEMA extensions;
CREATE EXTENSION hstore SCHEMA extensions;
CREATE EXTENSION citext SCHEMA extensions;
CREATE EXTENSION ltree SCHEMA extensions;
CREATE TABLE matrix.extensions (id integer PRIMARY KEY, note text, h extensions.hstore, c extensions.citext, l extensions.ltree, hs extensions.hstore[]);
INSERT INTO matrix.extensions VALUES (1, 'null value', 'a=>NULL', 'Foo', 'Top.Science', '{"a=>1",NULL}'), (2, 'empty value', 'a=>""', 'foo', '', '{}'), (3, 'no key', '', '', NULL, NULL), (4, 'null', NULL, NULL, NULL, NULL), (5, 'quotes', '"a\"b"=>"c\\d"', 'É', 'a.b', NULL);

-- Settings of the database that change how values look, for whoever does not pin them.
DO $do$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET DateStyle = ''SQL, DMY''', current_database());
    EXECUTE format('ALTER DATABASE %I SET IntervalStyle = ''sql_standard''', current_database());
    EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kathmandu''', current_database());
    EXECUTE format('ALTER DATABASE %I SET extra_float_digits = 0', current_database());
    EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
    EXECUTE format('ALTER DATABASE %I SET xmloption = ''document''', current_database());
    EXECUTE format('ALTER DATABASE %I SET search_path = ''nowhere''', current_database());
END $do$;
