//! From snapshot to stream: the planner, the task engine, budgets, progress.
