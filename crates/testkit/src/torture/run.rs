//! One run: the storm, the faults, the end.
//!
//! **Invariant:** every wait is for a state, with a deadline after which the run is bad; only a fault's own length is time
//! that merely passes, and the follower is tended meanwhile: restarted where it may end, judged where it may not.
//!
//! **Not here:** what is planned ([`super::plan`]) and what is seen from outside ([`super::watch`]).

mod inject;
mod judge;
mod plant;
mod tables;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;

use super::configuration::Configuration;
use super::follower::{Ended, Follower, Subscription, Tidemark, ended_within};
use super::plan::{Fault, Plan, Planned, Profile, Side};
use super::report::{Failure, Outcome, Verdict, Verified};
use super::rig::{DATABASE, Rig};
use super::watch::{Seen, Watch, show};
use crate::workload::storm::Pace;
use crate::{Storm, StormOptions, StormReport, Version, process};

/// How long a clean stop may take: it drains what was received.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// How long the next fault waits for it to come back, where it waits.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(15);
/// Of a busy job after a kill: the old sessions live on for a while.
const HELD_MAX: u32 = 30;
const RESTARTS_MAX: u32 = 400;
/// How rare swaps are where there are lanes to be seen.
const SWAPS_IN_LANES: u32 = 1_000;
/// By how many bytes of WAL the follower may be behind before the storm slows down.
const BEHIND_MAX: u64 = 24 << 20;
/// Who follows.
#[derive(Debug, Clone)]
pub enum Subject {
    /// The binary, with a defect planted in it or none.
    Tidemark {
        /// Where it is.
        binary: PathBuf,
        /// The defect's name.
        plant: Option<String>,
    },
    /// The same, into Parquet files; both are compared with the source at the end.
    Lake {
        /// Where it is.
        binary: PathBuf,
        /// The defect's name.
        plant: Option<String>,
    },
    /// PostgreSQL's own subscription.
    Subscription,
}

/// What is done to the target behind the follower's back, to show that it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    None,
    /// These statements half-way.
    Midway(String),
    /// These statements before the comparison.
    AtEnd(String),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The seed of the storm and of the plan.
    pub seed: u64,
    /// Who follows.
    pub subject: Subject,
    /// Both servers' version.
    pub version: Version,
    /// Shortest and longest time under faults, in seconds.
    pub seconds: (u64, u64),
    /// In place of the seed's.
    pub profile: Option<Profile>,
    /// How the follower is configured; a lake has one lane whatever this says.
    pub configuration: Configuration,
    /// Where a bad run is kept, and whether with the servers' data.
    pub keep: Option<(PathBuf, bool)>,
    /// To show that the rig sees it.
    pub sabotage: Sabotage,
    /// How long the follower may take to follow, from its start or from the last early fault, and to get past the source's
    /// position of the moment when all is healed; twice as long to drain.
    pub patience: Duration,
}

impl Trial {
    /// A run of this seed with nothing special about it.
    pub fn new(seed: u64, subject: Subject) -> Self {
        Self {
            seed,
            subject,
            version: Version::from_env(),
            seconds: (20, 60),
            profile: None,
            configuration: Configuration::of(seed),
            keep: None,
            sabotage: Sabotage::None,
            patience: Duration::from_secs(120),
        }
    }

    /// How the follower is configured.
    fn configured(&self) -> Configuration {
        match self.subject {
            Subject::Lake { .. } => self.configuration.clone().with_lanes(1),
            Subject::Tidemark { .. } => self.configuration.clone(),
            Subject::Subscription => Configuration::default(),
        }
    }
}

/// The result of a step; what is wrong ends the run.
type Step<T = ()> = std::result::Result<T, Failure>;

fn rig_error(cause: anyhow::Error) -> Failure {
    Failure { seen_by: "rig", detail: format!("{cause:#}") }
}

