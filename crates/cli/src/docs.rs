//! The reference, made from the tables that the program runs on.
//!
//! **Invariant:** `docs/reference/*.md` equals what this module writes; a test compares them (`UPDATE_DOCS=1` rewrites).

use std::fmt::Write as _;

use clap::CommandFactory as _;

use tidemark_model::{CODES, Side};

use crate::args::Cli;
use crate::config::keys::{KEYS, Key, Kind, SECTIONS};
use crate::exit::{ExitCode, Failure};

const GENERATED: &str =
    "<!-- Made from the code; `UPDATE_DOCS=1 cargo test -p tidemark` writes it anew. -->\n";

/// Every page: its name under `docs/reference` and its text.
pub fn pages() -> Vec<(&'static str, String)> {
    vec![
        ("commands.md", commands()),
        ("configuration.md", configuration()),
        ("exit-codes.md", exit_codes()),
        ("findings.md", findings()),
    ]
}

/// `configuration.md`
pub fn configuration() -> String {
    let mut text = format!("# Configuration\n\n{GENERATED}\n");
    text.push_str(
        "The file is TOML; `-c FILE` names it, and without that `tidemark.toml` is read if it exists.\n\
         Flags win over the file, the file over the defaults below.\n\
         A key that is not listed here is refused.\n\n\
         `${VAR}`, `${VAR:-default}` and `${file:PATH}` are replaced in every string of the file; `$$` is one `$`.\n\
         A file's last line end is left out.\n\
         What was put in is not looked at again.\n\n\
         Sizes are a whole number with `B`, `kB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB` or `TiB`; durations one with `ms`, `s`, `m`, `h` or `d`.\n\n\
         `tidemark config example` prints a file with all of this, `tidemark config check` what is in force, `tidemark config schema` a JSON schema.\n",
    );
    for section in &SECTIONS {
        let header = if section.repeated {
            format!("[[{}]]", section.name)
        } else {
            format!("[{}]", section.name)
        };
        write!(text, "\n## `{header}`\n\n{}\n", section.why).ok();
        for key in KEYS.iter().filter(|key| key.section() == section.name) {
            write_key(&mut text, key);
        }
    }
    text
}

fn write_key(text: &mut String, key: &Key) {
    let default = match key.default {
        Some(default) => format!("`\"{default}\"`"),
        None => key.otherwise.to_owned(),
    };
    write!(text, "\n### `{}`\n\n{}\n\n", key.path, key.why.replace(". ", ".\n")).ok();
    writeln!(text, "- Type: {}", key.kind.name()).ok();
    let choices = key.kind.choices().join("`, `");
    match key.kind {
        Kind::Choice(_) => writeln!(text, "- One of: `{choices}`").ok(),
        Kind::Choices(_) => writeln!(text, "- Any of: `{choices}`").ok(),
        _ => None,
    };
    writeln!(text, "- Default: {default}").ok();
    writeln!(text, "- Example: `{} = {}`", key.name(), key.example).ok();
}

/// `exit-codes.md`
pub fn exit_codes() -> String {
    let mut text = format!("# Exit codes\n\n{GENERATED}\n");
    text.push_str("| code | meaning | what to do |\n|---|---|---|\n");
    for code in ExitCode::ALL {
        writeln!(text, "| {} | {} | {} |", code.number(), code.meaning(), code.way_out()).ok();
    }
    text.push_str(
        "\nWhere several hold, 6, 7 and 8 come before 1, then 3, then 4.\n\
         A reader of stdout that goes away early, as in `tidemark status | head`, is no failure.\n",
    );
    text
}

