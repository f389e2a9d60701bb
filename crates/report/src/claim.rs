//! What was proven, in plain sentences.
//!
//! **Invariant:** "hold the same data" is said only of tables whose verdict is `identical`; whatever is not proven is named
//! beside it, with its number.

use crate::words::{count, counted, list};
use crate::{
    Level, Outcome, Point, Proof, SchemaSeverity, Shortfall, TableReport, Verdict, VerifyReport,
};

impl VerifyReport {
    /// What was proven, for somebody who was not there: the statement first, then what belongs to it.
    pub fn claim(&self) -> Vec<String> {
        let parts = match self.verdict {
            Verdict::Identical => vec![self.same("Source and target hold the same data", "")],
            Verdict::Equivalent => self.equivalent(),
            Verdict::Incomplete => self.incomplete(),
            Verdict::Different => self.different(),
        };
        parts.into_iter().chain(self.proof_in_words()).filter(|part| !part.is_empty()).collect()
    }

    /// How many tables have a verdict.
    pub(crate) fn tables_with(&self, verdict: Verdict) -> u64 {
        self.tables.iter().filter(|table| table.verdict == verdict).count() as u64
    }

    fn same(&self, statement: &str, which: &str) -> String {
        let tables = self.tables.iter().filter(|table| table.verdict == Verdict::Identical);
        let rows = sum(tables.clone(), |table| table.source_rows);
        let tables = counted(tables.count() as u64, &format!("{which}table"));
        format!("{statement}{}: {tables}, {}.", self.at(), counted(rows, "row"))
    }

    fn at(&self) -> String {
        match (&self.point, self.lsn) {
            (Point::Quiesced { .. }, _) => " while nothing writes to either side".to_owned(),
            (_, Some(lsn)) => format!(" at LSN {lsn}"),
            (Point::Barrier { .. }, None) => ", each table at its own LSN".to_owned(),
            (Point::None { .. }, None) => String::new(),
        }
    }

    fn equivalent(&self) -> Vec<String> {
        let tables = self.tables_with(Verdict::Equivalent);
        let equivalent = sum(self.tables.iter(), |table| table.equivalent);
        let lossy = sum(self.tables.iter(), |table| table.lossy);
        let all = counted(self.tables.len() as u64, "table");
        let mut kinds = Vec::new();
        if equivalent > 0 {
            kinds.push(format!(
                "{} with equal values written in another way",
                counted(equivalent, "row")
            ));
        }
        if lossy > 0 {
            kinds.push(format!(
                "{} with values that a declared mapping cannot carry in full",
                counted(lossy, "row")
            ));
        }
        let which = if kinds.is_empty() { String::new() } else { format!(", {}", list(&kinds)) };
        let policy = match self.outcome() {
            Outcome::NotAllowed => "The policy does not allow all of this.",
            _ => "The policy allows this.",
        };
        let main = format!(
            "Source and target hold equal data{}, but not in the same representation: {} of {all}{which}.",
            self.at(),
            count(tables)
        );
        vec![main, policy.to_owned(), self.the_others()]
    }

    fn incomplete(&self) -> Vec<String> {
        if self.tables.is_empty() {
            return vec!["No table was compared, so nothing is proven.".to_owned()];
        }
        if let (Level::Schema | Level::Count, Outcome::Agreed) = (self.level, self.outcome()) {
            return vec![self.low_level()];
        }
        let what = list(&self.missing_parts());
        let main = format!(
            "It is not proven that source and target hold the same data: {what} could not be proven."
        );
        let point = match &self.point {
            Point::None { reason } if self.level.reads_rows() => {
                format!("There was no point at which both sides could be compared: {reason}.")
            }
            _ => String::new(),
        };
        let found = "Where both sides were compared no difference was found.";
        vec![main, point, found.to_owned(), self.the_others(), self.equivalent_ones()]
    }

    fn low_level(&self) -> String {
        let tables = counted(self.tables.len() as u64, "table");
        match self.level {
            Level::Schema => format!(
                "Only definitions were compared, and those of {tables} agree; the rows were not looked at."
            ),
            _ => format!(
                "Only numbers of rows were compared, and they agree{}: {tables}, {}. Whether the rows are the same is not known.",
                self.at(),
                counted(sum(self.tables.iter(), |table| table.source_rows), "row")
            ),
        }
    }

