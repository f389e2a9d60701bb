//! Turns rows of the stream into changes of described relations.
//!
//! **Invariant:** a change has exactly as many cells as its relation's description has columns, in both rows; a relation is
//! known by its OID alone, and each description replaces the one before it (`hazards.md` C45). To be fed in commit order:
//! the server counts on it when it leaves out a description that it has sent.
//!
//! **Not here:** values. They stay as the source wrote them.
//!
//! PostgreSQL manual, section 55.9 (logical replication message formats).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tidemark_model::{
    Change, Oid, OldRow, Operation, RelationName, StreamColumn, StreamRelation, TupleData,
};

use super::fields::{Fields, Malformed};
use super::message::RowKind;

/// What a row of the stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A change.
    Change(Change),
    /// A relation that is new, or described in another way than before.
    Relation(Arc<StreamRelation>),
    /// A description that is known already, or the name of a type.
    Nothing,
}

/// The relations that the stream has described.
#[derive(Debug, Clone, Default)]
pub struct Relations {
    by_oid: HashMap<Oid, Arc<StreamRelation>>,
    /// The relation of the last change: most often also that of the next.
    last: Option<Arc<StreamRelation>>,
}

impl Relations {
    /// Without any.
    pub fn new() -> Self {
        Self::default()
    }

    /// The present description of a relation.
    pub fn get(&self, oid: Oid) -> Option<&Arc<StreamRelation>> {
        self.by_oid.get(&oid)
    }

    /// All present descriptions.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StreamRelation>> {
        self.by_oid.values()
    }

    /// Reads the body of a [`Message::Row`](super::Message::Row).
    ///
    /// # Errors
    /// It is malformed, does not fit the description of its relation, or its relation was never described. Names the
    /// relation and what is wrong, never a value.
    pub fn decode(&mut self, kind: RowKind, body: Bytes) -> Result<Decoded, Malformed> {
        let mut fields = Fields::new(body, kind.name());
        let operation = match kind {
            RowKind::Relation => return self.describe(fields),
            RowKind::Type => {
                fields.u32()?;
                fields.text()?;
                fields.text()?;
                fields.end()?;
                return Ok(Decoded::Nothing);
            }
            RowKind::Truncate => return self.truncate(fields).map(Decoded::Change),
            RowKind::Insert => insert,
            RowKind::Update => update,
            RowKind::Delete => delete,
        };
        let oid = fields.u32()?;
        let relation = self.relation_of_change(oid, &fields)?;
        let operation = operation(&mut fields, &relation)?;
        fields.end().map_err(|malformed| on(malformed, &relation))?;
        Ok(Decoded::Change(Change { relation, operation }))
    }

    fn relation_of_change(
        &mut self,
        oid: Oid,
        fields: &Fields,
    ) -> Result<Arc<StreamRelation>, Malformed> {
        if let Some(last) = &self.last
            && last.oid == oid
        {
            return Ok(Arc::clone(last));
        }
        let relation = self.known(oid, fields)?;
        self.last = Some(Arc::clone(&relation));
        Ok(relation)
    }

    fn known(&self, oid: Oid, fields: &Fields) -> Result<Arc<StreamRelation>, Malformed> {
        let unknown = || fields.malformed(&format!("relation {oid} was never described"));
        self.by_oid.get(&oid).cloned().ok_or_else(unknown)
    }

    fn describe(&mut self, mut fields: Fields) -> Result<Decoded, Malformed> {
        let relation = relation(&mut fields)?;
        fields.end().map_err(|malformed| on(malformed, &relation))?;
        if self.by_oid.get(&relation.oid).is_some_and(|known| **known == relation) {
            return Ok(Decoded::Nothing);
        }
        let relation = Arc::new(relation);
        self.last = None;
        self.by_oid.insert(relation.oid, Arc::clone(&relation));
        Ok(Decoded::Relation(relation))
    }

    /// One change for all relations that the statement emptied.
    fn truncate(&self, mut fields: Fields) -> Result<Change, Malformed> {
        let count = fields.i32()?;
        let flags = fields.u8()?;
        if flags & !3 != 0 {
            return Err(fields.malformed("unknown flags"));
        }
        if usize::try_from(count).ok().and_then(|count| count.checked_mul(4))
            != Some(fields.remaining())
        {
            return Err(fields.malformed("its number of relations does not fit its length"));
        }
        let mut with = Vec::with_capacity(fields.remaining() / 4);
        while fields.remaining() > 0 {
            let oid = fields.u32()?;
            with.push(self.known(oid, &fields)?);
        }
        if with.is_empty() {
            return Err(fields.malformed("no relation"));
        }
        let relation = with.remove(0);
        let (cascade, restart_identity) = (flags & 1 != 0, flags & 2 != 0);
        Ok(Change { relation, operation: Operation::Truncate { with, cascade, restart_identity } })
    }
}

