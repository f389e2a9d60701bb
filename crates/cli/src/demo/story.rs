//! The story: one command after the other, and what came of each.
//!
//! **Invariant:** a command that does not end with 0 ends the story with its code. What else does not hold is noted, said, and
//! makes the end 1.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::application::{Application, Book};
use super::command::{Ran, Running};
use super::count::{Count, count};
use super::report::{self, Behind, CommandReport, DemoReport, Switch};
use super::server::query_failed;
use super::services::{SERVICES, Side};
use super::setting::Setting;
use super::{Demo, Told};
use crate::exit::{ExitCode, Failure};
use crate::output;

/// How many there are.
pub(super) const STEPS: u32 = 13;
/// The service of each wave.
const PILOT: usize = 0;
const REST: usize = 1;
/// How long both copies are watched following.
const FOLLOW: Duration = Duration::from_secs(5);
/// Between two questions how far a copy is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The application works so long on a side before the next thing is done.
const WORKS: Duration = Duration::from_secs(2);
/// A copy follows, and a row arrives, within this.
const COMES: Duration = Duration::from_secs(30);
/// Between two looks for a row that is on its way.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Tells it from the first check to the report.
pub(super) async fn tell(demo: &Demo<'_>, setting: &Setting) -> Result<Told, Failure> {
    let started_at = jiff::Timestamp::now().to_string();
    let sides = [setting.side(Side::Source), setting.side(Side::Target)];
    let mut story = Story {
        demo,
        setting,
        application: Application::start(&setting.directory, sides),
        following: None,
        problems: Vec::new(),
        commands: Vec::new(),
        lag: Vec::new(),
        switches: Vec::new(),
    };
    story.copy().await?;
    story.follow().await?;
    Box::pin(story.pilot()).await?;
    Box::pin(story.rest()).await?;
    story.end(started_at).await
}

struct Story<'a> {
    demo: &'a Demo<'a>,
    setting: &'a Setting,
    application: Application,
    /// `tidemark sync`, while it runs in the background.
    following: Option<Running>,
    problems: Vec<String>,
    commands: Vec<CommandReport>,
    lag: Vec<Behind>,
    switches: Vec<Switch>,
}

