//! Tables join a stream that goes on: those that the selection has got, and those that were given up (`tidemark reset`).
//!
//! **Invariant:** the target's position does not move until the tables are whole there and where they joined is durable with
//! them; a process that dies before begins the join again, with a new read snapshot, and nothing of the other tables is
//! touched meanwhile. What the source sends goes to the spool.
//!
//! ```text
//! publish the tables, wait for who wrote before      source::publish_for_join
//! read snapshot S, under locks on the tables         source::Snapshot (without a slot)
//! receive into the spool; copy under S               session.rs; snapshot::Run
//! joined, with S: durable                            Sink::finish
//! follow: of these tables only what S does not show  followed.rs
//! ```
//!
//! `docs/adr/2026-11-21-a-table-joins-the-stream.md` proves it.

use std::sync::{Arc, Mutex};

use tidemark_model::{Oid, Persistence, TablePlan};
use tidemark_sink::SnapshotStart;
use tidemark_source::{
    Expected, SnapshotOptions, check_publication, publish_for_join, row_filters,
};
use tokio::sync::oneshot;

use super::Sync;
use super::resume::{self, Resumable};
use super::session::{self, Session};
use super::unfinished::Left;
use crate::progress::Phase;
use crate::snapshot::{Continuation, Half, Halves, Joining, Point, Report, Tools};
use crate::{Error, Kind, Result};

impl Sync<'_> {
    /// Begins to receive, and lets tables join that the target does not have whole.
    pub(super) async fn resume(
        &self,
        resumable: Resumable,
        tools: &Tools,
        joined: &mut Option<Report>,
    ) -> Result<Session> {
        let Resumable { mut start, spool, joining, completes, halves, .. } = resumable;
        if joining.is_empty() && completes.is_none() {
            return Session::resumed(self.job, start, spool, self.ladder).await;
        }
        let names: Vec<String> =
            joining.iter().map(|plan| plan.relation.name.to_string()).collect();
        if !names.is_empty() {
            tracing::info!(tables = names.join(", "), "tables join the stream");
        }
        self.publish(&joining, &halves, &start.run).await?;
        let (send, begun) = oneshot::channel();
        let (tell, touched) = oneshot::channel();
        let halves = Halves { tables: halves, touched: Arc::new(Mutex::new(Some(touched))) };
        let continuation = Continuation {
            point: Point::Join(Joining {
                run: start.run.clone(),
                position: start.position,
                timeline: start.timeline,
                tables: joining.iter().map(|plan| plan.relation.oid).collect(),
                followed: start.plans.iter().map(|plan| plan.relation.clone()).collect(),
                completes,
                halves: halves.clone(),
            }),
            begun: Mutex::new(Some(send)),
        };
        let run = self.copying(&continuation);
        let copy = Box::pin(run.once(tools));
        let receive = async {
            // Who begins the snapshot may have given up.
            let Ok(begun) = begun.await else { return Ok(None) };
            let plans = start.plans.iter().chain(begun.tables.iter()).cloned().collect();
            start.plans = Arc::new(plans);
            if let Some(join) = &begun.joins {
                let point = |plan: &TablePlan| (plan.relation.oid, join.point.clone());
                start.joins.extend(begun.tables.iter().map(point));
            }
            let mut session = Session::beside_join(self.job, start, spool, self.ladder).await?;
            let pairs = pairs(&halves.tables, &begun);
            if let (false, Some(join)) = (pairs.is_empty(), &begun.joins) {
                self.progress.enter(Phase::Prepare, "reading what changed in half-copied tables");
                // Who copies may have given up.
                drop(tell.send(session.touched(self.job, &pairs, join.point.lsn).await?));
            }
            Ok(Some(session))
        };
        match session::copy_beside(copy, receive).await {
            Ok((copied, session)) => {
                *joined = Some(copied);
                Ok(session)
            }
            Err(error) => {
                // What is made anew after this error finds the target free.
                tools.sink.let_go();
                // Of a first snapshot, which may have more whole tables by now.
                match self.left(tools, &error).await {
                    Left::Stays(left) => Err(error.staying(&left)),
                    Left::Nothing if error.kind == Kind::Interrupted => {
                        self.leave_nothing().await;
                        Err(error)
                    }
                    _ => Err(error.of_a_join()),
                }
            }
        }
    }

    /// Brings the tables into the stream, and keeps how the publication is then. Those that may go on by chunk have been in
    /// it all the time and stay as they are; who wrote before is waited for all the same.
    async fn publish(&self, joining: &[TablePlan], halves: &[Half], run: &str) -> Result<()> {
        // Of an unlogged one, which a snapshot that died may have left, there is nothing to publish.
        let is_logged = |plan: &&TablePlan| plan.relation.persistence != Persistence::Unlogged;
        let joining: Vec<_> = joining.iter().filter(is_logged).collect();
        if joining.is_empty() {
            return Ok(());
        }
        self.progress.enter(Phase::Prepare, "publishing the tables that join");
        let is_half = |plan: &TablePlan| halves.iter().any(|half| half.oid() == plan.relation.oid);
        let tables_of = |is_wanted: &dyn Fn(&TablePlan) -> bool| {
            let wanted = joining.iter().filter(|plan| is_wanted(plan));
            wanted.map(|plan| plan.relation.clone()).collect::<Vec<_>>()
        };
        let name = tidemark_model::names::application_name(&self.job.name);
        let publication = resume::publication_name(self.job);
        let is_ours = self.job.stream.publication.is_none();
        let filters = row_filters(joining.iter().copied());
        let publish = async |tables: Vec<_>, is_ours| {
            if tables.is_empty() {
                return Ok(());
            }
            let mut options = SnapshotOptions::new(tables, name.clone());
            options.filters.clone_from(&filters);
            options.lock_timeout = self.job.lock_timeout;
            publish_for_join(&self.job.source, &options, &publication, is_ours).await
        };
        let published = async {
            publish(tables_of(&|plan| !is_half(plan)), is_ours).await?;
            publish(tables_of(&is_half), false).await
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Error::interrupted_following()),
            published = published => published?,
        }
        let client = self.job.source.connect().await?;
        let tables: Vec<_> =
            joining.iter().map(|plan| (plan.relation.oid, plan.relation.name.clone())).collect();
        let publications = [publication];
        let expected = Expected { publications: &publications, tables: &tables, filters: &filters };
        check_publication(&client, &expected).await?;
        self.note_publication(run).await
    }
}

/// The tables that may go on by chunk, as they are now.
fn pairs<'a>(halves: &'a [Half], begun: &'a SnapshotStart) -> Vec<(&'a Half, &'a TablePlan)> {
    let fitting = begun.joins.iter().flat_map(|join| &join.halves);
    let pair = |oid: &Oid| {
        let half = halves.iter().find(|half| half.oid() == *oid)?;
        Some((half, begun.tables.iter().find(|plan| plan.relation.oid == *oid)?))
    };
    fitting.filter_map(pair).collect()
}
