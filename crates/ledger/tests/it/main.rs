//! The ledger as its callers see it, on real files.
#![expect(clippy::unwrap_used, reason = "clippy knows helpers of tests only inside `cfg(test)`")]

mod damage;
mod directory;
mod leaves;
mod records;

use std::path::Path;

use tidemark_ledger::{Ledger, NewRelation, RunRecord};
use tidemark_model::{ChunkResult, LeafSum, Lsn, RelationName, RowSum};

pub(crate) fn open(directory: &Path) -> Ledger {
    Ledger::open(directory, "shop").unwrap()
}

pub(crate) fn run(name: &str) -> RunRecord {
    RunRecord {
        job: "shop".to_owned(),
        run: name.to_owned(),
        phase: "prepare".to_owned(),
        system_identifier: u64::MAX - 7,
        database: "shop".to_owned(),
        server_version: 150_014,
        snapshot_lsn: Lsn::new(0x16_B374_D848),
        digest_key: "ab".repeat(32),
        canonical_version: 1,
        started_at_ms: 1_700_000_000_123,
        finished_at_ms: None,
        last_error: None,
    }
}

pub(crate) fn relation(oid: u32, name: &str) -> NewRelation {
    NewRelation {
        oid,
        name: RelationName::new("public", name),
        chunks_total: 3,
        leaf_bounds: "{\"key\":null}".to_owned(),
        raw_scheme: "tuple".to_owned(),
        shape: "1 p a".to_owned(),
        estimated_rows: 1000,
        estimated_bytes: 1 << 40,
    }
}

pub(crate) fn chunk(oid: u32, chunk: u32, leaves: &[(u32, u128)]) -> ChunkResult {
    let sum = |hash| RowSum { count: 10, raw: hash, value: hash ^ 1 };
    let mut all = RowSum::default();
    for (_, hash) in leaves {
        all += sum(*hash);
    }
    ChunkResult {
        relation_oid: oid,
        chunk,
        rows_out: all.count,
        rows_in: all.count,
        bytes: 500,
        sum: all,
        leaves: leaves
            .iter()
            .map(|(leaf, hash)| LeafSum { leaf: *leaf, sum: sum(*hash) })
            .collect(),
        replaced: vec![("price".to_owned(), 2)],
        duration_ms: 12,
    }
}
