//! Shows how far a run is: bars on a terminal, a line every few seconds elsewhere.
//!
//! **Invariant:** nothing here reads a clock or asks anybody: the caller gives a [`View`] as often as it likes, and what is
//! shown depends on the views alone. Everything goes to stderr.

use std::collections::VecDeque;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::args::{LogFormat, ProgressHow};
use crate::log::Screen;
use crate::output;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The rate is that of this time, so that it follows what happens now without jumping.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// More bars than this do not fit on a screen together with messages.
const BARS_MAX: usize = 8;

const PLAIN_BAR: &str = "{prefix:24!} {bar:12} {percent:>2} %  {wide_msg}";
const COLORED_BAR: &str = "{prefix:24!} {bar:12.cyan/dim} {percent:>2} %  {wide_msg}";

/// A moment of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct View {
    /// What is done at the moment: `prepare`, `snapshot`, `indexes`.
    pub phase: String,
    /// Tables that are complete.
    pub tables_done: u64,
    /// Tables of the run.
    pub tables_total: u64,
    /// Rows that are committed or on their way.
    pub rows_done: u64,
    /// Bytes of the source that are read.
    pub bytes_done: u64,
    /// Bytes of the source; an estimate.
    pub bytes_total: u64,
    /// Tables that are being read.
    pub active: Vec<ActiveTable>,
    /// Since the run began.
    pub elapsed: Duration,
    /// Chunks that were read again after a lost connection.
    pub retries: u64,
}

/// A table that is being read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ActiveTable {
    /// Its name, for people.
    pub name: String,
    /// Rows so far.
    pub rows_done: u64,
    /// Rows as the catalog estimates them.
    pub rows_estimate: u64,
    /// Bytes so far.
    pub bytes_done: u64,
    /// Bytes; an estimate.
    pub bytes_total: u64,
}

/// Shows views.
#[derive(Debug)]
pub struct Progress {
    screen: Screen,
    speed: Speed,
    last_line: Option<(Duration, String)>,
    overall: Option<ProgressBar>,
    tables: Vec<ProgressBar>,
}

impl Progress {
    /// Prepares to show; nothing is drawn yet.
    pub fn new(screen: &Screen) -> Self {
        Self {
            screen: screen.clone(),
            speed: Speed::default(),
            last_line: None,
            overall: None,
            tables: Vec::new(),
        }
    }

    /// Shows a moment; call it a few times a second.
    pub fn show(&mut self, view: &View) {
        self.speed.add(view.elapsed, view.bytes_done);
        match self.screen.progress {
            ProgressHow::None => {}
            ProgressHow::Auto | ProgressHow::Plain => self.show_line(view),
            ProgressHow::Bar => self.show_bars(view),
        }
    }

    /// Takes the bars away, so that a result can be printed.
    pub fn finish(self) {
        for bar in self.tables.iter().chain(&self.overall) {
            self.screen.bars.remove(bar);
        }
        // A terminal that went away cannot be told.
        self.screen.bars.clear().ok();
    }

    fn show_line(&mut self, view: &View) {
        let due = self
            .last_line
            .as_ref()
            .is_none_or(|(at, phase)| *phase != view.phase || view.elapsed >= *at + LINE_EVERY);
        if !due {
            return;
        }
        self.last_line = Some((view.elapsed, view.phase.clone()));
        let text = match self.screen.log_format {
            LogFormat::Text => line(view, self.speed.bytes_per_second()),
            LogFormat::Json => json_line(view, self.speed.bytes_per_second()),
        };
        self.screen.say(&format!("{text}\n"));
    }

    fn show_bars(&mut self, view: &View) {
        let color = self.screen.color_stderr;
        let bars = &self.screen.bars;
        let overall = self.overall.get_or_insert_with(|| bars.add(new_bar(color)));
        while self.tables.len() > view.active.len().min(BARS_MAX) {
            if let Some(bar) = self.tables.pop() {
                // Not finished first: that would show it full for a moment.
                bars.remove(&bar);
            }
        }
        while self.tables.len() < view.active.len().min(BARS_MAX) {
            self.tables.push(bars.insert_before(overall, new_bar(color)));
        }
        for (bar, table) in self.tables.iter().zip(&view.active) {
            set(bar, &table.name, table.bytes_done, table.bytes_total);
            bar.set_message(table_message(table));
        }
        set(overall, &view.phase, view.bytes_done, view.bytes_total);
        overall.set_message(bar_message(view, self.speed.bytes_per_second()));
    }
}

