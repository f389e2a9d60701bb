//! The Parquet sink on a local directory, in memory and on an S3 server.
//!
//! The reader here knows the lake only by its documents and files, as `docs/lake-format.md` describes them. The S3 tests
//! need a server: `TIDEMARK_S3_SERVER` names a `moto_server` program. `TIDEMARK_PYTHON` names a Python with pyarrow, DuckDB and
//! Polars for the tests of other readers. `scripts/test` installs both and sets the variables; without them these tests say
//! so and pass.

#[path = "parquet/lake.rs"]
mod lake;
#[path = "parquet/others.rs"]
mod others;
#[path = "parquet/pgoutput.rs"]
mod pgoutput;
#[path = "parquet/safety.rs"]
mod safety;
#[path = "parquet/stream.rs"]
mod stream;
#[path = "parquet/stream_crash.rs"]
mod stream_crash;
#[path = "parquet/stream_joining.rs"]
mod stream_joining;
#[path = "parquet/stream_reading.rs"]
mod stream_reading;
#[path = "parquet/stream_types.rs"]
mod stream_types;
#[path = "parquet/stream_support.rs"]
mod support;
#[path = "parquet/unfinished.rs"]
mod unfinished;

use lake::{LocalLake, ObjectLake};

use crate::conformance;

/// Runs every function of the conformance suite on a fresh target each.
macro_rules! conforms {
    ($module:ident, $target:expr) => {
        mod $module {
            use super::*;

            conforms!(@tests $target;
                a_run_makes_exactly_what_was_sent_visible
                what_is_aborted_or_dropped_leaves_nothing
                a_committed_chunk_is_not_taken_again
                a_wrong_count_is_refused
                interleaved_tables_do_not_mix
                parallel_chunks_all_arrive_once
                the_next_run_clears_what_a_killed_run_left
                a_target_that_is_not_empty_is_refused
                finishing_twice_is_refused
            );
        }
    };
    (@tests $target:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(target) = $target else { return };
                conformance::$name(&target).await;
            }
        )*
    };
}

conforms!(local, Some(LocalLake::new()));
conforms!(memory, Some(ObjectLake::in_memory()));
conforms!(s3, ObjectLake::on_s3().await);
