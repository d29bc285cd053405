//! Balanced calls against a hand-written round robin: the program `balancing`.

mod backends;
mod calls;
mod picks;

use std::path::PathBuf;
use std::process::ExitCode;

use lictor_tower::channel::Policy;
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::contest::{Contender, Sample};
use crate::report::Report;
use crate::{Outcome, worker};

use backends::Backends;

/// The benches, in the order in which they run.
pub const BENCHES: [&str; 6] = [
    picks::EWMA,
    picks::PENDING,
    picks::TURNS,
    picks::RING,
    calls::EWMA,
    calls::PENDING,
];

/// The first argument of a worker; the second is the job.
const MODE: &str = "__measure";

/// One measurement of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Job {
    bench: String,
    contender: String,
    /// The backends' addresses, where requests are sent.
    backends: Vec<String>,
    /// How many endpoints there are, where nothing is sent.
    endpoints: u32,
    concurrency: usize,
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
        Some(backends::MODE) => backends::serve().await,
        Some(MODE) => run_job(arguments.nth(1)).await,
        _ => tokio::select! {
            done = coordinate(arguments) => done,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run_job(job: Option<String>) -> Outcome<()> {
    let job: Job = serde_json::from_str(&job.ok_or("no job")?)?;
    // The runtime's own thread is left alone: tasks run on the workers, as in a server.
    let sample = tokio::task::JoinSet::from_iter([measure(job)])
        .join_next()
        .await
        .ok_or("no measurement")???;
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

async fn measure(job: Job) -> Outcome<Sample> {
    match job.bench.as_str() {
        picks::EWMA | picks::PENDING | picks::TURNS | picks::RING => picks::measure(&job).await,
        calls::EWMA | calls::PENDING => calls::measure(&job).await,
        other => Err(format!("no bench {other}").into()),
    }
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
            picks::EWMA | picks::PENDING | picks::TURNS | picks::RING => {
                picks::run(&mut stage, bench).await?
            }
            _ => {
                let backends = Backends::start(&stage.program).await?;
                calls::run(&mut stage, bench, &backends).await?;
            }
        }
    }
    if stage.report.failed() {
        return Err("our own channel could not be measured everywhere; see above".into());
    }
    Ok(())
}

impl Stage {
    /// Measures a job in a process of its own, and once more to count allocations.
    async fn measure(&self, contender: &Contender, job: Job) -> Outcome<Sample> {
        let job = Job {
            contender: contender.name.to_owned(),
            ..job
        };
        let mut sample = worker::measure(&self.program, MODE, &job).await?;
        sample.0.remove(ALLOCATIONS);
        if let Some(counting) = &self.counting {
            let brief = Job {
                measured_ms: job.measured_ms / 4,
                ..job
            };
            let counted = worker::measure(counting, MODE, &brief).await?;
            if let Some(count) = counted.0.get(ALLOCATIONS) {
                sample = sample.with(ALLOCATIONS, *count);
            }
        }
        Ok(sample)
    }
}

/// The metric that only the counting program fills.
const ALLOCATIONS: &str = "allocations_per_op";

fn policy(bench: &str) -> Policy {
    match bench {
        picks::PENDING | calls::PENDING => Policy::PendingRequests,
        picks::TURNS => Policy::RoundRobin,
        picks::RING => Policy::RingHash,
        _ => Policy::PeakEwma,
    }
}
