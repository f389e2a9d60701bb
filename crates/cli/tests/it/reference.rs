//! The checked-in reference equals what the code writes.

use std::path::PathBuf;

#[test]
fn the_reference_is_up_to_date() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    let update = std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1");
    for (name, text) in tidemark::docs::pages() {
        let path = directory.join(name);
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == text,
            "docs/reference/{name} differs from the code: run UPDATE_DOCS=1 cargo test -p tidemark"
        );
    }
}

#[test]
fn the_reference_names_every_key_and_every_code() {
    let pages = tidemark::docs::pages();
    let page = |name: &str| &pages.iter().find(|(page, _)| *page == name).unwrap().1;
    for key in tidemark::config::keys::KEYS {
        assert!(page("configuration.md").contains(&format!("### `{}`", key.path)), "{}", key.path);
    }
    for code in tidemark::exit::ExitCode::ALL {
        let row = format!("| {} | {}", code.number(), code.meaning());
        assert!(page("exit-codes.md").contains(&row), "{row}");
    }
    for command in
        ["demo", "check", "sync", "status", "reset", "cleanup", "config check", "completions"]
    {
        assert!(page("commands.md").contains(&format!("## `tidemark {command}`")), "{command}");
    }
}

/// A code that no source file names is one that `check` does not give any more; one that is not in the table is refused
/// where it is made.
#[test]
fn every_code_of_a_finding_is_given_somewhere() {
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut text = String::new();
    for name in ["source", "sink", "pipeline"] {
        read_rust(&crates.join(name).join("src"), &mut text);
    }
    for code in tidemark_model::CODES {
        assert!(text.contains(&format!("\"{}\"", code.name)), "{} is given nowhere", code.name);
    }
}

fn read_rust(directory: &std::path::Path, into: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_rust(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
