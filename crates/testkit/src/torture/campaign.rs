//! Many runs: one after the other or some at once, until the seeds or the time are used up; and the planted defects.
//!
//! **Invariant:** a campaign that ran nothing is not a good one.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::configuration::Configuration;
use super::plan::Profile;
use super::report::{Outcome, table};
use super::run::{Subject, Trial, binary, run};
use crate::Version;

/// A planted defect, and the runs that look for it.
#[derive(Debug, Clone, Copy)]
struct Plant {
    /// As `TIDEMARK_PLANT` names it in a build with `--features planted-bugs`.
    name: &'static str,
    /// One lane, in which the target is judged at any moment, unless it is about lanes.
    lanes: u32,
    /// In place of the seeds' own.
    profile: Option<Profile>,
}

const fn in_stream(name: &'static str) -> Plant {
    Plant { name, lanes: 1, profile: None }
}

/// Lanes stand apart where the answer to a commit is lost, or the follower, between two commits.
const fn in_lanes(name: &'static str, profile: Profile) -> Plant {
    Plant { name, lanes: 3, profile: Some(profile) }
}

const fn in_joins(name: &'static str) -> Plant {
    Plant { name, lanes: 1, profile: Some(Profile::Joins) }
}

/// A server that dies takes along what was not on its disk.
const fn in_servers(name: &'static str) -> Plant {
    Plant { name, lanes: 1, profile: Some(Profile::Servers) }
}

const PLANTS: [Plant; 19] = [
    in_stream("skip-by-begin-lsn"),
    in_stream("acknowledge-early"),
    in_stream("drop-unchanged"),
    in_stream("forget-subabort"),
    in_stream("drop-truncate"),
    in_stream("commit-without-progress"),
    in_stream("ignore-key-change"),
    in_stream("dup-on-reconnect"),
    in_stream("half-transaction"),
    in_stream("last-of-stream-lost"),
    in_stream("overtake-ahead"),
    in_servers("durable-before-disk"),
    in_lanes("first-lane-first", Profile::Commits),
    in_lanes("forget-lanes", Profile::Commits),
    in_lanes("lane-without-position", Profile::Commits),
    in_lanes("lane-by-run", Profile::Kills),
    in_joins("join-takes-all"),
    in_joins("join-forgets-open"),
    in_joins("join-forgotten"),
];

const USAGE: &str = "\
usage: torture [--seeds N] [--minutes M] [--first-seed S] [--jobs J] [--pg MAJOR] [--seconds FROM-TO]
               [--target postgres|lake|any] [--subject tidemark|subscription] [--binary PATH] [--profile mixed|kills|network|servers|instances|joins|commits|verify|calm]
               [--lanes N] [--plant NAME] [--planted] [--seeds-per-plant K] [--only NAME,NAME] [--keep DIR] [--keep-data]";

/// Time of each run in which verifications follow each other, in seconds: its tables have to grow.
const VERIFIES: (u64, u64) = (90, 240);

/// What a campaign runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many seeds.
    pub seeds: u64,
    /// The first of them.
    pub first_seed: u64,
    /// No run is begun after this.
    pub time: Duration,
    /// How many at once.
    pub jobs: usize,
    /// Both servers' version.
    pub version: Version,
    /// Time under faults of each run, in seconds.
    pub seconds: (u64, u64),
    /// Who follows.
    pub subject: Subject,
    /// In place of the seeds' own.
    pub profile: Option<Profile>,
    /// In place of the seeds' own.
    pub lanes: Option<u32>,
    /// Whether one seed in four goes into a lake.
    pub any_target: bool,
    /// Each planted defect in turn, with at most so many seeds.
    pub planted: Option<u64>,
    /// Only these defects; all when empty.
    pub only: Vec<String>,
    /// Where bad runs are kept.
    pub keep: PathBuf,
    /// Whether with the servers' data.
    pub keep_data: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seeds: 5,
            first_seed: 1,
            time: Duration::from_secs(24 * 3600),
            jobs: 1,
            version: Version::from_env(),
            seconds: (20, 60),
            subject: Subject::Tidemark { binary: binary(None), plant: None },
            profile: None,
            lanes: None,
            any_target: false,
            planted: None,
            only: Vec::new(),
            keep: std::env::temp_dir().join("tidemark-torture-failures"),
            keep_data: false,
        }
    }
}

