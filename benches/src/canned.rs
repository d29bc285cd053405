//! A server that answers health queries from memory, in a process of its own.
//!
//! It is told from a client's CPU and memory by being another process (the hidden mode
//! [`MODE`] of a bench program), and it costs next to nothing per answer, so that what is measured
//! is the client. Its bodies are those of [`crate::bodies`], sent as Consul sends them: chunked,
//! without a length, in one chunk.
//!
//! | path | what it is |
//! |---|---|
//! | `/v1/health/service/fixed-N` | N instances that never change |
//! | `/v1/health/service/changing-N` | each blocking query is answered at once by an update in which one of N instances has changed |
//! | `/v1/health/service/still-N` | the index moves with each blocking query, but only every [`STILL_PERIOD`]th update changes an instance |

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::bodies::{self, Instance};
use crate::worker::{Worker, input_ended, this_program};
use crate::{Failure, Outcome};

/// The first argument that makes a bench program be this server.
pub const MODE: &str = "__serve";

/// One in so many updates of a `still-N` service changes an instance.
pub const STILL_PERIOD: u64 = 21;

/// The running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Canned {
    _process: Worker,
    address: String,
}

impl Canned {
    /// Starts this program again as the server.
    ///
    /// # Errors
    /// If it does not tell its address.
    pub async fn start() -> Outcome<Self> {
        let mut process = Worker::start(&this_program()?, [MODE])?;
        let address = process.line().await?;
        Ok(Self {
            _process: process,
            address,
        })
    }

    /// Its address, as `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Is the server until standard input ends.
///
/// # Errors
/// If no port of loopback is free.
pub async fn serve() -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let services = Arc::new(Services::default());
    let mut connections = JoinSet::new();
    let ended = input_ended();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let services = Arc::clone(&services);
                connections.spawn(
                    http1::Builder::new().serve_connection(
                        TokioIo::new(stream),
                        service_fn(move |request| answer(Arc::clone(&services), request)),
                    ),
                );
            }
        }
    }
}

async fn answer(
    services: Arc<Services>,
    request: Request<Incoming>,
) -> Result<Response<OneChunk>, Infallible> {
    let asked = request
        .uri()
        .query()
        .and_then(|query| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix("index="))
        })
        .and_then(|index| index.parse().ok());
    let name = request.uri().path().strip_prefix("/v1/health/service/");
    let found = match name {
        Some(name) => services.answer(name, asked),
        None => Err("only /v1/health/service/NAME is answered here".into()),
    };
    let response = Response::builder()
        .header("Content-Type", "application/json")
        .header("Vary", "Accept-Encoding")
        .header("X-Consul-Effective-Consistency", "leader")
        .header("X-Consul-Knownleader", "true")
        .header("X-Consul-Lastcontact", "0");
    let response = match found {
        Ok(Some((index, body))) => response
            .header("X-Consul-Index", index)
            .body(OneChunk(Some(body))),
        Ok(None) => pending().await,
        Err(failure) => response
            .status(StatusCode::NOT_FOUND)
            .body(OneChunk(Some(Bytes::from(failure.to_string())))),
    };
    Ok(response.unwrap_or_default())
}

/// A body in one piece whose length is not told, hence sent chunked.
#[derive(Debug, Default)]
struct OneChunk(Option<Bytes>);

impl Body for OneChunk {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|piece| Ok(Frame::data(piece))))
    }
}

#[derive(Debug, Default)]
struct Services(Mutex<HashMap<String, Service>>);

impl Services {
    /// The index and body of the answer, or nothing if the query blocks for ever.
    fn answer(&self, name: &str, asked: Option<u64>) -> Outcome<Option<(u64, Bytes)>> {
        let mut services = self.0.lock().map_err(|_| "the services are poisoned")?;
        if !services.contains_key(name) {
            services.insert(name.to_owned(), Service::parse(name)?);
        }
        let service = services.get_mut(name).ok_or("no such service")?;
        if asked == Some(service.index) {
            if service.kind == Kind::Fixed {
                return Ok(None);
            }
            service.step();
        }
        Ok(Some((service.index, service.body.clone())))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fixed,
    Changing,
    Still,
}

#[derive(Debug)]
struct Service {
    kind: Kind,
    index: u64,
    instances: Vec<Instance>,
    elements: Vec<String>,
    body: Bytes,
}

impl Service {
    fn parse(name: &str) -> Outcome<Self> {
        let unknown = || Failure::from(format!("no service {name}"));
        let (kind, count) = name.split_once('-').ok_or_else(unknown)?;
        let kind = match kind {
            "fixed" => Kind::Fixed,
            "changing" => Kind::Changing,
            "still" => Kind::Still,
            _ => return Err(unknown()),
        };
        let count: usize = count.parse().map_err(|_| unknown())?;
        let instances: Vec<_> = (0..count).map(Instance::new).collect();
        let elements: Vec<_> = instances.iter().map(Instance::json).collect();
        let body = bodies::array(elements.iter().map(String::as_str)).into();
        // The first index of a body is that of its youngest part, and a multiple of the period.
        let index = (100 + count as u64).next_multiple_of(STILL_PERIOD);
        Ok(Self {
            kind,
            index,
            instances,
            elements,
            body,
        })
    }

    fn step(&mut self) {
        self.index += 1;
        if self.kind == Kind::Still && !self.index.is_multiple_of(STILL_PERIOD) {
            return;
        }
        // A prime stride visits all instances, near and far.
        let number = (self.index as usize).wrapping_mul(7919) % self.instances.len().max(1);
        if let (Some(instance), Some(element)) = (
            self.instances.get_mut(number),
            self.elements.get_mut(number),
        ) {
            instance.passing = !instance.passing;
            instance.index = self.index;
            *element = instance.json();
        }
        self.body = bodies::array(self.elements.iter().map(String::as_str)).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differing(before: &[u8], after: &[u8]) -> usize {
        let decode = |body| serde_json::from_slice::<Vec<serde_json::Value>>(body).unwrap();
        decode(before)
            .iter()
            .zip(decode(after))
            .filter(|(a, b)| **a != *b)
            .count()
    }

    #[test]
    fn a_blocking_query_of_a_changing_service_brings_one_changed_instance() {
        let services = Services::default();
        let (index, before) = services.answer("changing-50", None).unwrap().unwrap();
        let (next, after) = services
            .answer("changing-50", Some(index))
            .unwrap()
            .unwrap();
        assert_eq!(next, index + 1);
        assert_eq!(differing(&before, &after), 1);
    }

    #[test]
    fn a_still_service_changes_once_in_a_period_though_its_index_moves() {
        let services = Services::default();
        let (mut index, mut body) = services.answer("still-10", None).unwrap().unwrap();
        let mut changes = 0;
        for _ in 0..STILL_PERIOD {
            let (next, after) = services.answer("still-10", Some(index)).unwrap().unwrap();
            assert_eq!(next, index + 1);
            changes += differing(&body, &after);
            (index, body) = (next, after);
        }
        assert_eq!(changes, 1);
    }

    #[test]
    fn a_blocking_query_of_a_fixed_service_waits() {
        let services = Services::default();
        let (index, _) = services.answer("fixed-3", None).unwrap().unwrap();
        assert!(services.answer("fixed-3", Some(index)).unwrap().is_none());
        assert!(services.answer("unknown-3", None).is_err());
    }
}
