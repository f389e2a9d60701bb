//! Authentication: saying who we are without telling the wrong one.
//!
//! **Invariant:** a cleartext password goes only over TLS or a unix socket. With SCRAM the server must prove that it knows
//! the password too before its AuthenticationOk counts. Channel binding is used when both can; `require` accepts nothing
//! else. A server cannot make us compute for long.
//!
//! PostgreSQL manual: protocol, "Start-up" and "SASL Authentication"; RFC 5802, 7677.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding as Binding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use crate::channel_binding::tls_server_end_point;
use crate::error::Fault;
use crate::message::{Inbox, Incoming, STARTUP_MESSAGE_MAX, server_error, unexpected};
use crate::socket::Transport;
use crate::spec::{ChannelBinding, ConnectSpec};

/// Most SCRAM iterations that we compute: 24 times the server's default, and what `postgres_protocol` allows.
const SCRAM_ITERATIONS_MAX: u64 = 100_000;

/// One authentication exchange.
pub(crate) struct Exchange<'a> {
    pub(crate) spec: &'a ConnectSpec,
    pub(crate) transport: &'a mut Transport,
    pub(crate) inbox: &'a mut Inbox,
}

fn refused(what: impl Into<String>, hint: &'static str) -> Fault {
    Fault::Authentication(what.into(), hint)
}