    /// What could not be proven: tables, keys, other objects, or everything.
    fn missing_parts(&self) -> Vec<String> {
        let mut parts = Vec::new();
        let tables = self.tables_with(Verdict::Incomplete);
        if tables > 0 {
            let all = counted(self.tables.len() as u64, "table");
            parts.push(format!("{} of {all}", count(tables)));
        }
        let unread = self.tables.iter().filter(|table| {
            table.verdict == Verdict::Different
                && table.shortfall(self.level) == Some(Shortfall::NotProven)
        });
        match unread.count() as u64 {
            0 => {}
            1 => parts.push("the rows of 1 table that differs".to_owned()),
            more => parts.push(format!("the rows of {} tables that differ", count(more))),
        }
        let keys = self.keys_set_aside().unsettled;
        if keys > 0 {
            parts.push(format!("{} in flight", counted(keys, "key")));
        }
        if !self.skipped.is_empty() {
            parts.push(counted(self.skipped.len() as u64, "other object"));
        }
        if parts.is_empty() {
            parts.push("that both sides were read at one point".to_owned());
        }
        parts
    }

    fn different(&self) -> Vec<String> {
        let tables = self.tables_with(Verdict::Different);
        let definitions = self.schema_findings.iter();
        let definitions =
            definitions.filter(|f| f.severity == SchemaSeverity::Different).count() as u64;
        let mut what = Vec::new();
        if tables > 0 {
            let all = counted(self.tables.len() as u64, "table");
            let verb = if tables == 1 { "differs" } else { "differ" };
            what.push(format!("{} of {all} {verb}", count(tables)));
        }
        if definitions > 0 {
            let verb = if definitions == 1 { "differs" } else { "differ" };
            what.push(format!("{} {verb}", counted(definitions, "definition")));
        }
        if what.is_empty() {
            what.push("keys that were in flight differ".to_owned());
        }
        let main =
            format!("Source and target do not hold the same data{}: {}.", self.at(), list(&what));
        let unproven = self.missing_parts_beside_a_difference();
        vec![main, self.rows_that_differ(), unproven, self.the_others(), self.equivalent_ones()]
    }

    fn missing_parts_beside_a_difference(&self) -> String {
        let is_short = self.shortfall() == Some(Shortfall::NotProven);
        if !is_short {
            return String::new();
        }
        format!("Beside that, {} could not be proven.", list(&self.missing_parts()))
    }

    fn rows_that_differ(&self) -> String {
        let kinds = [
            (sum(self.tables.iter(), |table| table.missing), "missing on the target"),
            (sum(self.tables.iter(), |table| table.extra), "on the target only"),
            (sum(self.tables.iter(), |table| table.changed), "with other values"),
        ];
        let found = kinds.iter().filter(|(rows, _)| *rows > 0);
        let parts: Vec<_> =
            found.map(|(rows, kind)| format!("{} {kind}", counted(*rows, "row"))).collect();
        if parts.is_empty() { String::new() } else { format!("Found: {}.", list(&parts)) }
    }

    /// The tables that are proven beside those that are not.
    fn the_others(&self) -> String {
        match self.tables_with(Verdict::Identical) {
            0 => String::new(),
            _ => self.same("The rest holds the same data", "other "),
        }
    }

    /// Tables that are equal, but not in the same representation, where that is not what the report is about.
    fn equivalent_ones(&self) -> String {
        match self.tables_with(Verdict::Equivalent) {
            0 => String::new(),
            1 => "1 table holds equal data in another representation.".to_owned(),
            more => format!("{} tables hold equal data in another representation.", count(more)),
        }
    }

    fn proof_in_words(&self) -> Option<String> {
        let oldest = self.oldest_leaf_lsn.map(|lsn| format!(", the oldest at LSN {lsn}"));
        match self.proof? {
            Proof::Full => {
                Some("Every row of these tables was read on both sides in this run.".to_owned())
            }
            Proof::Incremental => Some(format!(
                "Parts that no change has touched since they were last read were not read again{}. This assumes that {}.",
                oldest.unwrap_or_default(),
                self.assumption.as_deref().unwrap_or("nothing else has written to the target")
            )),
        }
    }
}

fn sum<'a>(
    tables: impl Iterator<Item = &'a TableReport>,
    field: impl Fn(&TableReport) -> Option<u64>,
) -> u64 {
    tables.filter_map(field).fold(0, u64::saturating_add)
}
