//! How a table is cut into chunks, and the statement that reads one.
//!
//! **Invariant:** the chunks of a table are disjoint and together hold every row that the snapshot shows: block ranges
//! touch, and the last one is open-ended, because the file may have grown since it was measured (`hazards.md` A7). Bounds
//! are compared by the server only (A9), on NOT NULL columns only (A8).
//!
//! PostgreSQL manual, `COPY`, and section 5.6 (`ctid`). TID range scans exist from 14.

use std::fmt::Write as _;

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{ChunkRange, ChunkSpec, Relation, TupleForm, Wire};

/// Bytes of a heap block; sizes are measured in them.
const BLOCK_BYTES: u64 = 8192;

/// Cuts a relation into ranges of about `chunk_bytes`, TOAST counted.
///
/// On 13, which has no TID range scan, this is always [`ChunkRange::Whole`]; ask [`key_bounds`](crate::key_bounds) there.
pub fn plan_chunks(relation: &Relation, server_version: u32, chunk_bytes: u64) -> Vec<ChunkRange> {
    let parts = parts_of(relation, chunk_bytes);
    let blocks = relation.heap_bytes.div_ceil(BLOCK_BYTES).min(u64::from(u32::MAX));
    if parts <= 1 || blocks <= 1 || server_version < 140_000 {
        return vec![ChunkRange::Whole];
    }
    let step = blocks.div_ceil(u64::from(parts)).max(1);
    let starts: Vec<u32> = (0..blocks)
        .step_by(usize::try_from(step).unwrap_or(usize::MAX))
        .filter_map(|b| u32::try_from(b).ok())
        .collect();
    let ends = starts.iter().skip(1).copied().map(Some).chain([None]);
    starts.iter().zip(ends).map(|(&from, to)| ChunkRange::Blocks { from, to }).collect()
}

/// So many chunks for each reader, if they are not smaller than this.
const CHUNKS_PER_READER: u64 = 16;
const CHUNK_BYTES_MIN: u64 = 16 << 20;

/// The size of a chunk of tables that have so many bytes in all: at most the user's, or less where that many would leave
/// readers without work while the last ones run, so that the tail is a small share of the run.
pub fn even_chunk_bytes(total: u64, readers: usize, at_most: u64) -> u64 {
    let share = total / (readers.max(1) as u64 * CHUNKS_PER_READER);
    share.clamp(CHUNK_BYTES_MIN.min(at_most), at_most)
}

/// How many chunks of `chunk_bytes` a relation's heap and TOAST make.
pub fn parts_of(relation: &Relation, chunk_bytes: u64) -> u32 {
    let bytes = relation.heap_bytes.saturating_add(relation.toast_bytes);
    u32::try_from(bytes.div_ceil(chunk_bytes.max(1))).unwrap_or(u32::MAX).max(1)
}

/// The bytes of heap and TOAST that a range is expected to read: its share of the relation.
pub fn estimated_bytes(relation: &Relation, range: &ChunkRange, parts: usize) -> u64 {
    let bytes = relation.heap_bytes.saturating_add(relation.toast_bytes);
    let blocks = relation.heap_bytes.div_ceil(BLOCK_BYTES).max(1);
    match range {
        ChunkRange::Whole => bytes,
        ChunkRange::Blocks { from, to } => {
            let to = to.map_or(blocks, u64::from).max(u64::from(*from));
            let share = u128::from(bytes) * u128::from(to - u64::from(*from)) / u128::from(blocks);
            u64::try_from(share).unwrap_or(u64::MAX)
        }
        ChunkRange::Keys { .. } => bytes / u64::try_from(parts.max(1)).unwrap_or(1),
    }
}

/// The statement that reads a chunk, for a session whose `search_path` is empty.
pub fn copy_statement(spec: &ChunkSpec) -> String {
    let columns: Vec<String> = spec
        .columns
        .iter()
        .map(|column| match column.wire {
            Wire::Own => Ident(&column.name).to_string(),
            Wire::CastToText => format!("{}::pg_catalog.text", Ident(&column.name)),
        })
        .collect();
    let mut statement = format!("COPY (SELECT {} FROM ONLY {}", columns.join(", "), spec.relation);
    let mut conditions = range_conditions(&spec.range);
    if let Some(filter) = &spec.filter {
        // The line feed ends a comment that the user's expression may end with.
        conditions.push(format!("({filter}\n)"));
    }
    for (index, condition) in conditions.iter().enumerate() {
        let word = if index == 0 { "WHERE" } else { "AND" };
        write!(statement, " {word} {condition}").ok();
    }
    statement.push_str(match spec.form {
        TupleForm::PgBinary => ") TO STDOUT (FORMAT binary)",
        TupleForm::PgText => ") TO STDOUT (FORMAT text)",
    });
    statement
}

fn range_conditions(range: &ChunkRange) -> Vec<String> {
    let mut conditions = Vec::new();
    match range {
        ChunkRange::Whole => {}
        ChunkRange::Blocks { from, to } => {
            if *from > 0 || to.is_none() {
                conditions
                    .push(format!("ctid OPERATOR(pg_catalog.>=) '({from},0)'::pg_catalog.tid"));
            }
            if let Some(to) = to {
                conditions.push(format!("ctid OPERATOR(pg_catalog.<) '({to},0)'::pg_catalog.tid"));
            }
        }
        ChunkRange::Keys { column, type_name, ranges } => {
            let of = |range| key_conditions(column, type_name, range).join(" AND ");
            match ranges.as_slice() {
                [(None, None)] => {}
                [range] => conditions.push(of(range)),
                ranges => conditions
                    .push(format!("({})", ranges.iter().map(of).collect::<Vec<_>>().join(" OR "))),
            }
        }
    }
    conditions
}