/// `findings.md`
pub fn findings() -> String {
    let mut text = format!("# Findings of `check`\n\n{GENERATED}\n");
    text.push_str(
        "`tidemark check` looks at both sides and says what stands in the way, what is at risk and what is good to know; it changes nothing.\n\
         `sync` looks in the same way before anything moves.\n\
         A blocking finding means exit code 5.\n\n\
         For people, findings that differ in their object only are one entry; `--json` has each by itself.\n\
         It is an array, the worst first:\n\n\
         ```json\n\
         [\n  {\n    \"severity\": \"blocking\",\n    \"code\": \"select-right\",\n    \"object\": \"\\\"app\\\".\\\"orders\\\"\",\n    \
         \"message\": \"the role may not read the table\",\n    \"fix\": \"GRANT SELECT ON \\\"app\\\".\\\"orders\\\" TO \\\"mover\\\"\"\n  }\n]\n\
         ```\n\n\
         | field | |\n|---|---|\n\
         | `severity` | `blocking`: the job would fail or lose something and is not started; `warning`: it runs, but something is not carried or is at risk; `note` |\n\
         | `code` | one of those below; it never changes its meaning |\n\
         | `object` | the table, column, role or setting, quoted as in SQL |\n\
         | `message` | what was found and why it matters |\n\
         | `fix` | the SQL, setting or command that mends it, with the names filled in; `null` where there is none |\n",
    );
    let sides = [
        (Side::Source, "The source, and what is asked of both servers"),
        (Side::Target, "A PostgreSQL target"),
        (Side::Lake, "A Parquet target"),
        (Side::Here, "This machine and the way to the servers"),
    ];
    for (side, title) in sides {
        write!(text, "\n## {title}\n\n| code | severity | what it means | how to mend it |\n|---|---|---|---|\n").ok();
        for code in CODES.iter().filter(|code| code.side == side) {
            let severities: Vec<&str> = code.severities.iter().map(|one| one.word()).collect();
            let severities = severities.join(", ");
            writeln!(text, "| `{}` | {severities} | {} | {} |", code.name, code.meaning, code.mend)
                .ok();
        }
    }
    text
}

/// `commands.md`
pub fn commands() -> String {
    let mut text = format!("# Commands\n\n{GENERATED}\n");
    text.push_str("Results go to stdout, messages and progress to stderr.\n");
    let mut root = command();
    let global: Vec<String> = root.get_arguments().map(|arg| arg.get_id().to_string()).collect();
    write_command(&mut text, &mut root, "tidemark", &[]);
    let mut names: Vec<(String, clap::Command)> = Vec::new();
    collect(&root, "tidemark", &mut names);
    for (name, mut command) in names {
        write_command(&mut text, &mut command, &name, &global);
    }
    text
}

/// The manual page of the program with all its commands.
///
/// # Errors
/// It cannot be written, which is a defect of ours.
pub fn man_page() -> Result<String, Failure> {
    let wrong = |error: std::io::Error| Failure::internal("write the manual page").because(&error);
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command());
    man.render(&mut page).map_err(wrong)?;
    let mut text = String::from_utf8_lossy(&page).into_owned();
    text.push_str(".SH \"EXIT STATUS\"\n");
    for code in ExitCode::ALL {
        write!(text, ".TP\n\\fB{}\\fR\n{}\n", code.number(), code.meaning()).ok();
    }
    Ok(text)
}

fn command() -> clap::Command {
    let mut command = Cli::command().term_width(100).color(clap::ColorChoice::Never);
    command.build();
    command
}

fn collect(command: &clap::Command, path: &str, names: &mut Vec<(String, clap::Command)>) {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name = format!("{path} {}", sub.get_name());
        names.push((name.clone(), sub.clone().term_width(100)));
        collect(sub, &name, names);
    }
}

/// The help as the program prints it; the global options are printed once, for the program itself.
fn write_command(text: &mut String, command: &mut clap::Command, name: &str, global: &[String]) {
    let mut shown = command.clone();
    for id in global {
        shown =
            shown.mut_args(|arg| if arg.get_id() == id.as_str() { arg.hide(true) } else { arg });
    }
    let help = shown.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(text, "\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end()).ok();
}
