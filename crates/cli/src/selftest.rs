//! `tidemark verify selftest`: what was planted, and whether it was found.
//!
//! **Invariant:** the exit code is 0 only if every mutation was found wherever it was planted; no value is printed.

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;
use tidemark_report::Level;
use tidemark_verify::{Lines, Missed, Request, Selftest, Tried, selftest};
use tokio_util::sync::CancellationToken;

use crate::args::{NotEmpty, SelftestArgs};
use crate::config::Config;
use crate::exit::{ExitCode, Failure};
use crate::log::Screen;
use crate::running::{LOOK_EVERY, runtime, stoppable};
use crate::{job, output};

/// How the table that every mutation can be planted in is called.
const OWN: &str = "a table of its own";

/// Runs the command.
///
/// # Errors
/// A side cannot be reached or read, or the target lets no schema be made.
pub(crate) fn run(
    config: &Config,
    args: &SelftestArgs,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    let job = job::job(config, NotEmpty::Refuse, false)?;
    let request = Request::new(job, Level::Rows, Lines::nowhere());
    let tested = runtime()?.block_on(until_stopped(&request))?;
    match args.json {
        true => output::print_json(&Told::of(&tested))?,
        false => output::print(&text(&tested, screen.color_stdout))?,
    }
    Ok(if tested.found_all() { ExitCode::Done } else { ExitCode::Different })
}

/// A signal lets what was made be dropped; a second one ends at once.
async fn until_stopped(request: &Request) -> Result<Selftest, Failure> {
    let stop = CancellationToken::new();
    Ok(stoppable(selftest(request, &stop), &stop, (LOOK_EVERY, || ())).await??)
}

fn text(tested: &Selftest, color: bool) -> String {
    let mut table = output::table(color);
    let titles = ["mutation", "what it is", "tables", "found"];
    table.set_header(titles.map(|title| output::header(title, color)));
    for tried in &tested.mutations {
        let tables = match tried.tables.as_slice() {
            [] => "-".to_owned(),
            [None] => "own".to_owned(),
            tables => tables.len().to_string(),
        };
        table.add_row([
            Cell::new(tried.name),
            Cell::new(tried.says),
            Cell::new(tables),
            Cell::new(found(tried).to_string()),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{table}\n");
    for tried in &tested.mutations {
        for missed in &tried.missed {
            text.push_str(&told_missed(tried, missed));
        }
    }
    for skipped in &tested.left_out {
        text.push_str(&format!("{}: no sample: {}\n", skipped.name.plain(), skipped.because));
    }
    for tried in tested.untried() {
        text.push_str(&format!(
            "{}: not tried: the target's encoding has no such values\n",
            tried.name
        ));
    }
    text + &verdict(tested)
}

fn told_missed(tried: &Tried, missed: &Missed) -> String {
    let table = missed.table.as_ref().map_or(OWN.to_owned(), |table| table.plain());
    let column =
        missed.column.as_ref().map_or(String::new(), |column| format!(", column {column}"));
    format!(
        "MISSED {} in {table}{column}: {} instead of {}\n",
        tried.name, missed.found, missed.expected
    )
}

fn verdict(tested: &Selftest) -> String {
    let missed: u64 = tested.mutations.iter().map(|tried| tried.missed.len() as u64).sum();
    let rows: u64 = tested.tables.iter().map(|(_, rows)| rows).sum();
    let is_own = |tried: &&Tried| tried.tables == [None];
    let own = match tested.mutations.iter().filter(is_own).count() {
        0 => String::new(),
        own => format!(", {own} mutations (own) in {OWN}: no sample has a value for them"),
    };
    format!(
        "{} {} of {} copies of {} rows of {} tables in {}{own}\n",
        if missed == 0 { "found what was planted in" } else { "MISSED what was planted in" },
        output::count(if missed == 0 { tested.copies } else { missed }),
        output::count(tested.copies),
        output::count(rows),
        tested.tables.len(),
        output::duration(tested.duration),
    )
}

fn found(tried: &Tried) -> usize {
    tried.tables.len() - tried.missed.len()
}

/// The result for scripts.
#[derive(Serialize)]
struct Told<'a> {
    found_all: bool,
    copies: u64,
    duration_ms: u64,
    tables: Vec<ToldTable>,
    left_out: Vec<ToldLeftOut<'a>>,
    mutations: Vec<ToldMutation<'a>>,
    missed: Vec<ToldMissed<'a>>,
}

#[derive(Serialize)]
struct ToldTable {
    table: String,
    rows: u64,
}

#[derive(Serialize)]
struct ToldLeftOut<'a> {
    table: String,
    because: &'a str,
}

#[derive(Serialize)]
struct ToldMutation<'a> {
    mutation: &'a str,
    says: &'a str,
    /// `null` is the table of our own.
    tables: Vec<Option<String>>,
    tried: usize,
    found: usize,
}

#[derive(Serialize)]
struct ToldMissed<'a> {
    mutation: &'a str,
    table: Option<String>,
    column: Option<&'a str>,
    expected: &'a str,
    found: &'a str,
}

impl<'a> Told<'a> {
    fn of(tested: &'a Selftest) -> Self {
        let mutation = |tried: &'a Tried| ToldMutation {
            mutation: tried.name,
            says: tried.says,
            tables: tried
                .tables
                .iter()
                .map(|table| table.as_ref().map(|name| name.plain()))
                .collect(),
            tried: tried.tables.len(),
            found: found(tried),
        };
        let missed = |tried: &'a Tried| {
            tried.missed.iter().map(|missed| ToldMissed {
                mutation: tried.name,
                table: missed.table.as_ref().map(|name| name.plain()),
                column: missed.column.as_deref(),
                expected: &missed.expected,
                found: &missed.found,
            })
        };
        let left_out = tested.left_out.iter();
        Self {
            found_all: tested.found_all(),
            copies: tested.copies,
            duration_ms: u64::try_from(tested.duration.as_millis()).unwrap_or(u64::MAX),
            tables: tested
                .tables
                .iter()
                .map(|(name, rows)| ToldTable { table: name.plain(), rows: *rows })
                .collect(),
            left_out: left_out
                .map(|skipped| ToldLeftOut {
                    table: skipped.name.plain(),
                    because: &skipped.because,
                })
                .collect(),
            mutations: tested.mutations.iter().map(mutation).collect(),
            missed: tested.mutations.iter().flat_map(missed).collect(),
        }
    }
}