impl Exchange<'_> {
    /// Answers what the server asks until it says AuthenticationOk.
    pub(crate) async fn run(&mut self) -> Result<(), Fault> {
        let message = self.next().await?;
        match &message {
            Message::AuthenticationOk => return self.without_binding(),
            Message::AuthenticationCleartextPassword => self.cleartext().await?,
            Message::AuthenticationMd5Password(body) => {
                self.without_binding()?;
                let hash =
                    md5_hash(self.spec.user.as_bytes(), self.password()?.as_bytes(), body.salt());
                self.send(|buf| frontend::password_message(hash.as_bytes(), buf)).await?;
            }
            Message::AuthenticationSasl(body) => self.scram(body).await?,
            Message::AuthenticationGss | Message::AuthenticationSspi => {
                return Err(refused(
                    "the server wants GSSAPI or SSPI, which is not supported",
                    "let this user in by scram-sha-256 or by certificate in pg_hba.conf",
                ));
            }
            Message::AuthenticationKerberosV5 | Message::AuthenticationScmCredential => {
                return Err(refused("the server wants a method that is no longer in use", ""));
            }
            other => return Err(unexpected(other)),
        }
        match self.next().await? {
            Message::AuthenticationOk => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn next(&mut self) -> Result<Message, Fault> {
        loop {
            match self.inbox.next(self.transport, STARTUP_MESSAGE_MAX).await? {
                Incoming::Known(Message::ErrorResponse(body)) => {
                    let secret = self.spec.password.as_ref().map_or("", |secret| secret.reveal());
                    return Err(Fault::Server(Box::new(server_error(&body).without(secret))));
                }
                Incoming::Known(Message::NoticeResponse(_)) => {}
                Incoming::Known(message) => return Ok(message),
                Incoming::CopyBoth => return Err(Fault::protocol("unexpected CopyBothResponse")),
            }
        }
    }

    async fn send(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), Fault> {
        let mut buf = BytesMut::new();
        write(&mut buf).map_err(|_| refused("the password contains a zero byte", ""))?;
        self.transport.write_all(&buf).await?;
        self.transport.flush().await?;
        Ok(())
    }

    fn password(&self) -> Result<&str, Fault> {
        self.spec.password.as_ref().map(|secret| secret.reveal()).ok_or_else(|| {
            refused(
                "the server asks for a password and none was given",
                "set it in PGPASSWORD, in a .pgpass file (mode 0600) or in the connection string",
            )
        })
    }

    fn without_binding(&self) -> Result<(), Fault> {
        if self.spec.channel_binding == ChannelBinding::Require {
            return Err(refused(
                "the server does not use channel binding, which channel_binding=require demands",
                "",
            ));
        }
        Ok(())
    }

    async fn cleartext(&mut self) -> Result<(), Fault> {
        self.without_binding()?;
        if !self.transport.is_private() {
            return Err(refused(
                "the server wants the password in clear text over a connection without TLS",
                "use sslmode=verify-full (or require), or scram-sha-256 in the server's pg_hba.conf",
            ));
        }
        let password = self.password()?.to_owned();
        self.send(|buf| frontend::password_message(password.as_bytes(), buf)).await
    }

    async fn scram(&mut self, body: &AuthenticationSaslBody) -> Result<(), Fault> {
        let (plain, plus) = offered(body)?;
        let (mechanism, binding) = self.choose(plain, plus)?;
        let mut scram = ScramSha256::new(self.password()?.as_bytes(), binding);
        let first = scram.message().to_vec();
        self.send(|buf| frontend::sasl_initial_response(mechanism, &first, buf)).await?;

        let answer = match self.next().await? {
            Message::AuthenticationSaslContinue(body) => body,
            other => return Err(unexpected(&other)),
        };
        check_iterations(answer.data())?;
        scram
            .update(answer.data())
            .map_err(|_| refused("the server's SCRAM challenge is malformed", ""))?;
        let response = scram.message().to_vec();
        self.send(|buf| frontend::sasl_response(&response, buf)).await?;

        let last = match self.next().await? {
            Message::AuthenticationSaslFinal(body) => body,
            other => return Err(unexpected(&other)),
        };
        scram.finish(last.data()).map_err(|_| {
            refused(
                "the server could not prove that it knows the password",
                "this may not be the server that it claims to be",
            )
        })
    }

    /// The mechanism and what binds it.
    fn choose(&self, plain: bool, plus: bool) -> Result<(&'static str, Binding), Fault> {
        let wanted = self.spec.channel_binding;
        let hash = match wanted {
            ChannelBinding::Disable => None,
            _ => self.transport.server_certificate().and_then(tls_server_end_point),
        };
        match (plus, hash) {
            (true, Some(hash)) => Ok((SCRAM_SHA_256_PLUS, Binding::tls_server_end_point(hash))),
            _ if wanted == ChannelBinding::Require => Err(refused(
                "channel_binding=require, but it is not possible on this connection",
                "it needs TLS, scram-sha-256 and a certificate signed with RSA or ECDSA",
            )),
            // Tells the server that we could have: if it offered PLUS after all, somebody took it away.
            (false, Some(_)) if plain => Ok((SCRAM_SHA_256, Binding::unrequested())),
            _ if plain => Ok((SCRAM_SHA_256, Binding::unsupported())),
            _ => Err(refused("the server offers no authentication that is supported", "")),
        }
    }
}

/// Whether SCRAM-SHA-256 and -PLUS are offered.
fn offered(body: &AuthenticationSaslBody) -> Result<(bool, bool), Fault> {
    use fallible_iterator::FallibleIterator;

    let (mut plain, mut plus) = (false, false);
    let mut mechanisms = body.mechanisms();
    while let Some(mechanism) =
        mechanisms.next().map_err(|_| Fault::protocol("a malformed list of SASL mechanisms"))?
    {
        plain |= mechanism == SCRAM_SHA_256;
        plus |= mechanism == SCRAM_SHA_256_PLUS;
    }
    Ok((plain, plus))
}

/// Looks at the iteration count before anything is computed with it.
fn check_iterations(challenge: &[u8]) -> Result<(), Fault> {
    let count = std::str::from_utf8(challenge)
        .ok()
        .and_then(|text| text.split(',').find_map(|part| part.strip_prefix("i=")))
        .and_then(|digits| digits.parse::<u64>().ok())
        .ok_or_else(|| refused("the server's SCRAM challenge is malformed", ""))?;
    if !(1..=SCRAM_ITERATIONS_MAX).contains(&count) {
        return Err(refused(
            format!(
                "the server asks for {count} SCRAM iterations; at most {SCRAM_ITERATIONS_MAX} are computed"
            ),
            "this may not be the server that it claims to be; otherwise lower scram_iterations and set the password again",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iteration_counts_are_bounded_before_anything_is_computed() {
        assert!(check_iterations(b"r=abc,s=c2FsdA==,i=4096").is_ok());
        for bad in [
            &b"r=abc,s=c2FsdA==,i=2147483648"[..],
            b"r=abc,s=c2FsdA==,i=0",
            b"r=abc,s=c2FsdA==,i=-1",
            b"r=abc,s=c2FsdA==,i=99999999999999999999999",
            b"r=abc",
            b"\xff\xfe",
            b"",
        ] {
            assert!(check_iterations(bad).is_err());
        }
    }
}