/// Runs a trial to its end. What is wrong with the rig itself is a bad outcome, too.
///
/// # Errors
/// When the servers cannot be started.
pub fn run(trial: &Trial) -> Result<Outcome> {
    let began = Instant::now();
    let plan =
        Plan::of(trial.seed, trial.profile.unwrap_or(Profile::of(trial.seed)), trial.seconds);
    let rig = Rig::start(trial.version, trial.seed.is_multiple_of(2))?;
    Storm::prepare(&rig.source, DATABASE)?;
    let follower = subject(trial, &rig)?;
    let storm = Storm::start(
        &rig.source,
        DATABASE,
        &StormOptions {
            seed: trial.seed,
            rows_max: plan.rows_max,
            // A batch with a swap is one lane's.
            swaps_one_in: if trial.configured().lanes > 1 {
                SWAPS_IN_LANES
            } else {
                plan.swaps_one_in
            },
            ..StormOptions::default()
        },
    )?;
    let mut run = Run::new(trial, &plan, &rig, follower, (began, storm.pace()))?;
    let mut storm = Some(storm);
    let ended = run.all(&mut storm);
    // The storm first: it waits for a server that may be down.
    rig.proxy(Side::Source).heal();
    if rig.source.is_running() {
        drop(storm);
    } else {
        rig.source.start().ok();
        drop(storm);
    }
    let mut outcome = run.outcome(began, ended.err());
    if let (Some(_), Some((path, with_data))) = (&outcome.failure, &trial.keep) {
        drop(run);
        let path = path.join(format!("seed-{}", trial.seed));
        match rig.keep(&path, *with_data) {
            Ok(()) => outcome.kept = Some(path.display().to_string()),
            Err(cause) => outcome.events.push(format!("not kept: {cause:#}")),
        }
    }
    Ok(outcome)
}

fn subject(trial: &Trial, rig: &Rig) -> Result<Box<dyn Follower>> {
    match &trial.subject {
        Subject::Subscription => {
            Storm::prepare_empty(&rig.target, DATABASE)?;
            let port = rig.source_proxy.port();
            let (source, target) = ((&rig.source, DATABASE), (&rig.target, DATABASE));
            Ok(Box::new(Subscription::new(source, target, port)))
        }
        Subject::Tidemark { binary, plant } | Subject::Lake { binary, plant } => {
            let mut environment = vec![("RUST_BACKTRACE".to_owned(), "1".to_owned())];
            environment.extend(std::env::var("PATH").ok().map(|path| ("PATH".to_owned(), path)));
            environment.extend(plant.clone().map(|name| ("TIDEMARK_PLANT".to_owned(), name)));
            if let Some(tools) = trial.version.client_dir() {
                environment.push(("TIDEMARK_PG_BIN".to_owned(), tools.display().to_string()));
            }
            let lake = matches!(trial.subject, Subject::Lake { .. }).then(|| rig.lake());
            let target = match &lake {
                Some(root) => format!("file://{}", root.display()),
                None => rig.url(Side::Target),
            };
            let urls = (rig.url(Side::Source), target);
            let urls = (urls.0.as_str(), urls.1.as_str());
            let more = (lake, trial.configured());
            let follower = Tidemark::new(binary, environment, rig.path(), urls, more)?;
            Ok(Box::new(follower))
        }
    }
}

/// A run in progress.
struct Run<'a> {
    trial: &'a Trial,
    plan: &'a Plan,
    rig: &'a Rig,
    follower: Box<dyn Follower>,
    watch: Watch,
    began: Instant,
    /// When the follower was started last, and how often it found the job held since.
    started: Instant,
    held: u32,
    /// Whether its end is expected: it was killed, stopped, or may write no long files.
    may_die: bool,
    faults: BTreeMap<&'static str, u32>,
    events: Vec<String>,
    restarts: u32,
    exits: BTreeMap<String, u32>,
    pace: Arc<Pace>,
    storm: StormReport,
    verdict: Option<Verdict>,
    drained: Option<serde_json::Value>,
    verified: Option<Verified>,
    /// What a verification said that is wrong, unless the end shows that it is right.
    alarm: Option<Failure>,
}