fn key_conditions(
    column: &str,
    type_name: &str,
    (from, to): &(Option<String>, Option<String>),
) -> Vec<String> {
    let bounds = [(">=", from), ("<", to)];
    let bounds =
        bounds.into_iter().filter_map(|(operator, bound)| Some((operator, bound.as_ref()?)));
    let condition = |(operator, bound): (_, &String)| {
        format!("{} {operator} {}::{type_name}", Ident(column), Literal(bound))
    };
    bounds.map(condition).collect()
}

#[cfg(test)]
mod tests {
    use tidemark_model::{
        ChunkRange::{Blocks, Keys, Whole},
        Persistence, RelationKind, RelationName, ReplicaIdentity, SelectColumn,
    };

    use super::*;

    fn relation(heap_bytes: u64, toast_bytes: u64) -> Relation {
        Relation {
            oid: 1,
            name: RelationName::new("public", "a\"b"),
            kind: RelationKind::Table,
            persistence: Persistence::Permanent,
            columns: vec![],
            keys: vec![],
            indexes: vec![],
            replica_identity: ReplicaIdentity::Default,
            partition_root: None,
            inherits: vec![],
            row_security_applies: false,
            can_select: true,
            row_estimate: 0,
            heap_bytes,
            toast_bytes,
            extension: None,
        }
    }

    fn spec(range: ChunkRange, filter: Option<&str>) -> ChunkSpec {
        ChunkSpec {
            job: "j".into(),
            run: "r".into(),
            snapshot_id: "s".into(),
            relation_oid: 1,
            relation: RelationName::new("public", "a\"b"),
            chunk: 0,
            range,
            filter: filter.map(str::to_owned),
            columns: vec![
                SelectColumn { name: "id".into(), wire: Wire::Own },
                SelectColumn { name: "x\"".into(), wire: Wire::CastToText },
            ],
            form: TupleForm::PgBinary,
            estimated_bytes: 0,
        }
    }

    #[test]
    fn ranges_touch_and_the_last_is_open() {
        for (heap, toast, chunk) in [
            (100 * 8192, 0, 10 * 8192),
            (7 * 8192, 1 << 30, 1 << 20),
            (1 << 40, 1 << 41, 64 << 20),
            (3 * 8192, 0, 8192),
        ] {
            let ranges = plan_chunks(&relation(heap, toast), 150_000, chunk);
            let mut next = Some(0);
            for range in &ranges {
                let Blocks { from, to } = range else { panic!("{range:?}") };
                assert_eq!(Some(*from), next);
                assert_ne!(Some(*from), *to);
                next = *to;
            }
            assert_eq!(next, None);
            assert!(ranges.len() as u64 <= (heap + toast).div_ceil(chunk));
        }
    }

    #[test]
    fn small_tables_and_13_are_read_whole() {
        assert_eq!(plan_chunks(&relation(0, 0), 150_000, 1 << 20), [Whole]);
        assert_eq!(plan_chunks(&relation(8192, 1 << 30), 150_000, 1 << 20), [Whole]);
        assert_eq!(plan_chunks(&relation(1 << 30, 0), 130_020, 1 << 20), [Whole]);
    }

    #[test]
    fn estimates_add_up_to_the_relation() {
        let relation = relation(100 * 8192, 50 * 8192);
        let ranges = plan_chunks(&relation, 150_000, 10 * 8192);
        let sum: u64 =
            ranges.iter().map(|range| estimated_bytes(&relation, range, ranges.len())).sum();
        assert!(sum <= 150 * 8192 && sum > 149 * 8192, "{sum}");
    }

    #[test]
    fn statements_quote_names_cast_and_keep_filters_apart() {
        assert_eq!(
            copy_statement(&spec(Whole, None)),
            r#"COPY (SELECT "id", "x"""::pg_catalog.text FROM ONLY "public"."a""b") TO STDOUT (FORMAT binary)"#
        );
        let statement = copy_statement(&spec(Blocks { from: 5, to: Some(9) }, Some("a OR b --")));
        assert!(statement.contains("ctid OPERATOR(pg_catalog.>=) '(5,0)'::pg_catalog.tid AND ctid OPERATOR(pg_catalog.<) '(9,0)'::pg_catalog.tid AND (a OR b --\n))"), "{statement}");
        let keys = |ranges: &[(Option<&str>, Option<&str>)]| Keys {
            column: "k".into(),
            type_name: "text".into(),
            ranges: ranges
                .iter()
                .map(|(from, to)| (from.map(str::to_owned), to.map(str::to_owned)))
                .collect(),
        };
        let one = copy_statement(&spec(keys(&[(Some("o'c"), None)]), None));
        assert!(one.contains(r#"WHERE "k" >= 'o''c'::text)"#), "{one}");
        let two = keys(&[(None, Some("b")), (Some("c"), Some("d"))]);
        let two = copy_statement(&spec(two, Some("a OR b")));
        assert!(
            two.contains(
                r#"WHERE ("k" < 'b'::text OR "k" >= 'c'::text AND "k" < 'd'::text) AND (a OR b"#
            ),
            "{two}"
        );
    }

    #[test]
    fn a_table_without_columns_still_gives_its_rows() {
        let mut spec = spec(Whole, None);
        spec.columns.clear();
        assert_eq!(
            copy_statement(&spec),
            r#"COPY (SELECT  FROM ONLY "public"."a""b") TO STDOUT (FORMAT binary)"#
        );
    }
}
