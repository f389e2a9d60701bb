//! `[serve]`: what monitoring asks for, over HTTP.
//!
//! **Invariant:** it only tells. It answers GET and HEAD of three paths, holds no secret and no row, and changes nothing. It
//! listens only where the configuration says so. A request whose Host is neither an address nor the configured name is
//! refused, so that a web page cannot read it through a name of its own (DNS rebinding, `hazards.md` S11).
//!
//! ```text
//! /metrics   Prometheus text format
//! /status    what `tidemark status --json` prints
//! /healthz   200 while the job runs and nothing ended it, else 503
//! ```
//!
//! What it tells is asked over the job's own control socket: there is one source of truth.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tidemark_migrate::ask_status;
use tidemark_pipeline::{Job, Status};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::exit::{ExitCode, Failure};
use crate::metrics;
use crate::waves;

/// Who is slow to send a request is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once.
const CONNECTIONS: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;

/// The listening endpoint; dropping it ends its tasks.
pub(crate) struct Serving {
    _tasks: JoinSet<()>,
}

/// Listens at the configured address.
///
/// # Errors
/// The address cannot be listened at.
pub(crate) async fn serve(listen: SocketAddr, jobs: &[Job]) -> Result<Serving, Failure> {
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::new(ExitCode::Usage, format!("listen at {listen} (serve.listen)"))
            .because(&error)
            .hint("choose a free port, or leave serve.listen out")
    })?;
    tracing::info!(%listen, "serving /metrics, /status and /healthz");
    let mut tasks = JoinSet::new();
    let job = |job: &Job| {
        let wave = job.wave.as_ref().map(|wave| wave.name.clone());
        (wave, job.state_dir.clone())
    };
    tasks.spawn(accept(listener, Arc::new(jobs.iter().map(job).collect())));
    Ok(Serving { _tasks: tasks })
}

/// The job, or its waves: names and state directories.
type Jobs = Vec<(Option<String>, PathBuf)>;

async fn accept(listener: TcpListener, jobs: Arc<Jobs>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let jobs = Arc::clone(&jobs);
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&jobs)));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(HEAD_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away in the middle is its own affair.
            drop(tokio::time::timeout(PATIENCE * 2, connection).await);
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<Incoming>,
    jobs: Arc<Jobs>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    if !is_addressed_directly(request.headers().get(HOST)) {
        return Ok(text(StatusCode::FORBIDDEN, "ask by address, not by a name\n"));
    }
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/status" | "/healthz") {
        return Ok(text(StatusCode::NOT_FOUND, "/metrics, /status, /healthz\n"));
    }
    let mut statuses = Vec::new();
    for (wave, state_dir) in jobs.iter() {
        if let Ok(Some(status)) = ask_status(state_dir).await {
            statuses.push((wave.clone(), state_dir.clone(), status));
        }
    }
    let is_silent = statuses.len() < jobs.len();
    // Of waves the others are told all the same; the health is that of all.
    if statuses.is_empty() || is_silent && path == "/healthz" {
        return Ok(text(StatusCode::SERVICE_UNAVAILABLE, "the job does not answer\n"));
    }
    Ok(match path {
        "/metrics" => {
            let all: Vec<&Status> = statuses.iter().map(|(_, _, status)| status).collect();
            typed("text/plain; version=0.0.4; charset=utf-8", metrics::expositions(&all))
        }
        "/status" => match whole(statuses).map(|status| serde_json::to_string_pretty(&status)) {
            Ok(Ok(body)) => typed("application/json", body + "\n"),
            _ => text(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be written\n"),
        },
        _ => health(statuses.iter().all(|(_, _, status)| status.last_error.is_none())),
    })
}

/// Of several waves one status.
fn whole(mut statuses: Vec<(Option<String>, PathBuf, Status)>) -> Result<Status, Failure> {
    match statuses.as_mut_slice() {
        [(None, _, status)] => Ok(std::mem::take(status)),
        _ => waves::summary(
            statuses
                .into_iter()
                .map(|(wave, state_dir, status)| (wave.unwrap_or_default(), state_dir, status))
                .collect(),
        ),
    }
}

fn health(is_well: bool) -> Response<Full<Bytes>> {
    match is_well {
        true => text(StatusCode::OK, "ok\n"),
        false => text(StatusCode::SERVICE_UNAVAILABLE, "the last attempt ended with an error\n"),
    }
}

/// By an IP address, or as `localhost`: names that nobody can point at us from outside.
fn is_addressed_directly(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return true };
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn typed(kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_hosts() {
        let direct =
            |host: &str| is_addressed_directly(Some(&HeaderValue::from_str(host).unwrap()));
        for host in ["127.0.0.1", "127.0.0.1:9632", "[::1]:9632", "localhost", "localhost:9632"] {
            assert!(direct(host), "{host}");
        }
        for host in ["evil.example", "evil.example:9632", "localhost.evil.example", ""] {
            assert!(!direct(host), "{host}");
        }
        assert!(is_addressed_directly(None), "HTTP/1.0 has none");
    }
}
