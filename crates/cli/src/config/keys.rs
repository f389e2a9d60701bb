//! The one table of configuration keys.
//!
//! **Invariant:** parser, defaults, `config example`, the JSON schema and `docs/reference/configuration.md` all read this
//! table, and a test compares it with [`raw`](super::raw), so that they cannot drift.

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A connection string or URL; may hold a secret.
    Url,
    /// A size such as `64MiB`.
    Bytes,
    /// A length of time such as `5s`.
    Duration,
    /// A whole number.
    Count,
    /// true or false.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// A list of these words.
    Choices(&'static [&'static str]),
}

impl Kind {
    /// How the reference calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Url => "URL",
            Self::Bytes => "size",
            Self::Duration => "duration",
            Self::Count => "number",
            Self::Switch => "true or false",
            Self::Choice(_) => "choice",
            Self::Texts => "list of texts",
            Self::Choices(_) => "list of choices",
        }
    }

    /// The words that a value may be, or be made of.
    pub fn choices(self) -> &'static [&'static str] {
        match self {
            Self::Choice(choices) | Self::Choices(choices) => choices,
            _ => &[],
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `section.key`.
    pub path: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// The default as one would write it without quotes; `None` where it is computed or where there is none.
    pub default: Option<&'static str>,
    /// What holds where there is no literal default.
    pub otherwise: &'static str,
    /// A value for the example, as TOML.
    pub example: &'static str,
    /// What it does and why it is as it is; sentences.
    pub why: &'static str,
}

impl Key {
    /// The section.
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(section, _)| section)
    }

    /// The name inside the section.
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, name)| name)
    }
}

/// One section.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Written `[[name]]`, any number of times.
    pub repeated: bool,
    /// What it is about, sentences.
    pub why: &'static str,
}

/// The sections of this version, in the order of the file.
pub const SECTIONS: [Section; 14] = [
    Section { name: "job", repeated: false, why: "The job and where its state is kept." },
    Section { name: "source", repeated: false, why: "Where the data comes from." },
    Section { name: "target", repeated: false, why: "Where the data goes." },
    Section { name: "select", repeated: false, why: "Which tables are moved." },
    Section {
        name: "table",
        repeated: true,
        why: "What is special about one table; repeat the section for each of them.",
    },
    Section {
        name: "wave",
        repeated: true,
        why: "Tables that are moved and taken over together, apart from the others; repeat the section for each wave. Each has a slot, a publication, progress, a verdict and a cutover of its own (--wave). Tables that no wave names are the wave rest. Between PostgreSQL servers only.",
    },
    Section { name: "snapshot", repeated: false, why: "How the copy reads the source." },
    Section {
        name: "stream",
        repeated: false,
        why: "How the source is followed after the copy; --snapshot-only needs none of it.",
    },
    Section { name: "parquet", repeated: false, why: "How Parquet files are written." },
    Section { name: "limits", repeated: false, why: "What the process may use." },
    Section {
        name: "verify",
        repeated: false,
        why: "How a verification reads, what it lets pass, and what it shows.",
    },
    Section {
        name: "cutover",
        repeated: false,
        why: "How the application is taken over to the target, and back.",
    },
    Section {
        name: "delta",
        repeated: false,
        why: "What tidemark delta does with the rows that it finds.",
    },
    Section { name: "serve", repeated: false, why: "What monitoring may ask, over HTTP." },
];

/// The choices of `target.schema`.
pub const SCHEMA: &[&str] = &["create", "exists"];
/// The choices of `target.triggers`.
pub const TRIGGERS: &[&str] = &["replica", "as-is"];
/// The choices of `table.unrepresentable`.
pub const UNREPRESENTABLE: &[&str] = &["error", "null", "text"];
/// The choices of `parquet.compression`.
pub const COMPRESSION: &[&str] = &["zstd", "lz4", "snappy", "none"];

