//! Memory in bytes, shared by every queue of a job.
//!
//! **Invariant:** the bytes reserved never exceed the budget, except that one reservation larger than the whole budget is
//! let through alone (a single row may be larger than any limit; waiting for it would be waiting for ever).
//!
//! Reservations are handed out in order of asking, so a large one is not starved by small ones.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit stands for; permits are counted in 32 bits.
const UNIT: u64 = 1024;

/// A shared number of bytes.
#[derive(Debug, Clone)]
pub struct Budget {
    permits: Arc<Semaphore>,
    units: u32,
}

impl Budget {
    /// A budget of `bytes`, rounded up to whole KiB.
    pub fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        Self { permits: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// The whole budget in bytes.
    pub fn total(&self) -> u64 {
        u64::from(self.units) * UNIT
    }

    /// Bytes reserved now.
    pub fn used(&self) -> u64 {
        self.total() - self.permits.available_permits() as u64 * UNIT
    }

    /// Waits until `bytes` are free and takes them. More than the whole budget is cut to it.
    ///
    /// # Cancel safety
    /// Dropping the future before it is ready reserves nothing.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let units = self.units_of(bytes);
        let permit = Arc::clone(&self.permits)
            .acquire_many_owned(units)
            .await
            .expect("the semaphore of a budget is never closed");
        Reservation { permit, bytes }
    }

    /// Takes `bytes` if they are free now.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(self.units_of(bytes)).ok()?;
        Some(Reservation { permit, bytes })
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units)
    }
}

/// Bytes taken from a budget; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    permit: OwnedSemaphorePermit,
    bytes: u64,
}

impl Reservation {
    /// The bytes that were asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts another reservation of the same budget into this one.
    pub fn merge(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.permit.merge(other.permit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_taken() {
        let budget = Budget::new(10 * 1024);
        let first = budget.try_reserve(6 * 1024).unwrap();
        assert!(budget.try_reserve(6 * 1024).is_none());
        assert_eq!(budget.used(), 6 * 1024);
        drop(first);
        assert!(budget.try_reserve(6 * 1024).is_some());
    }

    #[test]
    fn lets_a_row_larger_than_everything_through_alone() {
        let budget = Budget::new(1024);
        let all = budget.try_reserve(1 << 30).unwrap();
        assert!(budget.try_reserve(1).is_none());
        drop(all);
        assert_eq!(budget.used(), 0);
    }
}