impl<'a> Run<'a> {
    fn new(
        trial: &'a Trial,
        plan: &'a Plan,
        rig: &'a Rig,
        follower: Box<dyn Follower>,
        (began, pace): (Instant, Arc<Pace>),
    ) -> Result<Self> {
        let questions = follower.questions();
        let target = (&rig.target, DATABASE);
        let watch = Watch::start((&rig.source, DATABASE), target, &questions, began)?;
        Ok(Self {
            trial,
            plan,
            rig,
            follower,
            watch,
            began,
            started: began,
            held: 0,
            may_die: false,
            faults: BTreeMap::new(),
            events: Vec::new(),
            restarts: 0,
            exits: BTreeMap::new(),
            pace,
            storm: StormReport::default(),
            verdict: None,
            drained: None,
            verified: None,
            alarm: None,
        })
    }

    fn all(&mut self, storm: &mut Option<Storm>) -> Step {
        self.follower.start().map_err(rig_error)?;
        self.started = Instant::now();
        for planned in &self.plan.early {
            self.hold(planned.pause)?;
            self.inject(planned)?;
        }
        self.wait("follow", |seen| seen.follows)?;
        self.event("follows");
        match self.plan.profile {
            Profile::Verify => verify::in_turn(self)?,
            _ => self.under_faults()?,
        }
        if let Sabotage::Midway(sql) = &self.trial.sabotage {
            self.rig.target.psql(DATABASE, sql).map_err(rig_error)?;
        }
        self.heal()?;
        if storm.as_ref().is_some_and(|storm| !storm.is_alive()) {
            self.event("a client of the storm has ended");
        }
        let head = self.head()?;
        self.wait("get past the source's position once all is healed", |seen| {
            seen.position >= head
        })?;
        if let Some(storm) = storm.take() {
            self.storm = storm.stop().map_err(rig_error)?;
        }
        self.event("the storm is over");
        self.stop_cleanly()?;
        self.drain()?;
        if let Sabotage::AtEnd(sql) = &self.trial.sabotage {
            self.rig.target.psql(DATABASE, sql).map_err(rig_error)?;
        }
        self.judge()?;
        self.alarm.take().map_or(Ok(()), Err)
    }

    fn under_faults(&mut self) -> Step {
        let until = Instant::now() + self.plan.length;
        let mut planned = self.plan.late.iter();
        while Instant::now() < until {
            match planned.next() {
                Some(planned) => {
                    let left = until.saturating_duration_since(Instant::now());
                    self.hold(planned.pause.min(left))?;
                    if Instant::now() < until {
                        self.inject(planned)?;
                    }
                }
                None => self.hold(until.saturating_duration_since(Instant::now()))?,
            }
        }
        Ok(())
    }

    fn inject(&mut self, planned: &Planned) -> Step {
        if !self.follower.knows(&planned.fault) {
            return Ok(());
        }
        if planned.fault != Fault::Kill {
            self.watch.other_fault();
        }
        let is_done = inject::inject(self, planned)?;
        if planned.waits && self.rig.source.is_running() {
            // Not a judgement: that comes at the end, without faults.
            let head = self.head()?;
            self.until(COMES_BACK_WITHIN, |_, seen| seen.position >= head)?;
        }
        if is_done {
            *self.faults.entry(planned.fault.kind()).or_default() += 1;
        }
        Ok(())
    }

    /// Lets time pass, and tends the follower meanwhile.
    fn hold(&mut self, length: Duration) -> Step {
        let until = Instant::now() + length;
        self.until(length, |_, _| Instant::now() >= until).map(drop)
    }

