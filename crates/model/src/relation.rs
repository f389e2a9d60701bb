//! What the catalog says of a relation.
//!
//! **Invariant:** columns are in attribute order without the dropped ones; every type carries its schema-qualified name,
//! because an OID means nothing on the other side.
//!
//! PostgreSQL manual, chapter 53 (`pg_class`, `pg_attribute`, `pg_type`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Oid;
use crate::sql::Ident;

/// A schema-qualified name; displayed quoted, ready for SQL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationName {
    /// The schema, unquoted.
    pub schema: String,
    /// The name inside the schema, unquoted.
    pub name: String,
}

impl RelationName {
    /// A name of its two unquoted parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// `schema.name` without quotes: what globs are matched against and people read in tables.
    pub fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl fmt::Display for RelationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", Ident(&self.schema), Ident(&self.name))
    }
}

/// `pg_class.relkind`, as far as it can hold or show rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelationKind {
    /// `r`
    Table,
    /// `p`: has no rows of its own.
    PartitionedTable,
    /// `f`
    ForeignTable,
    /// `v`
    View,
    /// `m`
    MaterializedView,
}

/// `pg_class.relpersistence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Persistence {
    /// `p`
    Permanent,
    /// `u`: its rows are in no WAL.
    Unlogged,
    /// `t`
    Temporary,
}

/// `pg_class.relreplident`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is one.
    Default,
    /// `n`
    Nothing,
    /// `f`
    Full,
    /// `i`: the named index.
    Index(String),
}

/// One relation of the source or the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relation {
    /// `pg_class.oid` of the side it was read from.
    pub oid: Oid,
    /// Its qualified name.
    pub name: RelationName,
    /// What it is.
    pub kind: RelationKind,
    /// Whether its rows are in the WAL.
    pub persistence: Persistence,
    /// The columns in attribute order, without the dropped ones.
    pub columns: Vec<Column>,
    /// Unique keys that can identify a row: NOT NULL columns, valid, immediate or deferrable; the primary key first.
    pub keys: Vec<Key>,
    /// All indexes, those of constraints included.
    pub indexes: Vec<Index>,
    /// What an UPDATE or DELETE carries in the stream.
    pub replica_identity: ReplicaIdentity,
    /// The topmost partitioned table above, if this is a partition.
    pub partition_root: Option<RelationName>,
    /// Plain inheritance (not partitioning): the parents.
    pub inherits: Vec<RelationName>,
    /// Whether row security applies to the current role (enabled, and the role neither bypasses it nor is an unforced owner).
    pub row_security_applies: bool,
    /// Whether the current role may SELECT from it (all columns).
    pub can_select: bool,
    /// `pg_class.reltuples`, at least 0: an estimate.
    pub row_estimate: u64,
    /// Bytes of the main fork (blocks x 8192 as measured, not `relpages`).
    pub heap_bytes: u64,
    /// Bytes of the TOAST table with its index.
    pub toast_bytes: u64,
    /// Owner's extension, if the table belongs to one.
    pub extension: Option<String>,
}

impl Relation {
    /// The primary key, if there is one.
    pub fn primary_key(&self) -> Option<&Key> {
        self.keys.iter().find(|key| key.is_primary)
    }

    /// Whether rows are stored in the relation itself.
    pub fn holds_rows(&self) -> bool {
        self.kind == RelationKind::Table
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// `pg_attribute.attnum`, counting the dropped ones.
    pub attnum: i16,
    /// Unquoted name.
    pub name: String,
    /// Its declared type.
    pub data_type: DataType,
    /// `atttypmod`, -1 without one.
    pub typmod: i32,
    /// As `format_type(oid, typmod)` prints it, for people and for comparing two sides.
    pub type_name: String,
    /// Whether NULL is allowed.
    pub is_nullable: bool,
    /// Generated columns are never written.
    pub generated: Generated,
    /// Identity columns are written with OVERRIDING SYSTEM VALUE.
    pub identity: Identity,
    /// Whether a default is declared.
    pub has_default: bool,
    /// 1-based position in the primary key.
    pub key_position: Option<u16>,
    /// Qualified collation name if it is collatable, such as `pg_catalog.C`.
    pub collation: Option<String>,
}

/// `pg_attribute.attgenerated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Generated {
    /// Not generated.
    No,
    /// `s`
    Stored,
    /// `v` (18 and later).
    Virtual,
}

/// `pg_attribute.attidentity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Not an identity column.
    No,
    /// `a`
    Always,
    /// `d`
    ByDefault,
}

/// A type with what is needed to carry and to hash its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataType {
    /// `pg_type.oid` on the side it was read from.
    pub oid: Oid,
    /// Schema, `pg_catalog` for built-in ones.
    pub schema: String,
    /// `pg_type.typname`: `int4`, `bpchar`, `_text` for arrays.
    pub name: String,
    /// The structure behind the name.
    pub kind: TypeKind,
    /// Whether `typsend` and `typreceive` exist.
    pub has_binary: bool,
    /// The extension that owns the type, if one does.
    pub extension: Option<String>,
}

impl DataType {
    /// A built-in base type, for tests and for text casts.
    pub fn builtin(oid: Oid, name: &str) -> Self {
        Self {
            oid,
            schema: "pg_catalog".to_owned(),
            name: name.to_owned(),
            kind: TypeKind::Base,
            has_binary: true,
            extension: None,
        }
    }

    /// Whether it is the built-in type of this name.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.schema == "pg_catalog" && self.name == name
    }
}

/// `pg_type.typtype`, with arrays told from other base types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TypeKind {
    /// A base type.
    Base,
    /// An array of an element type (`typelem` of a true array type).
    Array(Box<DataType>),
    /// A domain: the base type (domains over domains resolved) and the effective typmod.
    Domain {
        /// The type underneath.
        base: Box<DataType>,
        /// The typmod that applies to it, -1 without one.
        typmod: i32,
    },
    /// An enum with its labels in `enumsortorder`.
    Enum(Vec<String>),
    /// A composite: attributes without the dropped ones.
    Composite(Vec<(String, DataType, i32)>),
    /// A range over a subtype.
    Range(Box<DataType>),
    /// A multirange over a subtype.
    Multirange(Box<DataType>),
    /// A pseudo-type or one that is not understood.
    Other,
}

/// A unique key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The index's name.
    pub index: String,
    /// Column names in key order.
    pub columns: Vec<String>,
    /// Whether it is the primary key.
    pub is_primary: bool,
    /// Whether the constraint is DEFERRABLE.
    pub is_deferrable: bool,
}

/// An index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Its name; the schema is the table's.
    pub name: String,
    /// `pg_get_indexdef`.
    pub definition: String,
    /// Whether it is unique.
    pub is_unique: bool,
    /// The constraint it belongs to, if one does.
    pub constraint: Option<String>,
}
