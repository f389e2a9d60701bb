//! Which tables a lake has whole.
//!
//! **Invariant:** the roster changes only with a commit, which carries it as a whole; every other commit names the one that
//! does. So what a table is and the files that make it so become visible together, and two documents say how any lake stands.
//!
//! ```text
//! (new) ---> joined ---> left      joined   it has every change up to the position (but for what its join's snapshot shows)
//!              ^  \        |       left     the stream went on without it: it stays as it was
//!              |   v       v       reset    the user gave it up: no files; those that it had are removed
//!              +---- reset <
//! ```

use std::collections::HashSet;

use tidemark_model::{Lsn, Oid, Persistence, RelationName, TablePlan};

use super::super::manifest::{Commit, Member, MemberState};
use super::super::root::Root;
use super::commits;
use crate::{Disposition, Error, Result, StoredTable};

/// The tables of a lake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    /// The commit that says so; none where a version wrote the lake that did not tell its tables apart.
    pub(super) at: Option<u64>,
    pub(super) members: Vec<Member>,
}

impl Roster {
    /// What holds as of a commit.
    pub(super) async fn of(root: &Root, last: &Commit) -> Result<Self> {
        let Some(at) = last.roster else { return Ok(Self::default()) };
        let members = match last.commit == at {
            true => last.members.clone(),
            false => commits::read(root, at).await?.members,
        };
        let malformed = || {
            let attempt = format!("understand which tables the lake {root} has (commit {at})");
            Error::new(Disposition::Usage, attempt)
                .hint("its commits were changed: take a new snapshot")
        };
        Ok(Self { at: Some(at), members: members.ok_or_else(malformed)? })
    }

    pub(super) fn member(&self, relation: &RelationName) -> Option<&Member> {
        self.members.iter().find(|member| member.is_of(relation))
    }

    /// The tables that are whole; `None` where that is not known.
    pub(super) fn whole(&self) -> Option<Vec<StoredTable>> {
        self.at?;
        let joined = self.members.iter().filter(|member| member.state == MemberState::Joined);
        let stored = |member: &Member| StoredTable {
            name: member.relation(),
            oid: member.oid,
            join: member.join.clone(),
        };
        Some(joined.map(stored).collect())
    }

    /// The members once the stream goes on with these tables alone: others that were whole have left. Where nothing was
    /// known, these are all that there are, with the files of `run`.
    pub(super) fn following(
        &self,
        followed: impl Iterator<Item = (RelationName, Oid)>,
        run: &str,
        number: u64,
    ) -> Vec<Member> {
        if self.at.is_none() {
            return followed.map(|(name, oid)| joined(&name, oid, 0, run)).collect();
        }
        let followed: HashSet<_> = followed.map(|(name, _)| name).collect();
        let mut members = self.members.clone();
        for member in &mut members {
            if member.state == MemberState::Joined && !followed.contains(&member.relation()) {
                (member.state, member.since) = (MemberState::Left, number);
            }
        }
        members
    }
}

/// A table that is whole as of a commit.
pub(crate) fn joined(relation: &RelationName, oid: Oid, since: u64, run: &str) -> Member {
    Member {
        schema: relation.schema.clone(),
        name: relation.name.clone(),
        oid,
        state: MemberState::Joined,
        since,
        run: run.to_owned(),
        join: None,
    }
}

/// The members of a first snapshot. The stream goes on without unlogged tables, of which no WAL is written.
pub(crate) fn first(plans: &[TablePlan], run: &str) -> Vec<Member> {
    let member = |plan: &TablePlan| {
        let is_unlogged = plan.relation.persistence == Persistence::Unlogged;
        let state = if is_unlogged { MemberState::Left } else { MemberState::Joined };
        Member { state, ..joined(&plan.relation.name, plan.relation.oid, 0, run) }
    };
    plans.iter().map(member).collect()
}

/// Refuses to follow tables that are not whole: what came before would be missed.
pub(super) fn may_follow(roster: &Roster, plans: &[TablePlan]) -> Result<()> {
    let joined = roster.members.iter().filter(|member| member.state == MemberState::Joined);
    let whole: HashSet<_> = joined.map(Member::relation).collect();
    let missing = plans.iter().find(|plan| !whole.contains(&plan.relation.name));
    let Some(plan) = missing else { return Ok(()) };
    let attempt = "follow a table that the lake does not have whole any more";
    Err(Error::new(Disposition::Unavailable, attempt)
        .on(&plan.relation.name)
        .hint("it was given up meanwhile: run the same command again"))
}

/// What keeps tables from joining a lake that stands at `end_lsn`.
pub(super) fn may_join(
    roster: &Roster,
    plans: &[TablePlan],
    (expected, end_lsn): (Lsn, Lsn),
) -> Result<()> {
    let attempt = "let a table join the lake";
    for plan in plans {
        let name = &plan.relation.name;
        match roster.member(name).map(|member| member.state) {
            None | Some(MemberState::Reset) => {}
            Some(MemberState::Left) => {
                return Err(Error::new(
                    Disposition::Usage,
                    format!("{attempt}: it has the rows of when it was left out"),
                )
                .on(name)
                .hint(format!(
                    "tidemark reset {} --yes gives them up, or leave the table out (select.exclude)",
                    name.plain()
                )));
            }
            Some(MemberState::Joined) => {
                return Err(Error::new(
                    Disposition::Unavailable,
                    format!("{attempt}: it has joined meanwhile"),
                )
                .on(name)
                .hint("run the same command again"));
            }
        }
    }
    if end_lsn != expected {
        // What ended in between was written without these tables, and may not be in their snapshot.
        let attempt = format!("{attempt}: the lake went from {expected} to {end_lsn} meanwhile");
        return Err(Error::new(Disposition::Unavailable, attempt)
            .hint("another process of the job writes to it: stop that one, then run again"));
    }
    Ok(())
}
