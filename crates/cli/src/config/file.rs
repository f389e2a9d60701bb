//! Reads the file: syntax, known keys, and where each key stands.
//!
//! **Invariant:** after [`ConfigFile::parse`] every key of the file is in [`keys`](super::keys), and its place is known. A
//! misspelt key is answered with the nearest known one, a key of a later version with that sentence.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Place};
use super::keys::{KEYS, SECTIONS, section};
use super::raw::RawConfig;

/// A parsed file.
#[derive(Debug)]
pub(super) struct ConfigFile {
    pub(super) name: String,
    pub(super) raw: RawConfig,
    /// Place of the value of `section.key`, `table[0].key`, and of `table[0]` itself.
    places: HashMap<String, Place>,
}

impl ConfigFile {
    /// Reads and parses a file; `-` is stdin.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let name =
            if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let text = if path == Path::new("-") { read_stdin() } else { fs::read_to_string(path) };
        match text {
            Ok(text) => Self::parse(&name, &text),
            Err(source) => Err(ConfigError::Read { file: name, source }),
        }
    }

    /// Parses the text of a file.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let syntax = |error: &toml::de::Error| syntax_error(name, text, error);
        let table = DeTable::parse(text).map_err(|error| syntax(&error))?;
        let mut walk = Walk { name, text, places: HashMap::new() };
        walk.file(table.get_ref())?;
        let raw = toml::from_str(text).map_err(|error| syntax(&error))?;
        Ok(Self { name: name.to_owned(), raw, places: walk.places })
    }

    /// Where the value of a key stands.
    pub(super) fn place(&self, key: &str) -> Option<&Place> {
        self.places.get(key)
    }
}

fn read_stdin() -> io::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// The parser's message without any value of the file in it.
fn syntax_error(name: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let mut message = error.message().lines().collect::<Vec<_>>().join(", ");
    for found in ["invalid type: string \"", "invalid value: string \""] {
        if let Some(rest) = message.strip_prefix(found) {
            let expected =
                rest.rsplit_once("\", expected ").map_or("another type", |(_, what)| what);
            message = format!("a text stands where {expected} is expected");
        }
    }
    match error.span() {
        Some(span) => ConfigError::At { place: place(name, text, span.start), message, hint: None },
        None => ConfigError::Plain { message: format!("{name}: {message}"), hint: None },
    }
}

fn place(name: &str, text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Place {
        file: name.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

struct Walk<'a> {
    name: &'a str,
    text: &'a str,
    places: HashMap<String, Place>,
}

impl Walk<'_> {
    fn file(&mut self, table: &DeTable<'_>) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let at = self.place(key.span().start);
            let Some(section) = section(name) else {
                return Err(unknown_section(name, at));
            };
            match value.get_ref() {
                DeValue::Table(table) if !section.repeated => self.section(name, name, table)?,
                DeValue::Array(entries) if section.repeated => {
                    for (index, entry) in entries.iter().enumerate() {
                        let prefix = format!("{name}[{index}]");
                        let at = self.place(entry.span().start);
                        self.places.insert(prefix.clone(), at);
                        if let DeValue::Table(table) = entry.get_ref() {
                            self.section(name, &prefix, table)?;
                        }
                    }
                }
                _ => return Err(wrong_shape(section.repeated, name, at)),
            }
        }
        Ok(())
    }

    fn section(
        &mut self,
        section: &str,
        prefix: &str,
        table: &DeTable<'_>,
    ) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !KEYS.iter().any(|known| known.section() == section && known.name() == name) {
                return Err(unknown_key(section, name, self.place(key.span().start)));
            }
            let at = self.place(value.span().start);
            self.places.insert(format!("{prefix}.{name}"), at);
        }
        Ok(())
    }

    fn place(&self, offset: usize) -> Place {
        place(self.name, self.text, offset)
    }
}

fn wrong_shape(repeated: bool, name: &str, place: Place) -> ConfigError {
    let header = if repeated { format!("[[{name}]]") } else { format!("[{name}]") };
    ConfigError::At {
        place,
        message: format!("{name} is not a section"),
        hint: Some(format!("write {header} on a line by itself and its keys below")),
    }
}

const LIST: &str = "`tidemark config example` prints every key";

fn unknown_section(name: &str, place: Place) -> ConfigError {
    let mut message = format!("unknown key {name:?}");
    let sections = SECTIONS.iter().map(|section| section.name);
    if let Some(near) = nearest(name, sections) {
        message = format!("unknown section [{name}]; did you mean [{near}]?");
    } else if let Some(key) = KEYS.iter().find(|key| key.name() == name) {
        message = format!("unknown key {name:?} outside a section; did you mean {}?", key.path);
    }
    ConfigError::At { place, message, hint: Some(LIST.to_owned()) }
}

fn unknown_key(section: &str, name: &str, place: Place) -> ConfigError {
    let in_section = || KEYS.iter().filter(|key| key.section() == section).map(|key| key.name());
    let elsewhere = KEYS.iter().find(|key| key.name() == name);
    let message = match (nearest(name, in_section()), elsewhere) {
        (Some(near), _) => format!("unknown key {name:?} in [{section}]; did you mean {near:?}?"),
        (None, Some(key)) => {
            format!("unknown key {name:?} in [{section}]; did you mean {}?", key.path)
        }
        (None, None) => {
            let known = in_section().collect::<Vec<_>>().join(", ");
            format!("unknown key {name:?} in [{section}]; it has {known}")
        }
    };
    ConfigError::At { place, message, hint: Some(LIST.to_owned()) }
}

/// The nearest word, if it is near enough to be meant: at most a third of its letters differ, or one is the beginning of
/// the other.
pub(super) fn nearest<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, word) = words.map(|word| (edit_distance(name, word), word)).min()?;
    let allowed = name.chars().count().max(word.chars().count()).div_ceil(3);
    let begins =
        name.len() >= 3 && word.len() >= 3 && (word.starts_with(name) || name.starts_with(word));
    (distance <= allowed || begins).then_some(word)
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_letters() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("ä", "a"), 1);
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        let words = ["readers", "chunk_bytes", "lock_timeout"];
        assert_eq!(nearest("reader", words.into_iter()), Some("readers"));
        assert_eq!(nearest("chunk_size", words.into_iter()), Some("chunk_bytes"));
        assert_eq!(nearest("compression", words.into_iter()), None);
        assert_eq!(nearest("lock_timout", words.into_iter()), Some("lock_timeout"));
        assert_eq!(nearest("x", words.into_iter()), None);
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(place("f", "a\näöx", 6), Place { file: "f".to_owned(), line: 2, column: 3 });
    }
}
