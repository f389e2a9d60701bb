//! Our reader beside others: the same bytes as `pg_recvlogical`, the same meaning as the crate `pg_walstream`.

use std::collections::HashMap;

use bytes::Bytes;
use pg_walstream::LogicalReplicationParser;
use tidemark_source::StreamOptions;
use tidemark_testkit::{Cluster, Version};

use crate::stream_render::{ours, theirs};
use crate::stream_scenario;
use crate::stream_support::{SLOT, cluster, lsn, options, start, until_barrier};

fn copy_slot(cluster: &Cluster, name: &str) {
    let text = format!("SELECT pg_copy_logical_replication_slot('{SLOT}', '{name}')");
    cluster.psql("postgres", &text).unwrap();
}

/// What `pg_recvlogical` writes: every message and a line end.
fn recvlogical(cluster: &Cluster, slot: &str, streaming: bool) -> Vec<u8> {
    let file = cluster.scratch_dir().join(slot);
    let end = lsn(cluster, "SELECT pg_current_wal_insert_lsn()").to_string();
    let mut command = cluster.client_command("pg_recvlogical");
    command.args(["-d", "postgres", "-S", slot, "--start", "--no-loop", "-F", "0", "-E", &end]);
    command.arg("-f").arg(&file);
    let names = format!("publication_names={SLOT}");
    let mut plugin = vec!["proto_version=3", "binary=true", "messages=true", &names];
    if streaming {
        plugin.push("streaming=on");
    }
    for option in plugin {
        command.args(["-o", option]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(file).unwrap()
}

async fn by_us(cluster: &Cluster, options: &StreamOptions) -> Vec<Bytes> {
    let (mut reader, _writer) = start(cluster, options).await;
    until_barrier(&mut reader, "end").await
}

/// What the other decoder reads in the messages, in the words of `ours`.
fn by_them(payloads: &[Bytes]) -> Vec<String> {
    let mut parser = LogicalReplicationParser::with_protocol_version(4);
    let mut known: HashMap<u32, String> = HashMap::new();
    let mut line = |payload: &Bytes| {
        let found = parser.parse_wal_message_bytes(payload.clone()).unwrap();
        let xid = found.is_streaming.then_some(found.xid).flatten();
        let carries_xid = b"RYIUDTM".contains(&payload[0]);
        let text = theirs(&found.message, xid.filter(|_| carries_xid));
        let pg_walstream::LogicalReplicationMessage::Relation { relation_id, .. } = found.message
        else {
            return text;
        };
        let (before, description) = match text.split_once("] ") {
            Some((before, description)) => (format!("{before}] "), description.to_owned()),
            None => (String::new(), text.clone()),
        };
        match known.insert(relation_id, description.clone()) {
            Some(old) if old == description => format!("{before}Relation: nothing new"),
            _ => text,
        }
    };
    payloads.iter().map(&mut line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_meaning_are_those_that_other_readers_of_the_slot_get() {
    let cluster = cluster(Version::V15, stream_scenario::TABLES);
    stream_scenario::run(&cluster, async |_: &str| {}).await;
    for streaming in [true, false] {
        let slot = format!("recv_{streaming}");
        copy_slot(&cluster, &slot);
        let expected = recvlogical(&cluster, &slot, streaming);
        let options = StreamOptions { streaming, ..options() };
        let payloads = by_us(&cluster, &options).await;
        let mut found = Vec::new();
        for payload in &payloads {
            found.extend_from_slice(payload);
            found.push(b'\n');
        }
        assert_eq!(found, expected, "streaming: {streaming}");
        assert_eq!(ours(&payloads), by_them(&payloads));
    }
}

#[test]
fn recorded_bytes_of_every_version_mean_the_same_to_another_decoder() {
    for (path, payloads) in crate::stream_golden::all_recorded() {
        let (found, expected) = (ours(&payloads), by_them(&payloads));
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{}, line {}", path.display(), number + 1);
        }
        assert_eq!(found.len(), payloads.len());
    }
}
