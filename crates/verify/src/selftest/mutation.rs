//! What is planted: the list of mutations, each with the verdict that it must have.
//!
//! **Invariant:** an expression is evaluated by the server with an empty `search_path`; where it leaves a value as it was, or
//! fails, it is not planted there.
//!
//! In an expression `{c}` is the column, and `{commas}` what stands between the attributes of a composite.

use tidemark_model::{Column, DataType, TypeKind};
use tidemark_report::Verdict::{self, Different as D, Equivalent as E};

/// One way in which two copies may differ.
pub(super) struct Mutation {
    /// For scripts.
    pub(super) name: &'static str,
    /// For people.
    pub(super) says: &'static str,
    pub(super) plant: Plant,
}

/// How it is planted.
#[derive(Clone, Copy)]
pub(super) enum Plant {
    /// Not at all: the rows are the same, in another order.
    Nothing,
    /// One value is another one.
    Value(&'static [Change]),
    /// A value of the key is another one.
    Key(&'static [Change]),
    /// The last letter of a column is the first one of another.
    Letter,
    /// Two rows have each other's value of one column.
    Swapped,
    /// A row is not there.
    Missing,
    /// A row is there twice.
    Doubled,
    /// The one, and the other of another row: as many rows as before.
    MissingAndDoubled,
    /// Without a key: one row is doubled here, another one there.
    OtherDoubled,
    /// No row is there.
    Emptied,
}

/// A value and the one that takes its place.
pub(super) struct Change {
    /// The types whose values it is for: by name, or `[]`, `enum`, `composite`, `range`.
    of: &'static [&'static str],
    /// What both copies have in that row first; without it the change is made to a value of the sample.
    pub(super) before: Option<&'static str>,
    pub(super) after: &'static str,
    pub(super) verdict: Verdict,
    /// Only whoever knows which rows belong together can say so.
    pub(super) needs_key: bool,
}

impl Change {
    pub(super) fn is_for(&self, column: &Column) -> bool {
        let base = base_of(&column.data_type);
        let is_known = base.schema == "pg_catalog" || base.extension.is_some();
        let kind = match &base.kind {
            TypeKind::Array(_) => "[]",
            TypeKind::Enum(_) => "enum",
            TypeKind::Composite(_) => "composite",
            TypeKind::Range(_) => "range",
            _ => "",
        };
        self.of.iter().any(|of| *of == kind || is_known && *of == base.name)
    }
}

pub(super) fn base_of(data_type: &DataType) -> &DataType {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => base,
        _ => data_type,
    }
}

/// Of these types two values that are not the same bytes are not equal.
pub(super) fn is_plain(column: &Column) -> bool {
    const PLAIN: Change = change(
        &[
            "int2",
            "int4",
            "int8",
            "bool",
            "text",
            "varchar",
            "uuid",
            "date",
            "timestamp",
            "timestamptz",
            "bytea",
            "enum",
        ],
        "",
        D,
    );
    PLAIN.is_for(column)
}

pub(super) fn is_text(column: &Column) -> bool {
    const TEXT: Change = change(&["text", "varchar"], "", D);
    TEXT.is_for(column)
}

const fn change(of: &'static [&'static str], after: &'static str, verdict: Verdict) -> Change {
    Change { of, before: None, after, verdict, needs_key: false }
}

const fn between(
    of: &'static [&'static str],
    before: &'static str,
    after: &'static str,
    verdict: Verdict,
) -> Change {
    Change { of, before: Some(before), after, verdict, needs_key: false }
}

const fn by_key(of: &'static [&'static str], after: &'static str) -> Change {
    Change { of, before: None, after, verdict: E, needs_key: true }
}

const TEXTS: &[&str] = &["text", "varchar", "citext"];
const INSTANTS: &[&str] = &["timestamp", "timestamptz"];

