//! Three services register themselves; a client finds them by name and calls them balanced.
//!
//! One of the servers leads. Under steady load the leader is stopped gracefully, a new server joins,
//! and the next leader is aborted without a goodbye. In the end a report says how many calls failed,
//! how long each change took to reach the client, and how long nobody led.
//!
//! ```text
//! cargo run -p lictor-examples --example quickstart
//! cargo run -p lictor-examples --example quickstart -- --consul http://127.0.0.1:8500 --json
//! ```
//!
//! Without `--consul` or `CONSUL_HTTP_ADDR` it brings an agent of its own, in this process.

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
use lictor::coordination::{LeaderView, Next, Observer, Profile};
use lictor::registration::Registration;
use lictor_examples::load::Load;
use lictor_examples::place::{Options, Place};
use lictor_examples::report::Report;
use lictor_examples::{Error, Result, example, until};
use lictor_tower::Channel;
use lictor_tower::endpoint::Target;
use lictor_tower::source::{HealthSource, SrvSource};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt;

/// How soon a server that died is taken out: the TTL of its check.
const TTL: Duration = Duration::from_secs(2);

/// How long a server goes on serving after it has deregistered, for clients that hear of it late.
const LAME_DUCK: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> ExitCode {
    example("quickstart", std::env::args().skip(1), run).await
}

async fn run(options: &Options) -> Result<Report> {
    let place = Place::find(options).await?;
    let client = place.client()?;
    // A name of its own, so that a second run on the same Consul is not in the way.
    let service = format!("quickstart-{}", std::process::id());

    let key = format!("lictor/examples/{service}/leader");

    // Three servers register themselves, and campaign.
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        servers.push(Server::start(&place, &service, &key, name).await?);
    }

    // A client finds them by name, over HTTP and over DNS alike.
    let channel = Channel::builder(client.clone())
        .service(&service)
        .timeout(Duration::from_secs(5))
        .build()?;
    until("three servers are found", || channel.endpoints().len() == 3).await?;
    let same_at_first = same_over_dns(&client, &place, &service).await?;

    // It sees who leads.
    let mut leaders = client.election(key.as_str()).observe()?;
    let leader = leader_after(&mut leaders, "").await?;

    // It calls them, steadily, until the end.
    let load = Load::start(&channel, 8);
    load.calls(1000).await?;

    // The leader leaves without haste ...
    let mut first = Server::take(&mut servers, &leader)?;
    let started = Instant::now();
    let leaving = first.stop()?;
    let gone = async {
        until("it is gone", || !finds(&channel, &first)).await?;
        Ok(started.elapsed())
    };
    let followed = async {
        let next = leader_after(&mut leaders, &leader).await?;
        Ok::<_, Error>((started.elapsed(), next))
    };
    let (leave, (hand_over, leader)) = tokio::try_join!(gone, followed)?;
    leaving.await??;
    load.calls(500).await?;

    // ... a new server joins ...
    let started = Instant::now();
    let fourth = Server::start(&place, &service, &key, "four").await?;
    until("the new one is found", || finds(&channel, &fourth)).await?;
    let join = started.elapsed();
    servers.push(fourth);
    load.calls(500).await?;

    // ... and the next leader dies. Nobody deregisters it: its check has to expire, and its lease.
    let mut second = Server::take(&mut servers, &leader)?;
    let dying = Instant::now();
    second.abort().await?;
    let dead = Instant::now();
    let gone = async {
        until("the dead one is gone", || !finds(&channel, &second)).await?;
        Ok(dying.elapsed())
    };
    let followed = async {
        leader_after(&mut leaders, &leader).await?;
        Ok::<_, Error>(dying.elapsed())
    };
    let (crash, failover) = tokio::try_join!(gone, followed)?;
    load.calls(500).await?;

    let same_at_last = same_over_dns(&client, &place, &service).await?;
    let tally = load.stop().await;
    for mut server in servers {
        server.stop()?.await??;
    }
    client.kv().delete(key).await?;
    Ok(Report {
        agent: place.describe().to_owned(),
        tally,
        dying,
        dead,
        join,
        leave,
        crash,
        hand_over,
        failover,
        srv_equals_http: match (same_at_first, same_at_last) {
            (Some(first), Some(last)) => Some(first && last),
            _ => None,
        },
    })
}

/// Who leads when it is not the former leader any more; half a minute is enough for anything here.
async fn leader_after(leaders: &mut Observer<String>, former: &str) -> Result<String> {
    let found = async {
        while let Some(view) = leaders.next().await {
            if let LeaderView::Leader(leader) = view {
                let leader = leader.into_value()?;
                if leader != former {
                    return Ok(leader);
                }
            }
        }
        Err("the observer has ended".into())
    };
    let found = tokio::time::timeout(Duration::from_secs(30), found).await;
    found.map_err(|_| format!("waited 30 s in vain for a leader after {former:?}"))?
}

