//! Framing of COPY OUT over bytes in memory.
//!
//! **Invariant:** what is measured is what a read of a socket costs after the kernel: the copy of the bytes into the buffer is
//! part of it.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark_model::TupleForm;
use tidemark_wire::frame::{Framer, Step};

/// Bytes that one read brings.
const READ_BYTES: usize = 256 * 1024;

/// A COPY of `rows` text rows of `width` bytes each.
fn stream(rows: usize, width: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rows {
        bytes.push(b'd');
        bytes.extend_from_slice(&u32::try_from(width + 5).unwrap_or(5).to_be_bytes());
        bytes.resize(bytes.len() + width, b'x');
        bytes.push(b'\n');
    }
    bytes
}

fn frame_all(stream: &[u8], buf: &mut Vec<u8>) -> usize {
    let mut framer = Framer::new(TupleForm::PgText);
    let mut rows = 0;
    for read in stream.chunks(READ_BYTES) {
        buf.extend_from_slice(read);
        match framer.step(buf) {
            Ok(Step::More { .. }) => {}
            other => panic!("rows only: {other:?}"),
        }
        let end = framer.rows_end();
        rows += framer.take_ends().len();
        buf.drain(..end);
    }
    rows
}

fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for (rows, width) in [(100_000, 16), (20_000, 200), (200, 50_000)] {
        let stream = stream(rows, width);
        let mut buf = Vec::with_capacity(2 * READ_BYTES);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        group.bench_function(format!("rows={rows}/width={width}"), |b| {
            b.iter(|| {
                buf.clear();
                black_box(frame_all(black_box(&stream), &mut buf))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, frame);
criterion_main!(benches);
