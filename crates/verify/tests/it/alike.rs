//! Keys that are equal by a collation, or to citext, and not by their bytes: one row, where columns are looked at.
//!
//! **Invariant:** what is one row is written beside what was put into the two tables; the source's own equality is the judge.

use tidemark_report::{Level, Redaction, Verdict};

use crate::naming::named;
use crate::repairs::{how, repaired, suspects};
use crate::support::{Pair, table};

const TABLES: &str = "CREATE EXTENSION citext; \
    CREATE COLLATION lax (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
    CREATE TABLE word (k citext PRIMARY KEY, a text); \
    CREATE TABLE place (town text COLLATE lax, id int, a text, PRIMARY KEY (town, id)); \
    CREATE TABLE same (k citext PRIMARY KEY); CREATE TABLE plain (k text PRIMARY KEY); \
    INSERT INTO word SELECT 'Word' || i, 'a' FROM generate_series(1, 600) i; \
    INSERT INTO place VALUES ('Oslo', 1, 'a'), ('Oslo', 2, 'a'), ('Rome', 1, 'a'), ('it''s', 1, 'a'); \
    INSERT INTO same VALUES ('Foo'), ('Bar'); INSERT INTO plain VALUES ('Foo')";

const OTHERWISE: &str = "UPDATE word SET k = upper(k::text) WHERE k IN ('word5', 'word6', 'word600'); \
    UPDATE word SET a = 'b' WHERE k = 'word6'; DELETE FROM word WHERE k = 'word7'; INSERT INTO word VALUES ('word1000', 'a'); \
    UPDATE place SET town = 'OSLO' WHERE id = 2; UPDATE place SET town = 'roma' WHERE town = 'rome'; \
    UPDATE place SET town = 'IT''S' WHERE town = 'it''s'; \
    UPDATE same SET k = upper(k::text); UPDATE plain SET k = 'FOO'";

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_keys_the_source_calls_equal_are_one_at_level_rows() {
    let pair = Pair::new();
    pair.both(TABLES);
    pair.target.psql(OTHERWISE).unwrap();
    let (outcome, kept, _) = named(&pair, Level::Rows, Redaction::None).await;
    assert_eq!(
        kept.of("word"),
        [
            r#"changed k="Word6" a:changed("a"->"b") k:equivalent("Word6"->"WORD6")"#,
            r#"equivalent k="Word5" k:equivalent("Word5"->"WORD5")"#,
            r#"equivalent k="Word600" k:equivalent("Word600"->"WORD600")"#,
            r#"extra k="word1000""#,
            r#"missing k="Word7""#,
        ]
    );
    assert_eq!(
        kept.of("place"),
        [
            r#"equivalent id=1 town="it's" town:equivalent("it's"->"IT'S")"#,
            r#"equivalent id=2 town="Oslo" town:equivalent("Oslo"->"OSLO")"#,
            r#"extra id=1 town="roma""#,
            r#"missing id=1 town="Rome""#,
        ]
    );
    assert_eq!(table(&outcome, "same").verdict, Verdict::Equivalent);
    assert_eq!(kept.of("plain"), [r#"extra k="FOO""#, r#"missing k="Foo""#]);
    // The sums alone cannot tell.
    let (outcome, kept, _) = named(&pair, Level::Digest, Redaction::None).await;
    assert_eq!(table(&outcome, "same").verdict, Verdict::Different);
    assert_eq!(kept.of("same").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_rows_could_be_the_one_none_is() {
    let pair = Pair::new();
    pair.both("CREATE EXTENSION citext; CREATE TABLE word (k citext PRIMARY KEY); INSERT INTO word VALUES ('Foo')");
    pair.target
        .psql("ALTER TABLE word DROP CONSTRAINT word_pkey; UPDATE word SET k = 'foo'; INSERT INTO word VALUES ('FOO')")
        .unwrap();
    let (_, kept, _) = named(&pair, Level::Rows, Redaction::None).await;
    assert_eq!(kept.of("word"), [r#"extra k="FOO""#, r#"extra k="foo""#, r#"missing k="Foo""#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_repaired_as_the_report_took_them() {
    for level in [Level::Rows, Level::Digest] {
        let pair = Pair::new();
        pair.both(TABLES);
        pair.target
            .psql(&format!(
                "ALTER TABLE word ADD own text; UPDATE word SET own = 'kept'; {OTHERWISE}"
            ))
            .unwrap();
        let (_, kept, _) = named(&pair, level, Redaction::None).await;
        let (done, _) =
            repaired(&pair.request, how(&pair, true, false).await, &suspects(&kept)).await;
        assert_eq!((done.healed, done.stale, done.left), (0, 0, 0), "{level:?} {}", kept.text());
        let kept_by = "SELECT count(*) FROM word WHERE own = 'kept'";
        // Of a row that is one the other columns stay; of two that are not, one comes anew.
        let expected = if level == Level::Rows { "599" } else { "596" };
        assert_eq!(pair.target.psql(kept_by).unwrap(), expected);
        pair.target.psql("ALTER TABLE word DROP own").unwrap();
        let (outcome, kept, _) = named(&pair, level, Redaction::None).await;
        assert_eq!(outcome.verdict(), Verdict::Identical, "{level:?} {}", kept.text());
    }
}