/// An HTTP server that registers itself, and campaigns.
///
/// Each has a runtime of its own, so that it can die like a process: with all its tasks at once.
struct Server {
    name: &'static str,
    target: Target,
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    done: Option<oneshot::Receiver<Result<()>>>,
}

impl Server {
    async fn start(place: &Place, service: &str, key: &str, name: &'static str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (client, service) = (place.client()?, service.to_owned());
        let election = client
            .election(key)
            .profile(Profile::fast())
            .candidate(name);
        let (started, running) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (done, outcome) = oneshot::channel();
        runtime.spawn(async move {
            let up = Self::register(&client, &service, name).await;
            let _ = match up {
                Ok((listener, registration)) => {
                    let address = listener.local_addr().map_err(Into::into);
                    let _ = started.send(address);
                    let (step_down, stepping_down) = oneshot::channel();
                    let stop = async move { drop(stepping_down.await) };
                    // While this server leads it would do here what only one may do.
                    let leading = election.run(stop, async |term| {
                        term.stopping().await;
                        Next::Stop
                    });
                    let serving = serve(listener, registration, name, stopped, step_down);
                    let ended = tokio::try_join!(serving, async { Ok(leading.await?) });
                    done.send(ended.map(|_| ()))
                }
                Err(err) => {
                    let _ = started.send(Err(err));
                    Ok(())
                }
            };
        });
        let mut server = Self {
            name,
            target: "127.0.0.1:1".parse()?,
            runtime: Some(runtime),
            stop: Some(stop),
            done: Some(outcome),
        };
        server.target = running.await??.try_into()?;
        Ok(server)
    }

    /// Binds first and registers then: the service is never announced before it can be called.
    async fn register(
        client: &Client,
        service: &str,
        name: &str,
    ) -> Result<(TcpListener, Registration)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let definition = ServiceDefinition::new(service)
            .id(format!("{service}-{name}"))
            .listener(listener.local_addr()?)
            .check(
                CheckDefinition::alive_only(TTL)
                    .deregister_critical_service_after(Duration::from_secs(60)),
            );
        let registration = client.register(definition).await?;
        Ok((listener, registration))
    }

    /// Takes the one of this name out of those that run.
    fn take(servers: &mut Vec<Self>, name: &str) -> Result<Self> {
        let place = servers.iter().position(|server| server.name == name);
        let place = place.ok_or_else(|| format!("{name} leads, which is none of ours"))?;
        Ok(servers.swap_remove(place))
    }

    /// Asks it to leave, and returns what resolves when it has.
    fn stop(&mut self) -> Result<oneshot::Receiver<Result<()>>> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.done.take().ok_or_else(|| "stopped twice".into())
    }

    /// Ends it as `kill -9` would, and returns when nothing of it is left.
    async fn abort(&mut self) -> Result<()> {
        if let Some(runtime) = self.runtime.take() {
            // This waits for the server's threads, so it is not for the ones that serve us.
            let ended = move || runtime.shutdown_timeout(Duration::from_secs(10));
            tokio::task::spawn_blocking(ended).await?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A runtime may not be waited for where tasks run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    listener: TcpListener,
    registration: Registration,
    name: &'static str,
    stopped: oneshot::Receiver<()>,
    step_down: oneshot::Sender<()>,
) -> Result<()> {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let leaving = async move {
        let _ = stopped.await;
        // Somebody else leads at once.
        drop(step_down);
        // First nobody new is sent here; those who have not heard of it are served a while longer.
        registration.close().await?;
        tokio::time::sleep(LAME_DUCK).await;
        Ok::<_, lictor::Error>(())
    };
    let mut leaving = std::pin::pin!(leaving);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let answer = service_fn(move |_: Request<Incoming>| async move {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(name))))
                });
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                connections.spawn(graceful.watch(connection));
            }
            left = &mut leaving => {
                left?;
                break;
            }
        }
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

fn finds(channel: &Channel, server: &Server) -> bool {
    let endpoints = channel.endpoints();
    endpoints.iter().any(|one| one.target == server.target)
}

/// Whether SRV and HTTP discovery come to find the same endpoints; `None` without DNS.
async fn same_over_dns(client: &Client, place: &Place, service: &str) -> Result<Option<bool>> {
    if !place.has_dns().await {
        return Ok(None);
    }
    let mut http = HealthSource::new(client.health().service(service).watch()?);
    let mut srv = SrvSource::builder(format!("{service}.service.consul"))
        .server(place.dns())
        .min_refresh(Duration::from_millis(100))
        .build()?;
    let (mut by_http, mut by_srv) = (None, None);
    let same = async {
        // Each tells a change at its own time; what counts is that they come to the same.
        while by_http.is_none() || by_http != by_srv {
            tokio::select! {
                Some(set) = http.next() => by_http = Some(set),
                Some(set) = srv.next() => by_srv = Some(set),
            }
        }
    };
    let same = tokio::time::timeout(Duration::from_secs(10), same).await;
    Ok(Some(same.is_ok()))
}
