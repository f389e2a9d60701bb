//! What the story needs before it begins: both servers, the data, the configuration of two jobs, and the application.
//!
//! **Invariant:** it is what a user would set up. The directory has `tidemark.toml`, which commands read by default.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tidemark_wire::ConnectSpec;

use super::Demo;
use super::command::Tidemark;
use super::data::{self, Loaded};
use super::server::{DATABASE, Place, Server, USER};
use super::services::{HOOK, Side};
use crate::exit::{ExitCode, Failure};
use crate::output;

/// The source does without the safety of its disk.
const SOURCE_SETTINGS: &str = "fsync = off\nfull_page_writes = off\nmax_wal_size = '4GB'\nwal_level = logical\nshared_buffers = '256MB'";
/// The target is as a server is by default, but for its memory and for the stream back.
const TARGET_SETTINGS: &str = "max_wal_size = '4GB'\nwal_level = logical\nshared_buffers = '256MB'";

/// The job that is migrated: two waves, and a hook that tells the application. An unlogged table cannot be followed.
const MIGRATION: &str = r#"
[select]
exclude = ["zoo.scratch"]
[[wave]]
name = "pilot"
tables = ["live.*"]
[cutover]
switch_hook = ["./switch.sh"]
"#;

/// The second job, into a lake. What neither a stream nor Parquet can hold is left out or replaced.
const LAKE: &str = r#"
[select]
exclude = ["zoo.nothing_at_all", "zoo.scratch"]
[[table]]
name = "zoo.animal"
unrepresentable = "null"
[[table]]
name = "zoo.keeper"
columns = ["id", "name", "email", "badge", "hired", "salary", "home", "boss", "settings", "nicknames"]
[[table]]
name = "zoo.rectangle"
columns = ["width", "height", "id"]
[parquet]
commit_interval = "1s"
[verify]
allow = ["lossy"]
"#;

/// Small, so that also a small demonstration has more than one chunk.
const BOTH: &str =
    "[snapshot]\nchunk_bytes = \"16MiB\"\n[limits]\nmemory = \"256MiB\"\nspool = \"2GiB\"\n";

/// Everything that is there when the story begins.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) source: Server,
    pub(super) target: Server,
    pub(super) loaded: Loaded,
    pub(super) tidemark: Tidemark,
    pub(super) directory: PathBuf,
    password: String,
}

impl Setting {
    /// Starts the servers, fills the source, and writes the configuration.
    pub(super) async fn make(demo: &Demo<'_>, place: &mut Place) -> Result<Self, Failure> {
        demo.step(1, &format!("start two throwaway PostgreSQL {} servers", demo.version));
        let source = place.start("source", SOURCE_SETTINGS).await?;
        let target = place.start("target", TARGET_SETTINGS).await?;
        let directory = place.path().to_owned();
        demo.say(&format!(
            "source on port {}, target on port {}, files in {}",
            source.port,
            target.port,
            directory.display()
        ));
        let scale = demo.args.scale;
        demo.step(2, &format!("fill the source: TPC-H at scale {scale} and one of everything"));
        let begun = Instant::now();
        let loaded = data::load(&source.spec, scale).await?;
        demo.say(&format!(
            "{} tables, {} with indexes; {}",
            loaded.tables,
            output::bytes(loaded.bytes),
            output::duration(begun.elapsed())
        ));
        configure(&directory, [&source, &target]).map_err(|error| {
            Failure::new(ExitCode::Unavailable, "write the configuration").because(&error)
        })?;
        let (tidemark, password) = (Tidemark::at(place)?, place.password().to_owned());
        Ok(Self { source, target, loaded, tidemark, directory, password })
    }

    /// How a side is reached.
    pub(super) fn side(&self, side: Side) -> &ConnectSpec {
        match side {
            Side::Source => &self.source.spec,
            Side::Target => &self.target.spec,
        }
    }

    /// How to reach what is still up.
    pub(super) fn look_around(&self) -> String {
        let psql = |server: &Server| {
            format!("psql 'host=127.0.0.1 port={} user={USER} dbname={DATABASE}'", server.port)
        };
        format!(
            "look around, then Ctrl-C:\n  export PGPASSWORD={}\n  {}   # source\n  {}   # target\n  cd {} && tidemark status\n",
            self.password,
            psql(&self.source),
            psql(&self.target),
            self.directory.display()
        )
    }
}

fn configure(directory: &Path, [source, target]: [&Server; 2]) -> std::io::Result<()> {
    let url = |server: &Server| {
        format!("postgres://{USER}@127.0.0.1:{}/{DATABASE}?sslmode=disable", server.port)
    };
    let head = |job: &str, target: &str| {
        format!(
            "[job]\nname = \"{job}\"\nstate_dir = \"{job}-state\"\n[source]\nurl = \"{}\"\n[target]\nurl = \"{target}\"\n{BOTH}",
            url(source)
        )
    };
    let lake = format!("file://{}", directory.join("lake").display());
    fs::write(directory.join("tidemark.toml"), head("shop", &url(target)) + MIGRATION)?;
    fs::write(directory.join("lake.toml"), head("lake", &lake) + LAKE)?;
    let hook = directory.join("switch.sh");
    fs::write(&hook, HOOK)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))
}
