//! What goes wrong in a run, and when: made from the seed before the run begins.
//!
//! **Invariant:** one seed gives one plan. Faults follow each other, with time between them for the follower to come back;
//! now and then the follower is killed in the middle of another fault.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::proxy::{Cut, Direction};

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the storm is.
    Source,
    /// Where it is followed to.
    Target,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// `kill -9`, and the same command again.
    Kill,
    /// `kill -9` while the target has not answered for so long: what was received is not applied.
    KillBehind(Duration),
    /// SIGTERM: a clean stop, and the same command again.
    CleanStop,
    /// SIGSTOP for so long, then SIGCONT.
    Freeze(Duration),
    /// All connections to a side are cut.
    Cut(Side, Cut),
    /// A connection is cut at this byte from now.
    CutAt(Side, Direction, u64, Cut),
    /// Nothing passes in either direction.
    BlackHole(Side, Duration),
    /// Nothing passes in one direction.
    HalfBlackHole(Side, Direction, Duration),
    /// Every read is late by the first.
    Delay(Side, Duration, Duration),
    /// At most so many bytes per second.
    Throttle(Side, u64, Duration),
    /// Connections are cut and new ones refused.
    Unreachable(Side, Duration),
    /// The target commits and the answer is lost.
    LoseCommit(Cut),
    /// `pg_terminate_backend` of one of the follower's sessions.
    EndSession(Side, u32),
    /// Immediate stop, and a start after so long.
    Crash(Side, Duration),
    /// A second instance with the same state directory, or with another one.
    SecondInstance {
        /// Whether it has the state directory of the first.
        same_directory: bool,
    },
    /// The follower may write no file longer than this; the kernel ends it where it tries.
    ShortFiles(u64, Duration),
    /// The disk of the state directory is full.
    FullDisk(Duration),
    /// `VACUUM FULL` and `REINDEX` of tables that are written to, a checkpoint, a new WAL file.
    Rewrite,
    /// Tables are given up (`tidemark reset`), which ones by a number, and join again under the storm; a kill inside comes
    /// after so long.
    Rejoin(u32, Duration),
    /// A column is added to a table that is written to, which and how by a number.
    AddColumn(u32),
}

impl Fault {
    /// Its kind, for the table.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::KillBehind(_) => "kill -9 while behind",
            Self::CleanStop => "SIGTERM",
            Self::Freeze(_) => "SIGSTOP",
            Self::Cut(..) => "cut",
            Self::CutAt(..) => "cut at byte",
            Self::BlackHole(..) => "black hole",
            Self::HalfBlackHole(..) => "half black hole",
            Self::Delay(..) => "delay",
            Self::Throttle(..) => "throttle",
            Self::Unreachable(..) => "unreachable",
            Self::LoseCommit(_) => "commit reply lost",
            Self::EndSession(Side::Source, _) => "session ended on source",
            Self::EndSession(Side::Target, _) => "session ended on target",
            Self::Crash(Side::Source, _) => "source crash",
            Self::Crash(Side::Target, _) => "target crash",
            Self::SecondInstance { .. } => "second instance",
            Self::ShortFiles(..) => "file size limit",
            Self::FullDisk(_) => "state disk full",
            Self::Rewrite => "VACUUM FULL",
            Self::Rejoin(..) => "tables join again",
            Self::AddColumn(_) => "column added",
        }
    }
}

impl Fault {
    /// The server whose connections or process it hits; none for the follower itself.
    pub fn side(&self) -> Option<Side> {
        match *self {
            Self::Cut(side, _)
            | Self::CutAt(side, ..)
            | Self::BlackHole(side, _)
            | Self::HalfBlackHole(side, ..)
            | Self::Delay(side, ..)
            | Self::Throttle(side, ..)
            | Self::Unreachable(side, _)
            | Self::EndSession(side, _)
            | Self::Crash(side, _) => Some(side),
            Self::LoseCommit(_) | Self::KillBehind(_) => Some(Side::Target),
            Self::Rewrite | Self::AddColumn(_) => Some(Side::Source),
            Self::Kill
            | Self::CleanStop
            | Self::Freeze(_)
            | Self::SecondInstance { .. }
            | Self::ShortFiles(..)
            | Self::Rejoin(..)
            | Self::FullDisk(_) => None,
        }
    }
}

/// What a run is mostly about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Everything.
    Mixed,
    /// Kills, close together.
    Kills,
    /// The network.
    Network,
    /// Both servers.
    Servers,
    /// Second instances and kills; never by a seed alone.
    Instances,
    /// Tables that join again, and kills; never by a seed alone.
    Joins,
    /// Answers to commits that are lost, and kills; never by a seed alone.
    Commits,
    /// No fault, but verifications in turn, of which every second one has a difference to find; never by a seed alone.
    Verify,
    /// No fault at all.
    Calm,
}

impl Profile {
    /// The profile of a seed: half of them have everything.
    pub fn of(seed: u64) -> Self {
        match seed % 6 {
            1 => Self::Kills,
            3 => Self::Network,
            5 => Self::Servers,
            _ => Self::Mixed,
        }
    }
}

/// A fault and the time before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Planned {
    /// From the end of the fault before it.
    pub pause: Duration,
    /// What happens.
    pub fault: Fault,
    /// Whether the follower is killed half-way through it.
    pub kills_inside: bool,
    /// Whether the follower gets the time to come back before the next one.
    pub waits: bool,
}

