//! Those who send a GET to one of several backends, one way or the other.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use lictor_tower::channel::Channel;
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::PeakEwma;
use tower_service::Service;

use crate::Outcome;

use super::backends::{ANSWER, NUMBER};
use super::{ROUND_ROBIN, TOWER_BUFFER, echo, fixed, policy};

const PATH: &str = "/hello";

type Get = Request<Empty<Bytes>>;
type Stack = Balance<ServiceList<Vec<PeakEwma<Direct>>>, Get>;

/// One of the contenders; clones share everything.
#[derive(Clone)]
pub(super) enum Caller {
    /// Our channel, and what its requests name.
    Ours(Channel, Uri),
    /// A counter and one of hyper-util's clients per backend: what one writes by hand.
    ByHand(Arc<ByHand>),
    /// tower's balancer by peak EWMA over the same clients, with linkerd's settings.
    Tower(Buffer<Get, <Stack as Service<Get>>::Future>),
}

pub(super) struct ByHand {
    clients: Vec<Direct>,
    next: AtomicUsize,
}

impl Caller {
    /// The contender of this name over these backends. A proxy is called by hand, as the one
    /// backend that it looks like.
    pub(super) async fn new(contender: &str, rule: &str, backends: &[String]) -> Outcome<Self> {
        let direct = || backends.iter().map(|backend| Direct::new(backend));
        match contender {
            "lictor" => {
                let channel = Channel::from_source(fixed(backends)?)
                    .policy(policy(rule))
                    .build()?;
                channel.wait_ready().await?;
                Ok(Self::Ours(channel, Uri::from_static("http://web/hello")))
            }
            TOWER_BUFFER => {
                let services: Outcome<Vec<_>> =
                    direct().map(|client| Ok(echo::by_ewma(client?))).collect();
                let list = ServiceList::new::<Get>(services?);
                Ok(Self::Tower(Buffer::new(Balance::new(list), echo::BOUND)))
            }
            ROUND_ROBIN | super::proxy::NGINX | super::proxy::HAPROXY => {
                Ok(Self::ByHand(Arc::new(ByHand {
                    clients: direct().collect::<Outcome<_>>()?,
                    next: AtomicUsize::new(0),
                })))
            }
            other => Err(format!("nobody is called {other}").into()),
        }
    }

    /// Sends a request and reads the answer to its end; says which backend it is from.
    pub(super) async fn get(&mut self) -> Outcome<u16> {
        match self {
            Self::Ours(channel, uri) => {
                let request = Request::get(uri.clone()).body(Empty::<Bytes>::new())?;
                let (head, body) = channel.call(request).await?.into_parts();
                read(&head.headers, body).await
            }
            Self::ByHand(by_hand) => {
                let turn = by_hand.next.fetch_add(1, Ordering::Relaxed);
                let client = by_hand.clients.get(turn % by_hand.clients.len());
                let Direct { client, uri } = client.ok_or("no clients")?;
                let request = Request::get(uri.clone()).body(Empty::new())?;
                let (head, body) = client.request(request).await?.into_parts();
                read(&head.headers, body).await
            }
            Self::Tower(stack) => {
                let readied = poll_fn(|cx| stack.poll_ready(cx)).await;
                readied.map_err(|error| error.to_string())?;
                let answer = stack.call(Request::new(Empty::new())).await;
                let answer = answer.map_err(|error| error.to_string())?;
                let (head, body) = answer.into_parts();
                read(&head.headers, body).await
            }
        }
    }
}

async fn read<B>(head: &HeaderMap, body: B) -> Outcome<u16>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let number = head.get(NUMBER).ok_or("an answer of nobody")?;
    let number = number.to_str()?.parse()?;
    let mut body = body;
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    if length == ANSWER.len() {
        Ok(number)
    } else {
        Err(format!("an answer of {length} bytes").into())
    }
}

/// One of hyper-util's clients, for one backend.
#[derive(Clone)]
pub(super) struct Direct {
    client: Client<HttpConnector, Empty<Bytes>>,
    uri: Uri,
}

impl Direct {
    fn new(backend: &str) -> Outcome<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let uri = Uri::builder()
            .scheme("http")
            .authority(backend)
            .path_and_query(PathAndQuery::from_static(PATH));
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            uri: uri.build()?,
        })
    }
}

impl Service<Get> for Direct {
    type Response = Response<Incoming>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Get) -> ResponseFuture {
        *request.uri_mut() = self.uri.clone();
        self.client.request(request)
    }
}