const BIT: &[Change] = &[
    change(&["int2", "int4", "int8"], "{c} # 1", D),
    change(&["bool"], "NOT {c}", D),
    change(
        &["text", "varchar", "bpchar", "name"],
        "CASE WHEN ascii({c}::text) BETWEEN 34 AND 125 \
         THEN overlay({c}::text placing chr(ascii({c}::text) # 1) from 1 for 1) ELSE {c}::text END",
        D,
    ),
    change(
        &["bytea"],
        "CASE WHEN length({c}) > 0 THEN set_bit({c}, 0, 1 - get_bit({c}, 0)) ELSE {c} END",
        D,
    ),
    change(
        &["bit", "varbit"],
        "CASE WHEN length({c}) > 0 THEN set_bit({c}, 0, 1 - get_bit({c}, 0)) ELSE {c} END",
        D,
    ),
    change(
        &["uuid"],
        "left({c}::text, 35) || translate(right({c}::text, 1), '0123456789abcdef', '1032547698badcfe')",
        D,
    ),
    change(&["inet"], "{c} + 1", D),
];

const KEY: &[Change] = &[
    change(&["int2", "int4", "int8"], "{c} # 1", D),
    change(&["text", "varchar", "bpchar"], "md5({c}::text)", D),
    change(
        &["uuid"],
        "left({c}::text, 35) || translate(right({c}::text, 1), '0123456789abcdef', '1032547698badcfe')",
        D,
    ),
    change(&["date"], "{c} + 1", D),
    change(INSTANTS, "{c} + interval '1 second'", D),
];

