//! The keyword form of a connection string, and the lines of a service file.
//!
//! **Invariant:** an error never repeats a value, nor a word behind a password, which may be a piece of it.
//!
//! `name = value name = 'quoted \' value'`. PostgreSQL manual: libpq, "Keyword/Value Connection Strings".

use std::iter::Peekable;
use std::str::Chars;

use super::options::Options;
use crate::error::Fault;

/// Parses `name=value` pairs; later ones win.
pub(super) fn parse(text: &str) -> Result<Options, Fault> {
    let mut options = Options::default();
    let mut chars = text.chars().peekable();
    let mut echo = true;
    let mut count = 0;
    loop {
        skip_spaces(&mut chars);
        if chars.peek().is_none() {
            return Ok(options);
        }
        count += 1;
        let name = name(&mut chars);
        skip_spaces(&mut chars);
        if chars.next_if_eq(&'=').is_none() {
            return Err(missing_equals(count));
        }
        skip_spaces(&mut chars);
        let value = value(&mut chars)?;
        options.set(&name, &value, echo)?;
        echo &= name != "password";
    }
}

fn missing_equals(count: usize) -> Fault {
    if count == 1 {
        return Fault::usage(
            "not a connection string: expected postgres://user@host/database or \"host=... dbname=...\"",
        );
    }
    Fault::usage(format!(
        "the connection string has no '=' after the name of option {count} (a value with spaces stands in single quotes)"
    ))
}

fn skip_spaces(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
}

fn name(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
        name.push(c);
    }
    name
}

fn value(chars: &mut Peekable<Chars<'_>>) -> Result<String, Fault> {
    let mut value = String::new();
    let quoted = chars.next_if_eq(&'\'').is_some();
    loop {
        let next = if quoted { chars.next() } else { chars.next_if(|c| !c.is_ascii_whitespace()) };
        match next {
            Some('\'') if quoted => return Ok(value),
            Some('\\') => value.extend(chars.next()),
            Some(c) => value.push(c),
            None if quoted => {
                return Err(Fault::usage("the connection string has a quote that is not closed"));
            }
            None => return Ok(value),
        }
    }
}
