//! A slot that somebody else reads.
//!
//! **Invariant:** only a session that has our own role and our job's name is ever ended, and only when it is dead: it is the
//! one that this process has lost, or its server has heard nothing from it for long. A live run of the same job, or anything
//! of others, is waited for and then named (`hazards.md` B24).
//!
//! After a cut without a word (a firewall, a dead machine) the server keeps the old session until `wal_sender_timeout`, for
//! ever if that is 0.
//!
//! PostgreSQL manual, section 28.2.4 (`pg_stat_replication.reply_time`).

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use tidemark_model::sql::Literal;
use tidemark_wire::{Client, ConnectSpec};

use super::connect::StreamOptions;
use crate::{Error, Result, sql};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Who reads the slot.
struct Holder {
    pid: i32,
    /// Our role and our job's name.
    is_ours: bool,
    /// Seconds since it answered its server; none where we may not see it.
    silent_s: Option<f64>,
    who: String,
}

/// How long a slot was waited for.
pub(super) struct Wait {
    deadline: Instant,
    backoff: Duration,
}

impl Wait {
    pub(super) fn new(options: &StreamOptions, now: Instant) -> Self {
        Self { deadline: now + options.patience, backoff: BACKOFF_FIRST }
    }

    /// Waits a while before the next attempt, and ends a dead session of ours.
    ///
    /// # Errors
    /// The refusal that led here, with who holds the slot, when the patience is at its end.
    pub(super) async fn once(
        &mut self,
        spec: &ConnectSpec,
        options: &StreamOptions,
        refusal: Error,
    ) -> Result<()> {
        let client = sql::connect(spec).await?;
        let holder = holder(&client, options).await?;
        if let Some(holder) = &holder
            && is_dead(holder, options)
            && terminate(&client, holder, options).await?
        {
            tracing::warn!(slot = %options.slot, pid = holder.pid, "ended a dead session of ours that held the slot");
        }
        let now = Instant::now();
        if now >= self.deadline {
            return Err(match holder {
                Some(holder) => refusal.hint(format!(
                    "{} reads from it: stop that run first, or end a session that is left over with \
                     SELECT pg_terminate_backend({})",
                    holder.who, holder.pid
                )),
                None => refusal,
            });
        }
        let pause = jittered(self.backoff).min(self.deadline - now);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        tracing::info!(slot = %options.slot, "the slot is in use, waiting for it");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn is_dead(holder: &Holder, options: &StreamOptions) -> bool {
    let is_lost = options.previous_pid == Some(holder.pid);
    let is_silent = holder.silent_s.is_some_and(|silent| silent > options.silence.as_secs_f64());
    holder.is_ours && (is_lost || is_silent)
}

/// Half to all of it.
fn jittered(pause: Duration) -> Duration {
    // Keys of a hasher are the randomness that the standard library has.
    let random = RandomState::new().build_hasher().finish() % 1024;
    let random = u32::try_from(random).unwrap_or(0);
    pause / 2 + pause / 2 * random / 1024
}

async fn holder(client: &Client, options: &StreamOptions) -> Result<Option<Holder>> {
    // Without the right to see another session's statistics all but the pid is null.
    let text = format!(
        "SELECT s.active_pid, coalesce(a.usename = session_user AND a.application_name = {}, false), \
           CASE WHEN r.state IS NOT NULL THEN \
             extract(epoch FROM clock_timestamp() - coalesce(r.reply_time, r.backend_start))::float8 END, \
           'process ' || s.active_pid || coalesce(' (' || nullif(a.application_name, '') || ', role ' || a.usename || ')', '') \
         FROM pg_catalog.pg_replication_slots s \
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
         LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid \
         WHERE s.slot_name = {} AND s.active_pid IS NOT NULL",
        Literal(&options.application_name),
        Literal(&options.slot)
    );
    let rows = sql::rows(client, "look who reads the slot", &text).await?;
    Ok(rows.first().map(|row| Holder {
        pid: row.get(0),
        is_ours: row.get(1),
        silent_s: row.get(2),
        who: row.get(3),
    }))
}

/// Ends the session if it is still the same; gives whether it did.
async fn terminate(client: &Client, holder: &Holder, options: &StreamOptions) -> Result<bool> {
    let text = format!(
        "SELECT pg_catalog.pg_terminate_backend(a.pid) \
         FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_replication_slots s ON s.active_pid = a.pid \
         WHERE a.pid = {} AND a.usename = session_user AND a.application_name = {} AND s.slot_name = {}",
        holder.pid,
        Literal(&options.application_name),
        Literal(&options.slot)
    );
    let rows = sql::rows(client, "end a dead session of ours", &text).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(is_ours: bool, silent_s: Option<f64>) -> Holder {
        Holder { pid: 7, is_ours, silent_s, who: String::new() }
    }

    #[test]
    fn only_our_own_and_only_the_dead_are_ended() {
        let mut options = StreamOptions::new("s", "p", "tidemark_job");
        assert!(is_dead(&holder(true, Some(16.0)), &options));
        assert!(!is_dead(&holder(true, Some(14.0)), &options));
        assert!(!is_dead(&holder(true, None), &options));
        assert!(!is_dead(&holder(false, Some(1e6)), &options));
        options.previous_pid = Some(7);
        assert!(is_dead(&holder(true, Some(0.1)), &options));
        assert!(is_dead(&holder(true, None), &options));
        assert!(!is_dead(&holder(false, None), &options));
    }

    #[test]
    fn pauses_differ_and_stay_in_their_bounds() {
        let pause = Duration::from_millis(1_000);
        let all: Vec<_> = (0..64).map(|_| jittered(pause)).collect();
        assert!(all.iter().all(|found| (pause / 2..=pause).contains(found)));
        assert!(all.iter().any(|found| found != &all[0]));
    }
}