fn new_bar(color: bool) -> ProgressBar {
    let template = if color { COLORED_BAR } else { PLAIN_BAR };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    ProgressBar::new(1).with_style(style)
}

fn set(bar: &ProgressBar, name: &str, done: u64, total: u64) {
    if bar.prefix() != name {
        bar.set_prefix(name.to_owned());
    }
    // The total is an estimate: a bar that is full before the end would be a lie.
    bar.set_length(total.max(done.saturating_add(done / 64)).max(1));
    bar.set_position(done);
}

/// The line for one moment.
pub fn line(view: &View, bytes_per_second: Option<u64>) -> String {
    if view.tables_total == 0 {
        return view.phase.clone();
    }
    let mut text = format!("{}: {}", view.phase, overall_message(view, bytes_per_second));
    if let Some(percent) = percent(view.bytes_done, view.bytes_total) {
        text.push_str(&format!(", {percent} %"));
    }
    let active: Vec<String> = view
        .active
        .iter()
        .take(3)
        .map(|table| match percent(table.bytes_done, table.bytes_total) {
            Some(percent) => format!("{} {percent} %", table.name),
            None => table.name.clone(),
        })
        .collect();
    if !active.is_empty() {
        let more = view.active.len().saturating_sub(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text.push_str(&format!(" [{}{more}]", active.join(", ")));
    }
    text
}

fn json_line(view: &View, bytes_per_second: Option<u64>) -> String {
    let left = bytes_per_second.and_then(|rate| time_left(view, rate));
    let line = json!({
        "level": "INFO",
        "fields": {
            "message": "progress",
            "phase": view.phase,
            "tables_done": view.tables_done,
            "tables_total": view.tables_total,
            "rows_done": view.rows_done,
            "bytes_done": view.bytes_done,
            "bytes_total": view.bytes_total,
            "bytes_per_second": bytes_per_second,
            "seconds": view.elapsed.as_secs(),
            "seconds_left": left.map(|left| left.as_secs()),
            "retries": view.retries,
        },
    });
    line.to_string()
}

fn overall_message(view: &View, bytes_per_second: Option<u64>) -> String {
    let mut text = format!(
        "{}/{} tables, {} rows, {} of about {}",
        view.tables_done,
        view.tables_total,
        output::short(view.rows_done),
        output::bytes(view.bytes_done),
        output::bytes(view.bytes_total.max(view.bytes_done)),
    );
    if let Some(rate) = bytes_per_second {
        text.push_str(&format!(", {}/s", output::bytes(rate)));
        if let Some(left) = time_left(view, rate) {
            text.push_str(&format!(", {} left", output::duration(left)));
        }
    }
    if view.retries > 0 {
        text.push_str(&format!(", {} retries", view.retries));
    }
    text
}

/// As [`overall_message`], but what changes the decision to wait comes first: a narrow terminal cuts the end.
fn bar_message(view: &View, bytes_per_second: Option<u64>) -> String {
    let mut parts = Vec::new();
    if let Some(rate) = bytes_per_second {
        parts.push(format!("{}/s", output::bytes(rate)));
        parts.extend(time_left(view, rate).map(|left| format!("{} left", output::duration(left))));
    }
    parts.push(format!("{}/{} tables", view.tables_done, view.tables_total));
    parts.push(format!("{} rows", output::short(view.rows_done)));
    parts.push(output::bytes(view.bytes_done));
    if view.retries > 0 {
        parts.push(format!("{} retries", view.retries));
    }
    parts.join(", ")
}

fn table_message(table: &ActiveTable) -> String {
    let rows = output::short(table.rows_done);
    if table.rows_estimate == 0 {
        return format!("{rows} rows, {}", output::bytes(table.bytes_done));
    }
    let estimate = output::short(table.rows_estimate.max(table.rows_done));
    format!("{rows} of about {estimate} rows, {}", output::bytes(table.bytes_done))
}

/// At most 99, because the total is an estimate.
fn percent(done: u64, total: u64) -> Option<u128> {
    (total > 0).then(|| (u128::from(done) * 100 / u128::from(total)).min(99))
}

/// Rounded up to whole seconds, so that it does not end at `0 ms`.
fn time_left(view: &View, bytes_per_second: u64) -> Option<Duration> {
    let left = view.bytes_total.saturating_sub(view.bytes_done);
    if left == 0 || bytes_per_second == 0 {
        return None;
    }
    Some(Duration::from_secs(left.div_ceil(bytes_per_second)))
}

/// The rate of the last few seconds.
#[derive(Debug, Default)]
struct Speed {
    samples: VecDeque<(Duration, u64)>,
}

impl Speed {
    fn add(&mut self, at: Duration, bytes: u64) {
        self.samples.push_back((at, bytes));
        // The oldest sample stays just outside the window, so that the window is always filled. A caller that asks a
        // hundred times a second holds a thousand samples at most.
        while self
            .samples
            .get(1)
            .is_some_and(|(second, _)| at.saturating_sub(*second) >= RATE_WINDOW)
        {
            self.samples.pop_front();
        }
    }

    fn bytes_per_second(&self) -> Option<u64> {
        let (from, before) = self.samples.front()?;
        let (to, after) = self.samples.back()?;
        output::rate(after.saturating_sub(*before), to.saturating_sub(*from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(seconds: u64, bytes_done: u64) -> View {
        View {
            phase: "snapshot".to_owned(),
            tables_done: 1,
            tables_total: 4,
            rows_done: 20_000,
            bytes_done,
            bytes_total: 100 << 20,
            active: vec![ActiveTable {
                name: "public.orders".to_owned(),
                bytes_done: 1,
                bytes_total: 2,
                ..ActiveTable::default()
            }],
            elapsed: Duration::from_secs(seconds),
            retries: 0,
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut speed = Speed::default();
        assert_eq!(speed.bytes_per_second(), None);
        for second in 0..100 {
            let bytes = if second < 50 { 0 } else { (second - 50) * 1000 };
            speed.add(Duration::from_secs(second), bytes);
        }
        assert_eq!(speed.bytes_per_second(), Some(1000));
        assert!(speed.samples.len() <= 12);
    }

    #[test]
    fn a_line_says_rate_and_time_left() {
        assert_eq!(
            line(&view(10, 25 << 20), Some(5 << 20)),
            "snapshot: 1/4 tables, 20.0 k rows, 25.0 MiB of about 100.0 MiB, 5.0 MiB/s, 15.0 s left, 25 % [public.orders 50 %]"
        );
    }

    #[test]
    fn an_estimate_that_was_too_small_is_never_a_hundred_percent() {
        let text = line(&view(10, 200 << 20), Some(1));
        assert!(text.contains("99 %") && text.contains("of about 200.0 MiB"), "{text}");
        assert!(!text.contains("left"), "{text}");
    }

    #[test]
    fn bars_come_and_go_with_the_tables() {
        for template in [PLAIN_BAR, COLORED_BAR] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
        let screen = Screen {
            bars: indicatif::MultiProgress::with_draw_target(
                indicatif::ProgressDrawTarget::hidden(),
            ),
            progress: ProgressHow::Bar,
            log_format: LogFormat::Text,
            color_stdout: false,
            color_stderr: false,
        };
        let mut progress = Progress::new(&screen);
        let mut many = view(1, 1 << 20);
        many.active = vec![ActiveTable::default(); 20];
        progress.show(&many);
        assert_eq!(progress.tables.len(), BARS_MAX);
        progress.show(&view(2, 2 << 20));
        assert_eq!(progress.tables.len(), 1);
        assert_eq!(progress.tables[0].prefix(), "public.orders");
        let overall = progress.overall.as_ref().unwrap();
        assert_eq!(overall.position(), 2 << 20);
        assert_eq!(overall.message(), "1.0 MiB/s, 1m38s left, 1/4 tables, 20.0 k rows, 2.0 MiB");
        progress.finish();
    }

    #[test]
    fn a_line_as_json_has_the_numbers() {
        let json: serde_json::Value =
            serde_json::from_str(&json_line(&view(10, 25 << 20), Some(5 << 20))).unwrap();
        assert_eq!(json["fields"]["seconds_left"], 15);
        assert_eq!(json["fields"]["tables_total"], 4);
    }
}
