//! Hand-overs, cycles and herds of locks on a real Consul: the program `coordination`.

pub mod job;
mod subject;
mod clean_handover;
mod herd;
mod lock_cycle;
mod crash_handover;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::args::Args;
use crate::consul::Consul;
use crate::contest::{Contender, Metric, Sample};
use crate::coordination::job::Job;
use crate::report::Report;
use crate::{Outcome, go, peers, worker};

/// The benches, in the order in which they run.
pub const BENCHES: [&str; 4] = [
    clean_handover::BENCH,
    lock_cycle::BENCH,
    herd::BENCH,
    crash_handover::BENCH,
];

/// What hand-overs are compared by first.
const HAND_OVER: [Metric; 3] = [
    Metric {
        name: "p50_us",
        title: "p50 µs",
    },
    Metric {
        name: "p99_us",
        title: "p99 µs",
    },
    Metric {
        name: "client_cpu_us_per_handover",
        title: "CPU µs/hand-over",
    },
];

/// What a run has at hand.
#[derive(Debug)]
struct Stage {
    args: Args,
    report: Report,
    /// This program.
    program: PathBuf,
    /// The Go client's program.
    go: Option<PathBuf>,
    consul: Consul,
    measurements: AtomicU64,
}

/// Is the program: the coordinator, or with a hidden first argument a worker.
pub async fn main() -> ExitCode {
    // With both reqwest and a TLS feature in the build, a client needs a provider even for plain HTTP.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut arguments = std::env::args().skip(1).peekable();
    let done = match arguments.peek().map(String::as_str) {
        Some(job::MODE) => worker::run(arguments.nth(1), measure).await,
        _ => tokio::select! {
            done = coordinate(arguments) => done,
            () = worker::asked_to_end() => Err("interrupted".into()),
        },
    };
    worker::ended(&done)
}

/// Measures one contender; a bench that talks in lines of its own returns nothing.
async fn measure(job: Job) -> Outcome<Option<Sample>> {
    match job.bench.as_str() {
        clean_handover::BENCH => clean_handover::measure(&job).await.map(Some),
        lock_cycle::BENCH => lock_cycle::measure(&job).await.map(Some),
        herd::BENCH => herd::measure(&job).await.map(Some),
        crash_handover::BENCH => crash_handover::measure(&job).await.map(|()| None),
        other => Err(format!("no bench {other}").into()),
    }
}

async fn coordinate(arguments: impl IntoIterator<Item = String>) -> Outcome<()> {
    let args = Args::parse(arguments, &BENCHES)?;
    let Some(mut stage) = set(args).await? else {
        return Ok(());
    };
    for bench in BENCHES {
        if !stage.args.wants(bench) {
            continue;
        }
        match bench {
            clean_handover::BENCH => clean_handover::run(&mut stage).await?,
            lock_cycle::BENCH => lock_cycle::run(&mut stage).await?,
            herd::BENCH => herd::run(&mut stage).await?,
            _ => crash_handover::run(&mut stage).await?,
        }
    }
    stage.consul.stop().await?;
    if stage.report.failed() {
        return Err("our own client could not be measured everywhere; see above".into());
    }
    Ok(())
}

/// Starts and builds what the benches need, and says what is left out.
async fn set(args: Args) -> Outcome<Option<Stage>> {
    let report = Report::new(args.json);
    if cfg!(debug_assertions) {
        report.note("this is a debug build: its figures mean nothing; run it with --release");
    }
    let Some(consul) = Consul::program() else {
        report.note("no Consul here (CONSUL_BIN or PATH): all benches are left out");
        return Ok(None);
    };
    let go = match go::build().await {
        Ok(program) => Some(program),
        Err(reason) => {
            report.note(&format!("the Go client is left out: {reason}"));
            None
        }
    };
    if !cfg!(feature = "peers") {
        report.note("rs-consul and consulrs are left out: build with --features peers");
    }
    Ok(Some(Stage {
        report,
        program: worker::this_program()?,
        go,
        consul: Consul::start(&consul).await?,
        measurements: AtomicU64::new(0),
        args,
    }))
}

impl Stage {
    /// Those of the named peers that are at hand.
    fn peers<'a>(&self, names: &'a [&'static str]) -> impl Iterator<Item = Contender> + use<'a> {
        peers::at_hand(self.go.is_some(), names)
    }

    /// A job of the bench for the contender, on a key that was never locked before.
    fn job(&self, bench: &str, contender: &Contender) -> Job {
        let number = self.measurements.fetch_add(1, Ordering::Relaxed);
        Job {
            bench: bench.to_owned(),
            contender: contender.name.to_owned(),
            address: self.consul.address(),
            key: format!("bench/{number:04}"),
            ..Job::default()
        }
    }

    /// Measures a job in a process of its own: this program, or the Go one.
    async fn measure(&self, job: &Job) -> Outcome<Sample> {
        let sample = worker::measure(self.program_of(&job.contender)?, job::MODE, job).await;
        // Those who leave their sessions to time would disturb whoever is measured then.
        end_sessions(&self.consul.address()).await?;
        sample
    }

    fn program_of(&self, contender: &str) -> Outcome<&std::path::Path> {
        if contender == peers::GO {
            return Ok(self.go.as_deref().ok_or("Go is left out")?);
        }
        Ok(&self.program)
    }
}

async fn end_sessions(address: &str) -> Outcome<()> {
    #[derive(Deserialize)]
    struct Session {
        #[serde(rename = "ID")]
        id: String,
    }
    let client = reqwest::Client::new();
    let listed = client.get(format!("{address}/v1/session/list")).send();
    let listed = listed.await?.error_for_status()?.bytes().await?;
    let sessions: Vec<Session> = serde_json::from_slice(&listed)?;
    for session in sessions {
        let url = format!("{address}/v1/session/destroy/{}", session.id);
        client.put(url).send().await?.error_for_status()?;
    }
    Ok(())
}

/// What the nearest rank of this part is, in sorted values.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * part).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

/// `p50_us` and `p99_us` of so many microseconds.
fn percentiles(mut micros: Vec<f64>) -> Sample {
    micros.sort_unstable_by(f64::total_cmp);
    Sample::default()
        .with("p50_us", quantile(&micros, 0.5))
        .with("p99_us", quantile(&micros, 0.99))
}
