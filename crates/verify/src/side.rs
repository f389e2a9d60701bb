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
pub(crate) struct Side {
    pub(crate) which: Which,
    spec: ConnectSpec,
    lock_timeout: Duration,
    application: String,
    pub(crate) catalog: Catalog,
}

impl Side {
    /// Connects and reads the catalog.
    pub(crate) async fn open(
        which: Which,
        spec: &ConnectSpec,
        (application, lock_timeout): (&str, Duration),
    ) -> Result<Self> {
        let spec = spec.clone().with_application_name(application);
        let client = spec.connect().await.map_err(|error| of(which, Error::from(error)))?;
        limit_waits(&client, lock_timeout).await.map_err(|error| of(which, error))?;
        let catalog = patiently(&spec, async || read_catalog(&client).await).await;
        let catalog = catalog.map_err(|error| of(which, error))?;
        let application = application.to_owned();
        Ok(Self { which, spec, lock_timeout, application, catalog })
    }

    /// Bounds of leaves from this side's statistics.
    pub(crate) async fn bounds(&self) -> Result<Bounds> {
        let client = self.spec.connect().await.map_err(|error| self.of(error))?;
        let found = tidemark_source::leaf_bounds(&client, &self.catalog.relations).await;
        found.map_err(|error| self.of(error))
    }

    /// A read snapshot that shows these tables.
    pub(crate) async fn view(&self, tables: Vec<Relation>) -> Result<View> {
        let taken = Snapshot::take(&self.spec, &self.options(tables)).await;
        taken.map(|snapshot| self.shows(snapshot)).map_err(|error| self.of(error))
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
        View { which: self.which, spec: self.spec.clone(), version, snapshot }
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
        of(self.which, error.into())
    }
}

/// One moment of a side.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) which: Which,
    spec: ConnectSpec,
    version: u32,
    snapshot: Snapshot,
}

impl View {
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Position and `pg_current_snapshot()`.
    pub(crate) fn moment(&self) -> (Lsn, String) {
        (self.snapshot.lsn(), self.snapshot.read_snapshot().to_owned())
    }

    /// The tables with their sizes under the locks; those that were gone by then are not among them.
    pub(crate) fn tables(&self) -> &[Relation] {
        self.snapshot.tables()
    }

    pub(crate) async fn reader(&self) -> Result<Reader> {
        Reader::open(&self.spec, self.snapshot.id()).await.map_err(|error| self.of(error))
    }

    pub(crate) fn of(&self, error: impl Into<Error>) -> Error {
        of(self.which, error.into())
    }

    pub(crate) async fn release(self) {
        self.snapshot.release().await;
    }
}

/// An error with the side that it is of: what reads a PostgreSQL calls each one the source.
fn of(which: Which, mut error: Error) -> Error {
    let said = error.message.strip_prefix("source: ").unwrap_or(&error.message);
    error.message = format!("verify the {}: {said}", which.word());
    error
}
