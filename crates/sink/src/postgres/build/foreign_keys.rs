//! Foreign keys: each is made as soon as both of its tables have their rows and keys.
//!
//! **Invariant:** every foreign key is made exactly once. One that the source has validated is first added NOT VALID, which takes
//! a moment, and then validated, which reads both tables under locks that let writers through.
//!
//! Why so early: the copying and the index builds of other tables go on meanwhile. All rows of a run are of one snapshot,
//! so that two tables that are in fit together, whatever is still missing.
//!
//! Locks (PostgreSQL manual, ALTER TABLE): `ADD FOREIGN KEY` takes SHARE ROW EXCLUSIVE on both tables, and two of them can wait
//! for each other in a circle: they come one after the other. `VALIDATE CONSTRAINT` takes SHARE UPDATE EXCLUSIVE, which two
//! validations of one table cannot both have: those come one after the other too, without holding a build slot while they wait.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use futures::future::try_join_all;
use tidemark_model::{ForeignKey, RelationName, sql::Ident};

use super::{Builder, settings};
use crate::Result;

/// The foreign keys of a run, and which of its tables are ready for them.
#[derive(Default)]
pub(super) struct ForeignKeys {
    state: Mutex<State>,
    /// Held while one is added.
    adding: tokio::sync::Mutex<()>,
    /// By referencing table: held while one of its keys is validated.
    validating: HashMap<RelationName, tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    /// Those not made yet.
    open: Vec<Option<ForeignKey>>,
    /// Their places by either of their tables.
    of_table: HashMap<RelationName, Vec<usize>>,
    /// Tables that have their rows and keys.
    ready: HashSet<RelationName>,
}

impl ForeignKeys {
    pub(super) fn new(keys: &[ForeignKey]) -> Self {
        let mut state = State::default();
        for (place, key) in keys.iter().enumerate() {
            state.open.push(Some(key.clone()));
            for table in [&key.table, &key.references] {
                state.of_table.entry(table.clone()).or_default().push(place);
            }
        }
        let lock = |key: &ForeignKey| (key.table.clone(), tokio::sync::Mutex::default());
        Self {
            validating: keys.iter().map(lock).collect(),
            state: Mutex::new(state),
            adding: tokio::sync::Mutex::default(),
        }
    }

    /// Notes that a table is ready and takes the keys that can be made now.
    fn take_ready(
        &self,
        relation: &RelationName,
        may_be_early: impl Fn(&ForeignKey) -> bool,
    ) -> Vec<ForeignKey> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let State { open, of_table, ready } = &mut *state;
        ready.insert(relation.clone());
        let places = of_table.get(relation).map_or(&[][..], Vec::as_slice);
        let is_due = |key: &mut ForeignKey| {
            may_be_early(key) && ready.contains(&key.table) && ready.contains(&key.references)
        };
        places.iter().filter_map(|place| open[*place].take_if(is_due)).collect()
    }

    fn take_rest(&self) -> Vec<ForeignKey> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        state.open.iter_mut().filter_map(Option::take).collect()
    }
}

impl Builder {
    /// The foreign keys for which `relation` was the last thing missing.
    pub(super) async fn foreign_keys_of(&self, relation: &RelationName) -> Result<()> {
        let keys = self.foreign_keys.take_ready(relation, |key| self.may_be_early(key));
        self.make_foreign_keys(keys).await
    }

    /// The foreign keys that had to wait for the rest of the schema.
    pub(in super::super) async fn foreign_keys(&self) -> Result<()> {
        self.make_foreign_keys(self.foreign_keys.take_rest()).await
    }

    /// The largest first, because the others fit into the gaps beside it.
    async fn make_foreign_keys(&self, mut keys: Vec<ForeignKey>) -> Result<()> {
        keys.sort_by_key(|key| std::cmp::Reverse(self.heap_bytes(&key.table)));
        try_join_all(keys.iter().map(|key| self.foreign_key(key))).await?;
        Ok(())
    }

    async fn foreign_key(&self, key: &ForeignKey) -> Result<()> {
        let (table, name) = (&key.table, Ident(&key.name));
        let is_validated_later = key.is_valid && self.may_be_early(key);
        let settings = settings(self.heap_bytes(table));
        {
            let _adding = self.foreign_keys.adding.lock().await;
            let statements = [settings.to_owned(), add_foreign_key(key, is_validated_later)];
            self.execute(table, &format!("add foreign key {name}"), &statements).await?;
        }
        if !is_validated_later {
            return Ok(());
        }
        let _turn = self.foreign_keys.validating[table].lock().await;
        let validate = format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name}");
        let statements = [settings.to_owned(), validate];
        self.execute(table, &format!("validate foreign key {name}"), &statements).await
    }

    fn heap_bytes(&self, relation: &RelationName) -> u64 {
        self.tables.get(relation).map_or(0, |table| table.heap_bytes)
    }

    /// A key on a partitioned table cannot be NOT VALID; of one that points to a partitioned table, VALIDATE CONSTRAINT would
    /// leave the parts for its partitions marked NOT VALID. Both wait until the partitions' indexes are linked.
    fn may_be_early(&self, key: &ForeignKey) -> bool {
        !key.on_partitioned && self.tables.contains_key(&key.references)
    }
}

fn add_foreign_key(key: &ForeignKey, is_validated_later: bool) -> String {
    let only = if key.on_partitioned { "" } else { "ONLY " };
    let suffix = if is_validated_later { " NOT VALID" } else { "" };
    format!(
        "ALTER TABLE {only}{} ADD CONSTRAINT {} {}{suffix}",
        key.table,
        Ident(&key.name),
        key.definition
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(table: &str) -> RelationName {
        RelationName::new("public", table)
    }

    fn key(table: &str, references: &str) -> ForeignKey {
        ForeignKey {
            oid: 1,
            table: name(table),
            references: name(references),
            name: format!("{table}_{references}_fkey"),
            definition: format!("FOREIGN KEY (a) REFERENCES public.{references}(a)"),
            is_valid: true,
            on_partitioned: table == "parted",
        }
    }

    fn names(keys: &[ForeignKey]) -> Vec<&str> {
        keys.iter().map(|key| key.name.as_str()).collect()
    }

    #[test]
    fn a_key_is_taken_once_by_the_later_of_its_two_tables() {
        let keys = [key("a", "b"), key("b", "a"), key("a", "a"), key("c", "a"), key("parted", "a")];
        let keys = ForeignKeys::new(&keys);
        let early = |key: &ForeignKey| !key.on_partitioned;
        assert_eq!(names(&keys.take_ready(&name("a"), early)), ["a_a_fkey"]);
        assert_eq!(names(&keys.take_ready(&name("parted"), early)), [""; 0]);
        assert_eq!(names(&keys.take_ready(&name("b"), early)), ["a_b_fkey", "b_a_fkey"]);
        assert_eq!(names(&keys.take_ready(&name("b"), early)), [""; 0]);
        assert_eq!(names(&keys.take_rest()), ["c_a_fkey", "parted_a_fkey"]);
        assert_eq!(names(&keys.take_rest()), [""; 0]);
    }
}
