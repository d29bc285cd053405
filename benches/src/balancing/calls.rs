//! `channel_calls`: calls over ten backends, by our channel and by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Body;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lictor_tower::channel::Channel;
use tower_service::Service;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::load::{self, Operation, Window};
use crate::usage::Allocations;

use super::backends::{ANSWER, Backends};
use super::{ALLOCATIONS, Job, Stage, picks, policy};

/// By peak EWMA, which is the default.
pub(super) const EWMA: &str = "channel_calls";

/// By requests in flight.
pub(super) const PENDING: &str = "channel_calls_pending";

/// A round robin over one of hyper-util's clients per backend.
const ROUND_ROBIN: &str = "round_robin";

const CONCURRENCY: u64 = 64;

const METRICS: [Metric; 5] = [
    Metric {
        name: "client_cpu_us_per_op",
        title: "CPU µs/op",
    },
    Metric {
        name: "ops_per_s",
        title: "ops/s",
    },
    Metric {
        name: "p50_us",
        title: "p50 µs",
    },
    Metric {
        name: "p99_us",
        title: "p99 µs",
    },
    Metric {
        name: ALLOCATIONS,
        title: "allocs/op",
    },
];

pub(super) async fn run(
    stage: &mut Stage,
    bench: &'static str,
    backends: &Backends,
) -> Outcome<()> {
    let quick = stage.args.quick;
    let contenders = [Contender::OURS, Contender::floor(ROUND_ROBIN)];
    let mut contest = Contest::new(bench, &METRICS, contenders)
        .param("concurrency", CONCURRENCY)
        .param("backends", u64::try_from(backends.addresses.len())?);
    contest
        .run(stage.args.rounds(), async |contender: &Contender, _| {
            let job = Job {
                bench: bench.to_owned(),
                backends: backends.addresses.clone(),
                concurrency: usize::try_from(CONCURRENCY)?,
                warm_up_ms: if quick { 200 } else { 500 },
                measured_ms: if quick { 800 } else { 3_000 },
                ..Job::default()
            };
            stage.measure(contender, job).await
        })
        .await;
    stage.report.show(&contest)
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    match job.contender.as_str() {
        "lictor" => {
            let channel = Channel::from_source(picks::fixed(&job.backends)?)
                .policy(policy(&job.bench))
                .build()?;
            channel.wait_ready().await?;
            let uri = Uri::from_static("http://web/hello");
            repeat(job, || Ours {
                channel: channel.clone(),
                uri: uri.clone(),
            })
            .await
        }
        ROUND_ROBIN => {
            let floor = Arc::new(ByHand::new(&job.backends)?);
            repeat(job, || Floor(Arc::clone(&floor))).await
        }
        other => Err(format!("{other} does not take part in {}", job.bench).into()),
    }
}

async fn repeat<O: Operation>(job: &Job, one: impl Fn() -> O) -> Outcome<Sample> {
    let window = |warm_up, measured| Window {
        warm_up: Duration::from_millis(warm_up),
        measured: Duration::from_millis(measured),
        at_least: 0,
    };
    let loops = || (0..job.concurrency).map(|_| one()).collect();
    // Connections are opened before anything is counted.
    load::closed_loop(loops(), window(0, job.warm_up_ms)).await?;
    let before = Allocations::read();
    let measured = load::closed_loop(loops(), window(0, job.measured_ms)).await?;
    let allocated = Allocations::read().since(before);
    let per_op = allocated.count as f64 / measured.operations.max(1) as f64;
    Ok(measured.sample().with(ALLOCATIONS, per_op))
}

struct Ours {
    channel: Channel,
    uri: Uri,
}

impl Operation for Ours {
    async fn run(&mut self, _turn: u64) -> Outcome<()> {
        let request = Request::get(self.uri.clone()).body(Empty::<Bytes>::new())?;
        let response = self.channel.call(request).await?;
        read(response.into_body()).await
    }
}

/// What one writes without a library: a client per backend and a counter.
struct ByHand {
    clients: Vec<(Client<HttpConnector, Empty<Bytes>>, Uri)>,
    next: AtomicUsize,
}

struct Floor(Arc<ByHand>);

impl ByHand {
    fn new(backends: &[String]) -> Outcome<Self> {
        let mut clients = Vec::new();
        for backend in backends {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            let client = Client::builder(TokioExecutor::new()).build(connector);
            clients.push((client, format!("http://{backend}/hello").parse()?));
        }
        Ok(Self {
            clients,
            next: AtomicUsize::new(0),
        })
    }
}

impl Operation for Floor {
    async fn run(&mut self, _turn: u64) -> Outcome<()> {
        let turn = self.0.next.fetch_add(1, Ordering::Relaxed);
        let clients = &self.0.clients;
        let (client, uri) = clients.get(turn % clients.len()).ok_or("no clients")?;
        let request = Request::get(uri.clone()).body(Empty::new())?;
        let response = client.request(request).await?;
        read(response.into_body()).await
    }
}

async fn read<B>(body: B) -> Outcome<()>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let mut body = body;
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    if length == ANSWER.len() {
        Ok(())
    } else {
        Err(format!("an answer of {length} bytes").into())
    }
}
