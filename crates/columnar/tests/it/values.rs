//! Every type with its extremes, as SQL.

/// What the types below need.
pub(crate) const SETUP: &str = r#"
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok", really', 'happy');
CREATE TYPE pair AS (a int4, b text);
CREATE TYPE odd AS (a int4, "the Point" point);
CREATE TYPE nest AS (p pair, n numeric(6,2), r int4range, l text[], u numeric);
CREATE TYPE nothing AS ();
CREATE DOMAIN price AS numeric(10,2);
CREATE DOMAIN dear AS price CHECK (value > 10);
CREATE DOMAIN ints AS int4[];
CREATE TYPE textrange AS RANGE (subtype = text);
"#;

/// Types that keep a form of their own, with values as SQL expressions.
pub(crate) const OWN: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["-32768", "32767", "0"]),
    ("int4", &["-2147483648", "2147483647"]),
    ("int8", &["'-9223372036854775808'", "9223372036854775807", "9007199254740993"]),
    ("oid", &["0", "4294967295"]),
    ("xid", &["'4294967295'"]),
    ("float4", &["1.1", "'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "1e-45", "3.4028235e38"]),
    (
        "float8",
        &[
            "'-0'",
            "'NaN'",
            "'Infinity'::float8 - 'Infinity'",
            "'-Infinity'",
            "'5e-324'",
            "'1.7976931348623157e308'",
            "0.30000000000000004",
            "0.3",
            "1e-9",
        ],
    ),
    (
        "numeric(15,2)",
        &[
            "0",
            "0.01",
            "-0.01",
            "99",
            "100",
            "10000",
            "1000000",
            "-21168.23",
            "9999999999999.99",
            "-9999999999999.99",
            "12345678.9",
        ],
    ),
    ("numeric(1,0)", &["9", "-9"]),
    ("numeric(18,1)", &["99999999999999999.9", "0.1", "10000000000000000"]),
    ("numeric(18,3)", &["0.001", "999999999999999.999", "1.5"]),
    ("numeric(18,18)", &["0.999999999999999999", "0.000000000000000001"]),
    ("numeric(19,4)", &["999999999999999.9999", "-0.0001"]),
    ("numeric(38,0)", &["99999999999999999999999999999999999999", "-1"]),
    ("numeric(38,37)", &["9.9999999999999999999999999999999999999", "1e-37"]),
    (
        "numeric",
        &[
            "1.0",
            "1.00",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "0.000",
            "1e40",
            "'1e-16383'",
            "repeat('9', 131072)::numeric",
            "-123456789.000012300",
            "'1e131071'",
            "0.00010",
        ],
    ),
    ("numeric(39,2)", &["1234567890123456789012345678901234567.89", "'NaN'"]),
    ("numeric(3,-2)", &["12345", "99900"]),
    ("numeric(2,5)", &["0.00012"]),
    (
        "text",
        &["''", "'NULL'", "E'a\\n\\t\\\\.'", "'é'", "E'e\\u0301'", "repeat('x', 100000)", "'€😀'"],
    ),
    ("varchar(5)", &["'ab '", "''", "'ééééé'"]),
    ("char(5)", &["'a'", "''", "'abcde'", "'  a'", "'éé'", "E'a\\n'"]),
    ("char(40)", &["'a'", "''", "repeat('y', 40)", "repeat('z', 16)", "repeat('z', 15)"]),
    ("name", &["'x'", "repeat('n', 63)"]),
    ("\"char\"", &["'a'", "''", "'\\'"]),
    ("json", &["'{\"a\": 1,\"a\":2 }'", "'{\"a\":\"\\u0000\"}'", "'null'", "'[]'"]),
    ("jsonb", &["'{\"b\":1,\"aa\":1.00}'", "'null'", "'[]'", "'9007199254740993'"]),
    ("uuid", &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "'00000000-0000-0000-0000-000000000000'"]),
    ("bytea", &["''", "'\\x00ff27225c0d0a'", "decode(repeat('ab', 70000), 'hex')"]),
    (
        "date",
        &["'4713-01-01 BC'", "'5874897-12-31'", "'1969-12-31'", "'1970-01-01'", "'0001-01-01 BC'"],
    ),
    (
        "timestamp",
        &[
            "'4713-01-01 00:00:00 BC'",
            "'1969-12-31 23:59:59.999999'",
            "'2262-04-12'",
            "'9999-12-31'",
            "'294246-12-31 23:59:59.999999'",
            "'2000-01-01 00:00:00.123456'",
        ],
    ),
    (
        "timestamptz",
        &["'2024-03-31 02:30:00+01'", "'2024-10-27 01:30:00.000001Z'", "'0001-01-01 00:00:00Z BC'"],
    ),
    ("time", &["'00:00'", "'23:59:59.999999'"]),
    ("time(0)", &["'12:34:56'"]),
    (
        "interval",
        &[
            "'1 mon'",
            "'30 days'",
            "'1 day'",
            "'24:00'",
            "'-1 mon +2 days -00:00:00.000001'",
            "'178000000 years'",
            "'-178000000 years'",
            "'0'",
        ],
    ),
    ("int4[]", &["'{}'", "'{1,NULL,-3}'", "'{NULL}'", "ARRAY[1]::int4[] || NULL::int4[]"]),
    ("text[]", &["'{}'", "'{\"\"}'", "'{NULL,\"NULL\",\"a\\\"b,c\",\"{}\"}'"]),
    ("numeric[]", &["'{1.0,1.00,NaN}'"]),
    ("numeric(10,2)[]", &["'{1.0,NULL,-7.25}'"]),
    ("timestamptz[]", &["'{\"2024-01-01 00:00Z\",NULL}'"]),
    ("uuid[]", &["'{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}'"]),
    ("bool[]", &["'{t,f,NULL}'"]),
    ("mood", &["'sad'", "'it''s \"ok\", really'"]),
    ("mood[]", &["ARRAY['sad', 'it''s \"ok\", really', NULL]::mood[]"]),
    ("price", &["12.30", "-1"]),
    ("dear", &["12.3"]),
    ("ints", &["'{1,2}'", "'{}'"]),
    ("dear[]", &["'{11,12.5}'"]),
    ("pair", &["ROW(NULL,NULL)::pair", "ROW(1,'a,\"b')::pair", "ROW(2,'')::pair"]),
    ("pair[]", &["ARRAY[ROW(1,'x')::pair, NULL, ROW(NULL,NULL)::pair]"]),
    (
        "nest",
        &[
            "ROW(ROW(1,'x'), 1.5, '[1,5)', '{a,NULL}', 1.10)::nest",
            "ROW(NULL, NULL, 'empty', '{}', 'NaN')::nest",
            "ROW(NULL, NULL, NULL, NULL, NULL)::nest",
        ],
    ),
    ("int4range", &["'[1,5]'", "'empty'", "'(,5)'", "'(,)'", "'[3,)'"]),
    ("numrange", &["'[1.0,2]'", "'[1.00,2)'", "'(1,2]'", "'empty'"]),
    ("tstzrange", &["'[2024-01-01 00:00Z,2024-01-02 00:00Z)'", "'(,2024-01-02 00:00Z]'"]),
    ("textrange", &["'[a,\"b,]\"]'"]),
    ("int4range[]", &["ARRAY['[1,2)','empty',NULL]::int4range[]"]),
    ("int4multirange", &["'{[1,3),[3,5)}'", "'{}'", "'{(,3),[7,)}'"]),
    ("datemultirange", &["'{[2024-01-01,2024-01-03)}'"]),
];

