//! From arguments and file to a [`Config`].
//!
//! **Invariant:** every value passes through [`Resolver::value`], which alone decides between flag, file and default,
//! expands, and notes what is in force.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tidemark_model::{Secret, Unrepresentable, names};
use tidemark_wire::ConnectSpec;

use super::error::ConfigError;
use super::expand::{Lookup, expand};
use super::file::{ConfigFile, nearest};
use super::glob::{Selection, TableGlob};
use super::keys::{Kind, key};
use super::raw::{
    RawCutover, RawDelta, RawLimits, RawParquet, RawSnapshot, RawSource, RawStream, RawTable,
    RawTarget, RawVerify, RawWave,
};
use super::{
    Allow, Compression, Config, Cutover, Ddl, Delta, DeltaAction, Fence, Hook, InForce, Job, Level,
    Limits, OnFull, Origin, Parquet, Redact, SchemaMode, Snapshot, Source, Stream, Table, Target,
    TargetUrl, Triggers, Verify, Wave, check_job_name, check_name, fitted_job_name, units, url,
};
use crate::args::Global;
use crate::redact;

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "tidemark.toml";

/// What a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Source and target.
    Both,
    /// The job's name and state directory.
    Job,
}

/// What is taken from the process around us.
pub struct Environment<'a> {
    /// Looks up an environment variable.
    pub lookup: Lookup<'a>,
    /// The file that is read when none is named, if it exists.
    pub default_file: &'a Path,
}

/// Loads the configuration of this process.
///
/// # Errors
/// The file cannot be read, or a value of it or of a flag is wrong.
pub fn load(global: &Global, needs: Needs) -> Result<Config, ConfigError> {
    let lookup = |name: &str| std::env::var(name).ok();
    let environment = Environment { lookup: &lookup, default_file: Path::new(DEFAULT_FILE) };
    load_with(global, needs, &environment)
}

/// Loads a configuration in a given environment.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    global: &Global,
    needs: Needs,
    environment: &Environment<'_>,
) -> Result<Config, ConfigError> {
    let path = match &global.config {
        Some(path) => Some(path.clone()),
        None if environment.default_file.exists() => Some(environment.default_file.to_owned()),
        None => None,
    };
    let file = path.as_deref().map(ConfigFile::read).transpose()?;
    let resolver =
        Resolver { file: file.as_ref(), lookup: environment.lookup, in_force: Vec::new() };
    let mut config = resolver.config(global, needs)?;
    config.file = path;
    Ok(config)
}

struct Resolver<'a> {
    file: Option<&'a ConfigFile>,
    lookup: Lookup<'a>,
    in_force: Vec<InForce>,
}

/// A text and where it comes from, for messages.
struct Found {
    key: String,
    text: String,
    origin: Origin,
}

