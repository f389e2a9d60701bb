//! x
use std::time::Instant;
use tidemark_source::*;
use tidemark_model::Budget;
use tidemark_testkit::*;
use crate::stream_support::*;
use crate::support::spec;

fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "multi_thread")]
async fn measure() {
    let cluster = Cluster::builder().setting("shared_buffers", "256MB").setting("logical_decoding_work_mem","64MB").setting("max_wal_size","4GB").start().unwrap();
    let run = |args: &[&str]| { let o = cluster.client_command("pgbench").args(args).output().unwrap(); assert!(o.status.success(), "{o:?}"); };
    run(&["-i", "-q", "-s", "10", "postgres"]);
    prepare(&cluster, "");
    run(&["-n", "-c", "4", "-j", "2", "-t", "15000", "-N", "postgres"]);
    barrier(&cluster, "end");
    let goal = lsn(&cluster, "SELECT pg_current_wal_flush_lsn()");
    for socket in [false] {
        for (pause, small) in [(9u64, 0), (1, 1<<30), (1, 2048), (1, 500), (9, 0), (1, 1<<30), (1, 2048), (1, 500), (9, 0), (1, 1<<30), (1, 2048), (1, 500)] {
            // SAFETY of a measurement only
            #[allow(unsafe_code)]
            unsafe { std::env::set_var("C_PAUSE", pause.to_string()); std::env::set_var("C_SMALL", small.to_string()) };
            let url = if socket { cluster.socket_url("postgres") } else { cluster.url("postgres") };
            let (began, c0) = (Instant::now(), cpu());
            let (mut reader, writer) = ReplicationStream::start(&spec(&url), &options()).await.unwrap().split();
            let (mut reads, mut messages, mut bytes) = (0u64, 0u64, 0u64);
            'all: loop {
                let frames = reader.next().await.unwrap().unwrap();
                reads += 1; messages += frames.len() as u64; bytes += frames.bytes() as u64;
                if let Some(last) = frames.iter().last() {
                    if let Frame::XLogData { wal_end, .. } = last.unwrap() && wal_end >= tidemark_model::Lsn::new(goal.as_u64() - 4000) && frames.len() < 20 { break 'all; }
                }
                if began.elapsed().as_secs() > 60 { break; }
                if messages > 239_990 { break; }
            }
            eprintln!("pause {pause} us, small {small} socket {socket}: {:?}, cpu {:.2}, {reads} reads, {messages} messages, {bytes} bytes", began.elapsed(), cpu() - c0);
            reader.finish(writer).await.ok();
        }
    }
    let budget = Budget::new(64 << 20);
    for n in [30_000, 150_000, 600_000] {
        let began = Instant::now();
        let mut c = CatchUp::open(&spec(&cluster.url("postgres")), CatchUpOptions { messages: n, ..CatchUpOptions::new(SLOT, SLOT, SLOT) }).await.unwrap();
        let mut messages = 0; let mut rounds = 0;
        while let Some(mut round) = c.round().await.unwrap() {
            rounds += 1;
            while let Some(frames) = round.next(&budget).await.unwrap() { messages += frames.len(); }
        }
        eprintln!("catch up by {n}: {:?}, {messages} messages {rounds} rounds", began.elapsed());
        c.close().await;
    }
}
