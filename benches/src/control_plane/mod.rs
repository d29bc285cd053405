//! Requests, decoding and watch propagation: the program `control_plane`.

pub mod by_hand;
pub mod job;
mod subject;
mod kv;
mod health;
mod watch_update;
mod watch_propagation;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::args::Args;
use crate::canned::{self, Canned};
use crate::consul::Consul;
use crate::contest::Sample;
use crate::control_plane::job::Job;
use crate::report::Report;
use crate::{Outcome, go, worker};

/// The benches, in the order in which they run.
pub const BENCHES: [&str; 5] = [
    kv::GET,
    kv::PUT,
    health::BENCH,
    watch_update::BENCH,
    watch_propagation::BENCH,
];

/// What a run has at hand.
#[derive(Debug)]
struct Stage {
    args: Args,
    report: Report,
    /// This program.
    program: PathBuf,
    /// This program with an allocator that counts.
    counting: Option<PathBuf>,
    /// The Go client's program.
    go: Option<PathBuf>,
    consul: Option<Consul>,
    canned: Canned,
}

/// Is the program: the coordinator, or with a hidden first argument a worker or the canned server.
pub async fn main() -> ExitCode {
    // With both reqwest and a TLS feature in the build, a client needs a provider even for plain HTTP.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut arguments = std::env::args().skip(1).peekable();
    let done = match arguments.peek().map(String::as_str) {
        Some(canned::MODE) => canned::serve().await,
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
        kv::GET | kv::PUT => kv::measure(&job).await.map(Some),
        health::BENCH => health::measure(&job).await.map(Some),
        watch_update::BENCH => watch_update::measure(&job).await.map(Some),
        watch_propagation::BENCH => watch_propagation::measure(&job).await.map(|()| None),
        other => Err(format!("no bench {other}").into()),
    }
}

async fn coordinate(arguments: impl IntoIterator<Item = String>) -> Outcome<()> {
    let args = Args::parse(arguments, &BENCHES)?;
    let mut stage = set(args).await?;
    for bench in BENCHES {
        if !stage.args.wants(bench) {
            continue;
        }
        match bench {
            kv::GET | kv::PUT => kv::run(&mut stage, bench).await?,
            health::BENCH => health::run(&mut stage).await?,
            watch_update::BENCH => watch_update::run(&mut stage).await?,
            _ => watch_propagation::run(&mut stage).await?,
        }
    }
    if let Some(consul) = stage.consul.take() {
        consul.stop().await?;
    }
    if stage.report.failed() {
        return Err("our own client could not be measured everywhere; see above".into());
    }
    Ok(())
}

/// Starts and builds what the benches need, and says what is left out.
async fn set(args: Args) -> Outcome<Stage> {
    let report = Report::new(args.json);
    if cfg!(debug_assertions) {
        report.note("this is a debug build: its figures mean nothing; run it with --release");
    }
    let on_consul = [kv::GET, kv::PUT, watch_propagation::BENCH];
    let consul = match Consul::program() {
        _ if !on_consul.iter().any(|bench| args.wants(bench)) => None,
        Some(program) => Some(Consul::start(&program).await?),
        None => {
            report.note(&format!(
                "no Consul here (CONSUL_BIN or PATH): {} are left out",
                on_consul.join(", ")
            ));
            None
        }
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
    let features: &[&str] = if cfg!(feature = "peers") {
        &["peers"]
    } else {
        &[]
    };
    let counting = match worker::sibling("control_plane_allocations", features).await {
        Ok(program) => Some(program),
        Err(reason) => {
            report.note(&format!("allocations are left out: {reason}"));
            None
        }
    };
    Ok(Stage {
        report,
        program: worker::this_program()?,
        counting,
        go,
        consul,
        canned: Canned::start().await?,
        args,
    })
}

impl Stage {
    /// Measures a job in a process of its own: this program, or the Go one.
    async fn measure(&self, job: &Job) -> Outcome<Sample> {
        worker::measure(self.program_of(&job.contender)?, job::MODE, job).await
    }

    /// The same with the allocations in the sample, if they can be counted.
    async fn measure_with_allocations(&self, job: &Job) -> Outcome<Sample> {
        let mut sample = self.measure(job).await?;
        let counted = |metric: &str| metric.starts_with("allocat") || metric == "peak_heap_kib";
        sample.0.retain(|metric, _| !counted(metric));
        if let (Some(counting), true) = (&self.counting, job.contender != subject::GO) {
            let mut counts = worker::measure(counting, job::MODE, &job.brief()).await?;
            counts.0.retain(|metric, _| counted(metric));
            sample.extend(counts);
        }
        Ok(sample)
    }

    fn program_of(&self, contender: &str) -> Outcome<&std::path::Path> {
        if contender == subject::GO {
            return Ok(self.go.as_deref().ok_or("Go is left out")?);
        }
        Ok(&self.program)
    }
}
