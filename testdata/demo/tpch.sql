-- A database in the shape of TPC-H, made by SQL alone: the schema, keys and indexes of the benchmark,
-- with plausible rows from hash arithmetic instead of dbgen's. Deterministic. {{scale}} is the scale
-- factor (1 = 6 million order lines). For demonstrations; benchmarks use the real generator.

CREATE TABLE region (r_regionkey integer NOT NULL, r_name char(25) NOT NULL, r_comment varchar(152));
CREATE TABLE nation (n_nationkey integer NOT NULL, n_name char(25) NOT NULL, n_regionkey integer NOT NULL, n_comment varchar(152));
CREATE TABLE supplier (s_suppkey integer NOT NULL, s_name char(25) NOT NULL, s_address varchar(40) NOT NULL, s_nationkey integer NOT NULL, s_phone char(15) NOT NULL, s_acctbal numeric(15, 2) NOT NULL, s_comment varchar(101) NOT NULL);
CREATE TABLE part (p_partkey integer NOT NULL, p_name varchar(55) NOT NULL, p_mfgr char(25) NOT NULL, p_brand char(10) NOT NULL, p_type varchar(25) NOT NULL, p_size integer NOT NULL, p_container char(10) NOT NULL, p_retailprice numeric(15, 2) NOT NULL, p_comment varchar(23) NOT NULL);
CREATE TABLE partsupp (ps_partkey integer NOT NULL, ps_suppkey integer NOT NULL, ps_availqty integer NOT NULL, ps_supplycost numeric(15, 2) NOT NULL, ps_comment varchar(199) NOT NULL);
CREATE TABLE customer (c_custkey integer NOT NULL, c_name varchar(25) NOT NULL, c_address varchar(40) NOT NULL, c_nationkey integer NOT NULL, c_phone char(15) NOT NULL, c_acctbal numeric(15, 2) NOT NULL, c_mktsegment char(10) NOT NULL, c_comment varchar(117) NOT NULL);
CREATE TABLE orders (o_orderkey bigint NOT NULL, o_custkey integer NOT NULL, o_orderstatus char(1) NOT NULL, o_totalprice numeric(15, 2) NOT NULL, o_orderdate date NOT NULL, o_orderpriority char(15) NOT NULL, o_clerk char(15) NOT NULL, o_shippriority integer NOT NULL, o_comment varchar(79) NOT NULL);
CREATE TABLE lineitem (l_orderkey bigint NOT NULL, l_partkey integer NOT NULL, l_suppkey integer NOT NULL, l_linenumber integer NOT NULL, l_quantity numeric(15, 2) NOT NULL, l_extendedprice numeric(15, 2) NOT NULL, l_discount numeric(15, 2) NOT NULL, l_tax numeric(15, 2) NOT NULL, l_returnflag char(1) NOT NULL, l_linestatus char(1) NOT NULL, l_shipdate date NOT NULL, l_commitdate date NOT NULL, l_receiptdate date NOT NULL, l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL);
COMMENT ON TABLE lineitem IS 'order lines, the biggest table of TPC-H';

