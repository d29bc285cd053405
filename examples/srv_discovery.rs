//! A channel that finds its instances by DNS alone: no HTTP API of Consul, no token.
//!
//! Three servers register themselves (which needs the API; the client does not). The channel asks for
//! the SRV records of the service again and again, spreads requests, and follows when one server leaves
//! and another joins.
//!
//! ```text
//! cargo run -p lictor-examples --example srv_discovery
//! cargo run -p lictor-examples --example srv_discovery -- --consul http://127.0.0.1:8500
//! ```

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use lictor_examples::backend::{self, Backend};
use lictor_examples::place::{Options, Place};
use lictor_examples::summary::{Calls, Summary};
use lictor_examples::{Result, example, until};
use lictor_tower::Channel;
use lictor_tower::source::SrvSource;

#[tokio::main]
async fn main() -> ExitCode {
    example("srv_discovery", std::env::args().skip(1), run).await
}

async fn run(options: &Options) -> Result<Summary> {
    let place = Place::find(options).await?;
    if !place.has_dns().await {
        return Err(format!("nobody answers DNS queries at {}", place.dns()).into());
    }
    let client = place.client()?;
    // A name of its own, so that a second run on the same Consul is not in the way.
    let service = format!("srv-{}", std::process::id());
    let mut servers = backend::three(&client, &service).await?;

    // From here on the client side knows the address of a DNS server and nothing else.
    let source = SrvSource::builder(format!("{service}.service.consul"))
        .server(place.dns())
        .min_refresh(Duration::from_millis(100))
        .build()?;
    let channel = Channel::from_source(source).host(&service).build()?;
    until("three servers are found", || channel.endpoints().len() == 3).await?;
    let mut three = Calls::default();
    for _ in 0..300 {
        three.note(call(&channel).await);
    }

    // One leaves and another joins; the one that leaves serves on until nobody is sent there.
    let leaving = servers.remove(0);
    let gone = leaving.addr;
    let serving = leaving.deregister().await?;
    servers.push(Backend::http(&client, &service, "four").await?);
    let mut meanwhile = Calls::default();
    until("the change is known", || {
        let known = channel.endpoints();
        known.len() == 3 && known.iter().all(|one| one.target.port() != gone.port())
    })
    .await?;
    drop(serving);
    for _ in 0..300 {
        meanwhile.note(call(&channel).await);
    }

    backend::close(servers).await?;
    Ok(Summary {
        agent: place.describe().to_owned(),
        parts: vec![
            ("300 requests, three servers", three),
            ("300 requests, one has left and one has come", meanwhile),
        ],
    })
}

async fn call(channel: &Channel) -> Result<String> {
    let request = Request::get("/").body(Empty::<Bytes>::new())?;
    backend::name_in(channel.request(request).await?).await
}