impl Story<'_> {
    /// Both copies are made while the application writes.
    async fn copy(&mut self) -> Result<(), Failure> {
        for (number, service) in SERVICES.iter().enumerate() {
            self.application.writes_on(number, Side::Source).await?;
            self.demo.say(&format!(
                "{} is written to by {} connections, wave {}",
                service.name, service.writers, service.wave
            ));
        }
        self.demo.step(3, "is it ready?");
        let checked = self.run(&["check"]).await?;
        self.demo.say(&checked.stdout);
        self.demo.step(4, "copy it to PostgreSQL, while the application writes");
        self.sync_until_now(&["sync", "--until", "now", "--json"]).await?;
        self.demo.step(5, "copy it to Parquet, while the application writes");
        self.sync_until_now(&["-c", "lake.toml", "sync", "--until", "now", "--json"]).await
    }

    async fn sync_until_now(&mut self, args: &[&str]) -> Result<(), Failure> {
        let before = self.application.committed();
        let ran = self.run(args).await?;
        let meanwhile = self.application.committed() - before;
        let jobs = ran.json()?;
        // Of several waves it is a list.
        let jobs = jobs.as_array().map_or(std::slice::from_ref(&jobs), Vec::as_slice);
        let tables =
            || jobs.iter().filter_map(|job| job["snapshot"]["tables"].as_array()).flatten();
        let sum = |key: &str| tables().filter_map(|table| table[key].as_u64()).sum::<u64>();
        if sum("rows_out") != sum("rows_in") {
            self.wrong("a copy took other rows than the source gave");
        }
        self.demo.say(&format!(
            "{} tables, {} rows out = {} rows in, {} in {}; {} transactions were committed meanwhile",
            tables().count(),
            output::count(sum("rows_out")),
            output::count(sum("rows_in")),
            output::bytes(sum("bytes")),
            output::duration(ran.time),
            output::count(meanwhile as u64),
        ));
        Ok(())
    }

    /// Both copies follow; both are verified while the application writes. The lake's job is over then.
    async fn follow(&mut self) -> Result<(), Failure> {
        self.demo.step(6, "both follow, asked by tidemark status");
        self.following = Some(self.start(&["sync"])?);
        let lake = self.start(&["-c", "lake.toml", "sync"])?;
        self.watch().await?;
        self.demo.step(7, "is it the same data? Both are verified while the application writes");
        self.verify(&["verify"]).await?;
        self.verify(&["-c", "lake.toml", "verify"]).await?;
        self.demo.say("values of zoo.animal that Parquet cannot hold (infinite dates, NaN numerics) are NULL there, as its configuration allows");
        lake.stop().await?;
        self.run(&["-c", "lake.toml", "cleanup", "--yes"]).await?;
        self.demo.say("the lake was a copy, not where the application goes: its job ends here");
        Ok(())
    }

    /// Asks both jobs how far behind they are, for a while from when they follow.
    async fn watch(&mut self) -> Result<(), Failure> {
        let (begun, mut since): (_, Option<Instant>) = (Instant::now(), None);
        while since.is_none_or(|since| since.elapsed() < FOLLOW) {
            if begun.elapsed() > COMES {
                return Err(Failure::new(ExitCode::Unavailable, "see both copies follow"));
            }
            tokio::time::sleep(ASK_EVERY).await;
            let (Some(postgres), Some(lake)) = (
                self.behind("PostgreSQL", &["status", "--json"]).await?,
                self.behind("Parquet", &["-c", "lake.toml", "status", "--json"]).await?,
            ) else {
                continue;
            };
            let seconds = since.get_or_insert_with(Instant::now).elapsed().as_secs();
            let said = |behind: &Behind| {
                let bytes = output::bytes(behind.bytes);
                format!("{} {bytes:>9} and {:>4.1} s behind", behind.job, behind.seconds)
            };
            self.demo.say(&format!("after {seconds} s   {}   {}", said(&postgres), said(&lake)));
            self.lag.extend([postgres, lake]);
        }
        Ok(())
    }

    /// `None` until it follows.
    async fn behind(
        &mut self,
        job: &'static str,
        args: &[&str],
    ) -> Result<Option<Behind>, Failure> {
        let status = self.quietly(args).await?.json()?;
        let lag = &status["lag"];
        let follows = status["phase"] == "follow" && lag["bytes"].is_u64();
        Ok(follows.then(|| Behind {
            job,
            bytes: lag["bytes"].as_u64().unwrap_or_default(),
            seconds: lag["seconds"].as_f64().unwrap_or_default(),
        }))
    }

    /// The pilot goes over, and back, which is the rehearsal.
    async fn pilot(&mut self) -> Result<(), Failure> {
        self.demo.step(8, "the pilot, tried out: everything but the fence");
        let tried = self.run(&["cutover", "--wave", "pilot", "--dry-run"]).await?;
        self.demo.say(last_line(&tried.stdout));
        self.demo.step(9, "the pilot goes over, while the other tables are written to as before");
        self.switch("cutover", PILOT).await?;
        self.verify(&["verify", "--wave", "pilot"]).await?;
        self.arrives(PILOT, Side::Target).await?;
        self.demo.step(10, "the way back is rehearsed");
        self.switch("fallback", PILOT).await?;
        self.arrives(PILOT, Side::Source).await
    }

    /// The pilot goes over again, then everything else.
    async fn rest(&mut self) -> Result<(), Failure> {
        self.demo.step(11, "the final cutover: the pilot again, then the rest");
        self.switch("cutover", PILOT).await?;
        self.switch("cutover", REST).await?;
        for service in [PILOT, REST] {
            self.arrives(service, Side::Target).await?;
        }
        Ok(())
    }

    /// A service goes to the other side; the other service must not notice.
    async fn switch(&mut self, way: &'static str, service: usize) -> Result<(), Failure> {
        tokio::time::sleep(WORKS).await;
        let (us, others) = (&SERVICES[service], 1 - service);
        let to = if way == "cutover" { Side::Target } else { Side::Source };
        // What was before does not count.
        for service in [PILOT, REST] {
            self.application.waited(service);
        }
        let before = self.application.committed();
        let ran = self.run(&[way, "--wave", us.wave, "--json"]).await?;
        self.application.writes_on(service, to).await?;
        let meanwhile = self.application.committed() - before;
        let (waited, beside) = (self.application.waited(service), self.application.waited(others));
        let ended = ran.json()?;
        let blocked = ended["write_block_ms"].as_u64();
        if ended["is_done"] != true || blocked.is_none() {
            self.wrong(&format!("{way} of {} was not done", us.wave));
        }
        if beside.refused > 0 {
            let others = SERVICES[others].name;
            self.wrong(&format!("{others} was refused during the {way} of {}", us.wave));
        }
        let switch = Switch {
            way,
            wave: us.wave,
            write_block_ms: blocked.unwrap_or_default(),
            refused: waited.refused,
            waited_ms: u64::try_from(waited.longest.as_millis()).unwrap_or(u64::MAX),
            others_refused: beside.refused,
        };
        self.demo.say(&steps_of(&ended));
        self.demo.say(&format!(
            "writes were blocked for {} ms; {} was refused {} times, for {} ms at the longest; {} was refused {} times; {} transactions meanwhile",
            switch.write_block_ms,
            us.name,
            switch.refused,
            switch.waited_ms,
            SERVICES[others].name,
            switch.others_refused,
            output::count(meanwhile as u64),
        ));
        self.switches.push(switch);
        Ok(())
    }

    /// What a service writes is on the other side soon.
    async fn arrives(&mut self, service: usize, writes_on: Side) -> Result<(), Failure> {
        let us = &SERVICES[service];
        self.application.writes_on(service, writes_on).await?;
        let Some((writer, number)) = self.application.last_of(service) else { return Ok(()) };
        let (begun, there) = (Instant::now(), writes_on.other());
        let client = self.setting.side(there).connect().await;
        let client = client.map_err(|error| query_failed(&error))?;
        let look =
            format!("SELECT count(*) FROM {} WHERE writer = $1 AND number = $2", us.receipts);
        loop {
            let row = client.query_one(&look, &[&writer, &number]).await;
            let found: i64 = row.map_err(|error| query_failed(&error))?.get(0);
            if found == 1 {
                break;
            }
            if begun.elapsed() > COMES {
                let (name, there) = (us.name, there.word());
                self.wrong(&format!("receipt {number} of {name} did not come to the {there}"));
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        client.close().await;
        self.demo.say(&format!(
            "{} writes on the {} now: receipt {number} is on the {}, too, {} ms later",
            us.name,
            writes_on.word(),
            there.word(),
            begun.elapsed().as_millis()
        ));
        Ok(())
    }

    /// The application stops: the last verification, the count, and the end of the migration.
    async fn end(mut self, started_at: String) -> Result<Told, Failure> {
        tokio::time::sleep(WORKS).await;
        let reports = self.reports_in()?;
        self.demo.step(
            12,
            "the application stops; everything is verified, and counted without tidemark",
        );
        let time = self.application.elapsed();
        let books = self.application.stop().await?;
        let directory = reports.display().to_string();
        self.verify(&["verify", "--report", &directory]).await?;
        let counts = self.count(&books, time).await?;
        self.demo.step(13, "the migration is complete");
        self.complete(&directory).await?;
        let verdict = if self.problems.is_empty() { "held" } else { "broken" };
        let report = DemoReport {
            tool_version: env!("CARGO_PKG_VERSION"),
            verdict,
            problems: self.problems,
            started_at,
            seconds: self.demo.started.elapsed().as_secs_f64(),
            scale: self.demo.args.scale,
            server_version: self.demo.version.clone(),
            tables: self.setting.loaded.tables,
            bytes: self.setting.loaded.bytes,
            commands: self.commands,
            lag: self.lag,
            switches: self.switches,
            count: counts,
        };
        report::write(&report, &reports)?;
        Ok(told(&report, self.demo))
    }

    /// Nobody writes any more.
    async fn count(&mut self, books: &[Book; 2], time: Duration) -> Result<Vec<Count>, Failure> {
        let written: usize = books.iter().map(|book| book.committed.len()).sum();
        let rate = output::rate(written as u64, time).unwrap_or_default();
        self.demo.say(&format!(
            "the application committed {} transactions in {}, {} per second",
            output::count(written as u64),
            output::duration(time),
            output::count(rate)
        ));
        let mut counts = Vec::new();
        for (service, book) in SERVICES.iter().zip(books) {
            let sides = [Side::Source, Side::Target].map(|side| (side, self.setting.side(side)));
            let counted = count(service, book, sides).await?;
            self.demo.say(&counted.lines(service).join("\n"));
            if !counted.is_right() {
                self.wrong(&format!("the count of {} is not what was written", service.name));
            }
            counts.push(counted);
        }
        Ok(counts)
    }

    /// Ends the stream back, then the migration of both waves, and has it told.
    async fn complete(&mut self, reports: &str) -> Result<(), Failure> {
        if let Some(following) = self.following.take() {
            following.stop().await?;
        }
        for service in &SERVICES {
            let done = self.run(&["complete", "--wave", service.wave, "--yes"]).await?;
            self.demo.say(last_line(&done.stdout));
        }
        let reported = self.run(&["report", "--directory", reports]).await?;
        self.demo.say(&reported.stdout);
        Ok(())
    }

    /// Where the reports go.
    fn reports_in(&self) -> Result<PathBuf, Failure> {
        std::path::absolute(&self.demo.args.report)
            .map_err(|error| Failure::usage("find the report's directory").because(&error))
    }

    async fn verify(&mut self, args: &[&str]) -> Result<(), Failure> {
        let verified = self.run(args).await?;
        for line in verified.stdout.lines().filter(|line| line.contains("source and target")) {
            self.demo.say(line);
        }
        Ok(())
    }

    /// Says what is run, and runs it.
    async fn run(&mut self, args: &[&str]) -> Result<Ran, Failure> {
        let command = format!("tidemark {}", args.join(" "));
        self.demo.say(&format!("$ {command}"));
        let ran = self.quietly(args).await?;
        self.commands.push(CommandReport { command, seconds: ran.time.as_secs_f64() });
        Ok(ran)
    }

    async fn quietly(&mut self, args: &[&str]) -> Result<Ran, Failure> {
        let ran = self.setting.tidemark.run(args).await;
        // Where the process that follows is gone, that is why.
        if let (Err(_), Some(following)) = (&ran, &mut self.following) {
            following.goes_on()?;
        }
        ran
    }

    fn start(&self, args: &[&str]) -> Result<Running, Failure> {
        self.demo.say(&format!("$ tidemark {} &", args.join(" ")));
        self.setting.tidemark.start(args)
    }

    fn wrong(&mut self, problem: &str) {
        self.demo.say(&format!("WRONG: {problem}"));
        self.problems.push(problem.to_owned());
    }
}

fn told(report: &DemoReport, demo: &Demo<'_>) -> Told {
    let directory = demo.args.report.display();
    let total = output::duration(demo.started.elapsed());
    let (code, what) = match report.problems.is_empty() {
        true => (ExitCode::Done, "no row lost, no value of a sequence given twice".to_owned()),
        false => (ExitCode::Different, report.problems.join("; ")),
    };
    let waves: Vec<&str> = SERVICES.iter().map(|service| service.wave).collect();
    let last_line = format!(
        "{}: {what}; in {total}: {directory}/demo.json, {directory}/{{{}}}/{{migration,report}}.html\n",
        report.verdict,
        waves.join(","),
    );
    Told { code, last_line }
}

/// The steps of a cutover and what each took.
fn steps_of(ended: &Value) -> String {
    let steps = ended["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let said = steps.iter().filter_map(|step| {
        Some(format!("{} {:.2}", step[0].as_str()?, step[1].as_f64()? / 1000.0))
    });
    format!("{} s", said.collect::<Vec<_>>().join(", "))
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or_default()
}
