//! Which options a connection string may have and where each also comes from.
//!
//! **Invariant:** an option that changes who is trusted is either obeyed or refused, never ignored.
//!
//! PostgreSQL manual: libpq, "Parameter Key Words" and "Environment Variables".

use std::collections::BTreeMap;

use tidemark_model::Secret;

use crate::error::Fault;

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    Used,
    /// It has no meaning here and nothing depends on it.
    Ignored,
    Refused,
}

use Treatment::{Ignored, Refused, Used};

/// Keyword, environment variable, treatment.
const OPTIONS: &[(&str, &str, Treatment)] = &[
    ("service", "PGSERVICE", Used),
    ("servicefile", "PGSERVICEFILE", Used),
    ("host", "PGHOST", Used),
    ("hostaddr", "PGHOSTADDR", Used),
    ("port", "PGPORT", Used),
    ("dbname", "PGDATABASE", Used),
    ("user", "PGUSER", Used),
    ("password", "PGPASSWORD", Used),
    ("passfile", "PGPASSFILE", Used),
    ("options", "PGOPTIONS", Used),
    ("application_name", "PGAPPNAME", Used),
    ("fallback_application_name", "", Ignored),
    ("client_encoding", "PGCLIENTENCODING", Ignored),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Used),
    ("channel_binding", "PGCHANNELBINDING", Used),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Used),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Ignored),
    ("sslmode", "PGSSLMODE", Used),
    ("sslnegotiation", "PGSSLNEGOTIATION", Used),
    ("sslrootcert", "PGSSLROOTCERT", Used),
    ("sslcert", "PGSSLCERT", Used),
    ("sslkey", "PGSSLKEY", Used),
    ("sslsni", "PGSSLSNI", Used),
    ("sslcompression", "PGSSLCOMPRESSION", Ignored),
    ("sslcertmode", "PGSSLCERTMODE", Refused),
    ("sslpassword", "", Refused),
    ("sslcrl", "PGSSLCRL", Refused),
    ("sslcrldir", "PGSSLCRLDIR", Refused),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Used),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Refused),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Ignored),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
    ("requirepeer", "PGREQUIREPEER", Refused),
    ("require_auth", "PGREQUIREAUTH", Refused),
    ("gssencmode", "PGGSSENCMODE", Used),
    ("krbsrvname", "PGKRBSRVNAME", Ignored),
    ("gsslib", "PGGSSLIB", Ignored),
    ("gssdelegation", "PGGSSDELEGATION", Ignored),
    ("keepalives", "", Used),
    ("keepalives_idle", "", Used),
    ("keepalives_interval", "", Used),
    ("keepalives_count", "", Used),
    ("tcp_user_timeout", "", Used),
    ("replication", "", Refused),
];

/// Every variable that a libpq program reads. Remove them from a child's environment before adding
/// [`ConnectSpec::libpq_env`](crate::ConnectSpec::libpq_env): an inherited `PGSERVICE` would win over `PGHOST`.
pub const LIBPQ_VARIABLES: &[&str] = &[
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGOPTIONS",
    "PGAPPNAME",
    "PGCLIENTENCODING",
    "PGCONNECT_TIMEOUT",
    "PGCHANNELBINDING",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
    "PGSSLMODE",
    "PGREQUIRESSL",
    "PGSSLNEGOTIATION",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLSNI",
    "PGSSLCOMPRESSION",
    "PGSSLCERTMODE",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
    "PGMINPROTOCOLVERSION",
    "PGMAXPROTOCOLVERSION",
    "PGREQUIREPEER",
    "PGREQUIREAUTH",
    "PGGSSENCMODE",
    "PGKRBSRVNAME",
    "PGGSSLIB",
    "PGGSSDELEGATION",
    "PGDATESTYLE",
    "PGTZ",
    "PGGEQO",
];

/// Options as they were given, from any source.
#[derive(Clone, Default)]
pub(super) struct Options {
    given: BTreeMap<&'static str, Secret>,
}

impl Options {
    /// Sets an option; `echo` says whether its name may be repeated in an error.
    pub(super) fn set(&mut self, name: &str, value: &str, echo: bool) -> Result<(), Fault> {
        let Some(&(keyword, _, treatment)) = OPTIONS.iter().find(|option| option.0 == name) else {
            return Err(unknown(name, echo));
        };
        if value.contains('\0') {
            return Err(Fault::usage(format!("option \"{keyword}\" contains a zero byte")));
        }
        match treatment {
            Used => drop(self.given.insert(keyword, Secret::new(value))),
            Ignored => {}
            Refused if value.is_empty() => {}
            Refused => {
                return Err(Fault::usage(format!("option \"{keyword}\" is not supported")));
            }
        }
        Ok(())
    }

    /// Fills what is missing from another source.
    pub(super) fn fill(&mut self, from: &Self) {
        for (name, value) in &from.given {
            self.given.entry(name).or_insert_with(|| value.clone());
        }
    }

    /// Fills what is missing from the environment.
    pub(super) fn fill_from_env(
        &mut self,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<(), Fault> {
        for &(keyword, variable, _) in OPTIONS {
            if variable.is_empty() || self.given.contains_key(keyword) {
                continue;
            }
            if let Some(value) = env(variable) {
                self.set(keyword, &value, true)?;
            }
        }
        Ok(())
    }

    /// A value; libpq treats an empty one as not given.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(OPTIONS.iter().any(|option| option.0 == name));
        self.given.get(name).map(Secret::reveal).filter(|value| !value.is_empty())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A whole number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Fault> {
        // The value is not repeated: a badly encoded URL can have half a password here.
        self.get(name)
            .map(|text| {
                text.trim()
                    .parse()
                    .map_err(|_| Fault::usage(format!("option \"{name}\" is not a valid number")))
            })
            .transpose()
    }
}

fn unknown(name: &str, echo: bool) -> Fault {
    if !echo || name.len() > 40 {
        return Fault::usage("the connection string has an option that is not known");
    }
    let near = OPTIONS.iter().map(|option| option.0).min_by_key(|known| distance(known, name));
    let near = near.filter(|known| distance(known, name) <= 3);
    let suggestion = near.map(|known| format!(", did you mean \"{known}\"?")).unwrap_or_default();
    Fault::usage(format!("option \"{}\" is not known{suggestion}", name.escape_debug()))
}

/// Levenshtein distance, for the suggestion.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let cost = (diagonal + usize::from(l != *r)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_option_gets_a_suggestion() {
        let error = Options::default().set("ssl_mode", "require", true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "option \"ssl_mode\" is not known, did you mean \"sslmode\"?"
        );
    }

    #[test]
    fn an_option_that_changes_trust_is_refused_not_ignored() {
        for name in ["sslcrl", "requirepeer", "require_auth", "sslpassword"] {
            let error = Options::default().set(name, "x", true).unwrap_err();
            assert!(error.to_string().contains("not supported"), "{name}");
        }
    }

    #[test]
    fn every_variable_of_an_option_is_one_that_children_must_not_inherit() {
        for (_, variable, _) in OPTIONS {
            assert!(variable.is_empty() || LIBPQ_VARIABLES.contains(variable), "{variable}");
        }
    }
}
