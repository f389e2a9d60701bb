//! Certificates for a server with TLS, made anew for each test.
//!
//! **Invariant:** nothing of it is trusted by anything but the test that made it.

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A server's certificate and key in PEM, and the authority that clients check it against.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The server's certificate.
    pub server_cert: String,
    /// The server's private key.
    pub server_key: String,
    /// The authority's certificate: signs both sides; `None` turns client certificates off.
    pub ca_cert: Option<String>,
    /// A client's certificate with the common name `postgres`.
    pub client_cert: String,
    /// The client's private key.
    pub client_key: String,
}

impl Tls {
    /// Makes an authority, a server certificate for these host names or addresses, and a client
    /// certificate for the role `postgres`.
    ///
    /// # Errors
    /// When a name is not a valid host name.
    pub fn generate(hosts: &[&str]) -> Result<Self> {
        let ca_key = KeyPair::generate().context("make the authority's key")?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "tidemark testkit authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_cert = ca.self_signed(&ca_key).context("sign the authority")?.pem();
        let issuer = Issuer::new(ca, ca_key);
        let (server_cert, server_key) =
            issue(&issuer, hosts, hosts.first().unwrap_or(&"localhost"))?;
        let (client_cert, client_key) = issue(&issuer, &[], "postgres")?;
        Ok(Self { server_cert, server_key, ca_cert: Some(ca_cert), client_cert, client_key })
    }
}

fn issue(issuer: &Issuer<'_, KeyPair>, hosts: &[&str], name: &str) -> Result<(String, String)> {
    let key = KeyPair::generate().context("make a key")?;
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).context("take the host names")?;
    params.distinguished_name.push(DnType::CommonName, name);
    let cert = params.signed_by(&key, issuer).context("sign a certificate")?;
    Ok((cert.pem(), key.serialize_pem()))
}