    /// Waits for a state as long as the follower's position moves, and tends the follower meanwhile.
    fn wait(&mut self, what: &str, probe: impl Fn(&Seen) -> bool) -> Step {
        let patience = self.trial.patience;
        loop {
            let before = self.watch.seen().position;
            if self.until(patience, |_, seen| probe(seen))? {
                return Ok(());
            }
            let seen = self.watch.seen();
            if seen.position > before {
                continue;
            }
            let detail = format!(
                "the follower does not {what}, and has not moved for {patience:?}: it is at {}, the source at {}\n{}",
                show(seen.position),
                show(seen.head),
                self.follower.said()
            );
            return Err(Failure { seen_by: "stuck", detail });
        }
    }

    fn until(
        &mut self,
        within: Duration,
        mut probe: impl FnMut(&Self, &Seen) -> bool,
    ) -> Step<bool> {
        let mut failure = None;
        let found = process::poll(within, || {
            let seen = self.watch.seen();
            if let Err(found) = self.tend(&seen) {
                failure = Some(found);
                return Ok(Some(()));
            }
            Ok(probe(self, &seen).then_some(()))
        })
        .map_err(rig_error)?;
        failure.map_or(Ok(found.is_some()), Err)
    }

    /// Looks after the follower: starts it again where it may have ended, fails where it may not.
    fn tend(&mut self, seen: &Seen) -> Step {
        if let Some(broken) = seen.broken.first() {
            return Err(Failure { seen_by: "promise", detail: broken.clone() });
        }
        // On a busy machine the backlog would grow for as long as the run lasts; that case has tests of its own.
        self.pace.slow_down(seen.follows && seen.head.saturating_sub(seen.position) > BEHIND_MAX);
        self.watch.follower_is(self.follower.pid());
        let Some(ended) = self.follower.ended().map_err(rig_error)? else {
            if self.started.elapsed() > Duration::from_secs(3) {
                self.held = 0;
            }
            return Ok(());
        };
        self.note_exit(ended);
        let is_allowed = match ended {
            Ended::Code(8) => true,
            Ended::Code(9) => {
                self.held += 1;
                self.held <= HELD_MAX
            }
            Ended::Code(130 | 0) | Ended::Signal(9 | 25) => self.may_die,
            Ended::Code(_) | Ended::Signal(_) => false,
        };
        if !is_allowed || self.restarts > RESTARTS_MAX {
            return Err(self.bad_exit(ended));
        }
        self.start_again()
    }

    fn bad_exit(&self, ended: Ended) -> Failure {
        Failure { seen_by: "exit", detail: format!("{ended:?}\n{}", self.follower.said()) }
    }

    fn note_exit(&mut self, ended: Ended) {
        let name = match ended {
            Ended::Code(code) => format!("code {code}"),
            Ended::Signal(signal) => format!("signal {signal}"),
        };
        self.event(&format!("the follower ended with {name}"));
        *self.exits.entry(name).or_default() += 1;
    }

    fn start_again(&mut self) -> Step {
        // One that finds a server down or the job held tries again, but not in a circle that takes the whole machine.
        let pause = Duration::from_millis(if self.started.elapsed() < Duration::from_secs(1) {
            400
        } else {
            20
        });
        let until = Instant::now() + pause;
        process::poll(pause, || Ok((Instant::now() >= until).then_some(()))).map_err(rig_error)?;
        self.follower.start().map_err(rig_error)?;
        self.watch.follower_is(self.follower.pid());
        self.started = Instant::now();
        self.may_die = false;
        self.restarts += 1;
        Ok(())
    }

    /// Notes what happened, when, and where both sides were.
    fn event(&mut self, what: &str) {
        let seen = self.watch.seen();
        self.events.push(format!(
            "{:7.2} s  source {}  target {}  {what}",
            self.began.elapsed().as_secs_f64(),
            show(seen.head),
            show(seen.position)
        ));
    }

    /// The source's position now.
    fn head(&self) -> Step<u64> {
        self.position("SELECT pg_current_wal_insert_lsn()")
    }

