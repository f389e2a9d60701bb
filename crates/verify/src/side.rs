//! One side: its catalog, and read snapshots of it.
//!
//! **Invariant:** everything that a [`View`] reads is as of one moment of that side; the view names it (position and
//! `pg_current_snapshot()`).

use std::time::Duration;

use tidemark_model::{Lsn, Relation};
use tidemark_pipeline::{Error, Result, limit_waits, patiently};
use tidemark_source::{Catalog, Reader, Snapshot, SnapshotOptions, read_catalog};
use tidemark_wire::{Client, ConnectSpec};

use crate::Which;
use crate::pair::Bounds;

/// One of the two databases.
#[derive(Debug)]
pub struct Side {
    pub(crate) which: Which,
    /// What is done with it, for messages.
    doing: &'static str,
    spec: ConnectSpec,
    lock_timeout: Duration,
    application: String,
    /// What is there.
    pub catalog: Catalog,
}

impl Side {
    /// Connects and reads the catalog.
    pub(crate) async fn open(
        which: Which,
        spec: &ConnectSpec,
        how: (&str, Duration),
    ) -> Result<Self> {
        Self::open_to("verify", which, spec, how).await
    }

    /// The same for something else than a verification; `doing`: what messages say before "the source".
    ///
    /// # Errors
    /// The server cannot be reached, or its catalog cannot be read.
    pub async fn open_to(
        doing: &'static str,
        which: Which,
        spec: &ConnectSpec,
        (application, lock_timeout): (&str, Duration),
    ) -> Result<Self> {
        let of = |error| of((doing, which), error);
        let spec = spec.clone().with_application_name(application);
        let client = spec.connect().await.map_err(|error| of(Error::from(error)))?;
        limit_waits(&client, lock_timeout).await.map_err(of)?;
        let catalog = patiently(&spec, async || read_catalog(&client).await).await;
        let catalog = catalog.map_err(of)?;
        let application = application.to_owned();
        Ok(Self { which, doing, spec, lock_timeout, application, catalog })
    }

    /// Bounds of leaves from this side's statistics.
    pub(crate) async fn bounds(&self) -> Result<Bounds> {
        let client = self.spec.connect().await.map_err(|error| self.of(error))?;
        let found = tidemark_source::leaf_bounds(&client, &self.catalog.relations).await;
        found.map_err(|error| self.of(error))
    }

    /// A read snapshot that shows these tables.
    ///
    /// # Errors
    /// It cannot be taken, or somebody keeps a lock on one of the tables.
    pub async fn view(&self, tables: Vec<Relation>) -> Result<View> {
        let taken = Snapshot::take(&self.spec, &self.options(tables)).await;
        taken.map(|snapshot| self.shows(snapshot)).map_err(|error| self.of(error))
    }

    /// What this snapshot shows, which somebody else of this process holds.
    ///
    /// # Errors
    /// The server cannot be reached, or the snapshot is gone.
    pub async fn view_of(&self, snapshot: &Snapshot) -> Result<View> {
        let held = snapshot.held_again(&self.spec).await;
        held.map(|snapshot| self.shows(snapshot)).map_err(|error| self.of(error))
    }

    /// What a snapshot of these tables is taken with.
    pub(crate) fn options(&self, tables: Vec<Relation>) -> SnapshotOptions {
        let mut options = SnapshotOptions::new(tables, &self.application);
        options.lock_timeout = self.lock_timeout;
        options
    }

    /// What this snapshot of the side shows.
    pub(crate) fn shows(&self, snapshot: Snapshot) -> View {
        let version = self.catalog.server.version_num;
        let (which, doing) = (self.which, self.doing);
        View { which, doing, spec: self.spec.clone(), version, snapshot }
    }

    /// Reads by a session of its own what may have to wait for somebody's lock.
    pub(crate) async fn read<T>(
        &self,
        read: impl AsyncFn(&Client) -> tidemark_source::Result<T>,
    ) -> Result<T> {
        let client = self.spec.connect().await.map_err(|error| self.of(error))?;
        limit_waits(&client, self.lock_timeout).await.map_err(|error| self.of(error))?;
        let found = patiently(&self.spec, async || read(&client).await).await;
        found.map_err(|error| self.of(error))
    }

    pub(crate) fn spec(&self) -> &ConnectSpec {
        &self.spec
    }

    pub(crate) fn of(&self, error: impl Into<Error>) -> Error {
        of((self.doing, self.which), error.into())
    }
}

/// One moment of a side.
#[derive(Debug)]
pub struct View {
    pub(crate) which: Which,
    doing: &'static str,
    spec: ConnectSpec,
    version: u32,
    snapshot: Snapshot,
}

impl View {
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Position and `pg_current_snapshot()`.
    pub fn moment(&self) -> (Lsn, String) {
        (self.snapshot.lsn(), self.snapshot.read_snapshot().to_owned())
    }

    /// The tables with their sizes under the locks; those that were gone by then are not among them.
    pub fn tables(&self) -> &[Relation] {
        self.snapshot.tables()
    }

    /// A session that reads under the snapshot.
    ///
    /// # Errors
    /// The server cannot be reached, or the snapshot is gone.
    pub async fn reader(&self) -> Result<Reader> {
        Reader::open(&self.spec, self.snapshot.id()).await.map_err(|error| self.of(error))
    }

    /// An error of reading it, with the side that it is of.
    pub fn of(&self, error: impl Into<Error>) -> Error {
        of((self.doing, self.which), error.into())
    }

    /// What is done with which side, as messages begin.
    pub(crate) fn attempt(&self) -> String {
        format!("{} the {}", self.doing, self.which.word())
    }

    /// Lets the snapshot and its locks go.
    pub async fn release(self) {
        self.snapshot.release().await;
    }
}

/// An error with the side that it is of: what reads a PostgreSQL calls each one the source.
fn of((doing, which): (&str, Which), mut error: Error) -> Error {
    let said = error.message.strip_prefix("source: ").unwrap_or(&error.message);
    error.message = format!("{doing} the {}: {said}", which.word());
    error
}