impl Resolver<'_> {
    fn config(mut self, global: &Global, needs: Needs) -> Result<Config, ConfigError> {
        let raw = self.file.map(|file| file.raw.clone()).unwrap_or_default();
        let source = self.source(global.source.as_deref(), raw.source, needs)?;
        let target = self.target(global.target.as_deref(), raw.target, needs)?;
        let state_dir = global.state_dir.as_deref().map(Path::to_string_lossy);
        let name = self.job_name(global.job.as_deref(), raw.job.name, source.as_ref())?;
        let state_dir = self
            .value("job.state_dir", state_dir.as_deref(), raw.job.state_dir)?
            .filter(|found| !found.text.is_empty())
            .ok_or_else(|| self.missing("job.state_dir is empty", "--state-dir DIR"))?;
        let job = Job { name, state_dir: PathBuf::from(state_dir.text) };
        let select = self.select(&global.tables, raw.select.include, raw.select.exclude)?;
        let tables = self.tables(raw.table)?;
        let waves = self.waves(raw.wave, target.as_ref())?;
        let wave = self.one_wave(global.wave.as_deref(), &waves)?;
        let snapshot = self.snapshot(raw.snapshot)?;
        let parquet = self.parquet(raw.parquet)?;
        let stream = self.stream(raw.stream)?;
        self.refuse_lanes(stream.lanes, target.as_ref())?;
        let limits = self.limits(raw.limits)?;
        let slot = source.as_ref().and_then(|source| source.slot.as_ref());
        if slot.is_some() && limits.on_full == OnFull::DropSlot {
            let (key, text) = ("limits.on_full".to_owned(), "drop-slot".to_owned());
            let why = "would drop the slot that source.slot names, which is not ours";
            return Err(self.wrong(&Found { key, text, origin: Origin::File }, why));
        }
        let verify = self.verify(raw.verify)?;
        let cutover = self.cutover(raw.cutover)?;
        let delta = self.delta(raw.delta)?;
        let listen = self.listen(raw.serve.listen)?;
        Ok(Config {
            job,
            source,
            target,
            select,
            tables,
            waves,
            wave,
            part: None,
            snapshot,
            stream,
            parquet,
            limits,
            verify,
            cutover,
            delta,
            listen,
            in_force: self.in_force,
            file: None,
        })
    }

    fn source(
        &mut self,
        flag: Option<&str>,
        raw: RawSource,
        needs: Needs,
    ) -> Result<Option<Source>, ConfigError> {
        let publication = self.value("source.publication", None, raw.publication)?;
        let slot = self.value("source.slot", None, raw.slot)?;
        let failover = raw.failover.map(|on| on.to_string());
        let failover = self.with_default("source.failover", failover)?;
        if slot.is_some() && failover.text == "true" {
            let why = "is about a slot that tidemark makes; source.slot names one that is there";
            return Err(self.wrong(&failover, why));
        }
        let failover = failover.text == "true";
        let Some(found) = self.value("source.url", flag, raw.url)? else {
            return match needs {
                Needs::Both => {
                    Err(self
                        .missing("no source is given", "--source postgres://USER@HOST/DATABASE"))
                }
                Needs::Job => Ok(None),
            };
        };
        let url = url::source(&found.text).map_err(|why| self.wrong(&found, why))?;
        let publication = publication.map(|found| found.text);
        let slot = slot.map(|found| found.text);
        Ok(Some(Source { url, publication, slot, failover }))
    }

    fn target(
        &mut self,
        flag: Option<&str>,
        raw: RawTarget,
        needs: Needs,
    ) -> Result<Option<Target>, ConfigError> {
        let found = self.value("target.url", flag, raw.url)?;
        let schema = self.choice("target.schema", raw.schema, |word| match word {
            "create" => Some(SchemaMode::Create),
            "exists" => Some(SchemaMode::Exists),
            _ => None,
        })?;
        let triggers = self.choice("target.triggers", raw.triggers, |word| match word {
            "replica" => Some(Triggers::Replica),
            "as-is" => Some(Triggers::AsIs),
            _ => None,
        })?;
        let Some(found) = found else {
            return match needs {
                Needs::Both => Err(self.missing(
                    "no target is given",
                    "--target postgres://USER@HOST/DATABASE, file:///DIRECTORY or s3://BUCKET/PREFIX",
                )),
                Needs::Job => Ok(None),
            };
        };
        let url = TargetUrl::parse(&found.text).map_err(|why| self.wrong(&found, why))?;
        Ok(Some(Target { url, schema, triggers }))
    }

    /// The given name, or one made of the database's.
    fn job_name(
        &mut self,
        flag: Option<&str>,
        file: Option<String>,
        source: Option<&Source>,
    ) -> Result<String, ConfigError> {
        if let Some(found) = self.value("job.name", flag, file)? {
            check_job_name(&found.text).map_err(|why| self.wrong(&found, why))?;
            return Ok(found.text);
        }
        let database = source.and_then(|source| database(source.url.reveal(), self.lookup));
        let Some(database) = database else {
            return Err(self.missing(
                "the job has no name, and the source's database, after which it would be named, is not known",
                "--job NAME",
            ));
        };
        let name = fitted_job_name(&database);
        self.note("job.name".to_owned(), quoted(&name), Origin::Default);
        Ok(name)
    }

    fn select(
        &mut self,
        flags: &[String],
        include: Option<Vec<String>>,
        exclude: Option<Vec<String>>,
    ) -> Result<Selection, ConfigError> {
        let flags = (!flags.is_empty()).then(|| flags.to_vec());
        Ok(Selection {
            include: self.globs("select.include", flags, include)?,
            exclude: self.globs("select.exclude", None, exclude)?,
        })
    }

    fn globs(
        &mut self,
        key: &str,
        flags: Option<Vec<String>>,
        file: Option<Vec<String>>,
    ) -> Result<Vec<TableGlob>, ConfigError> {
        let (texts, origin) = match (flags, file) {
            (Some(texts), _) => (texts, Origin::Flag),
            (None, Some(texts)) => (texts, Origin::File),
            (None, None) => return Ok(Vec::new()),
        };
        let texts = self.texts(key, texts, origin)?;
        if texts.is_empty() && key == "select.include" {
            let found = Found { key: key.to_owned(), text: String::new(), origin };
            return Err(self.wrong(
                &found,
                "the list is empty, so no table would be moved; leave the key out for all",
            ));
        }
        texts
            .into_iter()
            .map(|text| {
                let found = Found { key: key.to_owned(), text, origin };
                TableGlob::parse(&found.text).map_err(|why| self.wrong(&found, why))
            })
            .collect()
    }

    fn tables(&mut self, raw: Vec<RawTable>) -> Result<Vec<Table>, ConfigError> {
        let mut tables: Vec<Table> = Vec::with_capacity(raw.len());
        for (index, raw) in raw.into_iter().enumerate() {
            let prefix = format!("table[{index}]");
            let table = self.table(&prefix, raw)?;
            let found =
                Found { key: format!("{prefix}.name"), text: String::new(), origin: Origin::File };
            if tables.iter().any(|other| other.name == table.name) {
                let why = format!("the table {} has a section already", table.name.plain());
                return Err(self.wrong(&found, why));
            }
            tables.push(table);
        }
        Ok(tables)
    }

    fn table(&mut self, prefix: &str, raw: RawTable) -> Result<Table, ConfigError> {
        let at = |name: &str| format!("{prefix}.{name}");
        let Some(found) = self.value(&at("name"), None, raw.name)? else {
            let found = Found { key: prefix.to_owned(), text: String::new(), origin: Origin::File };
            return Err(
                self.wrong(&found, "the section has no name; write name = \"SCHEMA.TABLE\"")
            );
        };
        let name = TableGlob::parse(&found.text)
            .and_then(|glob| {
                glob.exact().ok_or_else(|| {
                    format!("{:?} has a wildcard; a section is for one table", found.text)
                })
            })
            .map_err(|why| self.wrong(&found, why))?;
        let filter = self.value(&at("where"), None, raw.filter)?;
        if let Some(found) = filter
            .as_ref()
            .filter(|found| found.text.trim().is_empty() || found.text.contains('\0'))
        {
            return Err(
                self.wrong(found, "the expression is empty; leave the key out for all rows")
            );
        }
        let columns = match raw.columns {
            None => None,
            Some(columns) => Some(self.columns(&at("columns"), columns)?),
        };
        let unrepresentable =
            self.choice(&at("unrepresentable"), raw.unrepresentable, |word| match word {
                "error" => Some(Unrepresentable::Error),
                "null" => Some(Unrepresentable::Null),
                "text" => Some(Unrepresentable::Text),
                _ => None,
            })?;
        Ok(Table { name, filter: filter.map(|found| found.text), columns, unrepresentable })
    }

    fn columns(&mut self, key: &str, columns: Vec<String>) -> Result<Vec<String>, ConfigError> {
        let columns = self.texts(key, columns, Origin::File)?;
        let found = Found { key: key.to_owned(), text: String::new(), origin: Origin::File };
        if columns.is_empty() || columns.iter().any(String::is_empty) {
            return Err(self.wrong(
                &found,
                "a column has no name, or there is none; leave the key out for all columns",
            ));
        }
        for (index, column) in columns.iter().enumerate() {
            if columns[..index].contains(column) {
                return Err(self.wrong(&found, format!("the column {column:?} is there twice")));
            }
        }
        Ok(columns)
    }

    fn waves(
        &mut self,
        raw: Vec<RawWave>,
        target: Option<&Target>,
    ) -> Result<Vec<Wave>, ConfigError> {
        let mut waves: Vec<Wave> = Vec::with_capacity(raw.len());
        for (index, raw) in raw.into_iter().enumerate() {
            let prefix = format!("wave[{index}]");
            let wave = self.wave(&prefix, raw)?;
            let of_file = |key: String| Found { key, text: String::new(), origin: Origin::File };
            if waves.iter().any(|other| other.name == wave.name) {
                let why = format!("there are two waves {:?}", wave.name);
                return Err(self.wrong(&of_file(format!("{prefix}.name")), why));
            }
            let same =
                wave.tables.iter().find(|glob| waves.iter().any(|w| w.tables.contains(glob)));
            if let Some(same) = same {
                let why = format!("another wave has {:?}, too", same.as_str());
                return Err(self.wrong(&of_file(format!("{prefix}.tables")), why));
            }
            waves.push(wave);
        }
        let is_lake = target.is_some_and(|target| !matches!(target.url, TargetUrl::Postgres(_)));
        if waves.is_empty() || !is_lake {
            return Ok(waves);
        }
        let found = Found { key: "wave[0]".to_owned(), text: String::new(), origin: Origin::File };
        let why = "a lake is filled in one piece: waves need a PostgreSQL target, which an application can be taken over to";
        Err(self.wrong(&found, why))
    }

    fn wave(&mut self, prefix: &str, raw: RawWave) -> Result<Wave, ConfigError> {
        let section = Found { key: prefix.to_owned(), text: String::new(), origin: Origin::File };
        let Some(found) = self.value(&format!("{prefix}.name"), None, raw.name)? else {
            return Err(self.wrong(&section, "the section has no name; write name = \"pilot\""));
        };
        check_name("a wave's name", &found.text).map_err(|why| self.wrong(&found, why))?;
        if names::is_taken(&found.text) {
            let why = format!("a wave {:?} would have the slot of the stream back", found.text);
            return Err(self.wrong(&found, why));
        }
        if found.text == names::REST {
            let why = "rest is the wave of all tables that no wave names: leave this section out";
            return Err(self.wrong(&found, why));
        }
        let tables = self.globs(&format!("{prefix}.tables"), None, raw.tables)?;
        if tables.is_empty() {
            return Err(self
                .wrong(&section, "the wave has no tables; write tables = [\"public.customers\"]"));
        }
        Ok(Wave { name: found.text, tables })
    }

    /// The wave that a command is about.
    fn one_wave(&self, flag: Option<&str>, waves: &[Wave]) -> Result<Option<String>, ConfigError> {
        let Some(wanted) = flag else { return Ok(None) };
        let names: Vec<&str> =
            waves.iter().map(|wave| wave.name.as_str()).chain([names::REST]).collect();
        if !waves.is_empty() && names.contains(&wanted) {
            return Ok(Some(wanted.to_owned()));
        }
        let hint = match waves.is_empty() {
            true => "no [[wave]] is configured: leave --wave out".to_owned(),
            false => format!("there are {}", names.join(", ")),
        };
        Err(ConfigError::Plain {
            message: format!("--wave: there is no wave {wanted:?}"),
            hint: Some(hint),
        })
    }

    fn snapshot(&mut self, raw: RawSnapshot) -> Result<Snapshot, ConfigError> {
        let (readers, origin) = match raw.readers {
            Some(readers) => (readers, Origin::File),
            None => (default_readers(), Origin::Default),
        };
        let readers = self.readers("snapshot.readers", readers, origin)?;
        let chunk_bytes =
            self.bytes("snapshot.chunk_bytes", raw.chunk_bytes, 64 << 10..=16 << 30)?;
        let lock_timeout = self.duration(
            "snapshot.lock_timeout",
            raw.lock_timeout,
            Duration::from_millis(10)..=Duration::from_secs(3600),
        )?;
        Ok(Snapshot { readers, chunk_bytes, lock_timeout })
    }

    /// Connections that read at the same time.
    fn readers(&mut self, key: &str, readers: u32, origin: Origin) -> Result<u32, ConfigError> {
        self.note(key.to_owned(), readers.to_string(), origin);
        if (1..=64).contains(&readers) {
            return Ok(readers);
        }
        let found = Found { key: key.to_owned(), text: String::new(), origin };
        Err(self.wrong(&found, format!("{readers} is not between 1 and 64")))
    }

    fn parquet(&mut self, raw: RawParquet) -> Result<Parquet, ConfigError> {
        let compression =
            self.choice("parquet.compression", raw.compression, |word| match word {
                "zstd" => Some(Compression::Zstd),
                "lz4" => Some(Compression::Lz4),
                "snappy" => Some(Compression::Snappy),
                "none" => Some(Compression::None),
                _ => None,
            })?;
        let file_bytes = self.bytes("parquet.file_bytes", raw.file_bytes, 1 << 20..=16 << 30)?;
        let commit_interval = self.duration(
            "parquet.commit_interval",
            raw.commit_interval,
            Duration::from_millis(100)..=Duration::from_secs(3600),
        )?;
        Ok(Parquet { compression, file_bytes, commit_interval })
    }

    fn stream(&mut self, raw: RawStream) -> Result<Stream, ConfigError> {
        let batch_delay = self.duration(
            "stream.batch_delay",
            raw.batch_delay,
            Duration::from_millis(1)..=Duration::from_secs(60),
        )?;
        let batch_bytes = self.bytes("stream.batch_bytes", raw.batch_bytes, 64 << 10..=1 << 30)?;
        let lanes = self.lanes(raw.lanes)?;
        let ddl = self.choice("stream.ddl", raw.ddl, |word| match word {
            "additive" => Some(Ddl::Additive),
            "stop-table" => Some(Ddl::StopTable),
            "stop" => Some(Ddl::Stop),
            _ => None,
        })?;
        let catch_up = raw.catch_up.map(|on| on.to_string());
        let catch_up = self.with_default("stream.catch_up", catch_up)?.text == "true";
        let found = self.with_default("stream.heartbeat", raw.heartbeat)?;
        let heartbeat = match found.text.as_str() {
            "off" => None,
            text => Some(units::duration(text).map_err(|why| self.wrong(&found, why))?),
        };
        Ok(Stream { batch_delay, batch_bytes, lanes, ddl, catch_up, heartbeat })
    }

    fn lanes(&mut self, raw: Option<u32>) -> Result<u32, ConfigError> {
        let (lanes, origin) = raw.map_or((1, Origin::Default), |lanes| (lanes, Origin::File));
        self.note("stream.lanes".to_owned(), lanes.to_string(), origin);
        if (1..=32).contains(&lanes) {
            return Ok(lanes);
        }
        Err(self.wrong_lanes(origin, format!("{lanes} is not between 1 and 32")))
    }

    /// Lanes are sessions of a PostgreSQL, and a trigger that fires in one sees nothing of the others.
    fn refuse_lanes(&self, lanes: u32, target: Option<&Target>) -> Result<(), ConfigError> {
        let Some(target) = target.filter(|_| lanes > 1) else { return Ok(()) };
        if !matches!(target.url, TargetUrl::Postgres(_)) {
            let why = "a lake is written in one lane: lanes are sessions of a PostgreSQL target";
            return Err(self.wrong_lanes(Origin::File, why));
        }
        if target.triggers == Triggers::AsIs {
            let why = "several lanes need target.triggers = \"replica\": a trigger or a foreign key in one lane would not see the rows of another";
            return Err(self.wrong_lanes(Origin::File, why));
        }
        Ok(())
    }

    fn wrong_lanes(&self, origin: Origin, why: impl Display) -> ConfigError {
        let found = Found { key: "stream.lanes".to_owned(), text: String::new(), origin };
        self.wrong(&found, why)
    }

    fn verify(&mut self, raw: RawVerify) -> Result<Verify, ConfigError> {
        let level = self.choice("verify.level", raw.level, |word| match word {
            "schema" => Some(Level::Schema),
            "count" => Some(Level::Count),
            "digest" => Some(Level::Digest),
            "rows" => Some(Level::Rows),
            _ => None,
        })?;
        let jobs = raw.jobs.map(|jobs| self.readers("verify.jobs", jobs, Origin::File));
        let jobs = jobs.transpose()?;
        let rate = match raw.rate {
            None => None,
            rate => Some(self.bytes("verify.rate", rate, 64 << 10..=1 << 50)?),
        };
        let allow = raw.allow.map(|words| self.allowed(words)).transpose()?.unwrap_or_default();
        let redact = self.choice("verify.redact", raw.redact, |word| match word {
            "none" => Some(Redact::None),
            "values" => Some(Redact::Values),
            "keys" => Some(Redact::Keys),
            _ => None,
        })?;
        Ok(Verify { level, jobs, rate, allow, redact })
    }

    fn delta(&mut self, raw: RawDelta) -> Result<Delta, ConfigError> {
        let mut action = |key, text| {
            self.choice(key, text, |word| match word {
                "apply" => Some(DeltaAction::Apply),
                "report" => Some(DeltaAction::Report),
                "skip" => Some(DeltaAction::Skip),
                _ => None,
            })
        };
        Ok(Delta {
            new: action("delta.new", raw.new)?,
            modified: action("delta.modified", raw.modified)?,
            deleted: action("delta.deleted", raw.deleted)?,
            failed: action("delta.failed", raw.failed)?,
            unfiltered: action("delta.unfiltered", raw.unfiltered)?,
        })
    }

    fn allowed(&mut self, words: Vec<String>) -> Result<Vec<Allow>, ConfigError> {
        let (key, origin) = ("verify.allow".to_owned(), Origin::File);
        let words = self.texts(&key, words, origin)?;
        let allow = words.into_iter().map(|text| match text.as_str() {
            "equivalent" => Ok(Allow::Equivalent),
            "lossy" => Ok(Allow::Lossy),
            _ => Err(self.not_a_choice(&Found { key: key.clone(), text, origin })),
        });
        allow.collect()
    }

    fn cutover(&mut self, raw: RawCutover) -> Result<Cutover, ConfigError> {
        let seconds = |from, to| Duration::from_secs(from)..=Duration::from_secs(to);
        let max_lag = self.duration("cutover.max_lag", raw.max_lag, seconds(0, 86_400))?;
        let block = "cutover.max_write_block";
        let max_write_block = self.duration(block, raw.max_write_block, seconds(1, 86_400))?;
        let (margin, origin) =
            raw.sequence_margin.map_or((1000, Origin::Default), |margin| (margin, Origin::File));
        self.note("cutover.sequence_margin".to_owned(), margin.to_string(), origin);
        let sequence_margin = u64::from(margin);
        let is_hook = self.choice("cutover.fence", raw.fence, |word| match word {
            "read-only" => Some(false),
            "hook" => Some(true),
            _ => None,
        })?;
        let up = self.hook("cutover.fence", raw.fence_hook, raw.fence_url)?;
        let down = self.hook("cutover.open", raw.open_hook, raw.open_url)?;
        let hook_timeout =
            self.duration("cutover.hook_timeout", raw.hook_timeout, seconds(1, 86_400))?;
        let switch = self.hook("cutover.switch", raw.switch_hook, raw.switch_url)?;
        if is_hook && (up == Hook::None || down == Hook::None) {
            let (key, text) = ("cutover.fence".to_owned(), String::new());
            let why = "hook needs cutover.fence_hook and cutover.open_hook, or cutover.fence_url and cutover.open_url";
            return Err(self.wrong(&Found { key, text, origin: Origin::File }, why));
        }
        // Without it the hooks are only shown.
        let fence = if is_hook { Fence::Hooks(up, down) } else { Fence::ReadOnly };
        Ok(Cutover { max_lag, max_write_block, sequence_margin, fence, hook_timeout, switch })
    }

    /// The command `step`_hook or the URL `step`_url, not both.
    fn hook(
        &mut self,
        step: &str,
        words: Option<Vec<String>>,
        url: Option<String>,
    ) -> Result<Hook, ConfigError> {
        let command = format!("{step}_hook");
        let words = self.texts(&command, words.unwrap_or_default(), Origin::File)?;
        let Some(url) = self.value(&format!("{step}_url"), None, url)? else {
            return Ok(if words.is_empty() { Hook::None } else { Hook::Command(words) });
        };
        if !words.is_empty() {
            let why = format!("{command} is given, too: it is told in one way");
            return Err(self.wrong(&url, why));
        }
        match url.text.split_once("://") {
            Some(("http" | "https", rest)) if !rest.is_empty() => {
                Ok(Hook::Url(Secret::new(url.text)))
            }
            _ => Err(self.wrong(&url, "it is no http:// or https:// URL")),
        }
    }

    fn listen(&mut self, file: Option<String>) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(found) = self.value("serve.listen", None, file)? else { return Ok(None) };
        let address = found.text.parse().map_err(|_| {
            self.wrong(
                &found,
                format!("{:?} is not ADDRESS:PORT, as in 127.0.0.1:9632", found.text),
            )
        })?;
        Ok(Some(address))
    }

    fn limits(&mut self, raw: RawLimits) -> Result<Limits, ConfigError> {
        let memory = self.bytes("limits.memory", raw.memory, 16 << 20..=1 << 50)?;
        let source_wal = self.bytes("limits.source_wal", raw.source_wal, 16 << 20..=1 << 60)?;
        let spool = self.bytes("limits.spool", raw.spool, 16 << 20..=1 << 60)?;
        let on_full = self.choice("limits.on_full", raw.on_full, |word| match word {
            "wait" => Some(OnFull::Wait),
            "drop-slot" => Some(OnFull::DropSlot),
            _ => None,
        })?;
        Ok(Limits { memory, source_wal, spool, on_full })
    }

    /// Decides between flag, file and default, and notes it. A flag is not expanded: the shell has done that.
    fn value(
        &mut self,
        path: &str,
        flag: Option<&str>,
        file: Option<String>,
    ) -> Result<Option<Found>, ConfigError> {
        let known =
            key(&generic(path)).expect("every value that is resolved has a key in the table");
        let (text, origin) = match (flag, file) {
            (Some(text), _) => (text.to_owned(), Origin::Flag),
            (None, Some(text)) => (self.expanded(path, &text)?, Origin::File),
            (None, None) => match known.default {
                Some(text) => (text.to_owned(), Origin::Default),
                None => return Ok(None),
            },
        };
        let is_url = known.kind == Kind::Url;
        let shown = if is_url { redact::connection(&text) } else { text.clone() };
        // The defaults of a [[table]] are noise: only what was written is shown.
        if origin != Origin::Default || !path.contains('[') {
            let shown = if known.kind == Kind::Switch { shown } else { quoted(&shown) };
            self.note(path.to_owned(), shown, origin);
        }
        Ok(Some(Found { key: path.to_owned(), text, origin }))
    }

    fn texts(
        &mut self,
        path: &str,
        texts: Vec<String>,
        origin: Origin,
    ) -> Result<Vec<String>, ConfigError> {
        let texts: Vec<String> = match origin {
            Origin::File => {
                texts.iter().map(|text| self.expanded(path, text)).collect::<Result<_, _>>()?
            }
            Origin::Flag | Origin::Default => texts,
        };
        let shown: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
        self.note(path.to_owned(), format!("[{}]", shown.join(", ")), origin);
        Ok(texts)
    }

    fn expanded(&self, path: &str, text: &str) -> Result<String, ConfigError> {
        expand(text, self.lookup).map_err(|why| {
            let found = Found { key: path.to_owned(), text: String::new(), origin: Origin::File };
            self.wrong(&found, why)
        })
    }

    fn choice<T>(
        &mut self,
        path: &str,
        file: Option<String>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let found = self.with_default(path, file)?;
        parse(&found.text).ok_or_else(|| self.not_a_choice(&found))
    }

    fn not_a_choice(&self, found: &Found) -> ConfigError {
        let choices = key(&generic(&found.key)).map(|key| key.kind.choices()).unwrap_or_default();
        let mut why = format!("{:?} is not one of {}", found.text, choices.join(", "));
        if let Some(near) = nearest(&found.text, choices.iter().copied()) {
            why.push_str(&format!("; did you mean {near:?}?"));
        }
        self.wrong(found, why)
    }

    fn bytes(
        &mut self,
        path: &str,
        file: Option<String>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let found = self.with_default(path, file)?;
        let bytes = units::bytes(&found.text).map_err(|why| self.wrong(&found, why))?;
        if range.contains(&bytes) {
            return Ok(bytes);
        }
        let bounds = (crate::output::bytes(*range.start()), crate::output::bytes(*range.end()));
        Err(self.wrong(
            &found,
            format!("{:?} is not between {} and {}", found.text, bounds.0, bounds.1),
        ))
    }

    fn duration(
        &mut self,
        path: &str,
        file: Option<String>,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let found = self.with_default(path, file)?;
        let duration = units::duration(&found.text).map_err(|why| self.wrong(&found, why))?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let why =
            format!("{:?} is not between {:?} and {:?}", found.text, range.start(), range.end());
        Err(self.wrong(&found, why))
    }

    fn with_default(&mut self, path: &str, file: Option<String>) -> Result<Found, ConfigError> {
        let found = self.value(path, None, file)?;
        Ok(found.expect("this key has a default in the table of keys"))
    }

    fn note(&mut self, key: String, value: String, origin: Origin) {
        self.in_force.push(InForce { key, value, origin });
    }

    fn wrong(&self, found: &Found, why: impl Display) -> ConfigError {
        let key = generic(&found.key);
        if found.origin == Origin::Flag {
            let flag = match key.as_str() {
                "source.url" => "--source",
                "target.url" => "--target",
                "job.name" => "--job",
                "select.include" => "--table",
                other => other,
            };
            return ConfigError::Plain { message: format!("{flag}: {why}"), hint: None };
        }
        let message = format!("{key}: {why}");
        match self.file.and_then(|file| file.place(&found.key)) {
            Some(place) => ConfigError::At { place: place.clone(), message, hint: None },
            None => ConfigError::Plain { message, hint: None },
        }
    }

    fn missing(&self, what: &str, flag: &str) -> ConfigError {
        let hint = match self.file {
            Some(file) => format!("give {flag}, or set the key in {}", file.name),
            None => format!(
                "give {flag}, or write a {DEFAULT_FILE}: `tidemark config example > {DEFAULT_FILE}`"
            ),
        };
        ConfigError::Plain { message: what.to_owned(), hint: Some(hint) }
    }
}