/// The whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it is about.
    pub profile: Profile,
    /// While the snapshot is being made.
    pub early: Vec<Planned>,
    /// While the source is followed; in turn, until the time is over.
    pub late: Vec<Planned>,
    /// How long the second part takes.
    pub length: Duration,
    /// The largest transaction.
    pub rows_max: u64,
    /// See the storm's option.
    pub swaps_one_in: u32,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64, profile: Profile, seconds: (u64, u64)) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let length = Duration::from_secs(random.random_range(seconds.0..=seconds.1.max(seconds.0)));
        let rows_max = match seed % 10 {
            7 => 1_000_000,
            2 | 4 => 100_000,
            _ => 20_000,
        };
        // Where swaps are frequent every batch has one, and the follower's fast path is never seen.
        let swaps_one_in = if seed.is_multiple_of(3) { 1 } else { 150 };
        let has_faults = !matches!(profile, Profile::Calm | Profile::Verify);
        let early_count = if has_faults { random.random_range(0..=2) } else { 0 };
        let early = (0..early_count)
            .map(|_| Planned {
                pause: Duration::from_millis(random.random_range(50..1_500)),
                fault: early(&mut random),
                kills_inside: false,
                waits: false,
            })
            .collect();
        let late = (0..200).map(|_| late(&mut random, profile)).collect();
        let late = if has_faults { late } else { Vec::new() };
        Self { profile, early, late, length, rows_max, swaps_one_in }
    }
}

fn millis(random: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..=to))
}

fn side(random: &mut StdRng) -> Side {
    if random.random() { Side::Source } else { Side::Target }
}

fn cut(random: &mut StdRng) -> Cut {
    if random.random() { Cut::Rst } else { Cut::Fin }
}

fn direction(random: &mut StdRng) -> Direction {
    if random.random() { Direction::ToServer } else { Direction::ToClient }
}

/// Faults that a snapshot starts over from.
fn early(random: &mut StdRng) -> Fault {
    match random.random_range(0..6) {
        0..=2 => Fault::Kill,
        3 => Fault::Cut(side(random), cut(random)),
        4 => Fault::EndSession(side(random), random.random_range(0..10)),
        _ => Fault::Crash(side(random), millis(random, 0, 1_000)),
    }
}

fn late(random: &mut StdRng, profile: Profile) -> Planned {
    let number = match (profile, random.random_range(0..100_u32)) {
        (Profile::Kills, 0..=79) => 0,
        (Profile::Network, _) => random.random_range(30..72),
        (Profile::Instances, 0..=79) => 88,
        (Profile::Joins, 0..=79) => 15,
        (Profile::Commits, 0..=79) => 65,
        (Profile::Commits, _) => 0,
        (Profile::Servers, _) => random.random_range(66..88),
        (_, number) => number,
    };
    let pause = match profile {
        Profile::Kills => millis(random, 20, 1_800),
        _ => millis(random, 200, 3_000),
    };
    let fault = match number {
        0..=14 if random.random_ratio(1, 4) => Fault::KillBehind(millis(random, 200, 1_500)),
        0..=14 => Fault::Kill,
        15..=17 => Fault::Rejoin(random.random_range(0..1_000), millis(random, 20, 1_500)),
        18..=19 => Fault::AddColumn(random.random_range(0..1_000)),
        20..=23 => Fault::CleanStop,
        24..=29 => Fault::Freeze(millis(random, 3_000, 10_000)),
        30..=36 => Fault::Cut(side(random), cut(random)),
        37..=43 => Fault::CutAt(
            side(random),
            direction(random),
            random.random_range(0..300_000),
            cut(random),
        ),
        44..=49 => Fault::BlackHole(side(random), millis(random, 1_000, 8_000)),
        50..=52 => {
            Fault::HalfBlackHole(side(random), direction(random), millis(random, 1_000, 7_000))
        }
        53..=55 => Fault::Delay(side(random), millis(random, 5, 200), millis(random, 1_000, 4_000)),
        56..=57 => Fault::Throttle(
            side(random),
            random.random_range(50_000..2_000_000),
            millis(random, 1_000, 4_000),
        ),
        58..=61 => Fault::Unreachable(side(random), millis(random, 300, 5_000)),
        62..=69 => Fault::LoseCommit(cut(random)),
        70..=73 => Fault::EndSession(Side::Source, random.random_range(0..10)),
        74..=77 => Fault::EndSession(Side::Target, random.random_range(0..10)),
        78..=82 => Fault::Crash(Side::Source, millis(random, 0, 3_000)),
        83..=87 => Fault::Crash(Side::Target, millis(random, 0, 3_000)),
        88..=91 => Fault::SecondInstance { same_directory: random.random() },
        92..=94 => {
            Fault::ShortFiles(random.random_range(8_192..400_000), millis(random, 500, 3_000))
        }
        95..=97 => Fault::FullDisk(millis(random, 500, 4_000)),
        _ => Fault::Rewrite,
    };
    // A join takes a while, and is of interest for as long as it does.
    let kills = if matches!(fault, Fault::Rejoin(..)) { 2 } else { 8 };
    Planned { pause, fault, kills_inside: random.random_ratio(1, kills), waits: random.random() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_plan_again_and_two_seeds_give_two() {
        let plan = |seed| Plan::of(seed, Profile::Mixed, (20, 60));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7).late, plan(8).late);
    }

    #[test]
    fn twenty_mixed_seeds_have_every_kind_of_fault() {
        let plans = (0..20).map(|seed| Plan::of(seed, Profile::Mixed, (20, 60)));
        let kinds: BTreeSet<_> = plans.flat_map(|plan| plan.late).map(|p| p.fault.kind()).collect();
        assert_eq!(kinds.len(), 22, "{kinds:?}");
    }

    #[test]
    fn the_profile_of_kills_is_mostly_kills() {
        let plan = Plan::of(1, Profile::Kills, (20, 60));
        let kills = plan.late.iter().filter(|p| p.fault == Fault::Kill).count();
        assert!(kills > 100, "{kills}");
    }
}
