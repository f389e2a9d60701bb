//! One thread of the storm: its sessions, and what it does with them.
//!
//! **Invariant:** a client's next number is known before it writes: it is read again whenever the outcome of the last
//! transaction is not.
//!
//! A lost connection is no failure (the server is killed under the storm); a refused statement is, unless it is a lock
//! timeout or a deadlock with somebody who is not of the storm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::script::Pen;
use super::{Calm, Pace, StormOptions, StormReport};
use crate::Cluster;
use crate::session::{Ending, Session};

/// Deadlock, lock not available, serialization failure, query cancelled.
const EXPECTED: [&str; 4] = ["40P01", "55P03", "40001", "57014"];
/// How long a server may be down at the end of a storm.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bank,
    Order,
    Churn,
    Bulk,
    Weave,
    TwoPhase,
    Noise,
}

impl Kind {
    /// One thread each; two of those that shall meet each other.
    pub(super) const ALL: [Self; 10] = [
        Self::Bank,
        Self::Bank,
        Self::Order,
        Self::Order,
        Self::Churn,
        Self::Churn,
        Self::Bulk,
        Self::Weave,
        Self::TwoPhase,
        Self::Noise,
    ];

    /// Sessions, each with a client's number.
    pub(super) const fn seats(self) -> u32 {
        match self {
            Self::Weave => 3,
            Self::TwoPhase => 2,
            Self::Bank | Self::Order | Self::Churn | Self::Bulk | Self::Noise => 1,
        }
    }
}

/// A session and its client.
#[derive(Debug)]
struct Seat {
    client: u32,
    session: Option<Session>,
    /// The last entry that is known to be committed; none before it was read.
    seq: Option<u64>,
    /// Whether the session is inside a transaction that it was told to leave open.
    is_open: bool,
    /// Whether a prepared transaction of this client waits.
    has_prepared: bool,
}

/// One thread of the storm.
#[derive(Debug)]
pub(super) struct Actor {
    kind: Kind,
    seats: Vec<Seat>,
    cluster: Arc<Cluster>,
    database: String,
    random: StdRng,
    pause: Duration,
    rows_max: u64,
    swaps_one_in: u32,
    report: StormReport,
}

impl Actor {
    pub(super) fn new(
        kind: Kind,
        first_client: u32,
        cluster: Arc<Cluster>,
        database: &str,
        options: &StormOptions,
    ) -> Self {
        let seat =
            |client| Seat { client, session: None, seq: None, is_open: false, has_prepared: false };
        Self {
            kind,
            seats: (first_client..first_client + kind.seats()).map(seat).collect(),
            cluster,
            database: database.to_owned(),
            random: StdRng::seed_from_u64(
                options.seed.wrapping_mul(1000) + u64::from(first_client),
            ),
            pause: options.pause * if kind == Kind::Bulk { 30 } else { 1 },
            rows_max: options.rows_max,
            swaps_one_in: options.swaps_one_in.max(1),
            report: StormReport::default(),
        }
    }

    pub(super) fn run(mut self, calm: &Calm, pace: &Pace) -> Result<StormReport> {
        let named = format!("the {:?} client of the storm", self.kind);
        while !calm.within(pace.factor() * self.pause.mul_f64(self.random.random_range(0.3..1.7))) {
            let seat = self.random.random_range(0..self.seats.len());
            if self.connect(seat).with_context(|| named.clone())? {
                self.play(seat).with_context(|| named.clone())?;
            } else if calm.within(Duration::from_millis(100)) {
                break;
            }
        }
        self.finish().with_context(|| format!("{named} at the end"))?;
        Ok(self.report)
    }

    /// Makes a seat's session if it has none; `false` while the server is not there.
    fn connect(&mut self, index: usize) -> Result<bool> {
        let seat = &mut self.seats[index];
        if seat.session.is_some() {
            return Ok(true);
        }
        let mut session = Session::strict(&self.cluster, &self.database)?;
        let client = seat.client;
        // Notices would fill a pipe that is read at the end only, and psql would wait for room in it.
        let sql = format!(
            "SET client_min_messages = error; SET lock_timeout = '20s'; SET application_name = 'storm {client}';\n\
             SELECT format('COMMIT PREPARED %L;', gid) FROM pg_prepared_xacts WHERE gid LIKE 'storm {client} %' AND database = current_database() \\gexec\n\
             SELECT coalesce(max(seq), 0) FROM storm.ledger WHERE client = {client};"
        );
        let Some(answer) = session.ask(&sql) else {
            session.finish(&EXPECTED)?;
            return Ok(false);
        };
        let held: u64 = answer
            .trim()
            .parse()
            .with_context(|| format!("read the last entry from {answer:?}"))?;
        match seat.seq {
            Some(before) if held != before && held != before + 1 => {
                bail!("client {client} had {before} entries committed and finds {held}");
            }
            Some(before) => self.report.committed += held - before,
            None => {}
        }
        (seat.seq, seat.session, seat.is_open, seat.has_prepared) =
            (Some(held), Some(session), false, false);
        Ok(true)
    }

    /// Runs statements on a seat; `false` when its session is lost, and then also its open transaction.
    fn run_on(&mut self, index: usize, sql: &str) -> Result<bool> {
        let seat = &mut self.seats[index];
        let Some(mut session) = seat.session.take() else { return Ok(false) };
        if session.run(sql) {
            seat.session = Some(session);
            return Ok(true);
        }
        seat.is_open = false;
        match session.finish(&EXPECTED)? {
            Ending::Lost => self.report.lost_connections += 1,
            Ending::Refused(_) => self.report.refused += 1,
        }
        Ok(false)
    }

