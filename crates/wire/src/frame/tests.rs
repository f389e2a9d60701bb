//! The framer against every way of splitting the bytes, and against lies.

use proptest::prelude::*;

use super::*;

fn copy_data(payload: &[u8]) -> Vec<u8> {
    let mut message = vec![b'd'];
    message.extend_from_slice(&u32::try_from(payload.len() + 4).unwrap().to_be_bytes());
    message.extend_from_slice(payload);
    message
}

fn binary_header() -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[0; 8]);
    header
}

/// A row of one field.
fn binary_row(value: &[u8]) -> Vec<u8> {
    let mut row = vec![0, 1];
    row.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
    row.extend_from_slice(value);
    row
}

/// A whole binary COPY; the server sends the signature in front of the first row or of the trailer.
fn binary_stream(rows: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut front = binary_header();
    for row in rows.iter().map(Vec::as_slice).chain([&[0xff, 0xff][..]]) {
        front.extend_from_slice(row);
        stream.extend(copy_data(&front));
        front.clear();
    }
    stream.extend_from_slice(b"c\0\0\0\x04");
    stream
}

/// Runs a stream through the framer in pieces, taking a batch whenever `take` says so.
fn frame(
    form: TupleForm,
    stream: &[u8],
    cuts: &[usize],
    take_every: usize,
) -> Result<(Vec<Vec<u8>>, usize), FrameError> {
    let mut framer = Framer::new(form);
    let (mut buf, mut rows, mut messages) = (Vec::new(), Vec::new(), 0);
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    cuts.push(stream.len());
    cuts.sort_unstable();
    let mut at = 0;
    for (index, cut) in cuts.into_iter().enumerate() {
        buf.extend_from_slice(&stream[at..cut]);
        at = cut;
        while let Step::Message(_) = framer.step(&mut buf)? {
            messages += 1;
        }
        if index % take_every == 0 || at == stream.len() {
            let end = framer.rows_end();
            let mut start = 0;
            for row_end in framer.take_ends() {
                rows.push(buf[start..row_end as usize].to_vec());
                start = row_end as usize;
            }
            assert_eq!(start, end);
            buf.drain(..end);
        }
    }
    framer.end()?;
    assert_eq!(framer.row_count(), rows.len() as u64);
    Ok((rows, messages))
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_rows(
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..40),
        cuts in prop::collection::vec(any::<usize>(), 0..60),
        take_every in 1_usize..5,
    ) {
        let rows: Vec<Vec<u8>> = values.iter().map(|value| binary_row(value)).collect();
        let framed = frame(TupleForm::PgBinary, &binary_stream(&rows), &cuts, take_every);
        prop_assert_eq!(framed, Ok((rows, 1)));
    }

    #[test]
    fn text_rows_come_out_as_they_went_in(
        values in prop::collection::vec("[a-z\\\\]{0,50}", 0..40),
        cuts in prop::collection::vec(any::<usize>(), 0..60),
    ) {
        let rows: Vec<Vec<u8>> = values.iter().map(|value| format!("{value}\n").into_bytes()).collect();
        let mut stream: Vec<u8> = rows.iter().flat_map(|row| copy_data(row)).collect();
        stream.extend_from_slice(b"N\0\0\0\x05\0c\0\0\0\x04");
        prop_assert_eq!(frame(TupleForm::PgText, &stream, &cuts, 1), Ok((rows, 2)));
    }

    #[test]
    fn any_bytes_are_an_outcome_never_a_panic_nor_an_allocation(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        binary in any::<bool>(),
    ) {
        let form = if binary { TupleForm::PgBinary } else { TupleForm::PgText };
        let mut framer = Framer::new(form);
        let mut buf = bytes.clone();
        let capacity = buf.capacity();
        while let Ok(Step::Message(_)) = framer.step(&mut buf) {}
        prop_assert!(buf.capacity() <= capacity);
    }
}

#[test]
fn lying_lengths_are_refused_before_anything_is_allocated() {
    for (bytes, expected) in [
        (&b"d\xff\xff\xff\xff"[..], FrameError::Length(-1)),
        (b"d\x80\0\0\0", FrameError::Length(i32::MIN)),
        (b"d\0\0\0\x03", FrameError::Length(3)),
        (b"d\x7f\xff\xff\xff", FrameError::TooLong { tag: b'd', length: 0x7fff_ffff }),
        (b"E\x02\0\0\0", FrameError::TooLong { tag: b'E', length: 0x0200_0001 }),
    ] {
        let mut buf = bytes.to_vec();
        buf.shrink_to_fit();
        assert_eq!(Framer::new(TupleForm::PgText).step(&mut buf), Err(expected));
        assert!(buf.capacity() < 64);
    }
}

#[test]
fn an_announced_row_tells_how_much_it_needs() {
    let mut buf = b"d\x10\0\0\0".to_vec();
    let step = Framer::new(TupleForm::PgText).step(&mut buf);
    assert_eq!(step, Ok(Step::More { pending: 0x1000_0001 }));
}

#[test]
fn binary_data_must_have_signature_rows_and_trailer_in_this_order() {
    let run = |payloads: &[&[u8]]| {
        let mut stream: Vec<u8> = payloads.iter().flat_map(|payload| copy_data(payload)).collect();
        stream.extend_from_slice(b"c\0\0\0\x04");
        frame(TupleForm::PgBinary, &stream, &[], 1).map(|(rows, _)| rows.len())
    };
    let header = binary_header();
    let critical = [SIGNATURE, &[0, 1, 0, 0, 0, 0, 0, 0][..]].concat();
    let lying_extension = [SIGNATURE, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..]].concat();
    assert_eq!(run(&[&header, &[0, 0], b"\xff\xff"]), Ok(1));
    assert_eq!(run(&[&[&header[..], b"\xff\xff"].concat()]), Ok(0));
    assert_eq!(run(&[&header, &[0, 0]]), Err(FrameError::NoTrailer));
    assert_eq!(run(&[]), Err(FrameError::NoTrailer));
    assert_eq!(run(&[&[0, 0]]), Err(FrameError::Signature));
    assert_eq!(run(&[&critical]), Err(FrameError::Signature));
    assert_eq!(run(&[&lying_extension]), Err(FrameError::Signature));
    assert_eq!(run(&[&header, &[0]]), Err(FrameError::Row));
    assert_eq!(run(&[&header, &[0xff, 0xfe]]), Err(FrameError::Row));
    assert_eq!(run(&[&header, &[0xff, 0xff, 0]]), Err(FrameError::Row));
    assert_eq!(run(&[&header, b"\xff\xff", &[0, 0]]), Err(FrameError::AfterTrailer));
}

#[test]
fn the_seed_corpus_of_the_fuzz_target_runs_through_the_same_function() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/frame");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        crate::frame::fuzz(&bytes);
        seen += 1;
    }
    assert!(seen >= 4, "{seen} seeds");
}