/// Everything that is tried, in the order in which it is told.
pub(super) const MUTATIONS: &[Mutation] = &[
    mutation("untouched", "nothing, but for the order of the rows", Plant::Nothing),
    mutation("missing", "a row is missing", Plant::Missing),
    mutation("doubled", "a row is there twice", Plant::Doubled),
    mutation(
        "missing-doubled",
        "one row is missing, another one is there twice",
        Plant::MissingAndDoubled,
    ),
    mutation(
        "other-doubled",
        "without a key: another row is the one that is there twice",
        Plant::OtherDoubled,
    ),
    mutation("emptied", "no row is there", Plant::Emptied),
    mutation("key", "a key is another one", Plant::Key(KEY)),
    mutation("swapped", "two rows have each other's value", Plant::Swapped),
    mutation("letter", "a letter is in the next column", Plant::Letter),
    mutation("bit", "one bit of a value", Plant::Value(BIT)),
    mutation(
        "last-digit",
        "the last digit of a number",
        Plant::Value(&[
            change(&["float8"], "{c} * 1.0000000000000002::float8", D),
            change(&["float4"], "{c} * 1.0000001::float4", D),
            change(&["numeric"], "coalesce({c} + ('1e-' || scale({c}))::numeric, {c})", D),
            change(&["money"], "{c} + '0.01'::money", D),
        ]),
    ),
    mutation(
        "beyond-2-53",
        "9007199254740993 and ...992",
        Plant::Value(&[
            between(&["int8"], "9007199254740993", "9007199254740992", D),
            between(&["jsonb"], "'9007199254740993'", "'9007199254740992'", D),
        ]),
    ),
    mutation(
        "scale",
        "1.0 and 1.00",
        Plant::Value(&[
            change(&["numeric"], "round({c}, scale({c}) + 1)", E),
            between(&["jsonb"], "'1.0'", "'1.00'", E),
            between(&["_numeric"], "'{1.0}'", "'{1.00}'", E),
        ]),
    ),
    mutation(
        "minus-zero",
        "0 and -0",
        Plant::Value(&[between(&["float4", "float8"], "'0'", "'-0'", E)]),
    ),
    mutation(
        "not-a-number",
        "NaN, infinity and what is neither",
        Plant::Value(&[
            between(&["float4", "float8"], "'NaN'", "'Infinity'", D),
            between(&["numeric"], "'NaN'", "'0'", D),
            between(&["date"], "'infinity'", "'5874897-12-31'", D),
            between(INSTANTS, "'infinity'", "'294276-12-31 23:59:59.999999'", D),
        ]),
    ),
    mutation(
        "null",
        "NULL and what is empty",
        Plant::Value(&[
            between(&["text", "varchar", "citext", "bytea", "varbit", "hstore"], "''", "NULL", D),
            between(&["[]"], "'{}'", "NULL", D),
            between(&["range"], "'empty'", "NULL", D),
            between(&["jsonb"], "'null'", "NULL", D),
            between(&["composite"], "'({commas})'", "NULL", D),
            between(
                &["bool", "int2", "int4", "int8", "float4", "float8", "numeric"],
                "'0'",
                "NULL",
                D,
            ),
        ]),
    ),
    mutation(
        "word-for-null",
        "NULL and the word <null>",
        Plant::Value(&[between(TEXTS, "NULL", "'<null>'", D)]),
    ),
    mutation("blank", "a blank at the end", Plant::Value(&[change(TEXTS, "{c}::text || ' '", D)])),
    mutation(
        "line-end",
        "a line feed at the end",
        Plant::Value(&[change(TEXTS, "{c}::text || E'\\n'", D)]),
    ),
    mutation(
        "case",
        "upper and lower case",
        Plant::Value(&[
            change(
                &["text", "varchar", "bpchar"],
                "CASE WHEN {c}::text <> upper({c}::text) THEN upper({c}::text) ELSE lower({c}::text) END",
                D,
            ),
            by_key(
                &["citext"],
                "CASE WHEN {c}::text <> upper({c}::text) THEN upper({c}::text) ELSE lower({c}::text) END",
            ),
        ]),
    ),
    mutation(
        "accent",
        "an accent as a sign of its own (NFC, NFD)",
        Plant::Value(&[between(TEXTS, "U&'\\00E9'", "U&'e\\0301'", D)]),
    ),
    mutation(
        "moment",
        "a microsecond",
        Plant::Value(&[change(
            &["timestamp", "timestamptz", "time", "timetz", "interval"],
            "{c} + interval '1 microsecond'",
            D,
        )]),
    ),
    mutation(
        "zone",
        "an hour, as between two time zones",
        Plant::Value(&[
            change(INSTANTS, "{c} + interval '1 hour'", D),
            between(&["timetz"], "'10:00+02'", "'09:00+01'", D),
        ]),
    ),
    mutation(
        "midnight",
        "00:00 and 24:00",
        Plant::Value(&[between(&["time"], "'00:00'", "'24:00'", D)]),
    ),
    mutation(
        "month",
        "1 mon and 30 days",
        Plant::Value(&[between(&["interval"], "'1 mon'", "'30 days'", E)]),
    ),
    mutation(
        "array-bounds",
        "an array that begins at 0",
        Plant::Value(&[change(
            &["[]"],
            "CASE WHEN array_ndims({c}) = 1 AND array_lower({c}, 1) = 1 \
             THEN '[0:' || cardinality({c}) - 1 || ']=' || {c}::text ELSE {c}::text END",
            D,
        )]),
    ),
    mutation(
        "array-shape",
        "another dimension around an array",
        Plant::Value(&[change(
            &["[]"],
            "CASE WHEN array_ndims({c}) = 1 THEN ARRAY[{c}] ELSE {c} END",
            D,
        )]),
    ),
    mutation(
        "array-null",
        "{NULL} and {\"\"}",
        Plant::Value(&[between(&["_text", "_varchar"], "'{NULL}'", "'{\"\"}'", D)]),
    ),
    mutation(
        "json-doubled",
        "a name twice in a JSON object",
        Plant::Value(&[between(&["json"], "'{\"a\":1,\"a\":2}'", "'{\"a\":2}'", D)]),
    ),
    mutation(
        "json-format",
        "blanks and order in JSON",
        Plant::Value(&[between(&["json"], "'{\"a\":1,\"b\":2}'", "'{ \"b\": 2, \"a\": 1 }'", E)]),
    ),
    mutation(
        "json-empty",
        "{} and []",
        Plant::Value(&[between(&["json", "jsonb"], "'{}'", "'[]'", D)]),
    ),
    mutation(
        "range-bound",
        "no bound and an infinite one",
        Plant::Value(&[between(
            &["tsrange", "tstzrange", "daterange"],
            "'(,2024-01-01)'",
            "'[-infinity,2024-01-01)'",
            D,
        )]),
    ),
    mutation(
        "host-bits",
        "10.1.2.3/24 and 10.1.2.0/24",
        Plant::Value(&[between(&["inet"], "'10.1.2.3/24'", "'10.1.2.0/24'", D)]),
    ),
    mutation(
        "bit-length",
        "101 and 1010",
        Plant::Value(&[between(&["varbit"], "B'101'", "B'1010'", D)]),
    ),
    mutation(
        "label",
        "another label of an enum",
        Plant::Value(&[change(
            &["enum"],
            "coalesce((SELECT e FROM unnest(enum_range({c})) e WHERE e <> {c} LIMIT 1), {c})",
            D,
        )]),
    ),
];