/// The body of a Relation message, so that what is stored can begin with the descriptions that it needs.
pub fn encode_relation(relation: &StreamRelation) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u32(relation.oid);
    put_text(&mut body, &relation.name.schema);
    put_text(&mut body, &relation.name.name);
    // One byte by construction: read from one, or an ASCII letter.
    body.put_u8(u8::try_from(relation.replica_identity).unwrap_or(b'd'));
    body.put_u16(u16::try_from(relation.columns.len()).unwrap_or(u16::MAX));
    for column in relation.columns.iter().take(usize::from(u16::MAX)) {
        body.put_u8(u8::from(column.is_identity));
        put_text(&mut body, &column.name);
        body.put_u32(column.type_oid);
        body.put_i32(column.typmod);
    }
    body.freeze()
}

fn put_text(body: &mut BytesMut, text: &str) {
    body.put_slice(text.as_bytes());
    body.put_u8(0);
}

fn relation(fields: &mut Fields) -> Result<StreamRelation, Malformed> {
    let oid = fields.u32()?;
    let schema = fields.text()?;
    let name = fields.text()?;
    let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
    let replica_identity = char::from(fields.u8()?);
    if !matches!(replica_identity, 'd' | 'n' | 'f' | 'i') {
        return Err(fields.malformed("an unknown replica identity"));
    }
    let count = fields.u16()?;
    // A column has ten bytes or more: a count that lies must not make us reserve for it.
    let mut columns = Vec::with_capacity(usize::from(count).min(fields.remaining() / 10));
    for _ in 0..count {
        let is_identity = fields.u8()? & 1 != 0;
        columns.push(StreamColumn {
            is_identity,
            name: fields.text()?,
            type_oid: fields.u32()?,
            typmod: fields.i32()?,
        });
    }
    Ok(StreamRelation { oid, name: RelationName { schema, name }, replica_identity, columns })
}

fn insert(fields: &mut Fields, relation: &StreamRelation) -> Result<Operation, Malformed> {
    match fields.u8()? {
        b'N' => Ok(Operation::Insert { new: tuple(fields, relation)? }),
        _ => Err(on(fields.malformed("no new row"), relation)),
    }
}

fn update(fields: &mut Fields, relation: &StreamRelation) -> Result<Operation, Malformed> {
    let mut marker = fields.u8()?;
    let old = old_row(marker, fields, relation)?;
    if old.is_some() {
        marker = fields.u8()?;
    }
    if marker != b'N' {
        return Err(on(fields.malformed("no new row"), relation));
    }
    Ok(Operation::Update { old, new: tuple(fields, relation)? })
}

fn delete(fields: &mut Fields, relation: &StreamRelation) -> Result<Operation, Malformed> {
    let marker = fields.u8()?;
    let old = old_row(marker, fields, relation)?;
    let old = old.ok_or_else(|| on(fields.malformed("no old row"), relation))?;
    Ok(Operation::Delete { old })
}

fn old_row(
    marker: u8,
    fields: &mut Fields,
    relation: &StreamRelation,
) -> Result<Option<OldRow>, Malformed> {
    Ok(match marker {
        b'K' => Some(OldRow::Key(tuple(fields, relation)?)),
        b'O' => Some(OldRow::Full(tuple(fields, relation)?)),
        _ => None,
    })
}

fn tuple(fields: &mut Fields, relation: &StreamRelation) -> Result<TupleData, Malformed> {
    let tuple = TupleData::split_from(fields.rest())
        .map_err(|malformed| on(fields.malformed(&malformed.to_string()), relation))?;
    if tuple.len() != relation.columns.len() {
        let what = format!(
            "a row of {} columns where {} are described",
            tuple.len(),
            relation.columns.len()
        );
        return Err(on(fields.malformed(&what), relation));
    }
    Ok(tuple)
}

fn on(malformed: Malformed, relation: &StreamRelation) -> Malformed {
    Malformed::new(format!("{} of relation {}", malformed.0, relation.name))
}

#[cfg(test)]
mod tests;
