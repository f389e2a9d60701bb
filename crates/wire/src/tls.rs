//! TLS: what a server's certificate must be, and the handshake.
//!
//! **Invariant:** from `require` upwards there is no way back to plaintext. The answer to SSLRequest is read as exactly one
//! byte, straight from the socket, so that nothing sent before the handshake can be taken for what came through it
//! (CVE-2021-23222). Signatures of the handshake are checked in every mode.
//!
//! PostgreSQL manual: libpq, "SSL Support"; protocol, "SSL Session Encryption".

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::error::Fault;
use crate::socket::{Socket, Transport};
use crate::spec::{ConnectSpec, Host, RootCert, SslMode, TlsOptions};

/// The name of the protocol inside TLS.
const ALPN: &[u8] = b"postgresql";

/// What came of asking for TLS.
pub(crate) enum Asked {
    Encrypted(Transport),
    /// The server answered that it has no TLS; the socket is as new.
    Refused(Socket),
}

/// Asks for TLS and does the handshake.
pub(crate) async fn encrypt(spec: &ConnectSpec, mut socket: Socket) -> Result<Asked, Fault> {
    if !spec.tls.direct {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await?;
        socket.flush().await?;
        match socket.read_u8().await? {
            b'S' => {}
            b'N' => return Ok(Asked::Refused(socket)),
            _ => {
                return Err(Fault::protocol(
                    "the answer to the request for TLS is neither yes nor no",
                ));
            }
        }
    }
    let config = config(&spec.tls)?;
    let name = server_name(&spec.host)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .map_err(|error| handshake_fault(&error))?;
    if spec.tls.direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(Fault::Tls(
            "the server did not agree to speak PostgreSQL inside TLS".to_owned(),
            "sslnegotiation=direct needs PostgreSQL 17 or later",
        ));
    }
    Ok(Asked::Encrypted(Transport::Tls(Box::new(stream))))
}

/// The error for a server without TLS where TLS is required.
pub(crate) fn refused() -> Fault {
    Fault::Tls(
        "the server does not offer it".to_owned(),
        "sslmode demands TLS and the server has ssl = off; somebody in between may also have answered in its place",
    )
}

fn server_name(host: &Host) -> Result<ServerName<'static>, Fault> {
    let invalid = |_| Fault::usage("the host name cannot be used with TLS");
    match host {
        Host::Tcp { name: Some(name), .. } => ServerName::try_from(name.clone()).map_err(invalid),
        Host::Tcp { name: None, address: Some(address) } => {
            Ok(ServerName::IpAddress((*address).into()))
        }
        _ => ServerName::try_from("localhost").map_err(invalid),
    }
}

fn config(options: &TlsOptions) -> Result<ClientConfig, Fault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if options.only_tls13 { &[&rustls::version::TLS13] } else { rustls::DEFAULT_VERSIONS };
    let internal = |error: rustls::Error| Fault::Tls(error.to_string(), "");
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(options, provider)?));
    let mut config = match client_certificate(options)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|_| {
            Fault::usage(
                "the client certificate (sslcert) and its key (sslkey) do not fit together",
            )
        })?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = options.sni;
    Ok(config)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(options: &TlsOptions) -> Result<Option<Identity>, Fault> {
    let (Some(cert), Some(key)) = (&options.cert, &options.key) else {
        return match &options.cert {
            Some(_) => Err(Fault::usage("sslcert is given without sslkey")),
            None => Ok(None),
        };
    };
    let chain = certificates(cert, "client certificate")?;
    let about = |what: &str| Fault::usage(format!("client key file \"{}\" {what}", key.display()));
    let metadata =
        std::fs::metadata(key).map_err(|error| about(&format!("cannot be read: {error}")))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(about("is readable by group or world: its mode should be 0600"));
    }
    let key =
        PrivateKeyDer::from_pem_file(key).map_err(|_| about("holds no unencrypted PEM key"))?;
    Ok(Some((chain, key)))
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let about = |why: &str| Fault::usage(format!("{what} file \"{}\" {why}", path.display()));
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| about(&format!("cannot be read: {error}")))?;
    if found.is_empty() {
        return Err(about("holds no PEM certificate"));
    }
    Ok(found)
}

/// Decides whether a certificate is accepted, by `sslmode`.
#[derive(Debug)]
struct Verifier {
    mode: SslMode,
    roots: RootCertStore,
    /// The certificates of `sslrootcert` as they are: a server may show one of them itself.
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(options: &TlsOptions, provider: Arc<CryptoProvider>) -> Result<Self, Fault> {
        let mut this = Self {
            mode: options.mode,
            roots: RootCertStore::empty(),
            trusted: Vec::new(),
            provider,
        };
        if options.mode < SslMode::VerifyCa {
            return Ok(this);
        }
        match &options.root {
            Some(RootCert::File(path)) => {
                this.trusted = certificates(path, "root certificate")?;
                this.roots.add_parsable_certificates(this.trusted.iter().cloned());
            }
            Some(RootCert::System) => {
                let system = rustls_native_certs::load_native_certs();
                this.roots.add_parsable_certificates(system.certs);
            }
            None => {
                return Err(Fault::usage(
                    "sslmode wants the certificate checked, but there is no root certificate: give sslrootcert=<file> or sslrootcert=system",
                ));
            }
        }
        if this.roots.is_empty() {
            return Err(Fault::usage("sslrootcert names no certificate that can be used"));
        }
        Ok(this)
    }

    fn check_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(
            parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        ) {
            // A self-signed server certificate is often marked as an authority, and given as sslrootcert. Its validity
            // has been checked by the time that this error comes.
            Err(error)
                if is_authority(&error) && self.trusted.iter().any(|it| it == end_entity) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

fn is_authority(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(CertificateError::Other(inner))
            if inner.0.to_string() == "CaUsedAsEndEntity"
    )
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.mode >= SslMode::VerifyCa {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            self.check_chain(end_entity, &parsed, intermediates, now)?;
            if self.mode == SslMode::VerifyFull {
                verify_server_name(&parsed, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The handshake's failure in words, with the way out.
fn handshake_fault(error: &std::io::Error) -> Fault {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else {
        return Fault::Tls(
            format!("the handshake was cut short ({})", error.kind()),
            "the server may demand a client certificate (sslcert, sslkey), or not speak TLS here",
        );
    };
    let hint = match inner {
        rustls::Error::InvalidCertificate(reason) => certificate_hint(reason),
        rustls::Error::AlertReceived(_) => {
            "the server refused: it may demand a client certificate (sslcert, sslkey) that its authority signed"
        }
        _ => "",
    };
    Fault::Tls(inner.to_string(), hint)
}

fn certificate_hint(reason: &CertificateError) -> &'static str {
    match reason {
        CertificateError::UnknownIssuer => {
            "the certificate is not signed by an authority in sslrootcert: give the right file, or sslrootcert=system"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired: it must be renewed there"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is for another host: use the name that is in its subjectAltName, or sslmode=verify-ca"
        }
        _ => "the server's certificate cannot be accepted",
    }
}
