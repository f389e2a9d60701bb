//! What is wrong with a lake is found: other rows, missing files, damaged ones.
//!
//! **Invariant:** files are changed by another writer of Parquet, whole again, so that nothing but the rows tells.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int32Type;
use arrow_array::{Array as _, ArrayRef, Int32Array, RecordBatch, StringArray, StructArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use serde_json::Value;
use tidemark_report::{DiffCounts, Redaction, Verdict};
use tidemark_verify::TableOutcome;

use crate::lake::Lake;
use crate::naming::Kept;
use crate::support::table;

type Row = (i32, Option<String>, Option<String>);

const TABLE: &str = "CREATE TABLE t (id int4 PRIMARY KEY, a text, b text);
INSERT INTO t SELECT i, 'a' || i, NULLIF('b' || i % 3, 'b0') FROM generate_series(1, 1000) i;
INSERT INTO t VALUES (2000, '', 'x'), (2001, 'one', 'two'), (2002, 'two', 'one');
CREATE TABLE beside (id int4 PRIMARY KEY, v text); INSERT INTO beside SELECT i, 'v' || i FROM generate_series(1, 100) i";

/// What the parquet crate reads that the table's rows depend on; nothing of a file that it cannot read. When a change was
/// committed and by which transaction is told, and no part of that.
fn rows_of(path: &Path) -> Option<Vec<RecordBatch>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).ok()?).ok()?;
    let is_told = |name: &str| ["_commit_ts", "_xid"].contains(&name);
    let columns = reader.schema().fields().iter().enumerate();
    let kept = columns.filter(|(_, field)| !is_told(field.name())).map(|(at, _)| at);
    let mask = ProjectionMask::roots(reader.parquet_schema(), kept.collect::<Vec<_>>());
    reader.with_projection(mask).build().ok()?.collect::<Result<_, _>>().ok()
}

/// Writes the rows of a file anew; those of the snapshot as they are, of changes with their other columns.
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<Row>)) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let reader = reader.with_batch_size(1 << 20).build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
    let text = |name: &str, row: usize| {
        let values = batch.column_by_name(name).unwrap().as_string::<i32>();
        values.is_valid(row).then(|| values.value(row).to_owned())
    };
    let ids = batch.column_by_name("id").unwrap().as_primitive::<Int32Type>();
    let mut rows: Vec<Row> =
        (0..batch.num_rows()).map(|row| (ids.value(row), text("a", row), text("b", row))).collect();
    change(&mut rows);
    let texts = |of: fn(&Row) -> &Option<String>| {
        Arc::new(rows.iter().map(|row| of(row).clone()).collect::<StringArray>()) as ArrayRef
    };
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        match field.name().as_str() {
            "id" => Arc::new(rows.iter().map(|row| row.0).collect::<Int32Array>()) as ArrayRef,
            "a" => texts(|row| &row.1),
            "b" => texts(|row| &row.2),
            _ => Arc::clone(column),
        }
    });
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Makes a commit say of every file what it holds now.
fn amend(lake: &Lake, name: &str, difference: i64) {
    let mut amended = false;
    each_table(lake, |table| {
        for file in table["files"].as_array_mut().unwrap() {
            if file["path"] == name {
                file["rows"] = (file["rows"].as_i64().unwrap() + difference).into();
                amended = true;
            }
        }
    });
    assert!(amended, "{name} is in no commit");
}

/// Writes the commits anew, with their tables as they are changed.
fn each_table(lake: &Lake, mut change: impl FnMut(&mut Value)) {
    let commits = lake.root().join("_tidemark/commits");
    for entry in fs::read_dir(commits).unwrap() {
        let path = entry.unwrap().path();
        let mut commit: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        commit["tables"].as_array_mut().unwrap().iter_mut().for_each(&mut change);
        fs::write(&path, serde_json::to_vec(&commit).unwrap()).unwrap();
    }
}

async fn found(lake: &Lake) -> TableOutcome {
    let outcome = lake.verify().await;
    let beside = table(&outcome, "beside");
    assert_eq!(beside.verdict, Verdict::Identical, "the table beside it: {outcome:?}");
    table(&outcome, "t")
}

