//! `[[wave]]`: one configuration becomes one for each wave, and the rest of the program sees ordinary jobs.
//!
//! **Invariant:** a wave's job, its state directory and its tables are functions of the configuration alone, so that every
//! command, whichever waves it is about, means the same ones. Each chosen table is in exactly one part: what two waves name is
//! refused where the tables are known, and what none names is the part `rest`.

use tidemark_model::names::{REST, wave_job};

use super::{Config, Limits, TableGlob};

/// Where the states of waves are kept, below the job's.
const DIRECTORY: &str = "waves";
/// What `limits` and `snapshot` ask for at least.
const LEAST_BYTES: u64 = 16 << 20;

/// One `[[wave]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wave {
    /// Its name.
    pub name: String,
    /// Which tables.
    pub tables: Vec<TableGlob>,
}

/// Which wave a configuration is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaveOf {
    /// Its name.
    pub name: String,
    /// The name of the job that is parted.
    pub job: String,
    /// The names of the jobs that the other waves are.
    pub others: Vec<String>,
    /// Its tables; of the rest none, because it has all that the others do not have.
    pub tables: Vec<TableGlob>,
    /// Those of the others.
    pub apart: Vec<TableGlob>,
}

impl Config {
    /// The configurations of the waves that the command is about, the rest last; the configuration itself where there are no
    /// waves.
    pub fn parts(&self) -> Vec<Self> {
        if self.waves.is_empty() {
            return vec![self.clone()];
        }
        let names = self.waves.iter().map(|wave| wave.name.as_str()).chain([REST]);
        let wanted = names.filter(|name| self.wave.as_ref().is_none_or(|wave| wave == name));
        let wanted: Vec<&str> = wanted.collect();
        wanted.iter().map(|name| self.part_of(name, wanted.len())).collect()
    }

    /// `together`: so many run in one process and share what it may use.
    fn part_of(&self, name: &str, together: usize) -> Self {
        let (own, others): (Vec<&Wave>, Vec<&Wave>) =
            self.waves.iter().partition(|wave| wave.name == name);
        let globs = |waves: &[&Wave]| -> Vec<TableGlob> {
            waves.iter().flat_map(|wave| &wave.tables).cloned().collect()
        };
        let names = self.waves.iter().map(|wave| wave.name.as_str()).chain([REST]);
        let of = WaveOf {
            name: name.to_owned(),
            job: self.job.name.clone(),
            others: names
                .filter(|other| *other != name)
                .map(|other| wave_job(&self.job.name, other))
                .collect(),
            tables: globs(&own),
            apart: globs(&others),
        };
        let mut part = self.clone();
        part.waves.clear();
        part.job.name = wave_job(&self.job.name, name);
        part.job.state_dir = self.job.state_dir.join(DIRECTORY).join(name);
        // A partition may be ours by the name of the table above it: only what is another's by its own name is left out.
        part.tables.retain(|table| !of.apart.iter().any(|glob| glob.matches(&table.name)));
        part.part = Some(of);
        let share = u64::try_from(together.max(1)).unwrap_or(u64::MAX);
        part.limits = Limits {
            memory: (self.limits.memory / share).max(LEAST_BYTES),
            spool: (self.limits.spool / share).max(LEAST_BYTES),
            ..self.limits.clone()
        };
        let readers = u64::from(self.snapshot.readers) / share;
        part.snapshot.readers = u32::try_from(readers).unwrap_or(u32::MAX).max(1);
        part
    }
}

#[cfg(test)]
mod tests {
    use tidemark_model::RelationName;

    use super::super::{Environment, Needs, load_with};
    use super::*;

    fn config(flags: &[&str]) -> Config {
        use clap::Parser as _;

        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("job.toml");
        let text = "[job]\nname = \"shop\"\nstate_dir = \"state\"\n[source]\nurl = \"postgres://a@b/c\"\n[target]\nurl = \"postgres://a@d/c\"\n\
            [[table]]\nname = \"public.pet\"\nwhere = \"id > 1\"\n[[table]]\nname = \"public.walk_1\"\nwhere = \"id > 1\"\n\
            [[wave]]\nname = \"pilot\"\ntables = [\"public.pet\"]\n[[wave]]\nname = \"second\"\ntables = [\"public.walk\"]\n\
            [snapshot]\nreaders = 4\n[limits]\nmemory = \"300MiB\"\n";
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let args = ["tidemark", "status", "-c", &file].into_iter().chain(flags.iter().copied());
        let cli = crate::args::Cli::parse_from(args);
        let environment = Environment { lookup: &|_| None, default_file: directory.path() };
        load_with(&cli.global, Needs::Both, &environment).unwrap()
    }

    #[test]
    fn waves_are_jobs_that_share_what_the_process_may_use() {
        let parts = config(&[]).parts();
        let names: Vec<&str> = parts.iter().map(|part| part.job.name.as_str()).collect();
        assert_eq!(names, ["shop--pilot", "shop--second", "shop--rest"]);
        assert_eq!(parts[0].job.state_dir, std::path::Path::new("state/waves/pilot"));
        assert_eq!(parts[0].part.as_ref().unwrap().others, ["shop--second", "shop--rest"]);
        for part in &parts {
            assert_eq!((part.limits.memory, part.snapshot.readers), (100 << 20, 1));
            assert!(part.waves.is_empty(), "a part is not parted again");
        }
        let rest = parts[2].part.as_ref().unwrap();
        assert_eq!((rest.tables.len(), rest.apart.len()), (0, 2));
    }

    #[test]
    fn a_wave_by_itself_is_the_same_job_and_has_everything() {
        let parts = config(&["--wave", "second"]).parts();
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].job.name, "shop--second");
        assert_eq!((parts[0].limits.memory, parts[0].snapshot.readers), (300 << 20, 4));
    }

    /// It may be a partition of a table that the wave names: losing its filter would copy what is to stay.
    #[test]
    fn what_is_special_about_a_table_stays_with_every_wave_that_may_have_it() {
        let parts = config(&[]).parts();
        let special = |part: &Config| -> Vec<RelationName> {
            part.tables.iter().map(|table| table.name.clone()).collect()
        };
        let (pet, walk) =
            (RelationName::new("public", "pet"), RelationName::new("public", "walk_1"));
        assert_eq!(special(&parts[0]), [pet, walk.clone()]);
        assert_eq!(special(&parts[1]), std::slice::from_ref(&walk));
        assert_eq!(special(&parts[2]), [walk]);
    }
}
