//! From the arguments to the exit code.
//!
//! **Invariant:** every way out ends in one of the documented codes: a usage error is 2, a closed stdout is 0, a panic is
//! 70. What is printed on the way has passed through [`redact`](crate::redact).

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::args::{Cli, LogFormat};
use crate::commands;
use crate::exit::{ExitCode, Failure};
use crate::log;
use crate::redact;

/// Runs the program.
pub fn run(args: impl IntoIterator<Item = OsString>) -> std::process::ExitCode {
    quiet_panics();
    let args: Vec<OsString> = args.into_iter().collect();
    let code = catch_unwind(AssertUnwindSafe(|| run_inner(&args))).unwrap_or(ExitCode::Internal);
    std::process::ExitCode::from(code.number())
}

fn run_inner(args: &[OsString]) -> ExitCode {
    let matches = Cli::command().color(color_from(args)).try_get_matches_from(args);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, args),
    };
    let screen = log::Screen::new(&cli.global);
    let result = log::start(&cli.global, &screen).and_then(|()| commands::run(&cli, &screen));
    match result {
        Ok(code) => code,
        Err(failure) => report(&failure, screen.log_format, screen.color_stderr),
    }
}

fn report(failure: &Failure, format: LogFormat, colored: bool) -> ExitCode {
    let text = match format {
        LogFormat::Text if colored => {
            failure.to_text().replacen("error:", "\x1b[1;31merror:\x1b[0m", 1)
        }
        LogFormat::Text => failure.to_text(),
        LogFormat::Json => failure.to_json(),
    };
    print_stderr(&text);
    failure.code
}

/// Nobody can be told when stderr itself is closed, so that error is dropped.
fn print_stderr(text: &str) {
    io::stderr().write_all(text.as_bytes()).ok();
}

/// clap parses `--color` too late for its own messages, so it is looked for by hand.
fn color_from(args: &[OsString]) -> clap::ColorChoice {
    let mut words = args.iter().filter_map(|arg| arg.to_str());
    while let Some(word) = words.next() {
        let value = match word.strip_prefix("--color") {
            Some("") => words.next(),
            Some(rest) => rest.strip_prefix('='),
            None => continue,
        };
        match value {
            Some("always") => return clap::ColorChoice::Always,
            Some("never") => return clap::ColorChoice::Never,
            _ => return clap::ColorChoice::Auto,
        }
    }
    clap::ColorChoice::Auto
}

/// Prints help, a version or a usage error. clap repeats arguments in its messages, and an argument may hold a password.
fn usage(error: &clap::Error, args: &[OsString]) -> ExitCode {
    let on_stderr = error.use_stderr();
    let terminal = if on_stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
    let colored = match color_from(args) {
        clap::ColorChoice::Always => true,
        clap::ColorChoice::Never => false,
        clap::ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
    };
    let rendered = error.render();
    let text = if colored { rendered.ansi().to_string() } else { rendered.to_string() };
    if on_stderr {
        print_stderr(&redact::arguments_in(&text, args));
        return ExitCode::Usage;
    }
    match crate::output::print(&text) {
        Ok(()) => ExitCode::Done,
        Err(failure) => report(&failure, LogFormat::Text, false),
    }
}

/// A panic is a defect of ours: it says where, and its text passes through the redaction like everything else.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("no message");
        let text = redact::text(text);
        print_stderr(&format!(
            "internal error: {text}\n  at: {place}\n  way out: report this as a defect\n"
        ));
    }));
}
