//! Balanced calls against a hand-written round robin, tower's balancer and proxies: the program
//! `balancing`.

mod backends;
mod calls;
mod caller;
mod churn;
mod echo;
mod pick;
mod proxy;
mod proxy_hop;
mod slow_backend;

use std::path::PathBuf;
use std::process::ExitCode;

use lictor_tower::channel::Policy;
use lictor_tower::endpoint::Endpoint;
use lictor_tower::source::{self, Fixed};
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::contest::{Contender, Sample};
use crate::report::Report;
use crate::{Outcome, worker};

use backends::Fleet;

/// The benches, in the order in which they run.
pub const BENCHES: [&str; 5] = [
    pick::NAME,
    churn::NAME,
    calls::NAME,
    slow_backend::NAME,
    proxy_hop::NAME,
];

/// The first argument of a worker; the second is the job.
const MODE: &str = "__measure";

/// One measurement of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Job {
    bench: String,
    contender: String,
    policy: String,
    /// What a request ends with.
    until: String,
    /// The addresses to which requests are sent.
    backends: Vec<String>,
    /// The same with nobody slow among them.
    healthy: Vec<String>,
    /// How many endpoints there are, where nothing is sent.
    endpoints: u32,
    /// How many of them are replaced at a time.
    replaced: u32,
    /// Loops that run at the same time.
    concurrency: usize,
    /// What the slowest backend takes.
    slow_ms: u64,
    /// Requests per second, where they do not wait for each other.
    rate: f64,
    warm_up_ms: u64,
    measured_ms: u64,
}

/// What a run has at hand.
#[derive(Debug)]
struct Stage {
    args: Args,
    report: Report,
    program: PathBuf,
    /// This program with an allocator that counts.
    counting: Option<PathBuf>,
}

/// Is the program: the coordinator, or with a hidden first argument a worker or the backends.
pub async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let done = match arguments.peek().map(String::as_str) {
        Some(backends::MODE) => backends::serve(arguments.nth(1)).await,
        Some(MODE) => worker::run(arguments.nth(1), measure).await,
        _ => tokio::select! {
            done = coordinate(arguments) => done,
            () = worker::asked_to_end() => Err("interrupted".into()),
        },
    };
    worker::ended(&done)
}

async fn measure(job: Job) -> Outcome<Option<Sample>> {
    let sample = match job.bench.as_str() {
        pick::NAME => pick::measure(&job).await?,
        churn::NAME => churn::measure(job).await?,
        calls::NAME | proxy_hop::NAME => calls::measure(&job).await?,
        slow_backend::NAME => slow_backend::measure(&job).await?,
        other => return Err(format!("no bench {other}").into()),
    };
    Ok(Some(sample))
}

async fn coordinate(arguments: impl IntoIterator<Item = String>) -> Outcome<()> {
    let args = Args::parse(arguments, &BENCHES)?;
    let report = Report::new(args.json);
    if cfg!(debug_assertions) {
        report.note("this is a debug build: its figures mean nothing; run it with --release");
    }
    let counting = match worker::sibling("balancing_allocations", &[]).await {
        Ok(program) => Some(program),
        Err(reason) => {
            report.note(&format!("allocations are left out: {reason}"));
            None
        }
    };
    let mut stage = Stage {
        report,
        program: worker::this_program()?,
        counting,
        args,
    };
    for bench in BENCHES {
        if !stage.args.wants(bench) {
            continue;
        }
        match bench {
            pick::NAME => pick::run(&mut stage).await?,
            churn::NAME => churn::run(&mut stage).await?,
            calls::NAME => calls::run(&mut stage).await?,
            slow_backend::NAME => slow_backend::run(&mut stage).await?,
            _ => proxy_hop::run(&mut stage).await?,
        }
    }
    if stage.report.failed() {
        return Err("our own balancer could not be measured everywhere; see above".into());
    }
    Ok(())
}

impl Stage {
    /// Measures a job in a process of its own.
    async fn measure(&self, contender: &Contender, job: Job) -> Outcome<Sample> {
        let job = Job {
            contender: contender.name.to_owned(),
            ..job
        };
        let mut sample = worker::measure(&self.program, MODE, &job).await?;
        sample.0.remove(ALLOCATIONS);
        Ok(sample)
    }

    /// The same, and once more to count allocations.
    async fn measure_and_count(&self, contender: &Contender, job: Job) -> Outcome<Sample> {
        let sample = self.measure(contender, job.clone()).await?;
        let Some(counting) = &self.counting else {
            return Ok(sample);
        };
        let brief = Job {
            contender: contender.name.to_owned(),
            measured_ms: job.measured_ms / 4,
            ..job
        };
        let counted = worker::measure(counting, MODE, &brief).await?;
        Ok(match counted.0.get(ALLOCATIONS) {
            Some(count) => sample.with(ALLOCATIONS, *count),
            None => sample,
        })
    }
}

/// The metric that only the counting program fills.
const ALLOCATIONS: &str = "allocations_per_op";

/// What one writes without a library: a counter, and something to call per endpoint.
const ROUND_ROBIN: &str = "round_robin";

/// tower's `Balance`, bare.
const TOWER: &str = "tower_balance";

/// The same behind tower's `Buffer`, which is how it is shared.
const TOWER_BUFFER: &str = "tower_balance_buffer";

const PEAK_EWMA: &str = "peak_ewma";
const PENDING: &str = "pending";
const IN_TURN: &str = "round_robin";
const RING: &str = "ring_hash";

fn policy(name: &str) -> Policy {
    match name {
        PENDING => Policy::PendingRequests,
        IN_TURN => Policy::RoundRobin,
        RING => Policy::RingHash,
        _ => Policy::PeakEwma,
    }
}

fn unknown(job: &Job) -> crate::Failure {
    format!("{} does not take part in {}", job.contender, job.bench).into()
}

/// A source of these addresses.
fn fixed(backends: &[String]) -> Outcome<Fixed> {
    let mut endpoints = Vec::new();
    for backend in backends {
        endpoints.push(Endpoint::new(backend.parse()?));
    }
    Ok(source::fixed(endpoints))
}

/// Endpoints at which nobody listens, for benches that send nothing.
fn nowhere(count: u32, series: u32) -> Outcome<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for at in 0..count {
        let target = format!("127.{}.{}.{}:80", at / 250, at % 250, series % 250 + 1);
        endpoints.push(Endpoint::new(target.parse()?));
    }
    Ok(endpoints)
}

/// Ten backends that answer at once.
async fn quick_fleet(stage: &Stage) -> Outcome<Fleet> {
    Fleet::start(&stage.program, &[0; backends::COUNT]).await
}
