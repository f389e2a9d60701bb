//! The URL form of a connection string.
//!
//! **Invariant:** an error never repeats a piece of the text: a password with an unencoded `/` or `@` can end up anywhere.
//!
//! `postgres://[user[:password]@][host][:port][/dbname][?name=value&...]`. PostgreSQL manual: libpq, "Connection URIs".

use percent_encoding::percent_decode_str;

use super::options::Options;
use crate::error::Fault;

/// The rest of a text that begins as a URL does.
pub(super) fn strip_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"))
}

/// Parses what follows the scheme. Later options win, as in libpq.
pub(super) fn parse(rest: &str) -> Result<Options, Fault> {
    let mut options = Options::default();
    // As libpq: user information ends at the first '@', unless a '/' comes before it.
    let before_path = rest.split('/').next().unwrap_or_default();
    let rest = match before_path.find('@') {
        Some(at) => {
            user_info(&rest[..at], &mut options)?;
            &rest[at + 1..]
        }
        None => rest,
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (rest, None),
    };
    if place.contains('@') {
        return Err(Fault::usage(
            "the URL has an unexpected '@': encode special characters of the password with percent signs ('/' is %2F, '@' is %40)",
        ));
    }
    let (authority, database) = match place.split_once('/') {
        Some((authority, database)) => (authority, Some(database)),
        None => (place, None),
    };
    host_and_port(authority, &mut options)?;
    if let Some(database) = database {
        set_decoded(&mut options, "dbname", database)?;
    }
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        parameter(pair, &mut options)?;
    }
    Ok(options)
}

fn user_info(text: &str, options: &mut Options) -> Result<(), Fault> {
    match text.split_once(':') {
        Some((user, password)) => {
            set_decoded(options, "user", user)?;
            set_decoded(options, "password", password)
        }
        None => set_decoded(options, "user", text),
    }
}

fn host_and_port(authority: &str, options: &mut Options) -> Result<(), Fault> {
    if authority.contains(',') {
        return Err(Fault::usage("the URL lists several hosts: name the one server to use"));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(literal) => {
            let (host, after) = literal
                .split_once(']')
                .ok_or_else(|| Fault::usage("the URL has '[' without ']' in its host"))?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(|| {
                    Fault::usage("the URL has something other than a port after ']'")
                })?),
            };
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if !host.is_empty() {
        set_decoded(options, "host", host)?;
    }
    if let Some(port) = port {
        set_decoded(options, "port", port)?;
    }
    Ok(())
}

fn parameter(pair: &str, options: &mut Options) -> Result<(), Fault> {
    let (name, value) =
        pair.split_once('=').ok_or_else(|| Fault::usage("the URL has an option without '='"))?;
    let name = decoded(name)?;
    let value = decoded(value)?;
    // As JDBC writes it; libpq understands this one.
    if name == "ssl" && value == "true" {
        return options.set("sslmode", "require", true);
    }
    options.set(&name, &value, !name.contains(['@', ':', '/']))
}

fn set_decoded(options: &mut Options, name: &str, text: &str) -> Result<(), Fault> {
    options.set(name, &decoded(text)?, true)
}

fn decoded(text: &str) -> Result<String, Fault> {
    let bytes = text.as_bytes();
    for (index, _) in text.match_indices('%') {
        let digits = bytes.get(index + 1..index + 3).unwrap_or_default();
        if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(Fault::usage(
                "the URL has a '%' that is not followed by two hexadecimal digits",
            ));
        }
    }
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Fault::usage("the URL is not UTF-8 once its percent signs are decoded"))
}