/// The choices of `stream.ddl`.
pub const DDL: &[&str] = &["additive", "stop-table", "stop"];
/// The choices of `verify.level`.
pub const LEVEL: &[&str] = &["schema", "count", "digest", "rows"];
/// The choices of `verify.allow`.
pub const ALLOW: &[&str] = &["equivalent", "lossy"];
/// The choices of `cutover.fence`.
pub const FENCE: &[&str] = &["read-only", "hook"];
/// The choices of `verify.redact`.
pub const REDACT: &[&str] = &["none", "values", "keys"];
/// The choices of the keys of `delta`.
pub const DELTA: &[&str] = &["apply", "report", "skip"];
/// The choices of `limits.on_full`.
pub const ON_FULL: &[&str] = &["wait", "drop-slot"];

/// The keys of this version, in the order of the file.
pub const KEYS: &[Key] = &[
    Key {
        path: "job.name",
        kind: Kind::Text,
        default: None,
        otherwise: "the source database's name, made to fit",
        example: r#""shop""#,
        why: "Name of the job: 1 to 20 of a-z, 0-9 and -, not beginning with -. Everything that the job makes on a server carries it.",
    },
    Key {
        path: "job.state_dir",
        kind: Kind::Text,
        default: Some("tidemark-state"),
        otherwise: "",
        example: r#""tidemark-state""#,
        why: "Directory for the job's ledger and control socket, made with mode 0700. Each job needs its own.",
    },
    Key {
        path: "source.url",
        kind: Kind::Url,
        default: None,
        otherwise: "none; this or --source is needed",
        example: r#""postgres://app@db1/shop""#,
        why: "The database to read, as libpq reads it: a URL, or keywords as in \"host=db1 dbname=shop\". Keep the password out of it: PGPASSWORD, PGPASSFILE and PGSERVICE work, and so does ${VAR}; a value that is put into a URL must be percent-encoded.",
    },
    Key {
        path: "source.publication",
        kind: Kind::Text,
        default: None,
        otherwise: "tidemark_JOB, made by us, of exactly the chosen tables",
        example: r#""made_by_dba""#,
        why: "A publication that somebody with more rights has made. It must publish all operations, rows and columns of the chosen tables.",
    },
    Key {
        path: "source.slot",
        kind: Kind::Text,
        default: None,
        otherwise: "tidemark_JOB, made by us when the copy begins",
        example: r#""made_by_dba""#,
        why: "A logical slot of the plugin pgoutput that somebody else has made in the source's database, for this job alone. It is never dropped, and keeps WAL until its owner drops it. Copying needs one more free slot for a moment.",
    },
    Key {
        path: "source.failover",
        kind: Kind::Switch,
        default: Some("false"),
        otherwise: "",
        example: "false",
        why: "Make the slot a failover slot, which a standby keeps up to date (PostgreSQL 17 and later, with sync_replication_slots on the standby).",
    },
    Key {
        path: "target.url",
        kind: Kind::Url,
        default: None,
        otherwise: "none; this or --target is needed",
        example: r#""postgres://load@db2/shop""#,
        why: "Where to write: a PostgreSQL like source.url, file:///DIRECTORY or s3://BUCKET/PREFIX. For S3 the usual AWS_* environment variables give keys, region and endpoint.",
    },
    Key {
        path: "target.schema",
        kind: Kind::Choice(SCHEMA),
        default: Some("create"),
        otherwise: "",
        example: r#""create""#,
        why: "create makes tables, keys, indexes and views with the installed pg_dump and pg_restore; exists takes the tables that are there and compares them column by column first. PostgreSQL only.",
    },
    Key {
        path: "target.triggers",
        kind: Kind::Choice(TRIGGERS),
        default: Some("replica"),
        otherwise: "",
        example: r#""replica""#,
        why: "replica loads with session_replication_role = replica, so that triggers do not fire and foreign keys are not checked row by row; it needs a superuser, or from PostgreSQL 15 a GRANT. as-is loads as an application would. PostgreSQL only.",
    },
    Key {
        path: "select.include",
        kind: Kind::Texts,
        default: None,
        otherwise: "every table outside the system schemas",
        example: r#"["public.*"]"#,
        why: "Tables to move, SCHEMA.TABLE; * stands for any characters and ? for one, never across the dot. A partition is also chosen by the names of the tables above it. Names are compared as they are, capitals count; a part in double quotes is taken literally. --table replaces the list.",
    },
    Key {
        path: "select.exclude",
        kind: Kind::Texts,
        default: None,
        otherwise: "none",
        example: r#"["public.tmp_*"]"#,
        why: "Tables to leave out of what include chose. System schemas are never moved.",
    },
    Key {
        path: "table.name",
        kind: Kind::Text,
        default: None,
        otherwise: "none; it is needed",
        example: r#""public.orders""#,
        why: "The table, SCHEMA.TABLE without wildcards. Each table may have one section.",
    },
    Key {
        path: "table.where",
        kind: Kind::Text,
        default: None,
        otherwise: "all rows",
        example: r#""id > 1000000""#,
        why: "An SQL expression; only rows for which it is true are moved. It is put inside parentheses into the SELECT that reads the table and runs with the rights of the source's user. A job that follows has it in the publication: from PostgreSQL 15 on, over columns of the replica identity (REPLICA IDENTITY FULL has all), with built-in immutable functions only; another filter takes `tidemark reset TABLE`.",
    },
    Key {
        path: "table.columns",
        kind: Kind::Texts,
        default: None,
        otherwise: "all columns",
        example: r#"["id", "customer_id", "total"]"#,
        why: "The columns to move, by their names as they are.",
    },
    Key {
        path: "table.unrepresentable",
        kind: Kind::Choice(UNREPRESENTABLE),
        default: Some("error"),
        otherwise: "",
        example: r#""error""#,
        why: "What happens to values that have no form in the lake (infinity, NaN in a decimal, 24:00:00, the year 294276): error stops the job, null replaces and counts them, text writes the column as PostgreSQL's text. Parquet only.",
    },
    Key {
        path: "wave.name",
        kind: Kind::Text,
        default: None,
        otherwise: "none; it is needed",
        example: r#""pilot""#,
        why: "The wave's name, 1 to 20 of a-z, 0-9 and -; not back, and not rest, which is the wave of all other tables.",
    },
    Key {
        path: "wave.tables",
        kind: Kind::Texts,
        default: None,
        otherwise: "none; it is needed",
        example: r#"["public.customers"]"#,
        why: "Which of the chosen tables it has, SCHEMA.TABLE with * and ?; a partitioned table stands for its partitions. No table may be in two waves.",
    },
    Key {
        path: "snapshot.readers",
        kind: Kind::Count,
        default: None,
        otherwise: "this machine's cores, at most 8",
        example: "4",
        why: "Connections that read at the same time, 1 to 64; waves that run together share them. More than the source has spare cores does not make it faster.",
    },
    Key {
        path: "snapshot.chunk_bytes",
        kind: Kind::Bytes,
        default: Some("64MiB"),
        otherwise: "",
        example: r#""64MiB""#,
        why: "Size of the pieces that a table is read in, TOAST counted, 64KiB to 16GiB. A piece is what is read again after a lost connection; smaller ones spread better, larger ones cost less.",
    },
    Key {
        path: "snapshot.lock_timeout",
        kind: Kind::Duration,
        default: Some("5s"),
        otherwise: "",
        example: r#""5s""#,
        why: "How long to wait for the ACCESS SHARE lock of a table before letting go and trying again, 10ms to 1h. A longer wait makes the application's statements queue behind a waiting ALTER TABLE.",
    },
    Key {
        path: "stream.batch_delay",
        kind: Kind::Duration,
        default: Some("200ms"),
        otherwise: "",
        example: r#""200ms""#,
        why: "How long transactions are gathered at most while the target is busy, 1ms to 1m; an idle target gets each at once.",
    },
    Key {
        path: "stream.batch_bytes",
        kind: Kind::Bytes,
        default: Some("64MiB"),
        otherwise: "",
        example: r#""64MiB""#,
        why: "Size at which a commit on the target is large enough, 64KiB to 1GiB. A larger transaction of the source stays one transaction; a sixteenth of limits.memory is the most.",
    },
    Key {
        path: "stream.lanes",
        kind: Kind::Count,
        default: None,
        otherwise: "1",
        example: "1",
        why: "How many sessions apply the stream to a PostgreSQL target side by side, 1 to 32; each needs a connection and a replication origin there. With more than one, batches of 256 changes and more are spread by key: every change still arrives exactly once, but until the batch is through a reader may see a part of it, so the target is one state of the source only between batches, at a stop and at --until. For targets with cores to spare; not for lakes, and not with target.triggers = as-is.",
    },
    Key {
        path: "stream.ddl",
        kind: Kind::Choice(DDL),
        default: Some("additive"),
        otherwise: "",
        example: r#""additive""#,
        why: "What happens when a followed table is altered. additive carries new columns over where that is certain to be right (no default, or a constant one) and stops the job with the position kept at anything else; stop-table stops that table alone, with its position kept, until tidemark reset lets it join again (PostgreSQL targets; the exit code is 7 in the end); stop stops at any change.",
    },
    Key {
        path: "stream.catch_up",
        kind: Kind::Switch,
        default: Some("true"),
        otherwise: "",
        example: "true",
        why: "Whether a backlog of more than 32 MiB of WAL is read by queries on a temporary copy of the slot before the stream begins, which costs the source much less; it takes one more free slot while it lasts, and for a large transaction another one, if there is one. Without it everything comes as a stream.",
    },
    Key {
        path: "stream.heartbeat",
        kind: Kind::Text,
        default: Some("off"),
        otherwise: "",
        example: r#""off""#,
        why: "A duration such as 30s, or off: how often a small message is written into the source's WAL. Not needed for the slot to move; it gives an idle source a commit to measure lag by.",
    },
    Key {
        path: "parquet.compression",
        kind: Kind::Choice(COMPRESSION),
        default: Some("zstd"),
        otherwise: "",
        example: r#""zstd""#,
        why: "Compression of the pages. zstd gives the smallest files at a good speed; lz4 and snappy cost less CPU.",
    },
    Key {
        path: "parquet.file_bytes",
        kind: Kind::Bytes,
        default: Some("256MiB"),
        otherwise: "",
        example: r#""256MiB""#,
        why: "Size at which a file is closed and the next one begun, 1MiB to 16GiB. Query engines like 100 MB to 1 GB.",
    },
    Key {
        path: "parquet.commit_interval",
        kind: Kind::Duration,
        default: Some("10s"),
        otherwise: "",
        example: r#""10s""#,
        why: "How often changes are written to files and committed while following, 100ms to 1h. Shorter means fresher data in more and smaller files.",
    },
    Key {
        path: "limits.memory",
        kind: Kind::Bytes,
        default: Some("512MiB"),
        otherwise: "",
        example: r#""512MiB""#,
        why: "Memory for rows on their way, at least 16MiB; the process itself needs up to 100 MB more. When it is used up, reading waits. Waves that run together share it.",
    },
    Key {
        path: "limits.source_wal",
        kind: Kind::Bytes,
        default: Some("16GiB"),
        otherwise: "",
        example: r#""16GiB""#,
        why: "WAL that the source may keep because of us, at least 16MiB. Beyond it what the spool holds on our disk is acknowledged, so that a long copy or a slow target does not fill the source's disk. It counts while sync runs: of a job that is stopped the source keeps WAL without a limit of ours (max_slot_wal_keep_size of the server), until it goes on or tidemark cleanup --yes gives it up.",
    },
    Key {
        path: "limits.spool",
        kind: Kind::Bytes,
        default: Some("64GiB"),
        otherwise: "",
        example: r#""64GiB""#,
        why: "Disk that the spool in the state directory may take, at least 16MiB; waves that run together share it.",
    },
    Key {
        path: "limits.on_full",
        kind: Kind::Choice(ON_FULL),
        default: Some("wait"),
        otherwise: "",
        example: r#""wait""#,
        why: "What happens when the spool is full and the source keeps too much: wait leaves the WAL on the source, drop-slot gives the slot up so that the source's disk lives (exit code 6; a new snapshot is needed then).",
    },
    Key {
        path: "verify.level",
        kind: Kind::Choice(LEVEL),
        default: Some("digest"),
        otherwise: "",
        example: r#""digest""#,
        why: "How deep a verification looks: schema compares definitions, count numbers of rows too, digest every row, rows also names the columns that differ. Each has the earlier ones in it, and only digest and rows prove anything about rows. --level of the command line wins.",
    },
    Key {
        path: "verify.jobs",
        kind: Kind::Count,
        default: None,
        otherwise: "`snapshot.readers`",
        example: "4",
        why: "Connections that read each side at the same time, 1 to 64. --jobs of the command line wins.",
    },
    Key {
        path: "verify.rate",
        kind: Kind::Bytes,
        default: None,
        otherwise: "as fast as it goes",
        example: r#""50MiB""#,
        why: "Bytes a second that are read from both sides together, at least 64KiB, so that a verification leaves the servers room for their work. --rate of the command line wins.",
    },
    Key {
        path: "verify.allow",
        kind: Kind::Choices(ALLOW),
        default: None,
        otherwise: "an empty list",
        example: r#"["equivalent"]"#,
        why: "Deviations that end a verification with exit code 0 instead of 4: equivalent for equal values in another representation (1.0 and 1.00), lossy for values that a declared mapping to a lake cannot carry. The report tells and counts them all the same. --allow of the command line takes the place of the whole list.",
    },
    Key {
        path: "verify.redact",
        kind: Kind::Choice(REDACT),
        default: Some("values"),
        otherwise: "",
        example: r#""values""#,
        why: "What reports and diff.ndjson hide of the rows that differ: none shows everything, values shows keys and puts a keyed hash in the place of every other value (of a table without a key that is all of them), keys hides keys too. Equal values of one column have equal hashes within a report. --redact of the command line wins.",
    },
    Key {
        path: "cutover.max_lag",
        kind: Kind::Duration,
        default: Some("10s"),
        otherwise: "",
        example: r#""10s""#,
        why: "A cutover or a fallback begins only where the stream is at most so far behind.",
    },
    Key {
        path: "cutover.max_write_block",
        kind: Kind::Duration,
        default: Some("30s"),
        otherwise: "",
        example: r#""30s""#,
        why: "After so long without writes everything is taken back: the application writes where it did before, and the stream goes on.",
    },
    Key {
        path: "cutover.sequence_margin",
        kind: Kind::Count,
        default: None,
        otherwise: "1000",
        example: "1000",
        why: "So many values of every sequence are left out on the other side, times its increment, for those that somebody may have fetched and not written yet.",
    },
    Key {
        path: "cutover.fence",
        kind: Kind::Choice(FENCE),
        default: Some("read-only"),
        otherwise: "",
        example: r#""read-only""#,
        why: "How writes are kept out of the side that is left: read-only makes transactions read-only by default for its database and ends the sessions of the application; hook runs cutover.fence_hook, or tells cutover.fence_url, instead. Of a wave only its tables take no writes: triggers refuse them, of superusers, too. Whether anybody writes all the same is seen in the stream.",
    },
    Key {
        path: "cutover.fence_hook",
        kind: Kind::Texts,
        default: None,
        otherwise: "an empty list",
        example: r#"["./fence.sh"]"#,
        why: "A command with its arguments that keeps writes out, for fence = \"hook\". TIDEMARK_JOB, TIDEMARK_WAVE, TIDEMARK_WAY (cutover or fallback) and TIDEMARK_LSN are in its environment; another end than 0 takes everything back.",
    },
    Key {
        path: "cutover.fence_url",
        kind: Kind::Url,
        default: None,
        otherwise: "cutover.fence_hook is run",
        example: r#""https://deploy.example/fence?token=${SWITCH_TOKEN}""#,
        why: "Instead of cutover.fence_hook: a URL that is told by a POST, as cutover.switch_url is; another answer than 200 to 299 takes everything back.",
    },
    Key {
        path: "cutover.open_hook",
        kind: Kind::Texts,
        default: None,
        otherwise: "an empty list",
        example: r#"["./open.sh"]"#,
        why: "The command that lets writes in again, for fence = \"hook\": on the side that they go to, or on the one that was fenced where everything is taken back. It may be run more than once.",
    },
    Key {
        path: "cutover.open_url",
        kind: Kind::Url,
        default: None,
        otherwise: "cutover.open_hook is run",
        example: r#""https://deploy.example/open?token=${SWITCH_TOKEN}""#,
        why: "Instead of cutover.open_hook: a URL that is told by a POST, as cutover.switch_url is. It may be told more than once.",
    },
    Key {
        path: "cutover.switch_hook",
        kind: Kind::Texts,
        default: None,
        otherwise: "nothing is run",
        example: r#"["./switch.sh"]"#,
        why: "A command with its arguments that tells the application where to write, once the other side is open. If it fails, --resume runs it again.",
    },
    Key {
        path: "cutover.switch_url",
        kind: Kind::Url,
        default: None,
        otherwise: "nobody is told",
        example: r#""https://deploy.example/switch?token=${SWITCH_TOKEN}""#,
        why: "Instead of cutover.switch_hook: a URL that is told by a POST, once the other side is open. The body is JSON with job, wave, way, step, side and lsn; an answer of 200 to 299 means that it is done. If it fails, --resume asks again. Redirects are not followed.",
    },
    Key {
        path: "cutover.hook_timeout",
        kind: Kind::Duration,
        default: Some("60s"),
        otherwise: "",
        example: r#""60s""#,
        why: "A hook that takes longer is ended and has failed.",
    },
    Key {
        path: "delta.new",
        kind: Kind::Choice(DELTA),
        default: Some("apply"),
        otherwise: "",
        example: r#""apply""#,
        why: "What happens to rows that the target does not have: apply moves them, report counts them, skip leaves them and says nothing. What is not applied is found again by the next run. --new of the command line wins.",
    },
    Key {
        path: "delta.modified",
        kind: Kind::Choice(DELTA),
        default: Some("apply"),
        otherwise: "",
        example: r#""apply""#,
        why: "The same for rows that are others than those that were moved. --modified of the command line wins.",
    },
    Key {
        path: "delta.deleted",
        kind: Kind::Choice(DELTA),
        default: Some("report"),
        otherwise: "",
        example: r#""report""#,
        why: "The same for rows that the source does not have any more: apply takes them out of the target. --deleted of the command line wins.",
    },
    Key {
        path: "delta.failed",
        kind: Kind::Choice(DELTA),
        default: Some("apply"),
        otherwise: "",
        example: r#""apply""#,
        why: "The same for rows that the target refused the last time: apply tries them again. --failed of the command line wins.",
    },
    Key {
        path: "delta.unfiltered",
        kind: Kind::Choice(DELTA),
        default: Some("apply"),
        otherwise: "",
        example: r#""apply""#,
        why: "The same for rows that the where of a [[table]] lets through and did not in the run before, and the other way round: apply takes rows that it does not let through any more out of the target. --unfiltered of the command line wins.",
    },
    Key {
        path: "serve.listen",
        kind: Kind::Text,
        default: None,
        otherwise: "nothing is served",
        example: r#""127.0.0.1:9632""#,
        why: "ADDRESS:PORT for /metrics (Prometheus), /status (JSON) and /healthz while sync runs. There is no login: keep it on the loopback address or behind a firewall. A port of 0 takes a free one.",
    },
];

/// The key of that path.
pub fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The section of that name.
pub fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}