/// `table[3].where` to `table.where`.
fn generic(path: &str) -> String {
    match (path.find('['), path.find(']')) {
        (Some(open), Some(close)) => format!("{}{}", &path[..open], &path[close + 1..]),
        _ => path.to_owned(),
    }
}

/// The database that a source names. Only where a service file is needed, libpq's rules are asked in full, because they
/// read files and end in the name of the system's user, which says nothing about the database.
fn database(text: &str, lookup: Lookup<'_>) -> Option<String> {
    if !text.contains("service=") && lookup("PGSERVICE").is_none() {
        return url::database(text, lookup);
    }
    let spec = ConnectSpec::parse_with(text, &|name: &str| lookup(name)).ok()?;
    Some(spec.database().to_owned())
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn default_readers() -> u32 {
    let cores = thread::available_parallelism().map_or(4, usize::from);
    u32::try_from(cores.min(8)).unwrap_or(8)
}

/// The defaults can be parsed; `Resolver` relies on it.
#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn every_default_of_the_table_is_valid() {
        for key in keys::KEYS {
            let Some(default) = key.default else { continue };
            match key.kind {
                Kind::Bytes => assert!(units::bytes(default).is_ok(), "{}", key.path),
                Kind::Duration => assert!(units::duration(default).is_ok(), "{}", key.path),
                Kind::Choice(choices) => assert!(choices.contains(&default), "{}", key.path),
                Kind::Text => assert!(!default.is_empty(), "{}", key.path),
                Kind::Switch => assert!(default.parse::<bool>().is_ok(), "{}", key.path),
                Kind::Url | Kind::Count | Kind::Texts | Kind::Choices(_) => {
                    panic!("{} has a default", key.path)
                }
            }
        }
    }

    #[test]
    fn an_index_is_no_part_of_a_key() {
        assert_eq!(generic("table[12].where"), "table.where");
        assert_eq!(generic("job.name"), "job.name");
    }
}
