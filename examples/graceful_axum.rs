//! A server of axum's that leaves without losing a request.
//!
//! The service is registered as not ready, and is not found by anybody before it has warmed up. At
//! its end it is not found any more, serves on until everybody knows, finishes what is under way, and
//! deregisters then. Calls go on meanwhile, and none fails.
//!
//! ```text
//! cargo run -p lictor-examples --example graceful_axum
//! cargo run -p lictor-examples --example graceful_axum -- --consul http://127.0.0.1:8500
//! ```

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::lifecycle::{Lifecycle, Report, Shutdown, Stage};
use lictor_examples::leaving::{Leaving, called};
use lictor_examples::place::{Options, Place};
use lictor_examples::{Result, example};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

#[tokio::main]
async fn main() -> ExitCode {
    example("graceful_axum", std::env::args().skip(1), run).await
}

/// All that it takes.
async fn serve(client: Client, service: &str, begin: oneshot::Sender<Shutdown>) -> Result<Report> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let web = ServiceDefinition::new(service)
        .listener(listener.local_addr()?)
        .check(CheckDefinition::alive_only(Duration::from_secs(15)));
    let web = client.register(web).not_ready().await?;
    let lifecycle = Lifecycle::of(web).shutdown_on_signal()?;
    let app = Router::new().route("/", get(async || "leaves"));
    let drain = lifecycle.shutdown().reached(Stage::Drain);
    let server = axum::serve(listener, app).with_graceful_shutdown(drain);
    lifecycle.ready().await?;
    // The example ends it by hand; SIGTERM and Ctrl-C do the same.
    begin.send(lifecycle.shutdown()).ok();
    let (report, served) = lifecycle.run(server).await;
    served.transpose()?;
    Ok(report)
}

async fn run(options: &Options) -> Result<Leaving> {
    let place = Place::find(options).await?;
    let client = place.client()?;
    let service = format!("graceful-axum-{}", std::process::id());
    let (begin, serving) = oneshot::channel();
    let calls = async { called(&client, &service, "leaves", serving.await?).await };
    let (report, calls) = tokio::try_join!(serve(client.clone(), &service, begin), calls)?;
    Ok(Leaving::new(&place, calls, report))
}
