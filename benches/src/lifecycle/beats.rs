//! `beats`: how evenly the heartbeats of thousands of registrations in one process go out, and what
//! each of them costs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use super::{AGENT, Job, MODE, Stage};
use crate::Outcome;
use crate::consul::Consul;
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

/// How long beats are counted: each beats about three times in a TTL, whatever it began with.
const MEASURED: Duration = TTL;

/// How many of the registrations begin side by side.
const AT_ONCE: usize = 64;

const TTL: Duration = Duration::from_secs(30);

/// How long the restarted agent may take until all are passing.
const SOON: Duration = Duration::from_secs(120);

/// What the worker says when all are registered and have found their own times.
const BEATING: &str = "beating";

/// A thousand on a real Consul, and ten thousand on the embedded agent: Consul's own agent looks
/// through all that it has at each change, and takes a quarter of an hour until it has so many.
pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    on(stage, Home::Consul, 1_000, 3).await?;
    if stage.args.quick {
        return Ok(());
    }
    on(stage, Home::Embedded, 10_000, 3).await
}

async fn on(stage: &mut Stage, home: Home, count: usize, rounds: usize) -> Outcome<()> {
    let mut contest = Contest::new(BENCH, &METRICS, [Contender::OURS])
        .param("agent", home.name())
        .param("count", u64::try_from(count)?);
    let round = async |contender: &Contender, _round: usize| {
        let mut agent = match home {
            Home::Consul => Agent::Consul(&mut stage.consul),
            Home::Embedded => Agent::Embedded(Box::new(Embedded::start(&stage.program).await?)),
        };
        let mut tap = Tap::start(agent.socket_address()).await?;
        stage.measurements += 1;
        let job = Job {
            bench: BENCH.to_owned(),
            contender: contender.name.to_owned(),
            address: tap.address(),
            name: format!("bench-{:04}", stage.measurements),
            count,
            ttl_ms: u64::try_from(TTL.as_millis())?,
            measured: u64::try_from(MEASURED.as_millis())?,
        };
        let sample = life(&stage.program, &job, &mut agent, &mut tap).await?;
        agent.end().await?;
        Ok(sample)
    };
    contest.run(rounds, round).await;
    stage.report.show(&contest)
}

/// All begin, beat, lose their agent, and end.
async fn life(program: &Path, job: &Job, agent: &mut Agent<'_>, tap: &mut Tap) -> Outcome<Sample> {
    let mut worker = Worker::with_job(program, MODE, job)?;
    if worker.line().await? != BEATING {
        return Err("a worker that says something else".into());
    }
    let at_start = tap.counts();
    let (line, calm) = tokio::join!(worker.line(), Pieces::of(tap, MEASURED));
    let sample: Sample = serde_json::from_str(&line?)?;
    let later = tap.counts();
    tap.close().await;
    agent.restart().await?;
    tap.open().await?;
    let back = Instant::now();
    let passing = all_passing(agent.socket_address(), job).await?;
    let restarted = tap.counts();
    sleep(TTL / 3).await;
    let again = Pieces::of(tap, MEASURED).await;
    let status = worker.end().await?;
    if !status.success() {
        return Err(format!("the worker ended with {status}").into());
    }
    let cpu = sample.0.get("cpu_us").copied().unwrap_or_default();
    let opened = |from: Counts, to: Counts| (to.connections - from.connections) as f64;
    Ok(sample
        .with("busiest_to_mean", calm.busiest_to_mean())
        .with("beats_per_s", calm.sum() / MEASURED.as_secs_f64())
        .with("cpu_us_per_beat", cpu / calm.sum())
        .with("connections_at_start", at_start.connections as f64)
        .with("connections_later", opened(at_start, later))
        .with("connections_after_restart", opened(later, restarted))
        .with("busiest_after_restart", again.busiest_to_mean())
        .with(
            "passing_again_s",
            passing.duration_since(back).as_secs_f64(),
        ))
}

#[derive(Clone, Copy, Debug)]
enum Home {
    Consul,
    Embedded,
}

impl Home {
    fn name(self) -> &'static str {
        match self {
            Self::Consul => "Consul",
            Self::Embedded => "embedded",
        }
    }
}

/// Where the registrations of one round are.
enum Agent<'a> {
    Consul(&'a mut Consul),
    Embedded(Box<Embedded>),
}

impl Agent<'_> {
    fn socket_address(&self) -> SocketAddr {
        match self {
            Self::Consul(consul) => consul.socket_address(),
            Self::Embedded(embedded) => embedded.address,
        }
    }

    /// It is gone, and is back as it comes back: Consul with its data, the embedded agent without.
    async fn restart(&mut self) -> Outcome<()> {
        match self {
            Self::Consul(consul) => consul.crash_and_restart().await,
            Self::Embedded(embedded) => {
                embedded.process.tell("wipe").await?;
                embedded.process.line().await.map(drop)
            }
        }
    }

    async fn end(self) -> Outcome<()> {
        match self {
            Self::Consul(_) => Ok(()),
            Self::Embedded(embedded) => embedded.process.end().await.map(drop),
        }
    }
}

/// The embedded agent in a process of its own.
struct Embedded {
    process: Worker,
    address: SocketAddr,
}

impl Embedded {
    async fn start(program: &Path) -> Outcome<Self> {
        let mut process = Worker::with_job(program, AGENT, &())?;
        let address = process.line().await?.parse()?;
        Ok(Self { process, address })
    }
}

/// Is the embedded agent: says where it listens, and loses its data for each line that it reads.
pub(super) async fn be_agent() -> Outcome<()> {
    let agent = lictor::embedded::Agent::start().await?;
    println!("{}", agent.http_addr());
    let mut lines = worker::input();
    while lines.recv().await.is_some() {
        agent.wipe();
        println!("wiped");
    }
    Ok(())
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
async fn all_passing(agent: SocketAddr, job: &Job) -> Outcome<Instant> {
    let client = lictor::Client::builder();
    let client = client.address(format!("http://{agent}")).build()?;
    let deadline = Instant::now() + SOON;
    loop {
        let asked = Instant::now();
        let passing = client.health().service(&*job.name).passing().send().await;
        if passing.is_ok_and(|passing| passing.len() == job.count) {
            return Ok(Instant::now());
        }
        if Instant::now() > deadline {
            return Err(format!("not all are passing {SOON:?} after the restart").into());
        }
        // Ten thousand are no small answer: it is not to be all that the agent does.
        sleep(PIECE.max(4 * asked.elapsed())).await;
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
