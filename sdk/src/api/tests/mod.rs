//! What each call puts on the wire, and what it makes of answers, without sockets.

mod catalog;
mod health;
mod kv;
mod raw;
mod reads;
mod session;
mod status;
mod txn;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower_service::Service;

use crate::Client;

/// A transport that answers from a list and remembers what it was asked.
#[derive(Clone, Default)]
struct Canned(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    answers: VecDeque<Response<Bytes>>,
    asked: Vec<Request<Bytes>>,
}

impl Canned {
    fn new(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let canned = Self::default();
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let answer = answer.body(body.into()).unwrap();
        canned.0.lock().unwrap().answers.push_back(answer);
        canned
    }

    /// A good answer with an index.
    fn good(body: impl Into<Bytes>) -> Self {
        Self::new(200, &[("X-Consul-Index", "7")], body)
    }

    fn client(&self) -> Client {
        Client::builder().transport(self.clone()).build().unwrap()
    }

    /// Method, and path with query, of the only request.
    fn asked(&self) -> String {
        let request = self.request();
        let target = request.uri().path_and_query().unwrap().as_str().to_owned();
        format!("{} {target}", request.method())
    }

    /// The only request.
    fn request(&self) -> Request<Bytes> {
        let asked = &self.0.lock().unwrap().asked;
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.first().unwrap().clone()
    }

    fn was_not_asked(&self) -> bool {
        self.0.lock().unwrap().asked.is_empty()
    }
}

impl Service<Request<Bytes>> for Canned {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let mut script = self.0.lock().unwrap();
        script.asked.push(request);
        let answer = script.answers.pop_front().expect("no answer is left");
        ready(Ok(answer.map(Full::new)))
    }
}
