//! How the follower is configured in a run: made from the seed, written to its file, printed with the result.
//!
//! **Invariant:** one seed gives one configuration, and a good follower is good with every one of them.
//!
//! **Not here:** what goes wrong ([`super::plan`]), which has random numbers of its own: a plan stays what it is when
//! configurations get one more key.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Keeps these random numbers apart from the plan's.
const SALT: u64 = 0x636f_6e66_6967;

/// The keys of the follower's file that a run may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// `stream.lanes`.
    pub lanes: u32,
    batch_delay: &'static str,
    batch_bytes: &'static str,
    catch_up: bool,
    heartbeat: &'static str,
    memory: &'static str,
    source_wal: &'static str,
    readers: u32,
    chunk_bytes: &'static str,
}

impl Default for Configuration {
    /// As a file says nothing of all this, with few readers.
    fn default() -> Self {
        Self {
            lanes: 1,
            batch_delay: "200ms",
            batch_bytes: "64MiB",
            catch_up: true,
            heartbeat: "off",
            memory: "512MiB",
            source_wal: "16GiB",
            readers: 2,
            chunk_bytes: "64MiB",
        }
    }
}

/// The default, or one of the others as often.
fn either<T: Copy>(random: &mut StdRng, default: T, others: &[T]) -> T {
    let number = random.random_range(0..2 * others.len());
    others.get(number).copied().unwrap_or(default)
}

impl Configuration {
    /// The configuration of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ SALT);
        let random = &mut random;
        Self {
            lanes: either(random, 1, &[2, 3, 4]),
            batch_delay: either(random, "200ms", &["1ms", "20ms", "1s"]),
            batch_bytes: either(random, "64MiB", &["64KiB", "512KiB", "4MiB"]),
            catch_up: random.random(),
            heartbeat: either(random, "off", &["500ms", "2s"]),
            memory: either(random, "512MiB", &["16MiB", "24MiB", "64MiB"]),
            source_wal: either(random, "16GiB", &["16MiB", "64MiB"]),
            readers: either(random, 2, &[1, 4]),
            chunk_bytes: either(random, "64MiB", &["256KiB", "1MiB"]),
        }
    }

    /// The same with another number of lanes.
    #[must_use]
    pub fn with_lanes(self, lanes: u32) -> Self {
        Self { lanes, ..self }
    }

    /// The follower's file.
    pub fn toml(&self) -> String {
        let Self { lanes, batch_delay, batch_bytes, catch_up, heartbeat, .. } = self;
        let Self { memory, source_wal, readers, chunk_bytes, .. } = self;
        format!(
            "[snapshot]\nreaders = {readers}\nchunk_bytes = \"{chunk_bytes}\"\n\
             [stream]\nlanes = {lanes}\nbatch_delay = \"{batch_delay}\"\nbatch_bytes = \"{batch_bytes}\"\n\
             catch_up = {catch_up}\nheartbeat = \"{heartbeat}\"\n\
             [limits]\nmemory = \"{memory}\"\nsource_wal = \"{source_wal}\"\n"
        )
    }

    /// The same on one line, for people.
    pub fn line(&self) -> String {
        let toml = self.toml().replace('"', "");
        let keys = toml.lines().filter(|line| !line.starts_with('['));
        keys.map(|line| line.replace(" = ", "=")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_configuration_again_and_seeds_differ() {
        assert_eq!(Configuration::of(7), Configuration::of(7));
        let lines: BTreeSet<_> = (0..50).map(|seed| Configuration::of(seed).line()).collect();
        assert!(lines.len() > 45, "{}", lines.len());
    }

    #[test]
    fn seeds_have_one_to_four_lanes_and_half_of_them_one() {
        let lanes = |seed| Configuration::of(seed).lanes;
        assert_eq!((0..30).map(lanes).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3, 4]));
        let with_one = (0..200).filter(|seed| lanes(*seed) == 1).count();
        assert!((70..130).contains(&with_one), "{with_one}");
    }

    #[test]
    fn the_line_names_every_key() {
        let line = Configuration::default().line();
        assert_eq!(line.split(' ').count(), 9, "{line}");
        assert!(line.contains("lanes=1 ") && line.contains("memory=512MiB"), "{line}");
    }
}
