//! `pick`: what it costs to choose the endpoint of a request and to count what comes of it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Empty;
use lictor_tower::bench::Picks;
use lictor_tower::channel::{Channel, HashKey};
use lictor_tower::layer::Builder;
use lictor_tower::source;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower_service::Service;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::usage::{self, Allocations};

use super::echo::{self, Answered, Ask, Echo, InTurn, Indexed, Towers};
use super::{ALLOCATIONS, IN_TURN, Job, PEAK_EWMA, PENDING, RING, ROUND_ROBIN, Stage};
use super::{TOWER, TOWER_BUFFER, nowhere, policy, unknown};

pub(super) const NAME: &str = "pick";

/// The pick by itself, with nothing around it: its request in flight is counted and taken back.
const PICK: &str = "pick";

/// Its answer is counted, too: the clock is read for the pick and for its end.
const PICK_ANSWERED: &str = "pick_answered";

/// The same through the service that wraps it, whose future is dropped before it is polled.
const PICKED: &str = "picked";

/// Its service has answered, too.
const ANSWERED: &str = "answered";

/// An element of a list.
const INDEX: &str = "index";

/// A request made and dropped, with nobody chosen.
const NO_PICK: &str = "no_pick";

const METRICS: [Metric; 3] = [
    Metric {
        name: "cpu_ns_per_op",
        title: "CPU ns/op",
    },
    Metric {
        name: "wall_ns_per_op",
        title: "wall ns/op",
    },
    Metric {
        name: ALLOCATIONS,
        title: "allocs/op",
    },
];

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let sizes: &[u32] = if stage.args.quick {
        &[10, 10_000]
    } else {
        &[1, 10, 100, 1_000, 10_000]
    };
    for policy in [PEAK_EWMA, PENDING, IN_TURN, RING] {
        for tasks in [1, 64] {
            // Requests with a key go through a channel, which is measured alone.
            if policy == RING && tasks > 1 {
                continue;
            }
            for until in [PICK, PICK_ANSWERED, PICKED, ANSWERED] {
                // Without a key nothing is hashed, and a channel would send what is polled.
                if policy == RING && until != PICKED {
                    continue;
                }
                for &endpoints in sizes {
                    contest(stage, policy, tasks, until, endpoints).await?;
                }
            }
        }
    }
    Ok(())
}

async fn contest(
    stage: &mut Stage,
    policy: &'static str,
    tasks: u64,
    until: &'static str,
    endpoints: u32,
) -> Outcome<()> {
    let mut contenders = vec![Contender::OURS];
    contenders.push(Contender::floor(match (policy, until) {
        (RING, _) => NO_PICK,
        (_, PICK | PICK_ANSWERED) => INDEX,
        _ => ROUND_ROBIN,
    }));
    if until == ANSWERED && matches!(policy, PEAK_EWMA | PENDING) {
        if tasks == 1 {
            contenders.push(Contender::peer(TOWER));
        }
        contenders.push(Contender::peer(TOWER_BUFFER));
    }
    let mut contest = Contest::new(NAME, &METRICS, contenders)
        .param("policy", policy)
        .param("endpoints", u64::from(endpoints))
        .param("tasks", tasks)
        .param("until", until);
    contest
        .run(stage.args.rounds(), async |contender: &Contender, _| {
            let job = Job {
                bench: NAME.to_owned(),
                policy: policy.to_owned(),
                until: until.to_owned(),
                endpoints,
                concurrency: usize::try_from(tasks)?,
                measured_ms: if stage.args.quick { 40 } else { 200 },
                ..Job::default()
            };
            stage.measure_and_count(contender, job).await
        })
        .await;
    stage.report.show(&contest)
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    if job.policy == RING {
        return by_key(job).await;
    }
    let services = || (0..job.endpoints).map(|_| Echo);
    match (job.contender.as_str(), job.policy.as_str()) {
        ("lictor", _) if matches!(job.until.as_str(), PICK | PICK_ANSWERED) => {
            let source = source::fixed(nowhere(job.endpoints, 0)?);
            let picks = Picks::new(source, policy(&job.policy))?;
            while !picks.is_ready() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if job.until == PICK {
                timed(job, vec![picks; job.concurrency]).await
            } else {
                timed(job, vec![Answered(picks); job.concurrency]).await
            }
        }
        (INDEX, _) => {
            let list = (0..job.endpoints).collect();
            timed(job, vec![Indexed { list, next: 0 }; job.concurrency]).await
        }
        ("lictor", _) => {
            let source = source::fixed(nowhere(job.endpoints, 0)?);
            let balanced = Builder::new(source)
                .policy(policy(&job.policy))
                .build(|_| Echo)?;
            balanced.wait_ready().await?;
            timed(job, vec![balanced; job.concurrency]).await
        }
        (ROUND_ROBIN, _) => {
            let by_hand = InTurn {
                services: services().collect(),
                next: Arc::default(),
            };
            timed(job, vec![by_hand; job.concurrency]).await
        }
        (TOWER, PENDING) => {
            let list = services().map(echo::by_pending).collect::<Vec<_>>();
            let balance = Balance::new(ServiceList::new::<u32>(list));
            timed(job, vec![Towers(balance)]).await
        }
        (TOWER, _) => {
            let list = services().map(echo::by_ewma).collect::<Vec<_>>();
            let balance = Balance::new(ServiceList::new::<u32>(list));
            timed(job, vec![Towers(balance)]).await
        }
        (TOWER_BUFFER, PENDING) => {
            let list = services().map(echo::by_pending).collect::<Vec<_>>();
            let shared = echo::buffered(list);
            timed(job, vec![Towers(shared); job.concurrency]).await
        }
        (TOWER_BUFFER, _) => {
            let list = services().map(echo::by_ewma).collect::<Vec<_>>();
            let shared = echo::buffered(list);
            timed(job, vec![Towers(shared); job.concurrency]).await
        }
        _ => Err(unknown(job)),
    }
}

