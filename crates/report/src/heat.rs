//! The leaves of a table in a form small enough for a report.
//!
//! **Invariant:** a map has at most [`HeatMap::CELLS_MAX`] cells however many leaves there are; a cell shows the worst state
//! of its leaves, so that no differing leaf is lost in it, and the rows of all cells are those of all leaves.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is known of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeafState {
    /// Read on both sides in this run: the same.
    Same,
    /// Proven in an earlier run and not touched by the stream since.
    Carried,
    /// Equal values in another representation.
    Equivalent,
    /// Not proven.
    Unproven,
    /// Different.
    Different,
}

impl LeafState {
    /// All of them, the best first.
    pub const ALL: [Self; 5] =
        [Self::Same, Self::Carried, Self::Equivalent, Self::Unproven, Self::Different];

    /// The sign in `states`.
    pub const fn sign(self) -> char {
        match self {
            Self::Same => '=',
            Self::Carried => '.',
            Self::Equivalent => '~',
            Self::Unproven => '?',
            Self::Different => '#',
        }
    }

    fn of_sign(sign: char) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.sign() == sign)
    }
}

/// The leaves of a table in key order, neighbours put together where there are many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeatMap {
    /// How many leaves one cell stands for; the last cell may stand for fewer.
    pub leaves_per_cell: u32,
    /// Rows of the source in each cell. 64-bit: may exceed 2^53.
    pub rows: Vec<u64>,
    /// One sign a cell: `=` the same, `.` proven earlier and untouched since, `~` equivalent, `?` not proven, `#` different.
    /// Where a cell holds leaves of several kinds it is the worst.
    #[serde(serialize_with = "to_signs", deserialize_with = "from_signs")]
    #[schemars(with = "String", regex(pattern = r"^[=.~?#]*$"))]
    pub states: Vec<LeafState>,
}

impl HeatMap {
    /// The most cells that a map has.
    pub const CELLS_MAX: usize = 128;

    /// The map of leaves in key order, each with its rows on the source.
    pub fn of(leaves: &[(u64, LeafState)]) -> Self {
        let per_cell = leaves.len().div_ceil(Self::CELLS_MAX).max(1);
        let cells = leaves.chunks(per_cell);
        let rows = cells.clone().map(|cell| cell.iter().map(|(rows, _)| *rows).sum());
        let states = cells.filter_map(|cell| cell.iter().map(|(_, state)| *state).max());
        Self {
            leaves_per_cell: u32::try_from(per_cell).unwrap_or(u32::MAX),
            rows: rows.collect(),
            states: states.collect(),
        }
    }

    /// The worst state on it.
    pub fn worst(&self) -> Option<LeafState> {
        self.states.iter().copied().max()
    }
}

fn to_signs<S: Serializer>(states: &[LeafState], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&states.iter().map(|state| state.sign()).collect::<String>())
}

fn from_signs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LeafState>, D::Error> {
    let signs = String::deserialize(deserializer)?;
    let state = |sign| {
        LeafState::of_sign(sign).ok_or_else(|| {
            serde::de::Error::custom(format_args!("{sign:?} is no sign of a leaf's state"))
        })
    };
    signs.chars().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_leaves_become_few_cells_and_neither_rows_nor_a_difference_is_lost() {
        for count in [0, 1, 2, 127, 128, 129, 255, 256, 257, 1_000, 65_536] {
            let mut leaves: Vec<_> = (0..count).map(|i| (i as u64, LeafState::Same)).collect();
            if let Some(leaf) = leaves.get_mut(count / 2) {
                leaf.1 = LeafState::Different;
            }
            let map = HeatMap::of(&leaves);
            assert!(map.rows.len() <= HeatMap::CELLS_MAX, "{count}");
            assert_eq!(map.rows.len(), map.states.len(), "{count}");
            assert_eq!(map.rows.iter().sum::<u64>(), (0..count as u64).sum::<u64>(), "{count}");
            let differing = map.states.iter().filter(|state| **state == LeafState::Different);
            assert_eq!(differing.count(), usize::from(count > 0), "{count}");
        }
    }

    #[test]
    fn a_cell_shows_the_worst_of_its_leaves() {
        assert!(LeafState::ALL.is_sorted());
        for worst in LeafState::ALL {
            let mut leaves = vec![(1, LeafState::Same); 256];
            leaves[1].1 = worst;
            assert_eq!(HeatMap::of(&leaves).states[0], worst);
        }
    }

    #[test]
    fn a_map_is_read_as_it_was_written_and_unknown_signs_are_refused() {
        let leaves: Vec<_> = LeafState::ALL.iter().map(|state| (u64::MAX / 8, *state)).collect();
        let map = HeatMap::of(&leaves);
        let text = serde_json::to_string(&map).unwrap();
        assert!(text.contains(r#""states":"=.~?#""#), "{text}");
        assert_eq!(serde_json::from_str::<HeatMap>(&text).unwrap(), map);
        assert!(serde_json::from_str::<HeatMap>(&text.replace("=.~", "=x~")).is_err());
    }
}