/// Reads the arguments of the program.
///
/// # Errors
/// One is unknown or has no value; with the usage.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    let (mut named, mut plant, mut is_yardstick, mut per_plant, mut is_planted) =
        (None, None, false, 6, false);
    let mut is_lake = false;
    let (mut seeds, mut seconds) = (None, None);
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let mut value =
            || arguments.next().with_context(|| format!("{name} needs a value\n{USAGE}"));
        match name.as_str() {
            "--seeds" => seeds = Some(number(&value()?)?),
            "--minutes" => {
                options.time = Duration::from_secs(60 * number(&value()?)?);
                // The time alone: as many as begin in it.
                options.seeds = u64::MAX;
            }
            "--first-seed" => options.first_seed = number(&value()?)?,
            "--jobs" => options.jobs = usize::try_from(number(&value()?)?.clamp(1, 16))?,
            "--pg" => options.version = version(&value()?)?,
            "--seconds" => seconds = Some(range(&value()?)?),
            "--binary" => named = Some(PathBuf::from(value()?)),
            "--plant" => plant = Some(value()?),
            "--planted" => is_planted = true,
            "--seeds-per-plant" => per_plant = number(&value()?)?,
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--keep" => options.keep = PathBuf::from(value()?),
            "--keep-data" => options.keep_data = true,
            "--lanes" => options.lanes = Some(u32::try_from(number(&value()?)?.clamp(1, 32))?),
            "--profile" => options.profile = Some(profile(&value()?)?),
            "--subject" => {
                is_yardstick = match value()?.as_str() {
                    "tidemark" => false,
                    "subscription" => true,
                    other => bail!("--subject {other}: tidemark or subscription\n{USAGE}"),
                }
            }
            "--target" => {
                (is_lake, options.any_target) = match value()?.as_str() {
                    "postgres" => (false, false),
                    "lake" => (true, false),
                    "any" => (false, true),
                    other => bail!("--target {other}: postgres, lake or any\n{USAGE}"),
                }
            }
            "--help" | "-h" => bail!("{USAGE}"),
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    options.planted = is_planted.then_some(per_plant);
    options.seeds = seeds.unwrap_or(options.seeds);
    options.seconds = seconds.unwrap_or(match options.profile {
        Some(Profile::Verify) => VERIFIES,
        _ => options.seconds,
    });
    let binary = binary(named.as_deref());
    options.subject = match (is_yardstick, is_lake) {
        (true, _) if options.profile == Some(Profile::Verify) => {
            bail!("a subscription has nothing that verifies it\n{USAGE}")
        }
        (true, false) => Subject::Subscription,
        (true, true) => bail!("a subscription has no lake\n{USAGE}"),
        (false, true) => Subject::Lake { binary, plant },
        (false, false) => Subject::Tidemark { binary, plant },
    };
    if let Subject::Tidemark { binary, .. } | Subject::Lake { binary, .. } = &options.subject
        && !binary.is_file()
    {
        bail!(
            "{} is not there: build it, or name another with TIDEMARK or --binary",
            binary.display()
        );
    }
    Ok(options)
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text:?} is not a number\n{USAGE}"))
}

fn range(text: &str) -> Result<(u64, u64)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Ok((number(from)?, number(to)?))
}

fn version(text: &str) -> Result<Version> {
    let found = Version::ALL.into_iter().find(|version| version.major().to_string() == text);
    found.with_context(|| format!("--pg {text}: a major version from 13 to 18"))
}

fn profile(text: &str) -> Result<Profile> {
    Ok(match text {
        "mixed" => Profile::Mixed,
        "kills" => Profile::Kills,
        "network" => Profile::Network,
        "servers" => Profile::Servers,
        "instances" => Profile::Instances,
        "joins" => Profile::Joins,
        "commits" => Profile::Commits,
        "verify" => Profile::Verify,
        "calm" => Profile::Calm,
        other => bail!("--profile {other}\n{USAGE}"),
    })
}

/// A campaign.
#[derive(Debug)]
pub struct Campaign {
    options: Options,
}

impl Campaign {
    /// A campaign with these options.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Runs it; prints a line of JSON for each run and a table at the end. Whether all was as it should be.
    ///
    /// # Errors
    /// The servers cannot be started, or nothing can be printed.
    pub fn run(&self, out: &mut (dyn Write + Send)) -> Result<bool> {
        match self.options.planted {
            Some(seeds) => self.planted(seeds, out),
            None => self.seeds(out),
        }
    }

    fn trial(&self, seed: u64) -> Trial {
        let of_seed = Configuration::of(seed);
        let lanes = self.options.lanes.unwrap_or(of_seed.lanes);
        let subject = match &self.options.subject {
            Subject::Tidemark { binary, plant } if self.options.any_target && seed % 4 == 2 => {
                Subject::Lake { binary: binary.clone(), plant: plant.clone() }
            }
            subject => subject.clone(),
        };
        Trial {
            version: self.options.version,
            seconds: self.options.seconds,
            profile: self.options.profile,
            configuration: of_seed.with_lanes(lanes),
            keep: Some((self.options.keep.clone(), self.options.keep_data)),
            ..Trial::new(seed, subject)
        }
    }

