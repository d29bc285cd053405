//! reqwest, balanced in two ways: a client whose URLs name services, and a resolver for reqwest's own.
//!
//! Three servers register themselves, each at a port of its own, which no URL here tells. Requests
//! executed by the client are spread over them, also after one has died without a word to Consul;
//! reqwest's own client finds them by the resolver, and stays with the connection that it has.
//!
//! ```text
//! cargo run -p lictor-examples --example balanced_reqwest
//! cargo run -p lictor-examples --example balanced_reqwest -- --consul http://127.0.0.1:8500
//! ```

use std::process::ExitCode;

use lictor_examples::backend;
use lictor_examples::place::{Options, Place};
use lictor_examples::summary::{Calls, Summary};
use lictor_examples::{Result, example};
use lictor_tower::reqwest_013::{Client, Resolver};
use lictor_tower::router::Router;

#[tokio::main]
async fn main() -> ExitCode {
    example("balanced_reqwest", std::env::args().skip(1), run).await
}

async fn run(options: &Options) -> Result<Summary> {
    let place = Place::find(options).await?;
    let consul = place.client()?;
    // A name of its own, so that a second run on the same Consul is not in the way.
    let service = format!("reqwest-{}", std::process::id());
    let mut servers = backend::three(&consul, &service).await?;
    let url = format!("http://{service}.service.consul/");

    // Where lictor is built with its feature `tls`, reqwest wants to be told whose cryptography it is
    // to use, although nothing here is encrypted. An error says that somebody has told it before.
    let _ = rustls::crypto::ring::default_provider().install_default();

    // reqwest as everybody uses it, but for the resolver.
    let http = reqwest::Client::builder()
        .dns_resolver(Resolver::new(consul.clone())?)
        .build()?;
    let mut pooled = Calls::default();
    for _ in 0..300 {
        let called = async { Ok(http.get(&url).send().await?.text().await?) };
        pooled.note(called.await);
    }

    // Requests are made with reqwest, and executed by a channel.
    let client = Client::new(Router::new(consul)?);
    let call = async || {
        let request = http.get(&url).build()?;
        Ok(client.execute(request).await?.text().await?)
    };
    let mut balanced = Calls::default();
    for _ in 0..300 {
        balanced.note(call().await);
    }

    // Consul does not know yet that this one is dead; the channel finds out by itself.
    if let Some(server) = servers.first_mut() {
        server.die().await;
    }
    let mut without = Calls::default();
    for _ in 0..300 {
        without.note(call().await);
    }

    backend::close(servers).await?;
    Ok(Summary {
        agent: place.describe().to_owned(),
        parts: vec![
            ("300 requests of reqwest's client with the resolver", pooled),
            ("300 requests of reqwest's, executed by channels", balanced),
            ("300 more, one server dead", without),
        ],
    })
}
