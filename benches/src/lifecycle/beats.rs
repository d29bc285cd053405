//! `beats`: how evenly the heartbeats of ten thousand registrations in one process go out, and what
//! each of them costs.

use std::sync::Arc;
use std::time::Duration;

use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use super::{Job, MODE, Stage};
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::usage::{Memory, cpu_time, monotonic_nanos};
use crate::{Outcome, worker};

pub(super) const BENCH: &str = "beats";

const METRICS: [Metric; 7] = [
    Metric {
        name: "busiest_to_mean",
        title: "busiest ÷ mean",
    },
    Metric {
        name: "beats_per_s",
        title: "beats/s",
    },
    Metric {
        name: "cpu_us_per_beat",
        title: "CPU µs/beat",
    },
    Metric {
        name: "kib_each",
        title: "KiB each",
    },
    Metric {
        name: "register_s",
        title: "to register s",
    },
    Metric {
        name: "connections_at_start",
        title: "connections at start",
    },
    Metric {
        name: "connections_later",
        title: "later",
    },
];

/// Requests are counted in pieces of this length.
const PIECE: Duration = Duration::from_millis(250);

/// How many of the registrations begin side by side.
const AT_ONCE: usize = 64;

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let quick = stage.args.quick;
    let (count, rounds) = if quick { (1_000, 3) } else { (10_000, 5) };
    let mut contest = Contest::new(BENCH, &METRICS, [Contender::OURS]).param("count", count);
    let contest_run = async |contender: &Contender, _round: usize| -> Outcome<Sample> {
        let (mut job, tap) = stage.job(BENCH, contender.name).await?;
        job.count = usize::try_from(count)?;
        job.ttl_ms = 30_000;
        // Each beats about three times, whatever it began with.
        job.measured = if quick { 15_000 } else { 30_000 };
        let mut passed = Vec::new();
        let watching = async {
            let mut pieces = interval(PIECE);
            loop {
                pieces.tick().await;
                passed.push((monotonic_nanos(), tap.counts()));
            }
        };
        let sample = tokio::select! {
            sample = worker::measure(&stage.program, MODE, &job) => sample?,
            () = watching => return Err("it never ends".into()),
        };
        let at = |name: &str| sample.0.get(name).copied().unwrap_or_default();
        let (from, to) = (at("from_ns"), at("to_ns"));
        passed.retain(|(nanos, _)| (*nanos as f64) >= from && (*nanos as f64) <= to);
        let (Some(first), Some(last)) = (passed.first(), passed.last()) else {
            return Err("nothing was measured".into());
        };
        let pieces: Vec<f64> = passed
            .windows(2)
            .filter_map(|pair| match pair {
                [(_, before), (_, after)] => Some((after.requests - before.requests) as f64),
                _ => None,
            })
            .collect();
        let beats = (last.1.requests - first.1.requests) as f64;
        let seconds = (last.0 - first.0) as f64 / 1e9;
        let mean = beats / pieces.len() as f64;
        let busiest = pieces.iter().copied().fold(0.0, f64::max);
        let mut figures = Sample::default()
            .with("busiest_to_mean", busiest / mean)
            .with("beats_per_s", beats / seconds)
            .with("cpu_us_per_beat", at("cpu_us") / beats)
            .with("connections_at_start", first.1.connections as f64)
            .with(
                "connections_later",
                (last.1.connections - first.1.connections) as f64,
            );
        for name in ["kib_each", "register_s"] {
            figures = figures.with(name, at(name));
        }
        Ok(figures)
    };
    contest.run(rounds, contest_run).await;
    stage.report.show(&contest)
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    let client = job.client()?;
    // What the first of all costs, such as connections, is nobody's in particular.
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let definition = |number: usize| {
        let ttl = Duration::from_millis(job.ttl_ms);
        ServiceDefinition::new(&*job.name)
            .id(format!("{}-{number}", job.name))
            .check(CheckDefinition::alive_only(ttl))
    };
    let first = client.register(definition(0)).await?;
    let before = Memory::read()?;
    let start = Instant::now();
    let mut beginning = JoinSet::new();
    for number in 1..job.count {
        let (client, places) = (client.clone(), Arc::clone(&places));
        let definition = definition(number);
        beginning.spawn(async move {
            let _place = places.acquire_owned().await;
            client.register(definition).await
        });
    }
    let mut registrations = vec![first];
    while let Some(registration) = beginning.join_next().await {
        registrations.push(registration??);
    }
    let register = start.elapsed();
    let after = Memory::read()?;
    // The beats find their own times.
    sleep(Duration::from_millis(job.ttl_ms / 3)).await;
    let (cpu, from) = (cpu_time(), monotonic_nanos());
    sleep(job.measured()).await;
    let (cpu, to) = (cpu_time() - cpu, monotonic_nanos());
    let mut ending = JoinSet::new();
    for registration in registrations {
        let places = Arc::clone(&places);
        ending.spawn(async move {
            let _place = places.acquire_owned().await;
            registration.close().await
        });
    }
    while let Some(ended) = ending.join_next().await {
        ended??;
    }
    let kib = (after.resident_mib - before.resident_mib) * 1024.0;
    Ok(Sample::default()
        .with("from_ns", from as f64)
        .with("to_ns", to as f64)
        .with("cpu_us", cpu.as_secs_f64() * 1e6)
        .with("kib_each", kib / job.count as f64)
        .with("register_s", register.as_secs_f64()))
}
