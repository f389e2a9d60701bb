//! Hostile servers: a listener that says what no PostgreSQL would.

use std::time::Duration;

use tidemark_model::{Budget, TupleForm};
use tidemark_wire::{ConnectSpec, Error, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::spec;

const SECRET: &str = "S3cr3t-rogue";

/// One message.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend_from_slice(body);
    message
}

/// Reads a packet that begins with its length.
async fn packet(socket: &mut TcpStream) -> Vec<u8> {
    let length = socket.read_u32().await.unwrap() as usize;
    let mut body = vec![0; length - 4];
    socket.read_exact(&mut body).await.unwrap();
    body
}

/// Connects to a listener that plays one session; the listener lives as long as the attempt.
async fn against<T>(
    options: &str,
    play: impl AsyncFn(&mut TcpStream),
    attempt: impl AsyncFnOnce(ConnectSpec) -> T,
) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let spec = spec(&format!("host=127.0.0.1 port={port} user=me password={SECRET} {options}"));
    let serve = async {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            play(&mut socket).await;
            // Keeps the connection open until the other side leaves.
            drop(socket.read_to_end(&mut Vec::new()).await);
        }
    };
    let limit = Duration::from_secs(60);
    tokio::select! {
        result = attempt(spec) => result,
        () = serve => unreachable!("the listener goes on"),
        () = tokio::time::sleep(limit) => panic!("no end within a minute"),
    }
}

async fn refused(options: &str, play: impl AsyncFn(&mut TcpStream)) -> Error {
    let error =
        against(options, play, async |spec: ConnectSpec| spec.connect().await.unwrap_err()).await;
    assert!(!format!("{error} {error:?} {:?}", error.hint()).contains(SECRET), "{error:?}");
    error
}

#[tokio::test]
async fn a_server_that_has_no_tls_is_refused_from_require_on() {
    for options in ["sslmode=require", "sslmode=verify-full sslrootcert=system"] {
        let error = refused(options, async |socket: &mut TcpStream| {
            packet(socket).await;
            socket.write_all(b"N").await.unwrap();
        })
        .await;
        assert!(error.is_tls(), "{options}: {error}");
        assert!(error.hint().is_some());
    }
}

#[tokio::test]
async fn plaintext_behind_the_answer_to_the_request_for_tls_is_not_taken_for_the_session() {
    let error = refused("sslmode=require", async |socket: &mut TcpStream| {
        packet(socket).await;
        let ready = [&b"S"[..], &message(b'R', &[0; 4]), &message(b'Z', b"I")].concat();
        socket.write_all(&ready).await.unwrap();
    })
    .await;
    assert!(error.is_tls(), "{error}");
}

#[tokio::test]
async fn a_cleartext_password_is_not_sent_over_plaintext() {
    let error = refused("sslmode=disable", async |socket: &mut TcpStream| {
        packet(socket).await;
        socket.write_all(&message(b'R', &[0, 0, 0, 3])).await.unwrap();
        let mut sent = Vec::new();
        drop(socket.read_to_end(&mut sent).await);
        assert!(sent.is_empty(), "the password was sent");
    })
    .await;
    assert!(error.is_authentication(), "{error}");
}

#[tokio::test]
async fn two_thousand_million_scram_iterations_are_not_computed() {
    let error = refused("sslmode=disable", async |socket: &mut TcpStream| {
        packet(socket).await;
        socket.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")).await.unwrap();
        socket.read_u8().await.unwrap();
        let first = String::from_utf8(packet(socket).await[18..].to_vec()).unwrap();
        let nonce = first.rsplit("r=").next().unwrap();
        let challenge = format!("\0\0\0\x0br={nonce}x,s=c2FsdHNhbHQ=,i=2147483648");
        socket.write_all(&message(b'R', challenge.as_bytes())).await.unwrap();
    })
    .await;
    assert!(error.is_authentication(), "{error}");
    assert!(error.to_string().contains("2147483648"), "{error}");
}

#[tokio::test]
async fn authentication_without_the_servers_proof_does_not_count() {
    let error = refused("sslmode=disable", async |socket: &mut TcpStream| {
        packet(socket).await;
        socket.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")).await.unwrap();
        socket.read_u8().await.unwrap();
        packet(socket).await;
        socket.write_all(&message(b'R', &[0; 4])).await.unwrap();
    })
    .await;
    assert!(error.is_protocol(), "{error}");
}