/// Types that are written as PostgreSQL's text.
pub(crate) const AS_TEXT: &[(&str, &[&str])] = &[
    ("timetz", &["'10:00+02'", "'09:00+01'", "'24:00:00-15:59:59'"]),
    ("money", &["1", "-12.34"]),
    ("inet", &["'10.1.2.3/24'", "'::1'", "'10.1.2.3'"]),
    ("cidr", &["'10.1.2.0/24'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(3)", &["B'101'"]),
    ("varbit", &["B''", "B'1010'"]),
    ("xml", &["'<?xml version=\"1.0\" encoding=\"UTF-8\"?><a>é</a>'", "'<a/>'"]),
    ("tsvector", &["'a:1A b:2'"]),
    ("tsquery", &["'a & b'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("tid", &["'(1,2)'"]),
    ("regclass", &["'pg_class'"]),
    ("point", &["'(1,0.1)'"]),
    ("box", &["'(1,2),(3,4)'"]),
    ("circle", &["'<(1,2),3>'"]),
    ("polygon", &["'((0,0),(1,1))'"]),
    ("jsonpath", &["'$.a'"]),
    ("aclitem", &["makeaclitem(10, 10, 'SELECT', false)"]),
    ("hstore", &["'a=>NULL'", "'a=>\"\"'", "''"]),
    ("citext", &["'Foo'", "'foo'"]),
    ("ltree", &["'a.b.c'"]),
    ("odd", &["ROW(1, '(1,2)')::odd", "NULL"]),
    ("point[]", &["ARRAY['(1,2)'::point]"]),
    ("inet[]", &["'{10.0.0.1,NULL}'"]),
    ("nothing", &["ROW()::nothing"]),
];
