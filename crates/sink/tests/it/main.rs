//! The sinks against real targets.