-- A number from 0 to n - 1 that depends only on the key and the column.
CREATE FUNCTION pick(key bigint, salt integer, n integer) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT ((hashint8extended(key, salt) % n + n) % n)::integer $$;
CREATE FUNCTION words(key bigint, salt integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT (ARRAY['carefully', 'quickly', 'furiously', 'slyly', 'blithely', 'never', 'always'])[pick(key, salt, 7) + 1] || ' ' ||
                 (ARRAY['ironic', 'final', 'bold', 'special', 'pending', 'regular', 'silent', 'even'])[pick(key, salt + 1, 8) + 1] || ' ' ||
                 (ARRAY['deposits', 'requests', 'packages', 'accounts', 'ideas', 'théories', 'pinto beans'])[pick(key, salt + 2, 7) + 1] $$;

INSERT INTO region SELECT i, (ARRAY['AFRICA', 'AMERICA', 'ASIA', 'EUROPE', 'MIDDLE EAST'])[i + 1], words(i, 1) FROM generate_series(0, 4) i;
INSERT INTO nation SELECT i, 'NATION ' || chr(65 + i), i % 5, words(i, 2) FROM generate_series(0, 24) i;
INSERT INTO supplier
SELECT i, 'Supplier#' || lpad(i::text, 9, '0'), md5('s' || i), pick(i, 3, 25), 10 + pick(i, 3, 25) || '-' || lpad(pick(i, 4, 9999999)::text, 7, '0'), pick(i, 5, 1099999) / 100.0 - 999.99, words(i, 6)
FROM generate_series(1, greatest(10, ({{scale}} * 10000)::integer)) i;
INSERT INTO part
SELECT i, words(i, 10), 'Manufacturer#' || pick(i, 11, 5) + 1, 'Brand#' || pick(i, 11, 5) + 1 || pick(i, 12, 5) + 1,
       (ARRAY['STANDARD', 'SMALL', 'MEDIUM', 'LARGE', 'ECONOMY', 'PROMO'])[pick(i, 13, 6) + 1] || ' ' || (ARRAY['TIN', 'NICKEL', 'BRASS', 'STEEL', 'COPPER'])[pick(i, 14, 5) + 1],
       pick(i, 15, 50) + 1, (ARRAY['SM CASE', 'LG BOX', 'MED BAG', 'JUMBO JAR', 'WRAP PKG'])[pick(i, 16, 5) + 1], 900 + i % 1000 + i % 100 / 100.0, left(words(i, 17), 23)
FROM generate_series(1, greatest(200, ({{scale}} * 200000)::integer)) i;
INSERT INTO partsupp
SELECT p, (p + s * (suppliers / 4 + 1)) % suppliers + 1, pick(p * 4 + s, 20, 9999) + 1, pick(p * 4 + s, 21, 99999) / 100.0 + 1, words(p * 4 + s, 22)
FROM generate_series(1, greatest(200, ({{scale}} * 200000)::integer)) p, generate_series(0, 3) s, (SELECT greatest(10, ({{scale}} * 10000)::integer) AS suppliers) n;
INSERT INTO customer
SELECT i, 'Customer#' || lpad(i::text, 9, '0'), md5('c' || i), pick(i, 30, 25), 10 + pick(i, 30, 25) || '-' || lpad(pick(i, 31, 9999999)::text, 7, '0'), pick(i, 32, 1099999) / 100.0 - 999.99,
       (ARRAY['AUTOMOBILE', 'BUILDING', 'FURNITURE', 'HOUSEHOLD', 'MACHINERY'])[pick(i, 33, 5) + 1], words(i, 34)
FROM generate_series(1, greatest(150, ({{scale}} * 150000)::integer)) i;
INSERT INTO orders
SELECT i, pick(i, 40, customers) + 1, substr('FOP', pick(i, 41, 3) + 1, 1), pick(i, 42, 50000000) / 100.0 + 800, date '1992-01-01' + pick(i, 43, 2405),
       (ARRAY['1-URGENT', '2-HIGH', '3-MEDIUM', '4-NOT SPECIFIED', '5-LOW'])[pick(i, 44, 5) + 1], 'Clerk#' || lpad(pick(i, 45, 1000)::text, 9, '0'), 0, words(i, 46)
FROM generate_series(1, greatest(1500, ({{scale}} * 1500000)::bigint)) i, (SELECT greatest(150, ({{scale}} * 150000)::integer) AS customers) n;

-- Without calls of SQL functions per row: this one has most of the rows.
INSERT INTO lineitem
SELECT o, part, (part + (h & 3) * (suppliers / 4 + 1)) % suppliers + 1, line, quantity, round(quantity * (900 + part % 1000), 2), (h >> 8 & 7) / 100.0, (h >> 12 & 7) / 100.0,
       substr('ANR', (h >> 16 & 65535)::integer % 3 + 1, 1), CASE WHEN ordered < date '1995-06-17' THEN 'F' ELSE 'O' END,
       ordered + 1 + (h >> 20 & 63)::integer, ordered + 30 + (h >> 26 & 31)::integer, ordered + 5 + (h >> 20 & 63)::integer,
       (ARRAY['DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'])[(h >> 32 & 3) + 1], (ARRAY['REG AIR', 'AIR', 'RAIL', 'SHIP', 'TRUCK', 'MAIL', 'FOB', 'AIR'])[(h >> 34 & 7) + 1],
       (ARRAY['carefully ', 'quickly ', 'furiously ', 'slyly '])[(h >> 37 & 3) + 1] || (ARRAY['ironic ', 'final ', 'bold ', 'special '])[(h >> 39 & 3) + 1] || to_hex(h & 268435455)
FROM (SELECT o, line, h, (h >> 40 & 8388607)::integer % parts + 1 AS part, (h >> 3 & 31)::integer + 1 + (h >> 45 & 15)::integer AS quantity,
             date '1992-01-01' + (hashint8extended(o, 43) & 2047)::integer AS ordered, suppliers
      FROM (SELECT o, line, hashint8extended(o * 8 + line, 50) AS h, greatest(200, ({{scale}} * 200000)::integer) AS parts, greatest(10, ({{scale}} * 10000)::integer) AS suppliers
            FROM generate_series(1, greatest(1500, ({{scale}} * 1500000)::bigint)) o, generate_series(1, 7) line
            WHERE line <= 1 + (hashint8extended(o, 51) & 1073741823) % 7) numbers) rows;

DROP FUNCTION words(bigint, integer);
DROP FUNCTION pick(bigint, integer, integer);

ALTER TABLE region ADD PRIMARY KEY (r_regionkey);
ALTER TABLE nation ADD PRIMARY KEY (n_nationkey);
ALTER TABLE supplier ADD PRIMARY KEY (s_suppkey);
ALTER TABLE part ADD PRIMARY KEY (p_partkey);
ALTER TABLE partsupp ADD PRIMARY KEY (ps_partkey, ps_suppkey);
ALTER TABLE customer ADD PRIMARY KEY (c_custkey);
ALTER TABLE orders ADD PRIMARY KEY (o_orderkey);
ALTER TABLE lineitem ADD PRIMARY KEY (l_orderkey, l_linenumber);
CREATE INDEX nation_region ON nation (n_regionkey);
CREATE INDEX supplier_nation ON supplier (s_nationkey);
CREATE INDEX partsupp_supplier ON partsupp (ps_suppkey);
CREATE INDEX customer_nation ON customer (c_nationkey);
CREATE INDEX orders_customer ON orders (o_custkey);
CREATE INDEX orders_date ON orders (o_orderdate);
CREATE INDEX lineitem_part ON lineitem (l_partkey, l_suppkey);
CREATE INDEX lineitem_shipdate ON lineitem (l_shipdate);
ALTER TABLE nation ADD CONSTRAINT nation_region_fk FOREIGN KEY (n_regionkey) REFERENCES region;
ALTER TABLE supplier ADD CONSTRAINT supplier_nation_fk FOREIGN KEY (s_nationkey) REFERENCES nation;
ALTER TABLE partsupp ADD CONSTRAINT partsupp_part_fk FOREIGN KEY (ps_partkey) REFERENCES part;
ALTER TABLE partsupp ADD CONSTRAINT partsupp_supplier_fk FOREIGN KEY (ps_suppkey) REFERENCES supplier;
ALTER TABLE customer ADD CONSTRAINT customer_nation_fk FOREIGN KEY (c_nationkey) REFERENCES nation;
ALTER TABLE orders ADD CONSTRAINT orders_customer_fk FOREIGN KEY (o_custkey) REFERENCES customer;
ALTER TABLE lineitem ADD CONSTRAINT lineitem_order_fk FOREIGN KEY (l_orderkey) REFERENCES orders;
ALTER TABLE lineitem ADD CONSTRAINT lineitem_partsupp_fk FOREIGN KEY (l_partkey, l_suppkey) REFERENCES partsupp;
CREATE VIEW revenue AS
    SELECT l_suppkey AS supplier, sum(l_extendedprice * (1 - l_discount)) AS total FROM lineitem GROUP BY l_suppkey;
ANALYZE;
