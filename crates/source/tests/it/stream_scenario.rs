//! One of everything that pgoutput can say, small enough to be kept as a file.

use tidemark_testkit::Cluster;

use crate::stream_support::{BARRIER, barrier};
use crate::support::session;

/// `filler` is not published: it makes a transaction large without a word in the stream.
pub(crate) const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('calm', 'wild');
    CREATE TABLE d (id int PRIMARY KEY, v text, big text);
    ALTER TABLE d ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE f (id int, v text);
    ALTER TABLE f REPLICA IDENTITY FULL;
    CREATE TABLE i (a int, b text, c int NOT NULL UNIQUE);
    ALTER TABLE i REPLICA IDENTITY USING INDEX i_c_key;
    CREATE TABLE n (id int, m mood);
    ALTER TABLE n REPLICA IDENTITY NOTHING;
    CREATE TABLE filler (v text);";

const ROWS: &str = "
    INSERT INTO d VALUES (1, 'one', repeat('x', 2100)), (2, NULL, '');
    UPDATE d SET v = 'uno' WHERE id = 1;
    UPDATE d SET id = 10 WHERE id = 1;
    DELETE FROM d WHERE id = 10;
    INSERT INTO f VALUES (1, 'a'), (1, 'a');
    UPDATE f SET v = 'b';
    DELETE FROM f WHERE id = 1;
    INSERT INTO i VALUES (1, 'x', 100);
    UPDATE i SET c = 101;
    UPDATE i SET b = 'y';
    DELETE FROM i;
    INSERT INTO n VALUES (1, 'wild');
    COPY d (id, v) FROM stdin;
3\tthree
4\tfour
5\t\\N
\\.
    BEGIN; INSERT INTO f VALUES (7, 'dropped'); SAVEPOINT s; INSERT INTO f VALUES (8, 'rolled back');
    ROLLBACK TO s; INSERT INTO f VALUES (9, NULL); COMMIT;
    TRUNCATE d, f;
    TRUNCATE i RESTART IDENTITY CASCADE;
    SELECT pg_logical_emit_message(true, 'app', 'in a transaction');
    SELECT pg_logical_emit_message(false, 'app', 'outside of any');
    ALTER TABLE d ADD COLUMN late int DEFAULT 5;
    INSERT INTO d (id) VALUES (20);
    ALTER TABLE d REPLICA IDENTITY FULL;
    UPDATE d SET v = 'full';
    BEGIN; INSERT INTO f VALUES (30, 'prepared'); PREPARE TRANSACTION 'two';
    COMMIT PREPARED 'two';
    SELECT pg_replication_origin_create('elsewhere');
    SELECT pg_replication_origin_session_setup('elsewhere');
    BEGIN; SELECT pg_replication_origin_xact_setup('0/AB', '2026-01-02 03:04:05+00');
    INSERT INTO f VALUES (40, 'from elsewhere'); COMMIT;";

/// More than `logical_decoding_work_mem`.
const FILL: &str =
    "INSERT INTO public.filler SELECT repeat('x', 1500) FROM generate_series(1, 100)";

/// Runs all of it; the barrier `end` is the last. `seen` returns when a text has been read from the stream: what is not read
/// while its transaction is open is never sent once that was rolled back.
pub(crate) async fn run(cluster: &Cluster, seen: impl AsyncFn(&str)) {
    cluster.psql("postgres", ROWS).unwrap();
    let (one, two) =
        (session(&cluster.url("postgres")).await, session(&cluster.url("postgres")).await);
    let run = async |text: &str| one.batch_execute(text).await.unwrap();
    // A large transaction with a part that is rolled back; a description first appears in that part.
    run("BEGIN; INSERT INTO public.f VALUES (50, 'large')").await;
    run(FILL).await;
    run("SAVEPOINT s; INSERT INTO public.i VALUES (1, 'rolled back', 1)").await;
    run(FILL).await;
    seen("rolled back").await;
    run("ROLLBACK TO s; INSERT INTO public.i VALUES (1, 'kept', 2)").await;
    run(FILL).await;
    seen("kept").await;
    // Another one in between, that is rolled back as a whole, and a third that commits first.
    two.batch_execute("BEGIN; INSERT INTO public.f VALUES (60, 'never')").await.unwrap();
    two.batch_execute(FILL).await.unwrap();
    two.batch_execute(FILL).await.unwrap();
    seen("never").await;
    run(FILL).await;
    two.batch_execute("ROLLBACK").await.unwrap();
    let first = "BEGIN; INSERT INTO public.f VALUES (70, 'began later')";
    two.batch_execute(first).await.unwrap();
    two.batch_execute(FILL).await.unwrap();
    two.batch_execute("TRUNCATE public.d, public.n; COMMIT").await.unwrap();
    let message = format!(
        "SELECT pg_catalog.pg_logical_emit_message(true, '{BARRIER}', 'in a large one'); COMMIT"
    );
    run(&message).await;
    barrier(cluster, "end");
}
