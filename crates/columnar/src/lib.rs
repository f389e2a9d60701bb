//! PostgreSQL values to Arrow columns.
