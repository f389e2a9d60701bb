//! Rows as COPY BINARY writes them to a file, and their way through the decoder.

use arrow_array::RecordBatch;
use tidemark_columnar::{Decoder, Program, Result};
use tidemark_model::sql::Ident;
use tidemark_model::{Column, TupleForm, Tuples, Unrepresentable, Wire};
use tidemark_testkit::Database;

/// The signature of a binary COPY file.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Runs a query as COPY BINARY and splits the file into rows by the lengths in it.
pub(crate) fn binary(database: &Database, query: &str) -> Tuples {
    let sql = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
    let mut command = database.cluster().psql_command(database.name());
    let output = command.arg("-c").arg(&sql).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    tuples_of_file(&output.stdout)
}

fn int(file: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(file[at..at + 4].try_into().unwrap())
}

pub(crate) fn tuples_of_file(file: &[u8]) -> Tuples {
    assert!(file.starts_with(SIGNATURE), "no signature");
    let mut at = SIGNATURE.len() + 4;
    at += 4 + int(file, at) as usize;
    let start = at;
    let mut ends = Vec::new();
    loop {
        let count = i16::from_be_bytes(file[at..at + 2].try_into().unwrap());
        if count == -1 {
            assert_eq!(at + 2, file.len(), "bytes behind the trailer");
            break;
        }
        at += 2;
        for _ in 0..count {
            let len = int(file, at);
            at += 4 + usize::try_from(len).unwrap_or(0);
        }
        ends.push((at - start) as u32);
    }
    Tuples { form: TupleForm::PgBinary, data: file[start..at].to_vec().into(), ends }
}

/// The rows of a table, in order of insertion, as the program asks for them.
pub(crate) fn table(database: &Database, table: &str, program: &Program) -> Tuples {
    let list: Vec<_> = program
        .select()
        .iter()
        .map(|column| match column.wire {
            Wire::Own => Ident(&column.name).to_string(),
            Wire::CastToText => format!("{}::text", Ident(&column.name)),
        })
        .collect();
    binary(database, &format!("SELECT {} FROM {table} ORDER BY ctid", list.join(", ")))
}

/// Decodes a table; the decoder tells what was replaced.
pub(crate) fn decode(
    database: &Database,
    name: &str,
    columns: &[Column],
    policy: Unrepresentable,
) -> Result<(RecordBatch, Decoder)> {
    let program = Program::compile(columns, policy)?;
    let mut decoder = program.decoder();
    decoder.append(&table(database, name, &program))?;
    let batch = decoder.finish()?;
    Ok((batch, decoder))
}
