//! `diff.ndjson` as it is written and read.

use std::io::Write;

use tidemark_model::RelationName;
use tidemark_report::*;

fn difference(kind: DiffKind) -> Difference {
    let text = |text: &str| FieldValue::Text(text.to_owned());
    let both_sides = !matches!(kind, DiffKind::Missing | DiffKind::Extra);
    let columns = vec![
        ColumnDifference {
            column: "price".to_owned(),
            class: kind,
            source: text("secret-12.50"),
            target: text("secret-12.5"),
        },
        ColumnDifference {
            column: "photo".to_owned(),
            class: DiffKind::Changed,
            source: FieldValue::Bytes(vec![0xde, 0xad]),
            target: FieldValue::Null,
        },
    ];
    Difference {
        table: RelationName::new("public", "item"),
        key: Key::Columns(vec![
            ("tenant".to_owned(), text("secret-tenant")),
            ("id".to_owned(), FieldValue::Int8(9_007_199_254_740_993)),
        ]),
        kind,
        copies: 1,
        columns: if both_sides { columns } else { Vec::new() },
    }
}

const KINDS: [DiffKind; 5] =
    [DiffKind::Missing, DiffKind::Extra, DiffKind::Changed, DiffKind::Equivalent, DiffKind::Lossy];

fn written(redaction: Redaction, differences: &[Difference]) -> (String, DiffFile) {
    let mut writer = DiffWriter::new(Vec::new(), Redactor::new(redaction, [3; 32]));
    for difference in differences {
        writer.write(difference).unwrap();
    }
    let (bytes, file) = writer.finish("diff.ndjson").unwrap();
    (String::from_utf8(bytes).unwrap(), file)
}

#[test]
fn without_redaction_a_line_holds_key_kind_and_both_values_of_each_column() {
    let (text, _) = written(Redaction::None, &[difference(DiffKind::Changed)]);
    let expected = concat!(
        r#"{"schema":"public","table":"item","kind":"changed","#,
        r#""key":{"id":"9007199254740993","tenant":"secret-tenant"},"columns":{"#,
        r#""photo":{"class":"changed","source":"\\xdead","target":null},"#,
        r#""price":{"class":"changed","source":"secret-12.50","target":"secret-12.5"}}}"#,
        "\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn each_redaction_keeps_what_it_says_out_of_the_file() {
    let all: Vec<_> = KINDS.map(difference).to_vec();
    let (text, _) = written(Redaction::Values, &all);
    assert!(text.contains("secret-tenant") && !text.contains("secret-12"), "{text}");
    assert!(!text.contains("dead") && !text.contains("null"), "{text}");
    let (text, _) = written(Redaction::Keys, &all);
    for secret in ["secret", "9007199254740993", "dead", "null"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert_eq!(text.lines().count(), KINDS.len());
}

#[test]
fn every_difference_is_a_line_however_many_there_are() {
    let many = 20_000_u64;
    let mut writer = DiffWriter::new(Vec::new(), Redactor::new(Redaction::Values, [3; 32]));
    for number in 0..many {
        let mut difference = difference(KINDS[number as usize % 5]);
        difference.key = Key::Columns(vec![("id".to_owned(), FieldValue::Int8(number as i64))]);
        writer.write(&difference).unwrap();
    }
    let (bytes, file) = writer.finish("diff.ndjson").unwrap();
    assert_eq!((file.lines, file.rows.total()), (many, many));
    assert_eq!([file.rows.missing, file.rows.lossy], [many / 5; 2]);
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count() as u64, many);
}

#[test]
fn copies_of_a_row_without_a_key_are_counted_each() {
    let row = vec![("note".to_owned(), FieldValue::Text("secret note".to_owned()))];
    let copies = Difference { copies: 4, key: Key::WholeRow(row), ..difference(DiffKind::Missing) };
    let (text, file) = written(Redaction::Values, &[copies, difference(DiffKind::Extra)]);
    assert_eq!((file.lines, file.rows.missing, file.rows.extra), (2, 4, 1));
    assert!(text.contains("\"copies\":4") && !text.contains("secret note"), "{text}");
}

/// A disk that is full after some bytes, or only when it is flushed.
struct Full {
    left: usize,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.left < 10_000 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

#[test]
fn a_line_that_could_not_be_written_is_an_error_that_names_it() {
    let mut writer = DiffWriter::new(Full { left: 500 }, Redactor::new(Redaction::Values, [3; 32]));
    let written = (0..100).find_map(|_| writer.write(&difference(DiffKind::Changed)).err());
    let message = written.unwrap().to_string();
    assert!(message.starts_with("write line 2 of diff.ndjson"), "{message}");
    assert!(!message.contains("secret"), "{message}");
    let mut writer =
        DiffWriter::new(Full { left: 9_999 }, Redactor::new(Redaction::Values, [3; 32]));
    writer.write(&difference(DiffKind::Extra)).unwrap();
    assert!(writer.finish("diff.ndjson").is_err(), "it could not be flushed");
}

#[test]
fn what_was_written_is_read_again_and_a_file_that_was_cut_is_known() {
    let all: Vec<_> = KINDS.map(difference).to_vec();
    for redaction in [Redaction::None, Redaction::Values, Redaction::Keys] {
        let (text, file) = written(redaction, &all);
        let mut reader = DiffReader::new(text.as_bytes());
        let lines: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(lines.iter().map(|line| line.kind).collect::<Vec<_>>(), KINDS);
        assert_eq!(lines[2].columns.len(), 2);
        assert_eq!(lines[0].copies, 1);
        reader.finish(&file).unwrap();
        let cut = &text[..=text.trim_end().rfind('\n').unwrap()];
        let mut reader = DiffReader::new(cut.as_bytes());
        assert_eq!(reader.by_ref().count(), 4);
        let message = reader.finish(&file).unwrap_err().to_string();
        assert!(message.contains("5 lines") && message.contains("has 4"), "{message}");
        let edited = text.replace("\"missing\"", "\"extra\"");
        let mut reader = DiffReader::new(edited.as_bytes());
        assert_eq!(reader.by_ref().count(), 5);
        assert!(reader.finish(&file).is_err());
    }
}

#[test]
fn a_line_that_is_no_difference_is_named_by_its_number() {
    let (text, _) = written(Redaction::Values, &[difference(DiffKind::Extra)]);
    let broken = format!("{text}{{\"schema\":1}}\n");
    let errors: Vec<_> = DiffReader::new(broken.as_bytes()).filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().starts_with("read line 2 of diff.ndjson"), "{}", errors[0]);
}