/// How many requests a task makes before it lets others run.
const BATCH: u32 = 256;

/// Asks in so many tasks at the same time, each with a handle of its own.
async fn timed<A: Ask>(job: &Job, askers: Vec<A>) -> Outcome<Sample> {
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let mut warm = Vec::new();
    let has_nobody = matches!(job.until.as_str(), PICK | PICK_ANSWERED);
    let picks_only = job.until != ANSWERED;
    for mut asker in askers {
        for question in 0..BATCH {
            if has_nobody {
                asker.choose(question);
            } else {
                asker.ask(question).await?;
            }
        }
        warm.push(asker);
    }
    let before = Allocations::read();
    let (cpu, start) = (usage::cpu_time(), Instant::now());
    for mut asker in warm {
        let over = Arc::clone(&over);
        tasks.spawn(async move {
            let mut operations = 0_u64;
            while !over.load(Ordering::Relaxed) {
                for question in 0..BATCH {
                    if picks_only {
                        asker.choose(black_box(question));
                    } else {
                        black_box(asker.ask(black_box(question)).await?);
                    }
                }
                operations += u64::from(BATCH);
                tokio::task::yield_now().await;
            }
            Outcome::Ok(operations)
        });
    }
    tokio::time::sleep(Duration::from_millis(job.measured_ms)).await;
    over.store(true, Ordering::Relaxed);
    let mut operations = 0;
    while let Some(ended) = tasks.join_next().await {
        operations += ended??;
    }
    let (cpu, wall) = (usage::cpu_time().saturating_sub(cpu), start.elapsed());
    Ok(sample(cpu, wall, operations, before))
}

/// A channel picks by a key when it is called, and sends nothing before it is polled.
async fn by_key(job: &Job) -> Outcome<Sample> {
    let uri = Uri::from_static("/hello");
    let request = move || {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = uri.clone();
        request
    };
    match job.contender.as_str() {
        "lictor" => {
            let mut channel = Channel::from_source(source::fixed(nowhere(job.endpoints, 0)?))
                .policy(policy(&job.policy))
                .hash_by(|parts| Some(HashKey::new(parts.uri.path())))
                .host("web")
                .build()?;
            channel.wait_ready().await?;
            Ok(repeated(job, || drop(black_box(channel.call(request())))))
        }
        NO_PICK => Ok(repeated(job, || drop(black_box(request())))),
        _ => Err(unknown(job)),
    }
}

fn repeated(job: &Job, mut one: impl FnMut()) -> Sample {
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
    let (cpu, wall) = (usage::cpu_time().saturating_sub(cpu), start.elapsed());
    sample(cpu, wall, operations, before)
}

fn sample(cpu: Duration, wall: Duration, operations: u64, before: Allocations) -> Sample {
    let allocated = Allocations::read().since(before);
    let per_op = |total: f64| total / operations.max(1) as f64;
    Sample::default()
        .with("cpu_ns_per_op", per_op(cpu.as_secs_f64() * 1e9))
        .with("wall_ns_per_op", per_op(wall.as_secs_f64() * 1e9))
        .with(ALLOCATIONS, per_op(allocated.count as f64))
}
