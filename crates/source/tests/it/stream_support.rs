//! Slots, streams and barriers for the tests of the stream.

use bytes::Bytes;
use tidemark_model::Lsn;
use tidemark_source::{
    Frame, Message, ReplicationReader, ReplicationStream, ReplicationWriter, StreamOptions,
};
use tidemark_testkit::{Cluster, Version};

use crate::support::spec;

pub(crate) const SLOT: &str = "tidemark_job";
pub(crate) const BARRIER: &str = "tidemark_test";

/// A cluster with these tables, all of them published, and a slot.
pub(crate) fn cluster(version: Version, tables: &str) -> Cluster {
    let cluster = Cluster::builder().version(version).start().unwrap();
    prepare(&cluster, tables);
    cluster
}

pub(crate) fn prepare(cluster: &Cluster, tables: &str) {
    cluster.psql("postgres", tables).unwrap();
    let publish = "SELECT 'CREATE PUBLICATION tidemark_job FOR TABLE ' || string_agg(oid::regclass::text, ', ') \
                   FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'filler' \\gexec";
    cluster.psql("postgres", publish).unwrap();
    make_slot(cluster, SLOT);
}

pub(crate) fn make_slot(cluster: &Cluster, name: &str) {
    let text = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    cluster.psql("postgres", &text).unwrap();
}

pub(crate) fn options() -> StreamOptions {
    StreamOptions::new(SLOT, SLOT, SLOT)
}

/// Writes a message behind everything that is committed, and flushes it.
pub(crate) fn barrier(cluster: &Cluster, content: &str) {
    let text = format!(
        "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, '{BARRIER}', '{content}')"
    );
    cluster.psql("postgres", &text).unwrap();
}

pub(crate) fn lsn(cluster: &Cluster, sql: &str) -> Lsn {
    cluster.psql("postgres", sql).unwrap().parse().unwrap()
}

pub(crate) async fn start(
    cluster: &Cluster,
    options: &StreamOptions,
) -> (ReplicationReader, ReplicationWriter) {
    let stream = ReplicationStream::start(&spec(&cluster.url("postgres")), options).await;
    stream.unwrap().split()
}

/// Knows whether a piece of a transaction is open.
#[derive(Default)]
pub(crate) struct Parser {
    in_stream: bool,
}

impl Parser {
    pub(crate) fn is_in_stream(&self) -> bool {
        self.in_stream
    }

    pub(crate) fn parse(&mut self, payload: Bytes) -> Message {
        let message = Message::parse(payload, self.in_stream).unwrap();
        match message {
            Message::StreamStart { .. } => self.in_stream = true,
            Message::StreamStop => self.in_stream = false,
            _ => {}
        }
        message
    }
}

/// The messages up to the end of the barrier's transaction.
pub(crate) async fn until_barrier(reader: &mut ReplicationReader, content: &str) -> Vec<Bytes> {
    let mut parser = Parser::default();
    let mut all = Vec::new();
    let mut is_near = false;
    loop {
        let frames = reader.next().await.unwrap().expect("the stream goes on");
        for frame in frames.iter() {
            let Frame::XLogData { payload, .. } = frame.unwrap() else { continue };
            all.push(payload.clone());
            match parser.parse(payload) {
                Message::Logical { prefix, content: found, .. } => {
                    is_near |= prefix == BARRIER && found == content.as_bytes();
                }
                Message::Commit { .. } if is_near => return all,
                _ => {}
            }
        }
    }
}

/// The end LSNs of all transactions among the messages.
pub(crate) fn ends(payloads: &[Bytes]) -> Vec<Lsn> {
    let mut parser = Parser::default();
    payloads
        .iter()
        .filter_map(|payload| match parser.parse(payload.clone()) {
            Message::Commit { end_lsn, .. } | Message::StreamCommit { end_lsn, .. } => {
                Some(end_lsn)
            }
            _ => None,
        })
        .collect()
}
