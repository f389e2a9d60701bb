//! Which kind of place a URL names, and the little of a connection string that the command line itself needs.
//!
//! **Invariant:** the text of a connection string stays in a [`Secret`]; errors here show the scheme at most.
//!
//! **Not here:** what libpq's rules make of the string (`wire`); this looks for the database's name only.

use std::path::PathBuf;

use tidemark_model::Secret;

use super::expand::Lookup;
use crate::redact;

/// Where to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetUrl {
    /// A PostgreSQL: its connection string.
    Postgres(Secret),
    /// A directory of this machine, absolute.
    Directory(PathBuf),
    /// A prefix of a bucket; the prefix has no `/` at its ends and may be empty.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
}

impl TargetUrl {
    /// Parses a target; the error is a sentence about the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        plain_text(text)?;
        if is_postgres(text) {
            return Ok(Self::Postgres(Secret::new(text)));
        }
        if let Some(path) = text.strip_prefix("file://") {
            return directory(path);
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() || bucket.contains(['@', ':', '?']) {
                return Err("write s3://BUCKET/PREFIX; keys and endpoint come from the AWS_* environment variables".to_owned());
            }
            let prefix = prefix.trim_matches('/').to_owned();
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix });
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!(
                "targets of the scheme \"{scheme}://\" are not known: write postgres://..., file:///DIRECTORY or s3://BUCKET/PREFIX"
            ));
        }
        Err(format!(
            "this is no URL: write postgres://USER@HOST/DATABASE, s3://BUCKET/PREFIX, or for a directory {}",
            as_file_url(text)
        ))
    }

    /// What may be shown.
    pub fn redacted(&self) -> String {
        match self {
            Self::Postgres(text) => redact::connection(text.reveal()),
            Self::Directory(path) => format!("file://{}", path.display()),
            Self::S3 { bucket, prefix } => format!("s3://{bucket}/{prefix}"),
        }
    }

    /// Whether it is a lake.
    pub fn is_lake(&self) -> bool {
        !matches!(self, Self::Postgres(_))
    }
}

/// Parses a source; the error is a sentence about the text.
pub fn source(text: &str) -> Result<Secret, String> {
    plain_text(text)?;
    if is_postgres(text) {
        return Ok(Secret::new(text));
    }
    let what = match text.split_once("://") {
        Some((scheme, _)) => format!("sources of the scheme \"{scheme}://\" are not known"),
        None => "this is no connection string".to_owned(),
    };
    Err(format!("{what}: write postgres://USER@HOST/DATABASE or \"host=... dbname=...\""))
}

/// The database that a connection string names, as far as the string and `PGDATABASE` say; libpq falls back to the user.
pub fn database(text: &str, lookup: Lookup<'_>) -> Option<String> {
    let environment = |name| lookup(name).filter(|value| !value.is_empty());
    let by_string = match text.split_once("://") {
        Some((_, rest)) => url_database(rest),
        None => keyword(text, "dbname"),
    };
    by_string
        .or_else(|| environment("PGDATABASE"))
        .or_else(|| user(text))
        .or_else(|| environment("PGUSER"))
}

fn is_postgres(text: &str) -> bool {
    text.starts_with("postgres://")
        || text.starts_with("postgresql://")
        || (!text.contains("://") && text.contains('='))
}

/// A line end out of `${file:...}` or a NUL cannot be part of a connection string.
fn plain_text(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("this is empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("this holds a line end or another control character".to_owned());
    }
    Ok(())
}

fn directory(path: &str) -> Result<TargetUrl, String> {
    let path = path.strip_prefix("localhost").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    if !path.starts_with('/') {
        return Err(format!("a directory is absolute: write {}", as_file_url(path)));
    }
    let decoded = percent_decode(path).ok_or("the percent-encoding in it is broken")?;
    if decoded.trim_matches('/').is_empty() {
        return Err("the root directory cannot be a target: write file:///DIRECTORY".to_owned());
    }
    Ok(TargetUrl::Directory(PathBuf::from(decoded)))
}

