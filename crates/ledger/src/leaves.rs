//! What is known of the leaves of relations: as they were copied, as they were proven, and which the stream has touched.
//!
//! **Invariant:** what is known goes with the copy it is of: a relation that is copied again has another [`CopyId`], and what a
//! verification of the earlier copy found is not written any more. A leaf counts as untouched only where its mark, which is on
//! disk before the change is on the target, says so.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use tidemark_model::{LeafSum, Oid, RelationName};

use crate::beside::Beside;
use crate::reader::{parsed, sum_of};
use crate::record::{CopiedLeaves, CopyId, LeafRecord, NewProof, ProofRecord, ProvenLeaf, now_ms};
use crate::writer::{Failure, stored};
use crate::{LedgerReader, Result, schema};

impl LedgerReader {
    /// What is known of the leaves of every relation of the run, by OID.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn leaf_records(&self) -> Result<Vec<LeafRecord>> {
        self.read_leaf_records().map_err(|error| self.failed("read what is known of leaves", error))
    }

    /// How every relation of the run is cut into leaves, as JSON, by OID.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn cuts(&self) -> Result<Vec<(Oid, String)>> {
        let cut_of = |row: &Row<'_>| Ok((row.get("oid")?, row.get("leaf_bounds")?));
        self.rows("SELECT oid, leaf_bounds FROM relation ORDER BY oid", (), cut_of)
            .map_err(|error| self.failed("read how relations are cut", error))
    }

    fn read_leaf_records(&self) -> rusqlite::Result<Vec<LeafRecord>> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let version: i64 =
            transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version < schema::VERSION {
            return Ok(Vec::new());
        }
        let mut records = transaction
            .prepare_cached(
                "SELECT *, (SELECT count(*) FROM chunk WHERE relation_oid = oid) = chunks_total AS is_whole \
                 FROM relation ORDER BY oid",
            )?
            .query_map((), record_of)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let at: HashMap<Oid, usize> =
            (0..).zip(&records).map(|(at, record)| (record.copy.oid, at)).collect();
        let mut each =
            |table: &str,
             take: &mut dyn FnMut(&mut LeafRecord, &Row<'_>) -> rusqlite::Result<()>| {
                let mut statement =
                    transaction.prepare_cached(&format!("SELECT * FROM {table}"))?;
                let mut rows = statement.query(())?;
                while let Some(row) = rows.next()? {
                    if let Some(at) = at.get(&row.get("relation_oid")?) {
                        take(&mut records[*at], row)?;
                    }
                }
                Ok::<_, rusqlite::Error>(())
            };
        each("leaf", &mut |record, row| {
            if let Some(copied) = &mut record.copied {
                copied.leaves.push(LeafSum { leaf: row.get("leaf")?, sum: sum_of(row)? });
            }
            Ok(())
        })?;
        each("touched", &mut |record, row| {
            record.touched.insert(row.get("leaf")?, parsed(row, "since")?);
            Ok(())
        })?;
        each("proof", &mut |record, row| {
            let at_ms: Option<i64> = row.get("at_ms")?;
            let last = at_ms.map(|at| Ok::<_, rusqlite::Error>((parsed(row, "lsn")?, at)));
            let scheme = row.get("scheme")?;
            record.proof =
                Some(ProofRecord { scheme, last: last.transpose()?, leaves: Vec::new() });
            Ok(())
        })?;
        each("proven", &mut |record, row| {
            let sum = LeafSum { leaf: row.get("leaf")?, sum: sum_of(row)? };
            let lsn = parsed(row, "lsn")?;
            record.proof.iter_mut().for_each(|proof| proof.leaves.push(ProvenLeaf { lsn, sum }));
            Ok(())
        })?;
        Ok(records)
    }
}

fn record_of(row: &Row<'_>) -> rusqlite::Result<LeafRecord> {
    let (raw_scheme, shape): (String, String) = (row.get("raw_scheme")?, row.get("shape")?);
    let is_known = row.get("is_whole")? && !raw_scheme.is_empty() && !shape.is_empty();
    Ok(LeafRecord {
        copy: CopyId { oid: row.get("oid")?, generation: row.get("generation")? },
        name: RelationName::new(row.get::<_, String>("schema")?, row.get::<_, String>("name")?),
        leaf_bounds: row.get("leaf_bounds")?,
        copied: is_known.then_some(CopiedLeaves { raw_scheme, shape, leaves: Vec::new() }),
        proof: None,
        touched: HashMap::new(),
    })
}

