//! The commits of a stream, and who may write them.
//!
//! **Invariant:** commit `n + 1` is written once, by whoever found `n` to be the last. A writer that takes the lake writes a
//! commit of its own before anything else. So the one before it finds its next number taken and can never commit again;
//! only then are the files removed that it was writing for that number.
//!
//! A number is probed, not listed: they are dense, so that some tens of questions find the last of a million.

use std::collections::HashSet;

use tidemark_model::{Column, Lsn, RelationName};

use super::super::manifest::{
    self, COMMITS, Commit, CommitTable, DOCUMENTS, FORMAT_VERSION, FormerJoin, FormerRun, JOB,
    JobDocument, JobTable, Member, MemberState, SNAPSHOT_COMMIT, Source, WHOLE,
};
use super::super::root::{Root, is_unfinished_document};
use super::super::to_json;
use super::lock::Lock;
use super::roster::{self, Roster};
use super::turn::Turn;
use crate::{Disposition, Error, Join, Result, SnapshotStart};

/// How often the lake is taken anew because its last writer still commits.
const ATTEMPTS: u32 = 10;

/// The last commit, and the right to write the next one.
pub(crate) struct Commits {
    root: Root,
    job: String,
    run: String,
    source: Source,
    last: u64,
    position: Lsn,
    tables: Vec<JobTable>,
    roster: Roster,
    _lock: Lock,
}

impl Commits {
    /// Takes the lake, with a commit that says what for.
    pub(crate) async fn take(root: &Root, turn: Turn<'_>) -> Result<Self> {
        // Before anything is changed, and again once nobody else changes it.
        snapshot_to_follow(root, turn).await?;
        own_job(root, turn.job()).await?;
        let lock = Lock::take(root)?;
        let snapshot = snapshot_to_follow(root, turn).await?;
        let first_run = snapshot.run.clone();
        let mut last = last(root, snapshot).await?;
        let before = own_job(root, turn.job()).await?.run;
        for _ in 0..ATTEMPTS {
            let mut job = own_job(root, turn.job()).await?;
            let mut commits = Self::behind(root, turn, &last).await?;
            let mut document = commits.document(last.end_lsn, Vec::new());
            turn.write(&mut document, &commits.roster, &first_run)?;
            let former = FormerRun { run: before.clone(), commit: document.commit };
            if !job.former.contains(&former) {
                job.former.push(former);
            }
            job.run.clone_from(&commits.run);
            job.format_version = FORMAT_VERSION;
            turn.note(&mut job);
            root.put(JOB, to_json(&job)).await?;
            if root.put_new(&manifest::commit_path(document.commit), to_json(&document)).await? {
                commits._lock = lock;
                commits.tables.clone_from(&job.tables);
                commits.passed(document);
                commits.remove_leftovers(job, turn.copy()).await?;
                return Ok(commits);
            }
            // Whoever had the lake has committed in the meantime; or this very document is there, because the answer to
            // an earlier attempt was lost, and one more of its kind does no harm.
            last = read(root, document.commit).await?;
        }
        Err(Error::new(Disposition::Held, format!("take the lake {root}"))
            .hint("another run of the job goes on writing to it; stop that one first"))
    }

    /// The commits up to this one, without the right to write the next.
    async fn behind(root: &Root, turn: Turn<'_>, last: &Commit) -> Result<Self> {
        let timeline = turn.timeline().or(last.source.timeline);
        Ok(Self {
            root: root.clone(),
            job: turn.job().to_owned(),
            run: turn.run().unwrap_or(&last.run).to_owned(),
            source: Source { timeline, ..last.source.clone() },
            last: last.commit,
            position: last.end_lsn,
            tables: Vec::new(),
            roster: Roster::of(root, last).await?,
            _lock: Lock::default(),
        })
    }

    /// The commit is there.
    fn passed(&mut self, document: Commit) {
        (self.last, self.position) = (document.commit, document.end_lsn);
        if let Some(members) = document.members {
            self.roster = Roster { at: document.roster, members };
        }
    }

