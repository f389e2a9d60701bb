//! What each step does.
//!
//! **Invariant:** a step may be done again, by another process than the one that has begun it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tidemark_model::{Lsn, Severity};
use tidemark_pipeline::{Error, Held, Kind, Phase, Progress, Result, Until, ask_status};
use tidemark_report::{Level, Verdict};
use tidemark_source::emit_barrier;
use tidemark_verify::{Lines, Outcome, Point, Reads, Request, verify_at_barrier};
use tokio::time::Instant;

use super::{LOOK_EVERY, Stepped, Switch, TURNS, gone, no_wave, removed};
use crate::fence::{self, Fence, Fenced};
use crate::hook::{self, Hook, Told};
use crate::runbook::{Direction, Step};
use crate::sides::adopting;
use crate::{rights, sequences, wave_fence};

/// How often what was touched meanwhile is proven before the fence, and when that is quick enough.
const ROUNDS: u32 = 8;
const CLOSE_ENOUGH: Duration = Duration::from_millis(300);
/// The process that runs the job follows within this.
const COMES: Duration = Duration::from_secs(10);

impl Switch<'_> {
    pub(super) async fn step(&mut self, step: Step) -> Result<Stepped> {
        match step {
            Step::Check => self.check().await,
            Step::Prove => self.prove_closer_and_closer().await,
            Step::Fence => self.fence().await,
            Step::Drain => self.drain().await,
            Step::Sequences => {
                let margin = self.migration.plan.sequence_margin;
                let tables = self.tables_of_wave().await?;
                let (from, to) = (&self.from.source, &self.to.source);
                let moved = sequences::carry(from, to, margin, tables.as_deref()).await?;
                Ok(Stepped::Done(json!({ "moved": moved })))
            }
            Step::Verify => self.prove(Reads::Dirty).await,
            Step::Reverse => self.reverse().await,
            Step::Open => self.open().await,
            Step::Switch => {
                let told = self.told("switch", self.way.to());
                let said = self.hook(&self.migration.plan.switch_hook, &told).await?;
                Ok(Stepped::Done(json!({ "said": said })))
            }
            Step::Turn => Ok(Stepped::Done(json!({ "late_changes": self.late_changes().await }))),
            Step::Retire => self.retire().await,
        }
    }

    pub(super) async fn hook(&self, hook: &Hook, told: &Told<'_>) -> Result<String> {
        hook::run(hook, told, self.migration.plan.hook_timeout).await
    }

    /// `direction`: of the stream that comes from the side that a hook is about.
    pub(super) fn told(&self, step: &'static str, direction: Direction) -> Told<'_> {
        let lsn = self.lsn.map(|lsn| lsn.to_string()).unwrap_or_default();
        let side = side_of(direction);
        let job = &self.migration.job;
        let (job, wave) = match &job.wave {
            Some(wave) => (&wave.job, wave.name.as_str()),
            None => (&job.name, ""),
        };
        Told { job, wave, way: self.way.word(), step, side, lsn }
    }

    /// The tables of a wave, whose own rights and sequences are meant; `None` is everything.
    async fn tables_of_wave(&self) -> Result<Option<Vec<String>>> {
        if self.migration.job.wave.is_none() {
            return Ok(None);
        }
        let client = self.from.source.connect().await?;
        let tables = wave_fence::tables(&client, &self.from).await?;
        Ok(Some(tables.leaves.iter().chain(&tables.above).map(ToString::to_string).collect()))
    }

    /// The stream is close enough.
    async fn check(&mut self) -> Result<Stepped> {
        let mut status = ask_status(&self.from.state_dir).await?.ok_or_else(gone)?;
        // One that was started a moment ago is still looking where the target stands.
        let deadline = Instant::now() + COMES;
        while status.phase != Phase::Follow && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
            status = ask_status(&self.from.state_dir).await?.ok_or_else(gone)?;
        }
        let behind = status.lag.seconds.unwrap_or_default();
        if status.phase != Phase::Follow {
            let message = format!("{}: the job does not follow yet", self.way.word());
            return Err(
                Error::new(Kind::Usage, message).hint("tidemark status tells how far it is")
            );
        }
        if behind > self.migration.plan.max_lag.as_secs_f64() {
            let message = format!("{}: the stream is {behind:.1} s behind", self.way.word());
            return Err(Error::new(Kind::Unavailable, message).hint(
                "wait until it has caught up (tidemark status --watch), or raise cutover.max_lag",
            ));
        }
        let began = Instant::now();
        let tables = self.tables_of_wave().await?;
        self.preflight(tables.as_deref()).await?;
        self.looking = began.elapsed();
        let missing_rights = self.missing_rights(tables.as_deref()).await?;
        Ok(Stepped::Done(json!({
            "lag_ms": (behind * 1000.0) as u64,
            "lag_bytes": status.lag.bytes,
            "missing_rights": missing_rights,
        })))
    }

    /// Who writes here and might not there. The application may have another role on the other side: nothing to be refused.
    async fn missing_rights(&self, tables: Option<&[String]>) -> Result<Vec<String>> {
        let missing = rights::missing(&self.from.source, &self.to.source, tables).await?;
        let (here, there) = (side_of(self.way.from()), side_of(self.way.to()));
        for role in &missing {
            tracing::warn!(
                "{role} (here: the {here}, there: the {there}); GRANT it there before the application comes, unless that has another role then"
            );
        }
        Ok(missing)
    }

    /// What would be refused behind the fence is refused before it.
    async fn preflight(&self, tables: Option<&[String]>) -> Result<()> {
        match self.migration.plan.fence {
            Fence::ReadOnly => {
                fence::check((&self.from.source, side_of(self.way.from()))).await?;
                fence::check_way_back((&self.to.source, side_of(self.way.to()))).await?;
            }
            Fence::Tables => wave_fence::check(&self.from).await?,
            Fence::Hooks { .. } => {}
        }
        fence::refuse_read_only((&self.to.source, side_of(self.way.to())), self.to_be_opened())
            .await?;
        let plan = &self.migration.plan;
        hook::check(&plan.switch_hook)?;
        if let Fence::Hooks { up, down } = &plan.fence {
            hook::check(up)?;
            hook::check(down)?;
        }
        sequences::check(&self.from.source, &self.to.source, tables).await?;
        let findings = tidemark_pipeline::check(&adopting(&self.to)).await?;
        let blocking: Vec<_> =
            findings.into_iter().filter(|found| found.severity == Severity::Blocking).collect();
        if blocking.is_empty() {
            return Ok(());
        }
        let (from, to) = (side_of(self.way.from()), side_of(self.way.to()));
        let message = format!(
            "{}: the stream back could not begin; it goes from the {to} to the {from}, which is called its target here",
            self.way.word()
        );
        let mut error = Error::new(Kind::Preflight, message)
            .hint("mend what blocks (each with its statement), then run the same command again");
        error.findings = blocking;
        Err(error)
    }

    /// Proves everything, then what was touched meanwhile, again and again: each time less is left for the moment in which
    /// nobody writes, until it does not get less any more.
    async fn prove_closer_and_closer(&mut self) -> Result<Stepped> {
        let mut proven = self.prove(Reads::All).await?;
        for _ in 0..ROUNDS {
            if matches!(proven, Stepped::NotProven(_)) || self.proving < CLOSE_ENOUGH {
                break;
            }
            let before = self.proving;
            let again = self.prove(Reads::Dirty).await?;
            if matches!(again, Stepped::NotProven(_)) {
                proven = again;
            } else if self.proving > before.mul_f64(0.8) {
                break;
            }
        }
        Ok(proven)
    }

    async fn prove(&mut self, reads: Reads) -> Result<Stepped> {
        let request =
            Request { reads, ..Request::new(self.from.clone(), Level::Digest, Lines::nowhere()) };
        let began = Instant::now();
        let outcome = Box::pin(verify_at_barrier(&request, self.stop)).await?;
        self.proving = began.elapsed();
        self.verdict = outcome.verdict();
        let detail = proof(&outcome);
        let is_good = match self.verdict {
            Verdict::Identical => true,
            Verdict::Equivalent => self.migration.plan.allows_equivalent,
            Verdict::Different | Verdict::Incomplete => false,
        };
        Ok(if is_good { Stepped::Done(detail) } else { Stepped::NotProven(detail) })
    }

    pub(super) async fn fence(&mut self) -> Result<Stepped> {
        Ok(Stepped::Done(match &self.migration.plan.fence {
            Fence::ReadOnly => json!(fence::fence(&self.from.source, self.known_fence()).await?),
            Fence::Tables => {
                let wave = self.migration.job.wave.as_ref().ok_or_else(no_wave)?;
                json!(wave_fence::put_up(&self.from, &self.migration.job.name, wave).await?)
            }
            Fence::Hooks { up, .. } => {
                let told = self.told("fence", self.way.from());
                json!({ "said": self.hook(up, &told).await? })
            }
        }))
    }

    /// What there was before the fence of this attempt.
    pub(super) fn known_fence(&self) -> Option<Fenced> {
        let attempt = self.runbook.state.attempt.as_ref()?;
        let mut fences = attempt.entries.iter().filter(|entry| entry.step == Some(Step::Fence));
        serde_json::from_value(fences.next()?.detail.clone()).ok()
    }

    /// Brings the other side to a barrier, and sees that nothing of the application comes behind it.
    async fn drain(&mut self) -> Result<Stepped> {
        let lsn = self.pass_barrier().await?;
        self.lsn = Some(lsn);
        self.changes = Some(self.applied_changes().await?);
        self.refuse_writers().await?;
        Ok(Stepped::Done(json!({ "lsn": lsn })))
    }

    /// Waits until the other side has everything up to now.
    pub(super) async fn pass_barrier(&mut self) -> Result<Lsn> {
        let client = self.from.source.connect().await?;
        let mut held = Held::of_process(&self.from.state_dir).await?.ok_or_else(gone)?;
        let lsn = emit_barrier(&client, "tidemark", self.way.word()).await?;
        held.up_to(lsn).await?;
        held.open();
        Ok(lsn)
    }

    async fn applied_changes(&self) -> Result<u64> {
        let status = ask_status(&self.from.state_dir).await?.ok_or_else(gone)?;
        Ok(status.stream.changes)
    }

    /// Only our marker may follow.
    async fn refuse_writers(&mut self) -> Result<()> {
        let before = self.changes;
        let lsn = self.pass_barrier().await?;
        let now = self.applied_changes().await?;
        match before {
            Some(before) if now > before => {
                let message = format!(
                    "{}: {} changes came through the fence before {lsn}",
                    self.way.word(),
                    now - before
                );
                Err(Error::new(Kind::TargetRefused, message).hint(match self.migration.plan.fence {
                    Fence::Tables => "somebody passes the triggers on the tables (session_replication_role = replica, DISABLE TRIGGER, or a name that begins as ours): pg_stat_activity names the sessions; stop them",
                    _ => "somebody overrides default_transaction_read_only (a superuser, a role's own setting, a pooler that sets it): pg_stat_activity names the sessions; stop them, or use a fence of your own (cutover.fence = \"hook\")",
                }))
            }
            _ => {
                // A process that began anew counts anew.
                self.changes = Some(now);
                Ok(())
            }
        }
    }

    /// The stream back begins where both sides are the same.
    async fn reverse(&mut self) -> Result<Stepped> {
        let job = adopting(&self.to);
        let progress = Arc::new(Progress::default());
        let adopted = tidemark_pipeline::sync(&job, &progress, Some(Until::Now), self.stop).await?;
        if self.migration.plan.fence == Fence::ReadOnly {
            fence::end_again(&self.from.source).await?;
        }
        self.refuse_writers().await?;
        Ok(Stepped::Done(json!({ "begins": adopted.end_lsn })))
    }

    /// The other side is fenced if the application was there before.
    async fn open(&self) -> Result<Stepped> {
        if let Fence::Hooks { down, .. } = &self.migration.plan.fence {
            let told = self.told("open", self.way.to());
            return Ok(Stepped::Done(json!({ "said": self.hook(down, &told).await? })));
        }
        if self.migration.plan.fence == Fence::Tables {
            wave_fence::open(&self.to.source, &self.migration.job.name).await?;
            return Ok(Stepped::Done(serde_json::Value::Null));
        }
        if let Some(fenced) = self.to_be_opened() {
            fence::open(&self.to.source, &fenced).await?;
        }
        Ok(Stepped::Done(serde_json::Value::Null))
    }

    /// The fence of ours that the other side is behind, if it is.
    fn to_be_opened(&self) -> Option<Fenced> {
        let fenced = self.runbook.state.last_fence(self.way.to())?;
        serde_json::from_value(fenced.clone()).ok()
    }

    /// Changes that somebody has written behind the fence after the last look. The old stream has brought them over, and the
    /// stream back leaves them out; what has happened to the same rows on the other side meanwhile nobody knows.
    async fn late_changes(&mut self) -> Option<u64> {
        let before = self.changes?;
        tokio::time::timeout(COMES, self.pass_barrier()).await.ok()?.ok()?;
        let late = self.applied_changes().await.ok()?.checked_sub(before)?;
        if late > 0 {
            tracing::warn!(
                late,
                "changes came through the fence after the last barrier; they are on both sides, but look who wrote them"
            );
        }
        Some(late)
    }

    /// Whoever ran the old stream has let go of it by then.
    async fn retire(&self) -> Result<Stepped> {
        let deadline = Instant::now() + TURNS;
        while ask_status(&self.from.state_dir).await?.is_some() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let done = removed(&self.from).await?;
        if self.migration.plan.fence == Fence::Tables {
            wave_fence::clear(&self.to.source, &self.migration.job.name).await?;
        }
        Ok(Stepped::Done(json!({ "removed": done })))
    }
}

/// The side that a stream in this direction comes from.
fn side_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "source",
        Direction::Back => "target",
    }
}

/// What a proof says, for the journal.
fn proof(outcome: &Outcome) -> serde_json::Value {
    let count =
        |verdict: Verdict| outcome.tables.iter().filter(|table| table.verdict == verdict).count();
    let others = outcome.tables.iter().filter(|table| table.verdict != Verdict::Identical);
    let others: Vec<String> = others.map(|table| table.name.to_string()).collect();
    json!({
        "verdict": outcome.verdict(),
        "level": outcome.level,
        "lsn": match outcome.point {
            Some(Point::Barrier { lsn, .. }) => Some(lsn),
            _ => None,
        },
        "tables": outcome.tables.len(),
        "identical": count(Verdict::Identical),
        "rows": outcome.tables.iter().map(|table| table.source.count).sum::<u64>(),
        "others": others,
    })
}
