//! The password file.
//!
//! **Invariant:** a file that others may read is not used, as libpq does not use it; the password is held only in a
//! [`Secret`].
//!
//! Lines are `host:port:database:user:password`, `*` matches all, `\` escapes `:` and `\`. PostgreSQL manual: libpq, "The
//! Password File".

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tidemark_model::Secret;

/// What a line has to match.
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The first password that matches, or `None`; a file that cannot be used is warned of.
pub(super) fn lookup(path: &Path, wanted: &Wanted<'_>) -> Option<Secret> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "password file is not a plain file, ignored");
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            "password file is readable by group or world, ignored: its mode should be 0600"
        );
        return None;
    }
    let text = std::fs::read(path).ok()?;
    find(&String::from_utf8_lossy(&text), wanted)
}

fn find(text: &str, wanted: &Wanted<'_>) -> Option<Secret> {
    let port = wanted.port.to_string();
    let fields = [wanted.host, &port, wanted.database, wanted.user];
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| password_of(line, &fields))
        .map(Secret::new)
}

fn password_of(line: &str, wanted: &[&str]) -> Option<String> {
    let mut rest = line;
    for field in wanted {
        let end = field_end(rest)?;
        let given = &rest[..end];
        if given != "*" && unescaped(given) != *field {
            return None;
        }
        rest = &rest[end + 1..];
    }
    let end = field_end(rest).unwrap_or(rest.len());
    Some(unescaped(&rest[..end])).filter(|password| !password.is_empty())
}

/// Index of the first colon that is not escaped.
fn field_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b':' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_match_as_libpq_matches_them() {
        let wanted = Wanted { host: "db.example", port: 5432, database: "a:b", user: "me" };
        for (text, expected) in [
            ("db.example:5432:a\\:b:me:secret", Some("secret")),
            ("*:*:*:*:star", Some("star")),
            ("# *:*:*:*:no\n*:*:*:me:yes", Some("yes")),
            ("other:*:*:*:no\ndb.example:*:*:*:first\n*:*:*:*:second", Some("first")),
            ("db.example:5433:*:*:no", None),
            ("*:*:*:*:with\\:colon\\\\", Some("with:colon\\")),
            ("*:*:*:*:cut:here", Some("cut")),
            ("*:*:*:*", None),
            ("*:*:*:*:", None),
        ] {
            let found = find(text, &wanted);
            assert_eq!(found.as_ref().map(Secret::reveal), expected, "{text}");
        }
    }
}