fn as_file_url(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    if path.starts_with('/') {
        return format!("file://{path}");
    }
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    format!("file://{}", here.join(path).display())
}

fn url_database(rest: &str) -> Option<String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parameter = query.split('&').find_map(|pair| pair.strip_prefix("dbname="));
    // After the last `@`, because a password that is not encoded may hold a slash.
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let path = host.split_once('/').map(|(_, path)| path);
    let name = percent_decode(parameter.or(path)?)?;
    (!name.is_empty()).then_some(name)
}

fn user(text: &str) -> Option<String> {
    let Some((_, rest)) = text.split_once("://") else {
        return keyword(text, "user");
    };
    let (information, _) = rest.rsplit_once('@')?;
    let name = percent_decode(information.split(':').next()?)?;
    (!name.is_empty()).then_some(name)
}

/// The value of a keyword in keyword form; the last one counts, as in libpq.
fn keyword(text: &str, wanted: &str) -> Option<String> {
    let mut found = None;
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=') {
            name.push(c);
        }
        if chars.next().is_none() {
            return found;
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let value = keyword_value(&mut chars);
        if name.trim() == wanted && !value.is_empty() {
            found = Some(value);
        }
    }
}

fn keyword_value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let quoted = chars.next_if_eq(&'\'').is_some();
    let mut value = String::new();
    while let Some(c) = chars.next_if(|c| quoted || !c.is_whitespace()) {
        match c {
            '\\' => value.extend(chars.next()),
            '\'' if quoted => break,
            c => value.push(c),
        }
    }
    value
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_by_their_scheme() {
        assert!(matches!(TargetUrl::parse("postgresql://h/d"), Ok(TargetUrl::Postgres(_))));
        assert!(matches!(TargetUrl::parse("host=h dbname=d"), Ok(TargetUrl::Postgres(_))));
        assert_eq!(
            TargetUrl::parse("file:///la%20ke/"),
            Ok(TargetUrl::Directory(PathBuf::from("/la ke/")))
        );
        assert_eq!(
            TargetUrl::parse("s3://b/p/q/"),
            Ok(TargetUrl::S3 { bucket: "b".to_owned(), prefix: "p/q".to_owned() })
        );
    }

    #[test]
    fn a_wrong_target_says_what_to_write() {
        assert!(TargetUrl::parse("/lake").unwrap_err().contains("file:///lake"));
        assert!(TargetUrl::parse("file://lake").unwrap_err().contains("/lake"));
        assert!(TargetUrl::parse("mysql://u:S3cr3t@h").unwrap_err().contains("mysql://"));
        assert!(!TargetUrl::parse("mysql://u:S3cr3t@h").unwrap_err().contains("S3cr3t"));
        for wrong in
            ["", "  ", "file:///", "s3://", "s3://key:secret@b/p", "file:///a%zz", "postgres://h\n"]
        {
            assert!(TargetUrl::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_database_is_found_where_libpq_finds_it() {
        let none = |_: &str| None;
        for (text, name) in [
            ("postgres://u:p@h:5432/shop?sslmode=require", Some("shop")),
            ("postgres://u:a/b@h/shop", Some("shop")),
            ("postgres://u@h/my%20shop", Some("my shop")),
            ("postgres://u@h/x?dbname=y", Some("y")),
            ("postgres:///shop?host=/tmp", Some("shop")),
            ("postgres://u@h", Some("u")),
            ("postgres://h", None),
            ("host=h user = u dbname = 'my \\' db'", Some("my ' db")),
            ("host=h user=u", Some("u")),
        ] {
            assert_eq!(database(text, &none).as_deref(), name, "{text}");
        }
        let environment = |name: &str| (name == "PGDATABASE").then(|| "env".to_owned());
        assert_eq!(database("postgres://u@h", &environment).as_deref(), Some("env"));
    }
}
