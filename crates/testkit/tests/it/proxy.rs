//! The proxy: transparent without a fault, exact with one. The client is `psql`.

use std::process::Output;
use std::time::{Duration, Instant};

use tidemark_testkit::proxy::{Cut, Direction, Fault, Proxy};
use tidemark_testkit::{Cluster, Database, Tls, shared};

struct Rig {
    database: Database,
    proxy: Proxy,
}

impl Rig {
    fn new() -> Self {
        let database = shared().unwrap();
        let proxy = Proxy::start(database.cluster()).unwrap();
        Self { database, proxy }
    }

    fn psql(&self, sql: &str) -> Output {
        let url = self.proxy.url(&self.database.url());
        assert!(url.contains(&self.proxy.port().to_string()), "{url}");
        let mut psql = self.database.cluster().client_command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, "-d"])
            .arg(url + "?gssencmode=disable");
        psql.output().unwrap()
    }
}

const MUCH: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 2000)";

#[test]
fn without_a_fault_everything_passes() {
    let rig = Rig::new();
    let output = rig.psql(MUCH);
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), 2000 * 1001);
    assert!(rig.proxy.bytes(Direction::ToClient) > 2_000_000);
    assert!(rig.proxy.bytes(Direction::ToServer) > 0);
    assert_eq!(rig.proxy.fired(), 0);
}

#[test]
fn a_cut_happens_at_its_byte_and_once() {
    for cut in [Cut::Rst, Cut::Fin] {
        let rig = Rig::new();
        let before = rig.proxy.bytes(Direction::ToClient);
        rig.proxy.fault(Direction::ToClient, Fault::CutAfter(1_000_000, cut));
        assert!(!rig.psql(MUCH).status.success(), "{cut:?}");
        let passed = rig.proxy.bytes(Direction::ToClient) - before;
        // The byte that answers the request for TLS is passed before faults are looked at.
        assert!((1_000_000..=1_000_001).contains(&passed), "{passed}");
        assert_eq!(rig.proxy.fired(), 1);
        assert!(rig.psql(MUCH).status.success(), "{cut:?} fired twice");
    }
}

#[test]
fn a_flipped_bit_changes_one_byte() {
    let rig = Rig::new();
    rig.proxy.fault(Direction::ToClient, Fault::FlipBit(1_000_000));
    let output = rig.psql(MUCH);
    let wrong = output.stdout.iter().filter(|byte| !b"x\n".contains(byte)).count();
    assert!(wrong == 1 || !output.status.success(), "{wrong} bytes changed");
    assert_eq!(rig.proxy.fired(), 1);
}

#[test]
fn the_lost_reply_to_commit_leaves_the_commit() {
    let rig = Rig::new();
    rig.database.psql("CREATE TABLE t (i int)").unwrap();
    rig.proxy.fault(Direction::ToClient, Fault::LoseReply("COMMIT", Cut::Rst));
    let output = rig.psql("BEGIN; INSERT INTO t VALUES (1); COMMIT");
    assert!(!output.status.success(), "the client got its answer");
    assert_eq!(rig.proxy.fired(), 1);
    let (cluster, name) = (rig.database.cluster(), rig.database.name());
    cluster.wait_for(name, "SELECT count(*) FROM t", "1").unwrap();
}

#[test]
fn refused_connections_come_back_after_healing() {
    let rig = Rig::new();
    rig.proxy.refuse_connections(true);
    assert!(!rig.psql("SELECT 1").status.success());
    rig.proxy.heal();
    assert!(rig.psql("SELECT 1").status.success());
    assert!(rig.proxy.connections() >= 2);
}

#[test]
fn a_black_hole_holds_until_healed() {
    let rig = Rig::new();
    rig.proxy.fault(Direction::ToServer, Fault::BlackHole);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.send(rig.psql("SELECT 1").status.success()).unwrap());
        let early = receiver.recv_timeout(Duration::from_millis(500));
        assert!(early.is_err(), "an answer came out of a black hole");
        rig.proxy.heal();
        assert!(receiver.recv_timeout(Duration::from_secs(30)).unwrap());
    });
}

#[test]
fn delay_and_throttle_take_their_time() {
    let rig = Rig::new();
    rig.proxy.fault(Direction::ToClient, Fault::Throttle(4_000_000));
    let before = Instant::now();
    assert!(rig.psql(MUCH).status.success());
    assert!(before.elapsed() > Duration::from_millis(400), "throttle: {:?}", before.elapsed());
    rig.proxy.fault(Direction::ToServer, Fault::Delay(Duration::from_millis(200)));
    let before = Instant::now();
    assert!(rig.psql("SELECT 1").status.success());
    assert!(before.elapsed() > Duration::from_millis(400), "delay: {:?}", before.elapsed());
}

#[test]
fn a_cut_now_ends_a_connection_in_the_middle_of_its_work() {
    let rig = Rig::new();
    rig.proxy.cut_next(Cut::Rst);
    assert!(!rig.psql("SELECT 1").status.success());
    assert!(rig.psql("SELECT 1").status.success());
}

#[test]
fn encrypted_connections_pass_and_a_flipped_bit_never_becomes_data() {
    let tls = Tls::generate(&["127.0.0.1"]).unwrap();
    let cluster = Cluster::builder().tls(tls).start().unwrap();
    let proxy = Proxy::start(&cluster).unwrap();
    let url = proxy.url(&cluster.url("postgres")) + "?sslmode=require";
    let ask = || {
        let mut psql = cluster.client_command("psql");
        psql.args(["-XAtq", "-c", MUCH, "-d", &url]).output().unwrap()
    };
    let output = ask();
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), 2000 * 1001);
    proxy.fault(Direction::ToClient, Fault::FlipBit(1_000_000));
    let output = ask();
    assert!(!output.status.success());
    assert!(output.stdout.iter().all(|byte| b"x\n".contains(byte)));
}
