//! What the target holds, judged while nobody writes to it: after a clean stop, and at the end.
//!
//! **Invariant:** equality is the oracle's (psql and SHA-256), and what the storm says it has committed is on both sides.

use std::path::Path;

use super::super::report::{Failure, Verdict};
use super::super::rig::DATABASE;
use super::{Run, Step, Subject, rig_error};
use crate::workload::storm;
use crate::{Storm, oracle, process};

impl Run<'_> {
    /// After a clean stop the target is one state of the source.
    pub(super) fn judge_at_rest(&self) -> Step {
        let is_lake = matches!(self.trial.subject, Subject::Lake { .. });
        if is_lake || !self.watch.seen().follows || !self.rig.target.is_running() {
            return Ok(());
        }
        let (_, broken) = storm::promises(&self.rig.target, DATABASE).map_err(rig_error)?;
        match broken.first() {
            Some(broken) => {
                Err(Failure { seen_by: "promise", detail: format!("after a clean stop: {broken}") })
            }
            None => Ok(()),
        }
    }

    /// The end state, by psql and SHA-256 alone.
    pub(super) fn judge(&mut self) -> Step {
        let (source, target) = ((&*self.rig.source, DATABASE), (&*self.rig.target, DATABASE));
        let (written, broken) = storm::promises(source.0, source.1).map_err(rig_error)?;
        if let Some(promise) = broken.first() {
            return Err(Failure {
                seen_by: "rig",
                detail: format!("the source itself: {promise}"),
            });
        }
        if written != self.storm.committed {
            let detail =
                format!("the storm committed {}, the source holds {written}", self.storm.committed);
            return Err(Failure { seen_by: "rig", detail });
        }
        let seen = self.watch.seen();
        if let Some(root) = self.follower.questions().lake {
            self.load_lake(&root)?;
        } else if seen.glances == 0 {
            return Err(Failure {
                seen_by: "rig",
                detail: "nobody has looked at the target".to_owned(),
            });
        }
        let (found, rows) =
            oracle::data_diff_counted(source, target, |name| name.starts_with("storm."))
                .map_err(rig_error)?;
        let mut verdict = Verdict { rows, ..Verdict::default() };
        for difference in found.iter().filter(|difference| difference.kind == "rows") {
            // A table that is missing on one side has no rows to tell apart.
            let Ok(rows) = oracle::row_difference(source, target, &difference.object) else {
                continue;
            };
            verdict.lost += rows.missing;
            verdict.duplicated += rows.duplicated;
            verdict.wrong += rows.wrong;
        }
        self.verdict = Some(verdict);
        if !found.is_empty() {
            let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
            let detail = format!("{verdict:?}\n{}", lines.join("\n"));
            return Err(Failure { seen_by: "difference", detail });
        }
        let (held, broken) = storm::promises(target.0, target.1).map_err(rig_error)?;
        if held != written || !broken.is_empty() {
            let detail = format!("{written} transactions, {held} on the target; {broken:?}");
            return Err(Failure { seen_by: "promise", detail });
        }
        match self.watch.seen().broken.first() {
            Some(broken) => Err(Failure { seen_by: "promise", detail: broken.clone() }),
            None => Ok(()),
        }
    }

    /// Loads what the lake holds into the target, so that the oracle can compare it.
    fn load_lake(&mut self, root: &Path) -> Step {
        Storm::prepare_empty(&self.rig.target, DATABASE).map_err(rig_error)?;
        // The reader is strict: what it cannot make sense of is the lake's fault.
        let read = crate::lake::script(root);
        let read =
            read.map_err(|cause| Failure { seen_by: "difference", detail: format!("{cause:#}") })?;
        let mut psql = self.rig.target.psql_command(DATABASE);
        let loaded = process::run_with_input(&mut psql, &read);
        loaded.map_err(|cause| Failure { seen_by: "difference", detail: format!("{cause:#}") })?;
        Ok(())
    }
}
