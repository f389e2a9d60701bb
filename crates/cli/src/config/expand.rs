//! `${VAR}`, `${VAR:-default}` and `${file:PATH}` in the strings of the file; `$$` is one `$`.
//!
//! **Invariant:** what was expanded is not expanded again, and an error never shows a value, only the name of the variable
//! or file. A `$` before anything else stays as it is, so that regular expressions and passwords need no care.

use std::path::Path;

/// How a variable of the environment is looked up; an argument, so that tests need not change the process.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands one string; the error is a sentence about the reference that does not work.
pub fn expand(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(reference) = after.strip_prefix('{') {
            let Some((reference, after)) = reference.split_once('}') else {
                return Err("a `${` has no `}`; write `$$` for a plain `$`".to_owned());
            };
            expanded.push_str(&resolve(reference, lookup)?);
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn resolve(reference: &str, lookup: Lookup<'_>) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        return read(path);
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(fits) || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(format!("`${{{name}}}` is not the name of an environment variable"));
    }
    match (lookup(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the environment variable {name} is not set; set it, or write `${{{name}:-default}}`"
        )),
    }
}

/// The text of a file without its last line end, which editors and `echo` add.
fn read(path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(Path::new(path))
        .map_err(|error| format!("the file {path:?} of `${{file:...}}` cannot be read: {error}"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_environment(text: &str) -> Result<String, String> {
        expand(text, &|name| match name {
            "A" => Some("1${B}".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn references_are_replaced_once() {
        assert_eq!(with_environment("x${A}y").unwrap(), "x1${B}y");
        assert_eq!(with_environment("${NONE:-a:-b}").unwrap(), "a:-b");
        assert_eq!(with_environment("${EMPTY:-d}|${EMPTY}").unwrap(), "d|");
        assert_eq!(with_environment("$${A} ^a$ $b").unwrap(), "${A} ^a$ $b");
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        assert!(with_environment("${NONE}").unwrap_err().contains("NONE is not set"));
        assert!(with_environment("${A").unwrap_err().contains("no `}`"));
        assert!(with_environment("${}").unwrap_err().contains("not the name"));
        assert!(with_environment("${file:/no/such}").unwrap_err().contains("/no/such"));
    }

    #[test]
    fn a_file_loses_its_last_line_end_only() {
        let path = std::env::temp_dir().join(format!("tidemark-expand-{}", std::process::id()));
        std::fs::write(&path, "a\nb\r\n").unwrap();
        let text = with_environment(&format!("<${{file:{}}}>", path.display()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text.unwrap(), "<a\nb>");
    }
}