#[tokio::test]
async fn a_password_that_a_server_sends_back_is_not_shown() {
    let error = refused("sslmode=disable", async |socket: &mut TcpStream| {
        packet(socket).await;
        let body = format!("SFATAL\0C28P01\0MI know {SECRET}\0H{SECRET}\0\0");
        socket.write_all(&message(b'E', body.as_bytes())).await.unwrap();
    })
    .await;
    assert!(error.is_authentication(), "{error}");
}

#[tokio::test]
async fn kerberos_is_refused_in_words() {
    for kind in [7_u8, 9] {
        let error = refused("sslmode=disable", async |socket: &mut TcpStream| {
            packet(socket).await;
            socket.write_all(&message(b'R', &[0, 0, 0, kind])).await.unwrap();
        })
        .await;
        assert!(error.to_string().contains("GSSAPI"), "{error}");
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_connect_timeout() {
    let error = refused("sslmode=disable connect_timeout=1", async |socket: &mut TcpStream| {
        packet(socket).await;
    })
    .await;
    assert!(error.is_unreachable(), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("connect_timeout")));
}

#[tokio::test]
async fn huge_and_negative_lengths_end_the_connection_at_once() {
    for length in [&b"\x7f\xff\xff\xff"[..], b"\xff\xff\xff\xff", b"\0\0\0\x02"] {
        let error = refused("sslmode=disable", async |socket: &mut TcpStream| {
            packet(socket).await;
            socket.write_all(&[b"R", length].concat()).await.unwrap();
        })
        .await;
        assert!(error.is_protocol(), "{error}");
    }
}

/// Lets the client in and answers its first two queries: the settings, then COPY with `stream`.
async fn play_copy(socket: &mut TcpStream, stream: &[u8]) {
    packet(socket).await;
    let welcome = [
        message(b'R', &[0; 4]),
        message(b'S', b"server_version\x0015.1\0"),
        message(b'K', &[0; 8]),
        message(b'Z', b"I"),
    ];
    socket.write_all(&welcome.concat()).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'Q');
    packet(socket).await;
    socket.write_all(&[message(b'C', b"SET\0"), message(b'Z', b"I")].concat()).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'Q');
    packet(socket).await;
    socket.write_all(&message(b'H', &[0, 0, 0])).await.unwrap();
    socket.write_all(stream).await.unwrap();
}

async fn copy_from(stream: &[u8]) -> Result<u64, Error> {
    against(
        "sslmode=disable",
        async |socket: &mut TcpStream| play_copy(socket, stream).await,
        async |spec: ConnectSpec| {
            let mut raw = spec.connect_raw(Mode::Sql).await.unwrap();
            let mut copy = raw.copy_out("COPY t TO STDOUT", TupleForm::PgText).await.unwrap();
            let budget = Budget::new(1 << 20);
            while copy.next(64 * 1024, &budget).await?.is_some() {}
            Ok(copy.rows().unwrap())
        },
    )
    .await
}

#[tokio::test]
async fn copy_believes_neither_lengths_nor_counts() {
    let row = message(b'd', b"1\n");
    let end = |count: &str| {
        let tag = format!("COPY {count}\0");
        [message(b'c', b""), message(b'C', tag.as_bytes()), message(b'Z', b"I")].concat()
    };
    assert_eq!(copy_from(&[&row[..], &end("1")].concat()).await.unwrap(), 1);
    for stream in [
        [&row[..], b"d\x7f\xff\xff\xff"].concat(),
        [&row[..], b"d\xff\xff\xff\xf0"].concat(),
        [&row[..], &end("2")].concat(),
        [&row[..], &end("x")].concat(),
        [&row[..], &message(b'C', b"COPY 1\0")].concat(),
        [&row[..], &message(b'c', b""), &message(b'Z', b"I")].concat(),
        [&row[..], &message(b'c', b""), &row].concat(),
        message(b'd', b"no line"),
    ] {
        let error = copy_from(&stream).await.unwrap_err();
        assert!(error.is_protocol(), "{stream:?}: {error}");
    }
}
