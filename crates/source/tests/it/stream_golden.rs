//! Recorded bytes of pgoutput from every version, with what they say.
//!
//! `UPDATE_GOLDEN=1 cargo test -p tidemark-source stream_golden` records them again from the versions that are installed:
//! `testdata/pgoutput/<major>-<form>.hex` has one message a line, the `.txt` beside it what we read in it. A change of the
//! latter is to be read before it is kept.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use tidemark_source::{Frame, Malformed, Message, StreamOptions};
use tidemark_testkit::{Cluster, Version};
use tokio::sync::watch;

use crate::stream_render::{hex, ours, unhex};
use crate::stream_scenario;
use crate::stream_support::{BARRIER, Parser, cluster, make_slot, options, start, until_barrier};

/// From 14 on: 13 has no stream of ours.
const VERSIONS: &[Version] =
    &[Version::V14, Version::V15, Version::V16, Version::V17, Version::V18];

/// As we ask for it, and in the plainest way.
const FORMS: &[&str] = &["binary", "text"];

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/pgoutput"))
}

fn form(name: &str) -> StreamOptions {
    let mut options = options();
    if name == "text" {
        (options.binary, options.streaming) = (false, false);
        options.slot = "tidemark_text".into();
    }
    options
}

async fn record(version: Version) {
    let cluster = cluster(version, stream_scenario::TABLES);
    make_slot(&cluster, "tidemark_text");
    write(version, "binary", &scenario(&cluster).await);
    let (mut reader, _writer) = start(&cluster, &form("text")).await;
    write(version, "text", &until_barrier(&mut reader, "end").await);
}

/// What is read while the scenario runs.
async fn scenario(cluster: &Cluster) -> Vec<Bytes> {
    let (mut reader, _writer) = start(cluster, &form("binary")).await;
    let (tell, seen) = watch::channel(Vec::<Bytes>::new());
    let reading = async {
        let mut parser = Parser::default();
        loop {
            let frames = reader.next().await.unwrap().unwrap();
            let payloads: Vec<Bytes> = frames.iter().filter_map(payload_of).collect();
            tell.send_modify(|all| all.extend_from_slice(&payloads));
            if payloads.into_iter().any(|payload| is_end(parser.parse(payload))) {
                // Its commit follows, which may have come with it.
                return;
            }
        }
    };
    let wait = async |text: &str| {
        let has = |all: &Vec<Bytes>| all.iter().any(|payload| contains(payload, text.as_bytes()));
        drop(seen.clone().wait_for(has).await.unwrap());
    };
    tokio::join!(reading, stream_scenario::run(cluster, wait));
    let mut all = seen.borrow().clone();
    while all.last().is_none_or(|payload| payload[0] != b'C') {
        let frames = reader.next().await.unwrap().unwrap();
        all.extend(frames.iter().filter_map(payload_of));
    }
    all
}

fn payload_of(frame: Result<Frame, Malformed>) -> Option<Bytes> {
    match frame.unwrap() {
        Frame::XLogData { payload, .. } => Some(payload),
        Frame::Keepalive { .. } => None,
    }
}

fn is_end(message: Message) -> bool {
    matches!(message, Message::Logical { prefix, content, .. } if prefix == BARRIER && content == "end")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn write(version: Version, name: &str, payloads: &[Bytes]) {
    let lines = |lines: Vec<String>| lines.join("\n") + "\n";
    let path = directory().join(format!("{}-{name}", version.major()));
    std::fs::create_dir_all(directory()).unwrap();
    let bytes = lines(payloads.iter().map(|payload| hex(payload)).collect());
    std::fs::write(path.with_extension("hex"), bytes).unwrap();
    std::fs::write(path.with_extension("txt"), lines(ours(payloads))).unwrap();
}

fn recorded(path: &std::path::Path) -> Vec<Bytes> {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(unhex).collect()
}

/// Every recorded file.
pub(crate) fn all_recorded() -> Vec<(PathBuf, Vec<Bytes>)> {
    let names = VERSIONS.iter().flat_map(|version| {
        FORMS.iter().map(move |form| format!("{}-{form}.hex", version.major()))
    });
    let paths = names.map(|name| directory().join(name));
    paths.map(|path| (path.clone(), recorded(&path))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_bytes_of_every_version_say_what_they_said() {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for version in VERSIONS.iter().filter(|version| version.is_installed()) {
            record(*version).await;
        }
    }
    for version in VERSIONS {
        for name in FORMS {
            let path = directory().join(format!("{}-{name}", version.major()));
            let payloads = recorded(&path.with_extension("hex"));
            let expected = std::fs::read_to_string(path.with_extension("txt")).unwrap();
            let found = ours(&payloads);
            for (number, (found, expected)) in found.iter().zip(expected.lines()).enumerate() {
                assert_eq!(found, expected, "{}, line {}", path.display(), number + 1);
            }
            assert_eq!(found.len(), expected.lines().count(), "{}", path.display());
        }
    }
}

#[test]
fn the_recorded_bytes_have_every_kind_of_message() {
    let kinds = |form: &str, version: &Version| -> BTreeSet<char> {
        let path = directory().join(format!("{}-{form}.hex", version.major()));
        recorded(&path).iter().map(|payload| char::from(payload[0])).collect()
    };
    for version in VERSIONS {
        let every: BTreeSet<char> = "BCORYIUDTMSEcA".chars().collect();
        assert_eq!(kinds("binary", version), every, "{version:?}");
        let plain = kinds("text", version);
        let without_pieces: BTreeSet<char> = "BCORYIUDTM".chars().collect();
        assert!(plain.is_superset(&without_pieces), "{version:?}: {plain:?}");
    }
}

#[test]
fn no_cut_and_no_flipped_bit_of_recorded_bytes_is_a_panic() {
    let payloads = recorded(&directory().join("15-binary.hex"));
    for payload in payloads.iter().filter(|payload| payload.len() < 200) {
        let descriptions = payloads.iter().filter(|payload| payload[0] == b'R');
        let mut input: Vec<u8> = Vec::new();
        let mut put = |bytes: &[u8], flags: u8| {
            input.push(flags);
            input.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            input.extend(bytes);
        };
        for description in descriptions {
            put(description, 0);
            put(description, 2);
        }
        for length in 0..payload.len() {
            put(&payload[..length], 0);
            put(&payload[..length], 2);
        }
        for bit in 0..payload.len() * 8 {
            let mut flipped = payload.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            put(&flipped, 0);
            put(&flipped, 2);
        }
        tidemark_source::fuzz_stream::messages(&input);
    }
}

#[test]
fn the_corpus_of_the_fuzzer_runs_through_the_same_function() {
    let corpus = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/messages"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        write_corpus(&corpus);
    }
    let (mut files, mut changes) = (0, 0);
    for file in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        changes += tidemark_source::fuzz_stream::messages(&bytes);
        files += 1;
    }
    assert!(files >= 10 && changes >= 100, "{changes} changes in {files} files");
}

/// The recorded bytes in the form of the fuzzer's input.
fn write_corpus(corpus: &std::path::Path) {
    std::fs::create_dir_all(corpus).unwrap();
    for version in VERSIONS {
        for name in FORMS {
            let stem = format!("{}-{name}", version.major());
            let mut parser = Parser::default();
            let mut input = Vec::new();
            for payload in recorded(&directory().join(format!("{stem}.hex"))) {
                let flags = if parser.is_in_stream() { 2 } else { 0 };
                parser.parse(payload.clone());
                input.push(flags);
                input.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
                input.extend(payload);
            }
            std::fs::write(corpus.join(stem), input).unwrap();
        }
    }
}
