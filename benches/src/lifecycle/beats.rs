//! `beats`: how evenly the heartbeats of ten thousand registrations in one process go out, and what
//! each of them costs.

use std::sync::Arc;
use std::time::Duration;

use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use super::{Job, MODE, Stage};
use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::tap::{Counts, Tap};
use crate::usage::{Memory, cpu_time};
use crate::worker::{self, Worker};

pub(super) const BENCH: &str = "beats";

const METRICS: [Metric; 10] = [
    metric("busiest_to_mean", "busiest ÷ mean"),
    metric("beats_per_s", "beats/s"),
    metric("cpu_us_per_beat", "CPU µs/beat"),
    metric("kib_each", "KiB each"),
    metric("register_s", "to register s"),
    metric("connections_at_start", "connections at start"),
    metric("connections_later", "later"),
    metric("connections_after_restart", "after a restart"),
    metric("busiest_after_restart", "busiest ÷ mean then"),
    metric("passing_again_s", "all passing after it s"),
];

const fn metric(name: &'static str, title: &'static str) -> Metric {
    Metric { name, title }
}

/// Requests are counted in pieces of this length.
const PIECE: Duration = Duration::from_millis(250);

/// How many of the registrations begin side by side.
const AT_ONCE: usize = 64;

const TTL: Duration = Duration::from_secs(30);

/// How long the restarted agent may take until all are passing.
const SOON: Duration = Duration::from_secs(120);

/// What the worker says when all are registered and have found their own times.
const BEATING: &str = "beating";

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let quick = stage.args.quick;
    let (count, rounds) = if quick { (1_000, 3) } else { (10_000, 5) };
    // Each beats about three times, whatever it began with.
    let measured = if quick { TTL / 2 } else { TTL };
    let mut contest = Contest::new(BENCH, &METRICS, [Contender::OURS]).param("count", count);
    let contest_run = async |contender: &Contender, _round: usize| -> Outcome<Sample> {
        let (mut job, mut tap) = stage.job(BENCH, contender.name).await?;
        job.count = usize::try_from(count)?;
        job.ttl_ms = u64::try_from(TTL.as_millis())?;
        job.measured = u64::try_from(measured.as_millis())?;
        let mut worker = Worker::with_job(&stage.program, MODE, &job)?;
        if worker.line().await? != BEATING {
            return Err("a worker that says something else".into());
        }
        let at_start = tap.counts();
        let (line, calm) = tokio::join!(worker.line(), Pieces::of(&tap, measured));
        let sample: Sample = serde_json::from_str(&line?)?;
        let later = tap.counts();
        tap.close().await;
        stage.consul.crash_and_restart().await?;
        tap.open().await?;
        let back = Instant::now();
        let (passing, storm) = tokio::join!(
            all_passing(stage.consul.address(), &job),
            Pieces::of(&tap, measured)
        );
        let passing = passing?.duration_since(back);
        let status = worker.end().await?;
        if !status.success() {
            return Err(format!("the worker ended with {status}").into());
        }
        let cpu = sample.0.get("cpu_us").copied().unwrap_or_default();
        let opened = |from: Counts, to: Counts| (to.connections - from.connections) as f64;
        Ok(sample
            .with("busiest_to_mean", calm.busiest_to_mean())
            .with("beats_per_s", calm.sum() / measured.as_secs_f64())
            .with("cpu_us_per_beat", cpu / calm.sum())
            .with("connections_at_start", at_start.connections as f64)
            .with("connections_later", opened(at_start, later))
            .with("connections_after_restart", opened(later, tap.counts()))
            .with("busiest_after_restart", storm.busiest_to_mean())
            .with("passing_again_s", passing.as_secs_f64()))
    };
    contest.run(rounds, contest_run).await;
    stage.report.show(&contest)
}

/// The writes that passed in each piece of a time.
struct Pieces(Vec<f64>);

impl Pieces {
    async fn of(tap: &Tap, time: Duration) -> Self {
        let mut pieces = interval(PIECE);
        pieces.tick().await;
        let mut passed = Vec::new();
        let mut before = tap.counts().writes;
        let end = Instant::now() + time;
        while Instant::now() < end {
            pieces.tick().await;
            let now = tap.counts().writes;
            passed.push((now - before) as f64);
            before = now;
        }
        Self(passed)
    }

    fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    fn busiest_to_mean(&self) -> f64 {
        let busiest = self.0.iter().copied().fold(0.0, f64::max);
        busiest / (self.sum() / self.0.len() as f64)
    }
}

/// When the catalog shows all of them as passing.
async fn all_passing(agent: String, job: &Job) -> Outcome<Instant> {
    let client = lictor::Client::builder().address(&agent).build()?;
    let deadline = Instant::now() + SOON;
    loop {
        let passing = client.health().service(&*job.name).passing().send().await;
        if passing.is_ok_and(|passing| passing.len() == job.count) {
            return Ok(Instant::now());
        }
        if Instant::now() > deadline {
            return Err(format!("not all are passing {SOON:?} after the restart").into());
        }
        sleep(PIECE).await;
    }
}

/// Registers, beats, and says what that took; ends when its input does.
pub(super) async fn measure(job: &Job) -> Outcome<()> {
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
    println!("{BEATING}");
    let cpu = cpu_time();
    sleep(job.measured()).await;
    let cpu = cpu_time() - cpu;
    let kib = (after.resident_mib - before.resident_mib) * 1024.0;
    let sample = Sample::default()
        .with("cpu_us", cpu.as_secs_f64() * 1e6)
        .with("kib_each", kib / job.count as f64)
        .with("register_s", register.as_secs_f64());
    println!("{}", serde_json::to_string(&sample)?);
    // Now the agent is killed and started again.
    worker::input_ended().await;
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
    Ok(())
}