/// Writes what a verification has proven, beside whoever holds the job.
#[derive(Debug)]
pub struct Proofs(Beside);

impl Proofs {
    /// Opens the ledger of a state directory.
    ///
    /// # Errors
    /// There is none, or none of this version; it is damaged.
    pub fn open(state_dir: &Path) -> Result<Self> {
        Beside::open(state_dir).map(Self)
    }

    /// Cuts relations into other leaves: all that is known of them is forgotten. Of one that was copied again meanwhile
    /// nothing changes. Whoever marks leaves sees it by [`crate::Ledger::data_version`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn cut(&self, relations: &[(CopyId, String)]) -> Result<()> {
        self.0.write("cut relations into other leaves", |transaction| {
            for (copy, bounds) in relations {
                let changed = transaction
                    .prepare_cached(
                        "UPDATE relation SET leaf_bounds = ?3, shape = '' WHERE oid = ?1 AND generation = ?2",
                    )?
                    .execute(params![copy.oid, copy.generation, bounds])?;
                if changed > 0 {
                    forget(transaction, copy.oid)?;
                }
            }
            Ok(())
        })
    }

    /// Records what was proven of relations, and forgets what was known of them before. Of one that was copied again
    /// meanwhile nothing is recorded.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&self, proofs: &[NewProof]) -> Result<()> {
        self.0.write("record what was proven", |transaction| {
            proofs.iter().try_for_each(|proof| record(transaction, proof))
        })
    }
}

fn forget(transaction: &Transaction<'_>, oid: Oid) -> Result<(), Failure> {
    for table in ["proven", "proof", "touched"] {
        let forget = format!("DELETE FROM {table} WHERE relation_oid = ?1");
        transaction.prepare_cached(&forget)?.execute([oid])?;
    }
    Ok(())
}

fn record(transaction: &Transaction<'_>, proof: &NewProof) -> Result<(), Failure> {
    let CopyId { oid, generation } = proof.copy;
    let is_same = transaction
        .prepare_cached("SELECT 1 FROM relation WHERE oid = ?1 AND generation = ?2")?
        .exists(params![oid, generation])?;
    if !is_same {
        return Ok(());
    }
    let before: Option<(Option<String>, Option<i64>)> = transaction
        .prepare_cached("SELECT lsn, at_ms FROM proof WHERE relation_oid = ?1")?
        .query_row([oid], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (lsn, at_ms) = match proof.whole {
        Some(lsn) => (Some(lsn.to_string()), Some(now_ms())),
        None => before.unwrap_or_default(),
    };
    transaction
        .prepare_cached(
            "INSERT INTO proof VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (relation_oid) DO UPDATE SET scheme = excluded.scheme, lsn = excluded.lsn, at_ms = excluded.at_ms",
        )?
        .execute(params![oid, proof.scheme, lsn, at_ms])?;
    replace_proven(transaction, oid, &proof.leaves)
}

/// Writes only what is not there already: of many leaves few are touched between two verifications.
fn replace_proven(
    transaction: &Transaction<'_>,
    oid: Oid,
    leaves: &[ProvenLeaf],
) -> Result<(), Failure> {
    let mut known: HashMap<u32, (String, i64, [u8; 16], [u8; 16])> = transaction
        .prepare_cached(
            "SELECT leaf, lsn, row_count, raw, value FROM proven WHERE relation_oid = ?1",
        )?
        .query_map([oid], |row| {
            Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut write = transaction
        .prepare_cached("INSERT OR REPLACE INTO proven VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for ProvenLeaf { lsn, sum: LeafSum { leaf, sum } } in leaves {
        let count = stored(sum.count, "a number of rows")?;
        let row = (lsn.to_string(), count, sum.raw.to_be_bytes(), sum.value.to_be_bytes());
        if known.remove(leaf).as_ref() != Some(&row) {
            let (lsn, count, raw, value) = row;
            write.execute(params![oid, leaf, lsn, count, raw, value])?;
        }
    }
    let mut forget =
        transaction.prepare_cached("DELETE FROM proven WHERE relation_oid = ?1 AND leaf = ?2")?;
    for leaf in known.into_keys() {
        forget.execute(params![oid, leaf])?;
    }
    Ok(())
}