    /// The number of a seat's next entry.
    fn next(&self, index: usize) -> u64 {
        self.seats[index].seq.unwrap_or(0) + 1
    }

    /// Counts the entry that was just committed.
    fn committed(&mut self, index: usize) {
        self.seats[index].seq = Some(self.next(index));
        self.report.committed += 1;
    }

    fn play(&mut self, index: usize) -> Result<()> {
        match self.kind {
            Kind::Weave => self.weave(index),
            Kind::TwoPhase if index == 0 => self.two_phase(),
            Kind::Noise if self.random.random_ratio(3, 4) => {
                let sql = self.pen(index).nothing();
                self.run_on(index, sql).map(drop)
            }
            Kind::Bank | Kind::Order | Kind::Churn | Kind::Bulk | Kind::TwoPhase | Kind::Noise => {
                self.whole(index)
            }
        }
    }

    fn pen(&mut self, index: usize) -> Pen<'_> {
        Pen {
            client: self.seats[index].client,
            random: &mut self.random,
            swaps_one_in: self.swaps_one_in,
        }
    }

    /// What one transaction of this kind does, in parts that a rolled-back savepoint may stand between.
    fn body(&mut self, index: usize) -> String {
        let seq = self.next(index);
        let (kind, rows_max) = (self.kind, self.rows_max);
        let mut pen = self.pen(index);
        let mut parts = vec![pen.entry(seq)];
        match kind {
            Kind::Bank => parts.push(pen.transfer()),
            Kind::Order => parts.push(pen.tick(seq)),
            Kind::Bulk => parts.push(pen.bulk(seq, rows_max)),
            Kind::Churn | Kind::TwoPhase | Kind::Noise => parts.push(pen.churn()),
            Kind::Weave => parts.push(pen.weave(seq)),
        }
        if kind != Kind::Weave && pen.random.random() {
            parts.reverse();
        }
        if pen.random.random_ratio(1, 10) {
            let at = pen.random.random_range(0..=parts.len());
            let taken_back = pen.taken_back();
            parts.insert(at, taken_back);
        }
        parts.concat()
    }

    /// One transaction from BEGIN to its end.
    fn whole(&mut self, index: usize) -> Result<()> {
        let rolls_back = self.random.random_ratio(1, 10);
        let end = if rolls_back { "ROLLBACK;" } else { "COMMIT;" };
        let sql = format!("BEGIN;\n{}{end}", self.body(index));
        if !self.run_on(index, &sql)? {
            return Ok(());
        }
        if rolls_back {
            self.report.rolled_back += 1;
        } else {
            self.committed(index);
        }
        Ok(())
    }

    /// One step of one of several open transactions: the order of BEGINs is not that of COMMITs.
    fn weave(&mut self, index: usize) -> Result<()> {
        if !self.seats[index].is_open {
            let sql = format!("BEGIN;\n{}", self.body(index));
            self.seats[index].is_open = self.run_on(index, &sql)?;
            return Ok(());
        }
        match self.random.random_range(0..10) {
            0..=3 => {
                let seq = self.next(index);
                let sql = self.pen(index).weave(seq);
                self.run_on(index, &sql).map(drop)
            }
            4 => {
                let sql = self.pen(index).taken_back();
                self.run_on(index, &sql).map(drop)
            }
            5 => {
                if self.run_on(index, "ROLLBACK;")? {
                    self.report.rolled_back += 1;
                }
                self.seats[index].is_open = false;
                Ok(())
            }
            _ => self.commit_open(index),
        }
    }

    fn commit_open(&mut self, index: usize) -> Result<()> {
        if self.run_on(index, "COMMIT;")? {
            self.committed(index);
        }
        self.seats[index].is_open = false;
        Ok(())
    }

    /// Prepares a transaction, or ends the one that is prepared; the other seat goes on meanwhile.
    fn two_phase(&mut self) -> Result<()> {
        let (client, seq) = (self.seats[0].client, self.next(0));
        let gid = format!("storm {client} {seq}");
        if !self.seats[0].has_prepared {
            let sql = format!("BEGIN;\n{}PREPARE TRANSACTION '{gid}';", self.body(0));
            self.seats[0].has_prepared = self.run_on(0, &sql)?;
            return Ok(());
        }
        let rolls_back = self.random.random_ratio(1, 4);
        let end = if rolls_back { "ROLLBACK" } else { "COMMIT" };
        if self.run_on(0, &format!("{end} PREPARED '{gid}';"))? {
            if rolls_back {
                self.report.rolled_back += 1;
            } else {
                self.committed(0);
                self.report.prepared += 1;
            }
            self.seats[0].has_prepared = false;
        }
        Ok(())
    }

    /// Ends what is open, and learns the outcome of what was lost.
    fn finish(&mut self) -> Result<()> {
        for index in 0..self.seats.len() {
            let until = Instant::now() + LAST_WORDS;
            while !self.connect(index)? {
                if Instant::now() > until {
                    bail!("the server is not there");
                }
                std::thread::yield_now();
            }
            if self.seats[index].is_open {
                self.commit_open(index)?;
            }
            if self.seats[index].has_prepared {
                self.two_phase()?;
            }
            let Some(session) = self.seats[index].session.take() else {
                bail!("the server went away")
            };
            session.finish(&EXPECTED)?;
        }
        Ok(())
    }
}
