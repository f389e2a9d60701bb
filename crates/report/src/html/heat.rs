//! A table's leaves as a picture.
//!
//! **Invariant:** states differ in height, not in colour alone; the number of differing leaves stands beside the
//! picture, and every stretch that is not simply the same says what it is when pointed at.

use crate::words::{count, counted};
use crate::{HeatMap, LeafState, TableReport};

/// Width of a cell in the picture's own units; the picture is stretched to its column.
const CELL: usize = 6;

/// More cells than this are too narrow for a line between them.
const CELLS_APART_MAX: usize = 64;

/// A rectangle from `x` on in the look of its state: each has a height of its own.
fn rect(state: LeafState, x: usize, width: usize, title: &str) -> String {
    let bar = |y: &str, height: &str, paint: &str| {
        let place =
            format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {paint}");
        if title.is_empty() { place + "/>" } else { format!("{place}>{title}</rect>") }
    };
    let stripe = |y| bar(y, "1.5", "fill=\"#fff\"");
    match state {
        LeafState::Same => bar("13", "7", "fill=\"#5fae83\""),
        LeafState::Carried => bar("16", "4", "fill=\"#9fb3a8\""),
        LeafState::Equivalent => bar("8", "12", "fill=\"#2f6fb5\"") + &stripe("11") + &stripe("15"),
        LeafState::Unproven => bar("1", "18", "class=\"open\""),
        LeafState::Different => bar("0", "20", "fill=\"#a3121f\""),
    }
}

fn words(state: LeafState) -> &'static str {
    match state {
        LeafState::Same => "the same",
        LeafState::Carried => "proven earlier, untouched since",
        LeafState::Equivalent => "equal, in another representation",
        LeafState::Unproven => "not proven",
        LeafState::Different => "different",
    }
}

/// The states that occur in these tables, with their looks.
pub(super) fn legend<'a>(tables: impl Iterator<Item = &'a TableReport>) -> String {
    let maps: Vec<_> = tables.filter_map(|table| table.heat_map.as_ref()).collect();
    let occurs = |state: &LeafState| maps.iter().any(|map| map.states.contains(state));
    let entry = |state: LeafState| {
        format!(
            "<span><svg viewBox=\"0 0 18 20\">{}</svg>{}</span>",
            rect(state, 0, 18, ""),
            words(state)
        )
    };
    let entries: String = LeafState::ALL.into_iter().filter(occurs).map(entry).collect();
    if entries.is_empty() {
        return String::new();
    }
    format!(
        "<p class=\"legend\">Each strip shows a table\u{2019}s leaves (ranges of its key) from the first key to the last: {entries}</p>\n"
    )
}

/// The cell of a table's row: the map with its numbers.
pub(super) fn cell(table: &TableReport) -> String {
    let Some(map) = &table.heat_map else {
        return "<td class=\"map none\">\u{2013}</td>".to_owned();
    };
    let leaves = if table.leaves == 1 {
        "1 leaf".to_owned()
    } else {
        format!("{} leaves", count(table.leaves))
    };
    let label = match table.differing_leaves {
        0 => leaves,
        1 => format!("<b>1</b> of {leaves} differs"),
        differing => format!("<b>{}</b> of {leaves} differ", count(differing)),
    };
    format!("<td class=\"map\">{}<span>{label}</span></td>", picture(map))
}

fn picture(map: &HeatMap) -> String {
    let cells = map.states.len();
    let looks: String = stretches(&map.states).into_iter().map(|run| stretch(map, run)).collect();
    let between = if cells > CELLS_APART_MAX { 1..1 } else { 1..cells };
    let lines: String = between.map(|cell| format!("M{} 0v20", cell * CELL)).collect();
    let lines = if lines.is_empty() { lines } else { format!("<path d=\"{lines}\"/>") };
    format!(
        "<svg class=\"heat\" viewBox=\"0 0 {} 20\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{looks}{lines}</svg>",
        cells * CELL
    )
}

/// Neighbouring cells of one state as `(first cell, number of cells, state)`.
fn stretches(states: &[LeafState]) -> Vec<(usize, usize, LeafState)> {
    let mut first = 0;
    let located = states.chunk_by(|one, two| one == two).map(|stretch| {
        let found = (first, stretch.len(), stretch[0]);
        first += stretch.len();
        found
    });
    located.collect()
}

fn stretch(map: &HeatMap, (first, length, state): (usize, usize, LeafState)) -> String {
    let (x, width) = (first * CELL, length * CELL);
    if state == LeafState::Same {
        return rect(state, x, width, "");
    }
    let rows =
        map.rows.iter().skip(first).take(length).fold(0_u64, |sum, rows| sum.saturating_add(*rows));
    let per_cell = map.leaves_per_cell as usize;
    let (from, to) = (first * per_cell + 1, (first + length) * per_cell);
    let title =
        format!("<title>leaves {from} to {to}: {}, {}</title>", words(state), counted(rows, "row"));
    rect(state, x, width, &title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_state_are_one_stretch_and_no_cell_is_lost() {
        use LeafState::{Different, Same};
        assert_eq!(
            stretches(&[Same, Same, Different, Same]),
            [(0, 2, Same), (2, 1, Different), (3, 1, Same)]
        );
        assert_eq!(stretches(&[]), []);
    }

    #[test]
    fn what_is_pointed_at_names_its_leaves_and_rows() {
        let leaves: Vec<_> = (0..256)
            .map(|leaf| (10, if leaf == 7 { LeafState::Different } else { LeafState::Same }))
            .collect();
        let picture = picture(&HeatMap::of(&leaves));
        assert!(picture.contains("<title>leaves 7 to 8: different, 20 rows</title>"), "{picture}");
        assert_eq!(picture.matches("<title>").count(), 1);
    }
}
