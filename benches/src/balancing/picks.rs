//! `picks`: what it costs to choose the endpoint of a request, for sets of different sizes.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Empty;
use lictor_tower::channel::{Channel, HashKey};
use lictor_tower::endpoint::Endpoint;
use lictor_tower::source::{self, Fixed};
use tokio::time::Instant;
use tower_service::Service;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::usage::{self, Allocations};

use super::{ALLOCATIONS, Job, Stage, policy};

/// By peak EWMA, which is the default.
pub(super) const EWMA: &str = "picks";

/// By requests in flight.
pub(super) const PENDING: &str = "picks_pending";

/// In turn.
pub(super) const TURNS: &str = "picks_round_robin";

/// By a key, which is made from the path.
pub(super) const RING: &str = "picks_ring_hash";

/// The same request made and dropped, with nobody chosen.
const NO_PICK: &str = "no_pick";

const METRICS: [Metric; 2] = [
    Metric {
        name: "client_cpu_ns_per_op",
        title: "CPU ns/op",
    },
    Metric {
        name: ALLOCATIONS,
        title: "allocs/op",
    },
];

pub(super) async fn run(stage: &mut Stage, bench: &'static str) -> Outcome<()> {
    let sizes: &[u32] = if stage.args.quick {
        &[10, 10_000]
    } else {
        &[1, 10, 100, 1_000, 10_000]
    };
    for &endpoints in sizes {
        let contenders = [Contender::OURS, Contender::floor(NO_PICK)];
        let mut contest =
            Contest::new(bench, &METRICS, contenders).param("endpoints", u64::from(endpoints));
        contest
            .run(stage.args.rounds(), async |contender: &Contender, _| {
                let job = Job {
                    bench: bench.to_owned(),
                    endpoints,
                    measured_ms: if stage.args.quick { 60 } else { 300 },
                    ..Job::default()
                };
                stage.measure(contender, job).await
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    let uri = Uri::from_static("/hello");
    let request = move || {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = uri.clone();
        request
    };
    match job.contender.as_str() {
        "lictor" => {
            // Nobody listens there, and nothing is sent.
            let backends: Vec<_> = (0..job.endpoints)
                .map(|at| format!("127.{}.{}.1:80", at / 250, at % 250))
                .collect();
            let mut builder = Channel::from_source(fixed(&backends)?)
                .policy(policy(&job.bench))
                .host("web");
            if job.bench == RING {
                builder = builder.hash_by(|parts| Some(HashKey::new(parts.uri.path())));
            }
            let mut channel = builder.build()?;
            channel.wait_ready().await?;
            // A call picks its endpoint at once and sends nothing before it is polled.
            Ok(timed(job, || drop(black_box(channel.call(request())))))
        }
        NO_PICK => Ok(timed(job, || drop(black_box(request())))),
        other => Err(format!("{other} does not take part in {}", job.bench).into()),
    }
}

fn timed(job: &Job, mut one: impl FnMut()) -> Sample {
    const BATCH: u32 = 10_000;
    for _ in 0..BATCH {
        one();
    }
    let before = Allocations::read();
    let (cpu, start) = (usage::cpu_time(), Instant::now());
    let mut operations = 0_u64;
    while start.elapsed() < Duration::from_millis(job.measured_ms) {
        for _ in 0..BATCH {
            one();
        }
        operations += u64::from(BATCH);
    }
    // The other threads of this process are idle.
    let cpu = usage::cpu_time().saturating_sub(cpu);
    let allocated = Allocations::read().since(before);
    let per_op = |total: f64| total / operations.max(1) as f64;
    Sample::default()
        .with("client_cpu_ns_per_op", per_op(cpu.as_secs_f64() * 1e9))
        .with(ALLOCATIONS, per_op(allocated.count as f64))
}

/// A source of these addresses.
pub(super) fn fixed(backends: &[String]) -> Outcome<Fixed> {
    let mut endpoints = Vec::new();
    for backend in backends {
        endpoints.push(Endpoint::new(backend.parse()?));
    }
    Ok(source::fixed(endpoints))
}