const fn mutation(name: &'static str, says: &'static str, plant: Plant) -> Mutation {
    Mutation { name, says, plant }
}

/// The table that every mutation can be planted in, and its rows; `{schema}` is where its types are.
pub(super) const OWN_TYPES: &str = "CREATE TYPE {schema}.mood AS ENUM ('sad', 'glad', 'neither'); CREATE TYPE {schema}.pair AS (a int4, b text)";
pub(super) const OWN_ROWS: &str = "SELECT i::int8 AS id, i % 2 = 0 AS flag, i::int2 AS small, i * 1000 AS medium, i * 10000000000 AS big, \
    (i / 3.0)::float4 AS single, (i / 3.0)::float8 AS double, (i / 4.0)::numeric AS free, (i * 1.25)::numeric(10,2) AS price, \
    (i * 0.5)::numeric::money AS cash, 'word ' || i AS words, ('short ' || i)::varchar(20) AS short, ('c' || i)::char(8) AS padded, \
    decode(md5(i::text), 'hex') AS bytes, date '2024-01-01' + i AS day, timestamp '2024-01-01 12:00:00.25' + i * interval '1 day' AS moment, \
    timestamptz '2024-03-30 12:00:00+01' + i * interval '1 hour' AS instant, time '08:00' + i * interval '1 minute' AS clock, \
    timetz '08:00+02' + i * interval '1 minute' AS zoned, i * interval '1 day 1 hour' AS span, md5(i::text)::uuid AS code, \
    json_build_object('a', i) AS doc, jsonb_build_object('a', i) AS tree, ARRAY[i, i + 1] AS numbers, ARRAY[i / 4.0] AS scales, \
    ARRAY['a' || i, 'b'] AS names, (CASE i % 2 WHEN 0 THEN 'sad' ELSE 'glad' END)::{schema}.mood AS mood, ROW(i, 'b')::{schema}.pair AS pair, \
    tsrange(timestamp '2024-01-01', timestamp '2024-01-01' + i * interval '1 day') AS period, numrange(0, i) AS spread, \
    inet '10.0.0.0' + i AS address, B'1011'::varbit AS bits FROM generate_series(1, 20) i";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::MUTATIONS;

    #[test]
    fn every_mutation_has_a_name_of_its_own_that_scripts_can_use() {
        let names: HashSet<&str> = MUTATIONS.iter().map(|mutation| mutation.name).collect();
        assert_eq!(names.len(), MUTATIONS.len());
        let is_word = |name: &&str| {
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        assert!(names.iter().all(is_word), "{names:?}");
    }
}
