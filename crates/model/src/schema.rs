//! Definitions of what stands around the rows, in the source's own words.
//!
//! **Invariant:** every definition was printed by the source server with an empty `search_path`, so each name in it is
//! qualified; OIDs are the source's and serve to find the same object in a dump's table of contents, never to run it.

use serde::{Deserialize, Serialize};

use crate::{Oid, RelationName};

/// Keys, indexes, foreign keys, sequences and materialized views of the chosen tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaObjects {
    /// Indexes of tables that hold rows (not of partitioned parents), valid ones only.
    pub indexes: Vec<IndexDef>,
    /// Indexes of partitioned tables, which the schema's archive makes and attaches the others to.
    pub partitioned_indexes: Vec<PartitionedIndex>,
    /// Foreign keys, declared ones only (not those that partitions inherit).
    pub foreign_keys: Vec<ForeignKey>,
    /// Sequences with the position that belongs to the snapshot.
    pub sequences: Vec<SequencePosition>,
    /// Populated materialized views, in an order in which each comes after those it reads.
    pub materialized_views: Vec<RelationName>,
    /// Roles that own something or were granted something.
    pub roles: Vec<String>,
}

/// An index of a partitioned table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionedIndex {
    /// `pg_class.oid` of the index.
    pub oid: Oid,
    /// `pg_constraint.oid` of what owns it, if something does.
    pub constraint: Option<Oid>,
    /// The index's name.
    pub name: RelationName,
}

/// An index and the constraint that owns it, if one does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexDef {
    /// `pg_class.oid` of the index.
    pub oid: Oid,
    /// The table.
    pub table: RelationName,
    /// The index's name; its schema is the table's.
    pub name: String,
    /// `pg_get_indexdef`.
    pub definition: String,
    /// The constraint.
    pub constraint: Option<ConstraintDef>,
    /// `CLUSTER ON` this index.
    pub is_clustered: bool,
    /// `REPLICA IDENTITY USING INDEX` this index.
    pub is_replica_identity: bool,
}

/// A constraint that an index enforces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintDef {
    /// `pg_constraint.oid`.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// What can be made of it.
    pub kind: ConstraintKind,
    /// `pg_get_constraintdef`.
    pub definition: String,
    /// ` DEFERRABLE [INITIALLY DEFERRED]` or nothing.
    pub deferrable: String,
}

/// `pg_constraint.contype` of the constraints that have an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConstraintKind {
    /// `p`, on an ordinary index.
    PrimaryKey,
    /// `u`, on an ordinary index.
    Unique,
    /// `x`, or a key WITHOUT OVERLAPS: only the whole definition can make it.
    Exclusion,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// `pg_constraint.oid`.
    pub oid: Oid,
    /// The referencing table.
    pub table: RelationName,
    /// The referenced table.
    pub references: RelationName,
    /// Its name.
    pub name: String,
    /// `pg_get_constraintdef`, which says NOT VALID where the source says so.
    pub definition: String,
    /// Whether the source has validated it.
    pub is_valid: bool,
    /// Whether the referencing table is partitioned, which rules NOT VALID out.
    pub on_partitioned: bool,
    /// Whether the referenced table is partitioned.
    pub to_partitioned: bool,
}

impl ForeignKey {
    /// Whether it can only be made and checked in one step: one on a partitioned table cannot be NOT VALID, and of one that
    /// points to a partitioned table VALIDATE CONSTRAINT leaves the parts for its partitions marked NOT VALID.
    pub fn is_checked_at_once(&self) -> bool {
        self.on_partitioned || self.to_partitioned
    }
}

/// Where a sequence stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequencePosition {
    /// The sequence.
    pub name: RelationName,
    /// `last_value`.
    pub last_value: i64,
    /// Whether `nextval` has returned it.
    pub is_called: bool,
    /// The table that owns it, if one does.
    pub owner: Option<RelationName>,
}
