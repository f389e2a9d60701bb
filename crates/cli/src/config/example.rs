//! The commented example file, made from the table of keys.
//!
//! **Invariant:** the file loads as it is and every key of this version is in it. Prose lines begin with `# `, keys that
//! are only shown begin with `#` and no blank, so that taking those `#` away gives a valid file too.

use std::fmt::Write as _;

use super::keys::{KEYS, Key, Kind, SECTIONS, Section};

const HEAD: &str = "\
# Tidemark: the configuration of one job. Read it with `tidemark check -c FILE`, run it with `tidemark sync`.
#
# ${VAR}, ${VAR:-default} and ${file:PATH} are replaced in every string; $$ is one $. Flags of the command line win over
# this file. Sizes are written 64MiB, durations 5s. A key that begins with # is shown, not set.
";

/// Without these two nothing runs.
const NEEDED: [&str; 2] = ["source.url", "target.url"];

/// The file.
pub fn text() -> String {
    let mut text = HEAD.to_owned();
    for section in &SECTIONS {
        write_section(&mut text, section);
    }
    text
}

fn write_section(text: &mut String, section: &Section) {
    let header = if section.repeated {
        format!("#[[{}]]", section.name)
    } else {
        format!("[{}]", section.name)
    };
    text.push('\n');
    comment(text, section.why);
    writeln!(text, "{header}").ok();
    for key in KEYS.iter().filter(|key| key.section() == section.name) {
        write_key(text, section, key);
    }
}

fn write_key(text: &mut String, section: &Section, key: &Key) {
    comment(text, key.why);
    let choices = key.kind.choices().join(", ");
    match key.kind {
        Kind::Choice(_) => comment(text, &format!("One of: {choices}.")),
        Kind::Choices(_) => comment(text, &format!("Any of: {choices}.")),
        _ => {}
    }
    if key.default.is_none() {
        comment(text, &format!("Default: {}.", key.otherwise));
    }
    // A key with a literal default may stand as it is; so must those that are needed.
    let live = key.default.is_some() || NEEDED.contains(&key.path);
    let mark = if live && !section.repeated { "" } else { "#" };
    writeln!(text, "{mark}{} = {}", key.name(), key.example).ok();
}

/// Breaks a paragraph into lines of at most 110 characters.
fn comment(text: &mut String, paragraph: &str) {
    let mut line = String::from("#");
    for word in paragraph.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > 110 {
            writeln!(text, "{line}").ok();
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(text, "{line}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_in_the_example_is_the_default() {
        for key in KEYS {
            let Some(default) = key.default else { continue };
            let expected = match key.kind {
                Kind::Switch => default.to_owned(),
                _ => format!("{default:?}"),
            };
            assert_eq!(key.example, expected, "{}", key.path);
        }
    }
}