    /// The position that the source answers with.
    fn position(&self, sql: &str) -> Step<u64> {
        let text = self.rig.source.psql(DATABASE, sql).map_err(rig_error)?;
        super::watch::lsn(&text)
            .ok_or_else(|| Failure { seen_by: "rig", detail: format!("no position: {text}") })
    }

    /// Takes every fault away.
    fn heal(&mut self) -> Step {
        for side in [Side::Source, Side::Target] {
            self.rig.proxy(side).heal();
            if !self.rig.cluster(side).is_running() {
                self.rig.cluster(side).start().map_err(rig_error)?;
            }
        }
        self.event("all is healed");
        Ok(())
    }

    /// SIGTERM to a healthy follower: it must end with 0.
    fn stop_cleanly(&mut self) -> Step {
        let seen = self.watch.seen();
        self.tend(&seen)?;
        if self.follower.pid() == 0 {
            return Ok(());
        }
        // What others write to the WAL moves a lake's position every 16 MiB only, a change moves it always: at once, before
        // a vacuum has written more.
        let change = "UPDATE storm.account SET balance = balance WHERE id = 1; SELECT pg_current_wal_insert_lsn()";
        // One that was just started may not be where a clean stop is 0.
        let head = self.position(change)?;
        self.wait("come to the source's last position", |seen| {
            seen.position >= head.saturating_sub(1 << 18)
        })?;
        self.follower.signal(Signal::TERM).map_err(rig_error)?;
        match ended_within(self.follower.as_mut(), STOPS_WITHIN).map_err(rig_error)? {
            Some(Ended::Code(0)) => {
                self.note_exit(Ended::Code(0));
                self.judge_at_rest()
            }
            Some(ended) => Err(self.bad_exit(ended)),
            None => Err(Failure {
                seen_by: "stuck",
                detail: format!(
                    "a clean stop takes longer than {STOPS_WITHIN:?}\n{}",
                    self.follower.said()
                ),
            }),
        }
    }

    fn drain(&mut self) -> Step {
        let drained = self
            .follower
            .drain(2 * self.trial.patience)
            .map_err(|cause| Failure { seen_by: "stuck", detail: format!("{cause:#}") })?;
        if drained.ended != Ended::Code(0) {
            return Err(self.bad_exit(drained.ended));
        }
        self.drained = drained.report;
        self.event("drained");
        Ok(())
    }

    fn outcome(&mut self, began: Instant, failure: Option<Failure>) -> Outcome {
        let seen = self.watch.seen();
        Outcome {
            seed: self.trial.seed,
            profile: self.plan.profile,
            configuration: match self.trial.subject {
                Subject::Subscription => String::new(),
                Subject::Tidemark { .. } | Subject::Lake { .. } => self.trial.configured().line(),
            },
            is_lake: matches!(self.trial.subject, Subject::Lake { .. }),
            lanes: self.trial.configured().lanes,
            lane_moves: (seen.lane_moves, seen.apart),
            version: self.trial.version.major(),
            took: began.elapsed(),
            failure,
            faults: std::mem::take(&mut self.faults),
            events: std::mem::take(&mut self.events),
            restarts: self.restarts,
            exits: std::mem::take(&mut self.exits),
            transactions: self.storm.committed,
            verdict: self.verdict,
            glances: seen.glances,
            recoveries: seen.recoveries,
            peak_rss_kb: seen.peak_rss_kb,
            peak_wal_bytes: seen.peak_wal_bytes,
            drained: self.drained.take(),
            verified: self.verified.take(),
            kept: None,
        }
    }
}

/// Where the binary is: the environment says so, or the debug build of this tree.
pub(super) fn binary(named: Option<&Path>) -> PathBuf {
    let built = || {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| PathBuf::from("target"), PathBuf::from);
        target.join("debug/tidemark")
    };
    let chosen =
        named.map(Path::to_owned).or_else(|| std::env::var_os("TIDEMARK").map(PathBuf::from));
    let chosen = chosen.unwrap_or_else(built);
    std::path::absolute(&chosen).unwrap_or(chosen)
}
