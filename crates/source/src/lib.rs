//! Reads a PostgreSQL: catalog, slots, publications, snapshots, chunks.