    /// Everything up to here is in the lake.
    pub(super) fn position(&self) -> Lsn {
        self.position
    }

    /// The number of the commit that is being made.
    pub(super) fn next(&self) -> u64 {
        self.last + 1
    }

    /// The columns that the lake has of a table.
    pub(super) fn columns(&self, relation: &RelationName) -> &[String] {
        let table = self.tables.iter().find(|known| known.is_of(relation));
        table.map_or(&[], |table| table.columns.as_slice())
    }

    /// Notes that a table has these columns from now on, before any file has them.
    pub(super) async fn note_columns(
        &mut self,
        relation: &RelationName,
        columns: &[Column],
    ) -> Result<()> {
        let mut job = self.still_ours().await?;
        job.tables.retain(|known| !known.is_of(relation));
        job.tables.push(JobTable::new(relation, columns));
        self.tables.clone_from(&job.tables);
        self.root.put(JOB, to_json(&job)).await
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// Makes files, which are durable, part of the lake, and moves the position.
    pub(super) async fn commit(&mut self, end_lsn: Lsn, tables: Vec<CommitTable>) -> Result<()> {
        let document = self.document(end_lsn, tables);
        self.commit_document(document).await
    }

    /// Makes the files of tables part of the lake, which are durable, and says where the tables joined. The position stays.
    pub(crate) async fn join(
        mut self,
        start: &SnapshotStart,
        join: &Join,
        mut tables: Vec<CommitTable>,
    ) -> Result<()> {
        tables.iter_mut().for_each(|table| table.join = Some(join.point.clone()));
        let mut document = self.document(self.position, tables);
        "join".clone_into(&mut document.kind);
        let mut members = self.roster.members.clone();
        for plan in start.tables.iter() {
            let (name, oid) = (&plan.relation.name, plan.relation.oid);
            members.retain(|member| !member.is_of(name));
            let whole = roster::joined(name, oid, document.commit, &start.run);
            members.push(Member { join: Some(join.point.clone()), ..whole });
        }
        (document.roster, document.members) = (Some(document.commit), Some(members));
        self.commit_document(document).await
    }

    async fn commit_document(&mut self, document: Commit) -> Result<()> {
        let outcome = self.put_commit(&document).await;
        if outcome.as_ref().is_err_and(|error| error.disposition == Disposition::Held) {
            self.remove_own(&document).await;
        }
        outcome?;
        self.passed(document);
        Ok(())
    }

    async fn put_commit(&self, document: &Commit) -> Result<()> {
        self.still_ours().await?;
        let path = manifest::commit_path(document.commit);
        if !self.root.put_new(&path, to_json(document)).await? {
            // Ours, if the answer to an attempt of the client was lost.
            let found = read(&self.root, document.commit).await?;
            if found != *document {
                return Err(self.held());
            }
        }
        Ok(())
    }

    /// Removes files that will never be listed, because the lake is somebody else's now.
    async fn remove_own(&self, document: &Commit) {
        for file in document.tables.iter().flat_map(|table| &table.files) {
            if let Err(error) = self.root.remove(&file.path).await {
                let path = &file.path;
                tracing::warn!(%error, path, "could not remove a file that no commit will list");
            }
        }
    }

    fn document(&self, end_lsn: Lsn, tables: Vec<CommitTable>) -> Commit {
        let kind = if tables.is_empty() { "position" } else { "changes" };
        Commit {
            format_version: FORMAT_VERSION,
            commit: self.next(),
            kind: kind.to_owned(),
            job: self.job.clone(),
            run: self.run.clone(),
            end_lsn,
            source: self.source.clone(),
            created_at: jiff::Timestamp::now().to_string(),
            continues: false,
            tables,
            roster: self.roster.at,
            members: None,
        }
    }

    /// A lake that was emptied has free numbers, so that these alone would not stop us.
    async fn still_ours(&self) -> Result<JobDocument> {
        let job = match self.root.read(JOB).await? {
            Some(bytes) => parse::<JobDocument>(&self.root, JOB, &bytes)?,
            None => return Err(self.held()),
        };
        if job.run == self.run { Ok(job) } else { Err(self.held()) }
    }

    fn held(&self) -> Error {
        let attempt = format!("commit changes to the lake {}", self.root);
        Error::new(Disposition::Held, attempt).hint(
            "another run of the job has taken the lake over; what was not committed is sent to it again",
        )
    }

    /// Removes the files that were written for a commit which another one has taken the number of, those of copies that did
    /// not come to their end, and those of tables that were given up.
    async fn remove_leftovers(&self, mut job: JobDocument, copy: Option<&str>) -> Result<()> {
        self.remove_unfinished_documents().await?;
        // The snapshot is there, and lists all that they did.
        for name in self.root.file_names(WHOLE).await? {
            self.root.remove(&format!("{WHOLE}/{name}")).await?;
        }
        let (own, joining) = std::mem::take(&mut job.joining)
            .into_iter()
            .partition(|former| Some(former.run.as_str()) == copy);
        job.joining = own;
        self.remove_unjoined(joining).await?;
        self.remove_given_up().await?;
        for former in std::mem::take(&mut job.former) {
            // It is there, for a later one is; what it lists stays, whoever wrote it.
            let commit = read(&self.root, former.commit).await?;
            let listed: HashSet<_> = commit
                .tables
                .iter()
                .flat_map(|table| &table.files)
                .map(|file| &file.path)
                .collect();
            let start = manifest::change_file_prefix(&former.run, former.commit);
            for directory in job.directories.iter().filter(|path| path.ends_with("/changes")) {
                require_inside(&self.root, directory, "changes")?;
                for name in self.root.file_names_from(directory, &start).await? {
                    let path = format!("{directory}/{name}");
                    let is_left = manifest::is_change_file(&name, &former.run, Some(former.commit));
                    if is_left && !listed.contains(&path) {
                        self.root.remove(&path).await?;
                    }
                }
            }
        }
        self.root.put(JOB, to_json(&job)).await
    }

    /// Their writers can commit no more: the number that they waited for is taken.
    async fn remove_unjoined(&self, joining: Vec<FormerJoin>) -> Result<()> {
        for FormerJoin { run, directories } in joining {
            let members = self.roster.members.iter().filter(|member| member.run == run);
            let there: HashSet<_> =
                members.map(|member| manifest::snapshot_directory(&member.relation())).collect();
            for directory in directories.iter().filter(|directory| !there.contains(*directory)) {
                require_inside(&self.root, directory, "snapshot")?;
                for name in self.root.file_names(directory).await? {
                    if manifest::is_file_of_run(&name, &run) {
                        self.root.remove(&format!("{directory}/{name}")).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Readers of the commits do not come upon these any more.
    async fn remove_given_up(&self) -> Result<()> {
        let given_up = |member: &&Member| member.state == MemberState::Reset;
        for member in self.roster.members.iter().filter(given_up) {
            let name = member.relation();
            let directory = manifest::changes_directory(&name);
            for file in self.root.file_names(&directory).await? {
                if manifest::commit_of_change_file(&file).is_some_and(|of| of <= member.since) {
                    self.root.remove(&format!("{directory}/{file}")).await?;
                }
            }
            let directory = manifest::snapshot_directory(&name);
            for file in self.root.file_names(&directory).await? {
                if manifest::is_file_of_run(&file, &member.run) {
                    self.root.remove(&format!("{directory}/{file}")).await?;
                }
            }
        }
        Ok(())
    }

    /// On a disk, where the lock tells that nobody is writing one.
    async fn remove_unfinished_documents(&self) -> Result<()> {
        if self.root.local_path().is_none() {
            return Ok(());
        }
        for directory in [DOCUMENTS, COMMITS] {
            for name in self.root.file_names(directory).await? {
                if is_unfinished_document(&name) {
                    self.root.remove(&format!("{directory}/{name}")).await?;
                }
            }
        }
        Ok(())
    }
}

/// Reads a document.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    root: &Root,
    path: &str,
    bytes: &[u8],
) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let attempt = format!("understand {path} of the lake {root}");
        Error::new(Disposition::Usage, attempt).because(error)
    })
}

/// The last commit of a lake whose snapshot is there.
pub(crate) async fn last(root: &Root, snapshot: Commit) -> Result<Commit> {
    // `low` is there, `high` is not.
    let (mut low, mut high) = (0_u64, 1_u64);
    while root.exists(&manifest::commit_path(high)).await? {
        low = high;
        high *= 2;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if root.exists(&manifest::commit_path(middle)).await? {
            low = middle;
        } else {
            high = middle;
        }
    }
    if low == 0 { Ok(snapshot) } else { read(root, low).await }
}

pub(crate) async fn read(root: &Root, number: u64) -> Result<Commit> {
    let path = manifest::commit_path(number);
    let bytes = root.read(&path).await?.unwrap_or_default();
    let commit: Commit = parse(root, &path, &bytes)?;
    if commit.commit != number || commit.format_version > FORMAT_VERSION {
        let attempt = format!("understand {path} of the lake {root}");
        return Err(Error::new(Disposition::Usage, attempt)
            .hint("a newer version of tidemark wrote it, or it was changed"));
    }
    Ok(commit)
}

/// The commit that a stream of this job goes on from.
async fn snapshot_to_follow(root: &Root, turn: Turn<'_>) -> Result<Commit> {
    let refuse = |disposition, hint: String| {
        Err(Error::new(disposition, format!("follow a source into the lake {root}")).hint(hint))
    };
    let Some(bytes) = root.read(SNAPSHOT_COMMIT).await? else {
        return refuse(Disposition::Refused, "there is no finished snapshot: run sync".to_owned());
    };
    let snapshot: Commit = parse(root, SNAPSHOT_COMMIT, &bytes)?;
    if snapshot.format_version > FORMAT_VERSION {
        return refuse(Disposition::Usage, "a newer version of tidemark wrote it".to_owned());
    }
    if snapshot.job != turn.job() {
        return refuse(Disposition::Usage, format!("it belongs to job \"{}\"", snapshot.job));
    }
    if !snapshot.continues {
        return refuse(
            Disposition::Refused,
            "its snapshot was made to stay alone: make a new one in another directory, or say --target-not-empty truncate --yes".to_owned(),
        );
    }
    let source = &snapshot.source;
    if let Some((identifier, database)) = turn.source()
        && (source.system_identifier != identifier || source.database != database)
    {
        let found = format!(
            "it holds database \"{}\" of the cluster {}, the source is \"{database}\" of {identifier}",
            source.database, source.system_identifier
        );
        return refuse(Disposition::Refused, found);
    }
    Ok(snapshot)
}

async fn own_job(root: &Root, name: &str) -> Result<JobDocument> {
    let attempt = || format!("take the lake {root}");
    let Some(bytes) = root.read(JOB).await? else {
        return Err(Error::new(Disposition::Refused, attempt())
            .hint("_tidemark/job.json is gone: put it back, or make a new snapshot"));
    };
    let job: JobDocument = parse(root, JOB, &bytes)?;
    if job.job == name && job.format_version <= FORMAT_VERSION {
        return Ok(job);
    }
    let hint = format!("it belongs to job \"{}\", or a newer version wrote it", job.job);
    Err(Error::new(Disposition::Usage, attempt()).hint(hint))
}

/// A document that was tampered with must not make us remove files elsewhere.
fn require_inside(root: &Root, directory: &str, last: &str) -> Result<()> {
    let mut segments = directory.split('/');
    let is_plain = |segment: Option<&str>| segment.is_some_and(|s| !matches!(s, "" | "." | ".."));
    let is_ours = is_plain(segments.next())
        && is_plain(segments.next())
        && segments.next() == Some(last)
        && segments.next().is_none();
    if is_ours {
        return Ok(());
    }
    let attempt = format!("understand {JOB} of the lake {root}");
    Err(Error::new(Disposition::Usage, attempt).hint("it names a path that we never write"))
}
