//! Many registrations in one process, and many readers of one watch: the program `lifecycle`.

mod beats;
mod fan_out;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lictor::Client;
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::consul::Consul;
use crate::contest::Sample;
use crate::report::Report;
use crate::tap::Tap;
use crate::{Outcome, worker};

/// The benches, in the order in which they run.
pub const BENCHES: [&str; 2] = [beats::BENCH, fan_out::BENCH];

/// The first argument of a worker; the second is the job.
const MODE: &str = "__measure";

/// The first argument of an agent; there is no job, but the JSON of one.
const AGENT: &str = "__agent";

/// One measurement of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Job {
    bench: String,
    contender: String,
    /// The agent's address, by way of the tap.
    address: String,
    /// What names begin with; no two measurements share one.
    name: String,
    /// Registrations, or readers.
    count: usize,
    /// How long to measure, in milliseconds, or how many changes.
    measured: u64,
    ttl_ms: u64,
}

/// What a run has at hand.
#[derive(Debug)]
struct Stage {
    args: Args,
    report: Report,
    /// This program.
    program: PathBuf,
    consul: Consul,
    measurements: u64,
}

/// Is the program: the coordinator, or with a hidden first argument a worker.
pub async fn main() -> ExitCode {
    // With both reqwest and a TLS feature in the build, a client needs a provider even for plain HTTP.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut arguments = std::env::args().skip(1).peekable();
    let done = match arguments.peek().map(String::as_str) {
        Some(MODE) => worker::run(arguments.nth(1), measure).await,
        Some(AGENT) => beats::be_agent().await,
        _ => tokio::select! {
            done = coordinate(arguments) => done,
            () = worker::asked_to_end() => Err("interrupted".into()),
        },
    };
    worker::ended(&done)
}

async fn measure(job: Job) -> Outcome<Option<Sample>> {
    match job.bench.as_str() {
        beats::BENCH => beats::measure(&job).await.map(|()| None),
        fan_out::BENCH => fan_out::measure(&job).await.map(Some),
        other => Err(format!("no bench {other}").into()),
    }
}

async fn coordinate(arguments: impl IntoIterator<Item = String>) -> Outcome<()> {
    let args = Args::parse(arguments, &BENCHES)?;
    let report = Report::new(args.json);
    if cfg!(debug_assertions) {
        report.note("this is a debug build: its figures mean nothing; run it with --release");
    }
    let Some(consul) = Consul::program() else {
        report.note("no Consul here (CONSUL_BIN or PATH): all benches are left out");
        return Ok(());
    };
    let mut stage = Stage {
        report,
        program: worker::this_program()?,
        consul: Consul::start(&consul).await?,
        measurements: 0,
        args,
    };
    if stage.args.wants(beats::BENCH) {
        beats::run(&mut stage).await?;
    }
    if stage.args.wants(fan_out::BENCH) {
        fan_out::run(&mut stage).await?;
    }
    stage.consul.stop().await?;
    if stage.report.failed() {
        return Err("our own client could not be measured everywhere; see above".into());
    }
    Ok(())
}

impl Stage {
    /// A job that reaches the agent by way of a tap of its own.
    async fn job(&mut self, bench: &str, contender: &str) -> Outcome<(Job, Tap)> {
        self.measurements += 1;
        let tap = Tap::start(self.consul.socket_address()).await?;
        let job = Job {
            bench: bench.to_owned(),
            contender: contender.to_owned(),
            address: tap.address(),
            name: format!("bench-{:04}", self.measurements),
            ..Job::default()
        };
        Ok((job, tap))
    }
}

impl Job {
    fn client(&self) -> Outcome<Client> {
        Ok(Client::builder().address(&self.address).build()?)
    }

    fn measured(&self) -> Duration {
        Duration::from_millis(self.measured)
    }
}

/// What the nearest rank of this part is, of any values.
fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let index = (last as f64 * part).round() as usize;
    values.get(index).copied().unwrap_or_default()
}
