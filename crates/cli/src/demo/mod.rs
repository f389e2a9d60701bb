//! `tidemark demo`: a whole migration on two throwaway servers, while an application writes.
//!
//! **Invariant:** everything is done by the commands that a user would type, run by this very program in a directory with a
//! configuration; what came of it is counted by SQL and by the application's own books. However it ends, also by Ctrl-C, no
//! server, command or temporary file is left; a killed process is cleaned up after by a watchdog (see [`server`]).
//!
//! ```text
//! servers -> data -> check -> copy to PostgreSQL, to Parquet -> both follow -> verify -> the pilot goes over, back, over again
//!       \_ the application writes all the while, to the side that the switch hook tells ... -> the rest goes over -> count
//! ```

mod application;
mod command;
mod count;
mod data;
mod report;
mod server;
mod services;
mod setting;
mod story;

use std::time::Instant;

use crate::args::{DemoArgs, ProgressHow};
use crate::exit::{ExitCode, Failure};
use crate::log::Screen;
use crate::output;
use crate::running::{Signals, runtime};
use server::{Place, Programs};
use setting::Setting;

/// Runs the demonstration.
///
/// # Errors
/// PostgreSQL's server programs are missing (exit code 2), a command failed (its exit code), or it was interrupted (130).
pub(crate) fn run(args: &DemoArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    let programs = Programs::find()?;
    let runtime = runtime()?;
    let demo = Demo { args, screen, version: programs.version.clone(), started: Instant::now() };
    let mut place = Place::make(programs)?;
    let ended = runtime.block_on(demo.shown(&mut place));
    screen.say("stopping the servers and removing their files\n");
    drop(place);
    let told = ended?;
    output::print(&told.last_line)?;
    Ok(told.code)
}

/// What all steps know.
struct Demo<'a> {
    args: &'a DemoArgs,
    screen: &'a Screen,
    version: String,
    started: Instant,
}

/// What the story ends with.
struct Told {
    code: ExitCode,
    last_line: String,
}

impl Demo<'_> {
    /// Tells the story, and leaves everything up for as long as it is wanted.
    async fn shown(&self, place: &mut Place) -> Result<Told, Failure> {
        let mut signals = Signals::new()?;
        let interrupted =
            || Failure::new(ExitCode::Interrupted, "run the demonstration: it was interrupted");
        let setting = tokio::select! {
            biased;
            () = signals.next() => return Err(interrupted()),
            made = Setting::make(self, place) => made?,
        };
        let told = tokio::select! {
            biased;
            () = signals.next() => return Err(interrupted()),
            told = Box::pin(story::tell(self, &setting)) => told,
        };
        if self.args.keep {
            if let Err(failure) = &told {
                self.screen.say(&failure.to_text());
            }
            output::print(&setting.look_around())?;
            signals.next().await;
        }
        told
    }

    /// The head of a step.
    fn step(&self, number: u32, what: &str) {
        let (bold, plain) =
            if self.screen.color_stderr { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let at = self.started.elapsed().as_secs_f64();
        self.talk(&format!("{bold}[{number}/{}] {what}{plain}  ({at:.1} s)\n", story::STEPS));
    }

    /// A line of a step, or several.
    fn say(&self, text: &str) {
        for line in text.lines() {
            self.talk(&format!("      {line}\n"));
        }
    }

    fn talk(&self, text: &str) {
        if self.screen.progress != ProgressHow::None {
            self.screen.say(text);
        }
    }
}
