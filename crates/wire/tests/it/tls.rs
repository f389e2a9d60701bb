//! Every `sslmode` against every kind of certificate, with the real server and with one that shows what is wrong.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidemark_wire::{ConnectSpec, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::cluster::{cluster, spec};

async fn encrypted(spec: &ConnectSpec) -> Result<bool, String> {
    let mut raw = spec
        .connect_raw(Mode::Sql)
        .await
        .map_err(|error| format!("{error} ({:?})", error.hint()))?;
    let rows = raw
        .simple_query("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
        .await
        .map_err(|error| error.to_string())?;
    Ok(rows == [[Some("t".to_owned())]])
}

#[tokio::test]
async fn every_sslmode_does_what_libpq_documents() {
    let cluster = cluster();
    let file = |name: &str| cluster.path(name).display().to_string();
    let (ca, other) = (file("ca.crt"), file("other-ca.crt"));
    for (mode, host, root, expected) in [
        ("disable", "localhost", None, Ok(false)),
        ("allow", "localhost", None, Ok(false)),
        ("prefer", "localhost", None, Ok(true)),
        ("require", "localhost", None, Ok(true)),
        ("require", "wrong.example", Some(&ca), Ok(true)),
        ("require", "localhost", Some(&other), Err("UnknownIssuer")),
        ("verify-ca", "localhost", Some(&ca), Ok(true)),
        ("verify-ca", "wrong.example", Some(&ca), Ok(true)),
        ("verify-ca", "localhost", Some(&other), Err("UnknownIssuer")),
        ("verify-ca", "localhost", None, Err("no root certificate")),
        ("verify-full", "localhost", Some(&ca), Ok(true)),
        ("verify-full", "wrong.example", Some(&ca), Err("not valid for name")),
        ("verify-full", "localhost", Some(&other), Err("UnknownIssuer")),
    ] {
        let root = root.map(|root| format!("sslrootcert={root}")).unwrap_or_default();
        let spec = cluster.at(host, "trust_user", &format!("sslmode={mode} {root}"));
        match (encrypted(&spec).await, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{mode} {host} {root}"),
            (Err(found), Err(part)) => assert!(found.contains(part), "{mode} {host}: {found}"),
            (found, expected) => panic!("{mode} {host} {root}: {found:?}, not {expected:?}"),
        }
    }
}

#[tokio::test]
async fn allow_and_prefer_try_the_other_way_once_and_require_does_not() {
    let cluster = cluster();
    let by = |user: &str, mode: &str| cluster.tcp(user, &format!("sslmode={mode}"));
    assert_eq!(encrypted(&by("tls_only", "allow")).await, Ok(true));
    assert_eq!(encrypted(&by("plain_only", "prefer")).await, Ok(false));
    assert!(encrypted(&by("plain_only", "require")).await.is_err());
    assert!(encrypted(&by("tls_only", "disable")).await.is_err());
}

#[tokio::test]
async fn a_client_certificate_lets_its_user_in_on_every_kind_of_connection() {
    let cluster = cluster();
    let (cert, key) = (cluster.path("client.crt"), cluster.path("client.key"));
    let more = format!("sslmode=require sslcert={} sslkey={}", cert.display(), key.display());
    let spec = cluster.tcp("cert_user", &more);
    assert_eq!(encrypted(&spec).await, Ok(true));
    spec.connect().await.unwrap();
    let without = cluster.tcp("cert_user", "sslmode=require").connect().await.unwrap_err();
    assert!(without.is_authentication() || without.is_tls(), "{without}");
}

#[tokio::test]
async fn a_client_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let cluster = cluster();
    let (cert, open) = (cluster.path("client.crt"), cluster.path("open.key"));
    std::fs::copy(cluster.path("client.key"), &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let more = format!("sslmode=require sslcert={} sslkey={}", cert.display(), open.display());
    let error = cluster.tcp("cert_user", &more).connect().await.unwrap_err();
    assert!(error.to_string().contains("0600"), "{error}");
}

#[tokio::test]
async fn cancel_reaches_the_server_over_tls_too() {
    let spec = cluster().tcp("trust_user", "sslmode=require");
    let mut raw = spec.connect_raw(Mode::Sql).await.unwrap();
    let token = raw.cancel_token();
    let admin = cluster().unix().connect().await.unwrap();
    let pid = raw.backend_pid();
    let (answer, ()) = tokio::join!(raw.simple_query("select pg_sleep(600)"), async {
        let running =
            "select count(*) from pg_stat_activity where pid = $1 and wait_event = 'PgSleep'";
        while admin.query_one(running, &[&pid]).await.unwrap().get::<_, i64>(0) == 0 {}
        token.cancel().await.unwrap();
    });
    assert_eq!(answer.unwrap_err().sqlstate(), Some("57014"));
    assert_eq!(raw.simple_query("select 1").await.unwrap().len(), 1);
}

/// A server that does nothing but show a certificate; returns its port.
async fn showing(certificate: &str) -> u16 {
    let cluster = cluster();
    let chain: Vec<_> = CertificateDer::pem_file_iter(cluster.path(&format!("{certificate}.crt")))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(cluster.path(&format!("{certificate}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 8];
            socket.read_exact(&mut request).await.unwrap();
            socket.write_all(b"S").await.unwrap();
            if let Ok(mut stream) = acceptor.accept(socket).await {
                // An answer that only a client which accepted the certificate sees.
                let length = stream.read_u32().await.unwrap() as usize;
                stream.read_exact(&mut vec![0; length - 4]).await.unwrap();
                stream.write_all(b"E\0\0\0\x13SFATAL\0C57P03\0\0").await.unwrap();
                stream.flush().await.unwrap();
                drop(stream.shutdown().await);
            }
        }
    });
    tasks.detach_all();
    port
}

#[tokio::test]
async fn expired_and_self_signed_certificates_are_told_apart() {
    let cluster = cluster();
    let file = |name: &str| cluster.path(name).display().to_string();
    for (certificate, mode, root, expected) in [
        ("expired", "verify-full", "ca.crt", "expired"),
        ("expired", "verify-ca", "ca.crt", "expired"),
        ("expired", "require", "", "57P03"),
        ("self", "require", "", "57P03"),
        ("self", "verify-full", "ca.crt", "certificate"),
        ("self", "verify-full", "self.crt", "57P03"),
    ] {
        let port = showing(certificate).await;
        let root =
            if root.is_empty() { String::new() } else { format!("sslrootcert={}", file(root)) };
        let spec = spec(&format!(
            "host=localhost hostaddr=127.0.0.1 port={port} user=me sslmode={mode} {root}"
        ));
        let error = spec.connect().await.unwrap_err();
        let text = format!("{error}");
        assert!(text.contains(expected), "{certificate} {mode} {root}: {text}");
        assert_eq!(error.is_tls(), expected != "57P03", "{text}");
    }
}
