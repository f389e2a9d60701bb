//! Messages of the program: tracing to stderr.
//!
//! **Invariant:** a line goes out in one piece, above the progress bars and never through them, and passes through
//! [`redact`](crate::redact) first. Libraries stay at `warn` whatever `-v` says, because some of them print statements;
//! only `TIDEMARK_LOG` opens them.

use std::io::{self, IsTerminal as _, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::{ColorWhen, Global, LogFormat, ProgressHow};
use crate::exit::Failure;
use crate::redact;

/// The environment variable with a filter as tracing-subscriber reads it.
pub const FILTER_VARIABLE: &str = "TIDEMARK_LOG";

/// What is known of the terminal, and the place where bars and messages meet.
#[derive(Debug, Clone)]
pub struct Screen {
    /// Draws bars on stderr; hidden where there are none.
    pub bars: MultiProgress,
    /// How progress is shown; never `Auto`.
    pub progress: ProgressHow,
    /// Form of the messages.
    pub log_format: LogFormat,
    /// Whether results on stdout are coloured.
    pub color_stdout: bool,
    /// Whether messages on stderr are coloured.
    pub color_stderr: bool,
}

impl Screen {
    /// Looks at the terminal.
    pub fn new(global: &Global) -> Self {
        let terminal = io::stderr().is_terminal() && std::env::var("TERM").as_deref() != Ok("dumb");
        let progress = match global.progress {
            ProgressHow::Auto if global.quiet => ProgressHow::None,
            ProgressHow::Auto | ProgressHow::Bar
                if terminal && global.log_format == LogFormat::Text =>
            {
                ProgressHow::Bar
            }
            // A file or a pipe cannot hold bars.
            ProgressHow::Auto | ProgressHow::Bar | ProgressHow::Plain => ProgressHow::Plain,
            ProgressHow::None => ProgressHow::None,
        };
        let target = match progress {
            ProgressHow::Bar => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            progress,
            log_format: global.log_format,
            color_stdout: colored(global.color, io::stdout().is_terminal()),
            color_stderr: colored(global.color, io::stderr().is_terminal()),
        }
    }

    /// Says how far something is that has no bars.
    pub fn progress_line(&self, text: &str) {
        if self.progress != ProgressHow::None && self.log_format == LogFormat::Text {
            self.say(text);
        }
    }

    /// Writes a piece of text to stderr, above the bars. Nobody can be told when stderr is closed.
    pub fn say(&self, text: &str) {
        let text = redact::text(text);
        self.bars.suspend(|| io::stderr().lock().write_all(text.as_bytes()).ok());
    }
}

fn colored(when: ColorWhen, terminal: bool) -> bool {
    match when {
        ColorWhen::Always => true,
        ColorWhen::Never => false,
        ColorWhen::Auto => {
            terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

/// Starts logging for the process.
///
/// # Errors
/// `TIDEMARK_LOG` cannot be read.
pub fn start(global: &Global, screen: &Screen) -> Result<(), Failure> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(global)?)
        .with_writer(screen.clone())
        .with_ansi(screen.color_stderr && global.log_format == LogFormat::Text)
        .with_target(global.verbose > 0);
    // Only a second start in one process fails, and then the first one stays in force.
    match global.log_format {
        LogFormat::Text => builder.try_init().ok(),
        LogFormat::Json => builder.json().try_init().ok(),
    };
    Ok(())
}

fn filter(global: &Global) -> Result<EnvFilter, Failure> {
    if let Ok(text) = std::env::var(FILTER_VARIABLE)
        && !text.is_empty()
    {
        return EnvFilter::try_new(&text).map_err(|error| {
            Failure::usage(format!("read the log filter of {FILTER_VARIABLE}"))
                .because(&error)
                .hint("write LEVEL or CRATE=LEVEL, as in tidemark=debug")
        });
    }
    let directives = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn,tidemark=info",
        (false, 1) => "warn,tidemark=debug",
        (false, _) => "warn,tidemark=trace",
    };
    Ok(EnvFilter::new(directives))
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { screen: self, bytes: Vec::new() }
    }
}

/// One message on its way; it goes out when it is dropped, so that it is never cut.
#[derive(Debug)]
pub struct Line<'a> {
    screen: &'a Screen,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.screen.say(&String::from_utf8_lossy(&self.bytes));
        }
    }
}
