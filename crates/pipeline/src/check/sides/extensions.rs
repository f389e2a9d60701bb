//! Extensions: what the source's schema needs, and what the target's server has, at which version, for whom.
//!
//! **Invariant:** a schema that is created has every extension of the source's database, because its dump has.

use tidemark_model::sql::Ident;
use tidemark_model::{Finding, Severity};
use tidemark_source::Server;
use tidemark_wire::tokio_postgres::Row;

use super::Sides;
use crate::Result;

/// By name: installed, to be had, and whether the role may create it. `plpgsql` is everywhere.
const THERE: &str = "
SELECT w.name, w.version, i.extversion, a.default_version,
  NOT coalesce(v.superuser, false) OR coalesce(v.trusted, false) AND has_database_privilege(current_database(), 'CREATE')
    OR (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
FROM unnest($1::text[], $2::text[]) AS w(name, version)
LEFT JOIN pg_catalog.pg_extension i ON i.extname = w.name
LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = w.name
LEFT JOIN pg_catalog.pg_available_extension_versions v ON v.name = w.name AND v.version = a.default_version
WHERE w.name <> 'plpgsql' ORDER BY w.name";

impl Sides<'_> {
    pub(super) async fn extensions(&self, server: &Server) -> Result<Vec<Finding>> {
        let (names, versions): (Vec<&str>, Vec<&str>) = self
            .catalog
            .extensions
            .iter()
            .map(|(name, version)| (name.as_str(), version.as_str()))
            .unzip();
        let rows = self
            .target
            .query(THERE, &[&names, &versions])
            .await
            .map_err(tidemark_wire::Error::sql("list the target's extensions"))?;
        Ok(rows.iter().filter_map(|row| self.extension(server, row)).collect())
    }

    fn extension(&self, server: &Server, row: &Row) -> Option<Finding> {
        let (name, wanted): (String, String) = (row.get(0), row.get(1));
        let (installed, offered): (Option<String>, Option<String>) = (row.get(2), row.get(3));
        let may_create: bool = row.get(4);
        let ident = Ident(&name);
        let object = format!("extension {ident}");
        let blocking = |code, message: String, fix: String| {
            Some(Finding::new(Severity::Blocking, code, &object, message).with_fix(fix))
        };
        let creates = self.job.creates() && installed.is_none();
        let Some(there) = installed.as_ref().or(offered.as_ref()) else {
            // Columns of its types are compared by themselves where the tables are there.
            let of_tables = if self.is_of_a_column(&name) {
                "types of the chosen tables are its"
            } else {
                "the schema has it"
            };
            let message = format!("the target server does not have the extension: {of_tables}");
            let fix = "install the extension's package on the target server".to_owned();
            return creates.then(|| blocking("target-extension", message, fix)).flatten();
        };
        if creates && !may_create {
            let message =
                "the schema needs the extension, and only a superuser may create it there"
                    .to_owned();
            let database = Ident(&server.database);
            let fix = format!(
                "as a superuser, in database {database} of the target: CREATE EXTENSION {ident}"
            );
            return blocking("target-extension-right", message, fix);
        }
        let is_used = self.job.creates() || installed.is_some();
        (is_used && is_older(there, &wanted)).then(|| {
            let message = format!("the target has version {there}, the source {wanted}");
            let fix = match installed {
                Some(_) => format!("in the target database: ALTER EXTENSION {ident} UPDATE"),
                None => "install a newer package of the extension on the target server".to_owned(),
            };
            Finding::new(Severity::Warning, "target-extension-older", &object, message)
                .with_fix(fix)
        })
    }

    fn is_of_a_column(&self, extension: &str) -> bool {
        let mut columns = self.plans.iter().flat_map(|plan| &plan.columns);
        columns.any(|column| column.data_type.extension.as_deref() == Some(extension))
    }
}

/// Whether of two versions made of numbers and dots the first is the older one; others cannot be compared.
fn is_older(there: &str, wanted: &str) -> bool {
    let numbers = |version: &str| {
        version.split('.').map(str::parse::<u32>).collect::<std::result::Result<Vec<_>, _>>().ok()
    };
    matches!((numbers(there), numbers(wanted)), (Some(there), Some(wanted)) if there < wanted)
}

#[cfg(test)]
mod tests {
    use super::is_older;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(is_older("1.9", "1.10"));
        assert!(is_older("3.4", "3.4.1"));
        assert!(!is_older("1.10", "1.9"));
        assert!(!is_older("1.6", "1.6"));
        assert!(!is_older("3.5.0dev", "3.5.1"));
    }
}