async fn filled(name: &str) -> (Lake, PathBuf) {
    let lake = Lake::new(name, TABLE);
    lake.fill().await;
    let files = lake.files("t", "snapshot");
    assert_eq!(files.len(), 1, "{files:?}");
    let file = files[0].clone();
    (lake, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_not_those_of_the_source_are_found() {
    let (lake, file) = filled("planted").await;
    let whole = fs::read(&file).unwrap();
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
    // Written anew as it was: what tells is the rows.
    rewrite(&file, |_| {});
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
    // What is done, rows that the file has more of, and how many are named as missing, extra and changed.
    type Plant = (&'static str, i64, [u64; 3], fn(&mut Vec<Row>));
    let plants: [Plant; 8] = [
        ("a value that is another one", 0, [0, 0, 1], |rows| rows[17].1 = Some("other".to_owned())),
        ("a row that is not there", -1, [1, 0, 0], |rows| drop(rows.remove(5))),
        ("a row that is there twice", 1, [0, 1, 0], |rows| rows.push(rows[7].clone())),
        ("one row for another one", 0, [1, 1, 0], |rows| rows[3] = rows[4].clone()),
        ("NULL for nothing", 0, [0, 0, 1], |rows| {
            let row = rows.iter_mut().find(|row| row.1.as_deref() == Some(""));
            row.unwrap().1 = None;
        }),
        ("nothing for NULL", 0, [0, 0, 1], |rows| {
            let row = rows.iter_mut().find(|row| row.2.is_none());
            row.unwrap().2 = Some(String::new());
        }),
        ("the values of two rows, exchanged", 0, [0, 0, 2], |rows| {
            let (one, other) = (rows[10].1.clone(), rows[11].1.clone());
            (rows[10].1, rows[11].1) = (other, one);
        }),
        ("the values of two columns, exchanged", 0, [0, 0, 1], |rows| {
            let row = rows.iter_mut().find(|row| row.0 == 2001).unwrap();
            std::mem::swap(&mut row.1, &mut row.2);
        }),
    ];
    let name = lake.listed(&file);
    for (what, difference, rows, plant) in plants {
        rewrite(&file, plant);
        amend(&lake, &name, difference);
        let table = found(&lake).await;
        assert_eq!(table.verdict, Verdict::Different, "{what}: {table:?}");
        let named = table.named.as_ref().map(|named| named.rows);
        let [missing, extra, changed] = rows;
        let expected = DiffCounts { missing, extra, changed, ..DiffCounts::default() };
        assert_eq!(named, Some(expected), "{what}: {table:?}");
        fs::write(&file, &whole).unwrap();
        amend(&lake, &name, -difference);
    }
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_are_not_those_of_the_source_are_found() {
    let (mut lake, _) = filled("plantedchanges").await;
    lake.sql("UPDATE t SET a = a || '.' WHERE id <= 50; INSERT INTO t VALUES (5000, 'new', 'row')");
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
    let files = lake.files("t", "changes");
    let file = files.last().unwrap();
    let whole = fs::read(file).unwrap();
    // With the keys of the lines.
    type Plant = (&'static [&'static str], fn(&mut Vec<Row>));
    let plants: [Plant; 3] = [
        (&["changed id=1"], |rows| rows[0].1 = Some("other".to_owned())),
        // The row that was meant is again what it was before the change.
        (&["changed id=1", "changed id=999"], |rows| rows[0].0 = 999),
        (&["changed id=5000"], |rows| rows.last_mut().unwrap().2 = None),
    ];
    for (lines, plant) in plants {
        rewrite(file, plant);
        let kept = Kept::new(&mut lake.request, Redaction::None);
        let table = found(&lake).await;
        assert_eq!(table.verdict, Verdict::Different, "{table:?}");
        assert_eq!(kept.of("t"), lines);
        fs::write(file, &whole).unwrap();
    }
    rewrite(file, |_| {});
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
}

/// The reason names the file, and no verdict says that all was well.
#[track_caller]
fn assert_named(table: &TableOutcome, name: &str, what: &str) {
    assert_eq!(table.verdict, Verdict::Incomplete, "{what}: {table:?}");
    let because = table.because.as_deref().unwrap();
    assert!(because.contains(name), "{what}: {because}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_or_damaged_is_named_and_its_table_is_not_proven() {
    let (lake, base) = filled("damaged").await;
    lake.sql("UPDATE t SET a = a || '.' WHERE id <= 50");
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
    let changes = lake.files("t", "changes").pop().unwrap();
    for file in [base, changes] {
        let (name, whole) = (lake.listed(&file), fs::read(&file).unwrap());
        fs::remove_file(&file).unwrap();
        assert_named(&found(&lake).await, &name, "missing");
        fs::write(&file, []).unwrap();
        assert_named(&found(&lake).await, &name, "empty");
        fs::write(&file, &whole[..whole.len() - 9]).unwrap();
        assert_named(&found(&lake).await, &name, "cut off");
        let mut footer = whole.clone();
        let end = footer.len() - 40;
        footer[end..end + 30].fill(0xff);
        fs::write(&file, &footer).unwrap();
        assert_named(&found(&lake).await, &name, "footer");
        let mut page = whole.clone();
        page[4..60].fill(0xff);
        fs::write(&file, &page).unwrap();
        assert_named(&found(&lake).await, &name, "page");
        // Wherever one byte is another, the table is not proven; it never ends the verification.
        fs::write(&file, &whole).unwrap();
        let undamaged = rows_of(&file).unwrap();
        let mut unread = 0;
        for at in (4..whole.len() - 8).step_by(whole.len() / 23 + 1) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&file, &damaged).unwrap();
            let table = found(&lake).await;
            let is_whole = rows_of(&file).is_some_and(|rows| rows == undamaged);
            assert!(is_whole || table.verdict != Verdict::Identical, "byte {at}: {table:?}");
            unread += usize::from(!is_whole);
        }
        assert!(unread > 5, "{unread} bytes of {name} made a difference to another reader");
        fs::write(&file, &whole).unwrap();
        // Another number of rows than the commit says, and nothing else.
        amend(&lake, &name, 1);
        assert_named(&found(&lake).await, &name, "rows");
        amend(&lake, &name, -1);
    }
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
}

/// No row is lost because another one waits under its key.
#[tokio::test(flavor = "multi_thread")]
async fn two_rows_that_say_that_they_were_one_row_are_told() {
    let lake = Lake::new(
        "twice",
        "CREATE TABLE t (id int4 PRIMARY KEY, a text); ALTER TABLE t ALTER a SET STORAGE EXTERNAL; \
         INSERT INTO t SELECT i, repeat(md5(i::text), 90) FROM generate_series(1, 5) i",
    );
    lake.fill().await;
    // The values out of line are in no message: both rows wait for their own of before.
    lake.sql("UPDATE t SET id = id + 10 WHERE id IN (1, 2)");
    assert_eq!(lake.verify().await.verdict(), Verdict::Identical);
    let file = lake.files("t", "changes").pop().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        if field.name() != "_old_key" {
            return Arc::clone(column);
        }
        let keys = column.as_struct();
        let ones: ArrayRef = Arc::new(Int32Array::from(vec![1; keys.len()]));
        Arc::new(StructArray::new(keys.fields().clone(), vec![ones], keys.nulls().cloned()))
    });
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(&file).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert_named(
        &table(&lake.verify().await, "t"),
        "did not change since one earlier row",
        "twice",
    );
}

/// What a commit says that is wrong is the table's trouble, and no server is out of reach.
#[tokio::test(flavor = "multi_thread")]
async fn a_default_that_is_none_makes_its_table_incomplete() {
    let (lake, _) = filled("default").await;
    lake.sql("ALTER TABLE t ADD COLUMN n int4 DEFAULT 5; UPDATE t SET a = a WHERE id = 1");
    assert_eq!(found(&lake).await.verdict, Verdict::Identical);
    each_table(&lake, |table| {
        for column in table["columns"].as_array_mut().unwrap() {
            if column["name"] == "n" {
                column["default"] = "'five'::integer".into();
            }
        }
    });
    assert_named(&found(&lake).await, "does not take the default of its column \"n\"", "default");
}
