//! hyper, balanced in two ways: each request by a channel, or each connection of hyper-util's client
//! by a connector.
//!
//! Three servers register themselves. A channel finds them by name and spreads requests over them,
//! also after one of them has died without a word to Consul. A client of hyper-util's finds them by
//! `http://<service>/` and shows what balancing connections means: it opens as many as it needs, and
//! no more.
//!
//! ```text
//! cargo run -p lictor-examples --example balanced_hyper
//! cargo run -p lictor-examples --example balanced_hyper -- --consul http://127.0.0.1:8500
//! ```

use std::process::ExitCode;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use lictor_examples::backend;
use lictor_examples::place::{Options, Place};
use lictor_examples::summary::{Calls, Summary};
use lictor_examples::{Result, example};
use lictor_tower::Channel;
use lictor_tower::connector::Connector;

#[tokio::main]
async fn main() -> ExitCode {
    example("balanced_hyper", std::env::args().skip(1), run).await
}

async fn run(options: &Options) -> Result<Summary> {
    let place = Place::find(options).await?;
    let client = place.client()?;
    // A name of its own, so that a second run on the same Consul is not in the way.
    let service = format!("hyper-{}", std::process::id());
    let mut servers = backend::three(&client, &service).await?;

    // hyper-util's own client: the connector opens its connections.
    let connector = Connector::new(client.clone())?;
    let http: HyperClient<_, Empty<Bytes>> =
        HyperClient::builder(TokioExecutor::new()).build(connector);
    let mut pooled = Calls::default();
    for _ in 0..300 {
        let uri = format!("http://{service}/").parse()?;
        let called = async { backend::name_in(http.get(uri).await?).await };
        pooled.note(called.await);
    }

    // The channel: each request goes to the server that suits best.
    let channel = Channel::builder(client).service(&service).build()?;
    let mut balanced = Calls::default();
    for _ in 0..300 {
        balanced.note(call(&channel).await);
    }

    // Consul does not know yet that this one is dead; the channel finds out by itself.
    if let Some(server) = servers.first_mut() {
        server.die().await;
    }
    let mut without = Calls::default();
    for _ in 0..300 {
        without.note(call(&channel).await);
    }

    backend::close(servers).await?;
    Ok(Summary {
        agent: place.describe().to_owned(),
        parts: vec![
            (
                "300 requests of hyper-util's client, balanced by connection",
                pooled,
            ),
            ("300 requests through a channel", balanced),
            ("300 more, one server dead", without),
        ],
    })
}

async fn call(channel: &Channel) -> Result<String> {
    let request = Request::get("/").body(Empty::<Bytes>::new())?;
    backend::name_in(channel.request(request).await?).await
}