    fn seeds(&self, out: &mut (dyn Write + Send)) -> Result<bool> {
        let began = Instant::now();
        let first = self.options.first_seed;
        let waiting = Mutex::new(first..first.saturating_add(self.options.seeds));
        let done: Mutex<(Vec<Outcome>, &mut (dyn Write + Send))> = Mutex::new((Vec::new(), out));
        let work = || -> Result<()> {
            while began.elapsed() < self.options.time {
                let seed = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(seed) = seed else { return Ok(()) };
                let outcome = run(&self.trial(seed)).with_context(|| format!("run seed {seed}"))?;
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                writeln!(done.1, "{}", outcome.json())?;
                done.1.flush()?;
                done.0.push(outcome);
            }
            Ok(())
        };
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..self.options.jobs).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                match worker.join() {
                    Ok(result) => result?,
                    Err(_) => bail!("a run panicked"),
                }
            }
            Ok(())
        })?;
        let (outcomes, out) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        writeln!(out, "\n{}", table(&outcomes))?;
        Ok(!outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.failure.is_none()))
    }

    /// First without a defect, which must be good; then each defect until it is caught.
    fn planted(&self, seeds: u64, out: &mut (dyn Write + Send)) -> Result<bool> {
        let Subject::Tidemark { binary, .. } = &self.options.subject else {
            bail!("defects are planted in tidemark only");
        };
        let with = |seed, plant: Option<&Plant>| {
            let (lanes, profile) = plant.map_or((1, None), |plant| (plant.lanes, plant.profile));
            let plant = plant.map(|plant| plant.name.to_owned());
            let trial = self.trial(seed);
            Trial {
                subject: Subject::Tidemark { binary: binary.clone(), plant },
                // Small batches would be one lane's.
                configuration: match lanes {
                    1 => trial.configuration.clone().with_lanes(1),
                    lanes => Configuration::default().with_lanes(lanes),
                },
                profile: self.options.profile.or(profile),
                // The servers' data says no more than the next run would.
                keep: None,
                ..trial
            }
        };
        let mut rows = vec![
            "| planted defect | caught by | at seed | runs | seconds |\n|---|---|---|---|---|\n"
                .to_owned(),
        ];
        let mut are_caught = true;
        let sound = run(&with(self.options.first_seed, None))?;
        writeln!(out, "{}", sound.json())?;
        if let Some(failure) = &sound.failure {
            bail!("without a planted defect the run is bad already: {failure}");
        }
        for plant in PLANTS.iter().filter(|plant| self.wants(plant.name)) {
            let name = plant.name;
            let began = Instant::now();
            let mut row = format!("| {name} | **not caught** | - | {seeds} | ");
            let mut is_caught = false;
            for seed in self.options.first_seed..self.options.first_seed + seeds {
                let outcome = run(&with(seed, Some(plant)))?;
                writeln!(out, "{{\"plant\":\"{name}\",\"run\":{}}}", outcome.json())?;
                out.flush()?;
                // A defect of the rig catches nothing.
                if let Some(failure) = outcome.failure.filter(|failure| failure.seen_by != "rig") {
                    let first = failure.detail.lines().next().unwrap_or_default();
                    let runs = seed - self.options.first_seed + 1;
                    row = format!("| {name} | {}: {first} | {seed} | {runs} | ", failure.seen_by);
                    is_caught = true;
                    break;
                }
            }
            are_caught &= is_caught;
            rows.push(format!("{row}{:.0} |\n", began.elapsed().as_secs_f64()));
        }
        writeln!(out, "\n{}", rows.concat())?;
        Ok(are_caught)
    }

    fn wants(&self, plant: &str) -> bool {
        self.options.only.is_empty() || self.options.only.iter().any(|name| name == plant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Options> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_read() {
        let options = parsed(
            "--seeds 3 --minutes 2 --first-seed 9 --pg 18 --seconds 5-7 --subject subscription --profile kills --jobs 2",
        )
        .unwrap();
        assert_eq!((options.seeds, options.first_seed, options.jobs), (3, 9, 2));
        assert_eq!((options.time, options.seconds), (Duration::from_secs(120), (5, 7)));
        assert_eq!((options.version, options.profile), (Version::V18, Some(Profile::Kills)));
        assert!(matches!(options.subject, Subject::Subscription));
    }

    #[test]
    fn minutes_alone_are_as_many_seeds_as_begin_in_them() {
        let seeds = |text: &str| parsed(&format!("--subject subscription {text}")).unwrap().seeds;
        assert_eq!(seeds(""), 5);
        assert_eq!(seeds("--minutes 2 --seeds 3"), 3);
        assert!(seeds("--minutes 2") > 1_000_000);
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_usage() {
        for wrong in [
            "--sedes 3",
            "--seeds",
            "--seeds x",
            "--pg 12",
            "--target lake",
            "--target tape",
            "--profile odd",
            "--profile verify",
        ] {
            let text = format!("--subject subscription {wrong}");
            assert!(parsed(&text).is_err(), "{wrong}");
        }
    }
}
