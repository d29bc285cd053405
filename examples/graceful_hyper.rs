//! A server on hyper's own connections that leaves without losing a request.
//!
//! The service is registered as not ready, and is not found by anybody before it has warmed up. At
//! its end it is not found any more, serves on until everybody knows, finishes what is under way, and
//! deregisters then. Calls go on meanwhile, and none fails.
//!
//! ```text
//! cargo run -p lictor-examples --example graceful_hyper
//! cargo run -p lictor-examples --example graceful_hyper -- --consul http://127.0.0.1:8500
//! ```

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::lifecycle::{Lifecycle, Report, Shutdown, Stage};
use lictor_examples::leaving::{Leaving, called};
use lictor_examples::place::{Options, Place};
use lictor_examples::{Result, example};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> ExitCode {
    example("graceful_hyper", std::env::args().skip(1), run).await
}

/// All that it takes.
async fn serve(client: Client, service: &str, begin: oneshot::Sender<Shutdown>) -> Result<Report> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let web = ServiceDefinition::new(service)
        .listener(listener.local_addr()?)
        .check(CheckDefinition::alive_only(Duration::from_secs(15)));
    let web = client.register(web).not_ready().await?;
    let lifecycle = Lifecycle::of(web).shutdown_on_signal()?;
    let drain = lifecycle.shutdown().reached(Stage::Drain);
    let server = async {
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let mut drain = std::pin::pin!(drain);
        loop {
            let (stream, _) = tokio::select! {
                () = &mut drain => break,
                accepted = listener.accept() => accepted?,
            };
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            connections.spawn(graceful.watch(connection));
        }
        graceful.shutdown().await;
        Ok::<_, std::io::Error>(())
    };
    lifecycle.ready().await?;
    // The example ends it by hand; SIGTERM and Ctrl-C do the same.
    begin.send(lifecycle.shutdown()).ok();
    let (report, served) = lifecycle.run(server).await;
    served.transpose()?;
    Ok(report)
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from("leaves"))))
}

async fn run(options: &Options) -> Result<Leaving> {
    let place = Place::find(options).await?;
    let client = place.client()?;
    let service = format!("graceful-hyper-{}", std::process::id());
    let (begin, serving) = oneshot::channel();
    let calls = async { called(&client, &service, "leaves", serving.await?).await };
    let (report, calls) = tokio::try_join!(serve(client.clone(), &service, begin), calls)?;
    Ok(Leaving::new(&place, calls, report))
}
