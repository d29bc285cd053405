//! `watch_propagation`: from the agent's answer until readers have the snapshot, on a real Consul.
//!
//! The coordinator puts a [`Tap`] between the worker and the agent, changes the port of the first
//! instance, and takes from the tap when the answer began and from the worker when its readers had
//! a snapshot with that port. Both read the same clock of the machine.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::Outcome;
use crate::bodies::{Instance, SERVICE};
use crate::consul::Consul;
use crate::contest::{Contender, Contest, Metric, OURS, Sample, median};
use crate::control_plane::Stage;
use crate::control_plane::by_hand::ServiceEntry;
use crate::control_plane::job::{self, Job};
use crate::control_plane::subject::{self, ByHand, Follow, Ours, Subject};
use crate::load::micros;
use crate::tap::Tap;
use crate::usage::{cpu_time, monotonic_nanos};
use crate::worker::{Worker, input_ended};

pub(super) const BENCH: &str = "watch_propagation";

/// One bare blocking query; several readers share it through a channel.
const BARE: &str = "reqwest";

/// A bare blocking query per reader.
const BARE_EACH: &str = "reqwest_each";

const METRICS: [Metric; 5] = [
    Metric {
        name: "answer_to_last_reader_us",
        title: "answer→last µs",
    },
    Metric {
        name: "answer_to_first_reader_us",
        title: "answer→first µs",
    },
    Metric {
        name: "put_to_last_reader_us",
        title: "PUT→last µs",
    },
    Metric {
        name: "client_cpu_us_per_change",
        title: "CPU µs/change",
    },
    Metric {
        name: "queries_on_the_wire",
        title: "queries",
    },
];

/// A change as the readers saw it: one line of the worker's output.
#[derive(Debug, Serialize, Deserialize)]
struct Arrival {
    /// The port of the first instance.
    port: u16,
    /// When the first reader had it, in nanoseconds of the monotonic clock.
    first: u64,
    /// When the last reader had it.
    last: u64,
    /// CPU time of the worker so far, in microseconds.
    cpu_us: f64,
}

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let Some(consul) = &stage.consul else {
        return Ok(());
    };
    let mut port = 10_000;
    let mut registered = 0;
    for instances in [10, 1_000_u64] {
        while registered < instances {
            register(consul, registered, (registered + 100).min(instances)).await?;
            registered = (registered + 100).min(instances);
        }
        for readers in [1, 200_u64] {
            let mut contenders = vec![Contender::OURS, Contender::floor(BARE)];
            if readers == 1 {
                contenders.extend(subject::peers(stage, &[subject::RS_CONSUL, subject::GO]));
            } else if instances <= 10 && !stage.args.quick {
                // The agent encodes an answer for each of them: with 1,000 instances that is some
                // 15 s of its CPU per change, so only the short ones are asked for.
                contenders.push(Contender::floor(BARE_EACH));
                contenders.extend(subject::peers(stage, &[subject::RS_CONSUL, subject::GO]));
            }
            let mut contest = Contest::new(BENCH, &METRICS, contenders)
                .param("instances", instances)
                .param("readers", readers);
            contest
                .run(stage.args.rounds(), async |contender: &Contender, _| {
                    let changes = if stage.args.quick { 3 } else { 12 };
                    round(stage, consul, contender.name, readers, changes, &mut port).await
                })
                .await;
            stage.report.show(&contest)?;
        }
    }
    Ok(())
}

/// Writes instances into the catalog, as other nodes' agents do.
async fn register(consul: &Consul, from: u64, to: u64) -> Outcome<()> {
    let client = reqwest::Client::new();
    let mut writes = JoinSet::new();
    for number in from..to {
        writes.spawn(write(
            client.clone(),
            consul.address(),
            Instance::new(usize::try_from(number)?),
        ));
    }
    while let Some(written) = writes.join_next().await {
        written??;
    }
    Ok(())
}

async fn write(client: reqwest::Client, address: String, instance: Instance) -> Outcome<()> {
    let body = serde_json::to_vec(&instance.registration())?;
    let url = format!("{address}/v1/catalog/register");
    let answer = client
        .put(url)
        .body(body)
        .send()
        .await?
        .error_for_status()?;
    answer.bytes().await?;
    Ok(())
}

/// One worker that sees some changes.
async fn round(
    stage: &Stage,
    consul: &Consul,
    contender: &str,
    readers: u64,
    changes: usize,
    port: &mut u16,
) -> Outcome<Sample> {
    let tap = Tap::start(consul.socket_address()).await?;
    let shares = contender == OURS || contender == BARE;
    let queries = if shares { 1 } else { readers };
    let job = Job {
        bench: BENCH.to_owned(),
        contender: contender.to_owned(),
        address: tap.address(),
        service: SERVICE.to_owned(),
        readers: usize::try_from(readers)?,
        ..Job::default()
    };
    let program = stage.program_of(contender)?;
    let mut worker = Worker::with_job(program, job::MODE, &job)?;
    let mut last = arrival(&mut worker).await?;
    let writer = reqwest::Client::new();

    let mut samples: Vec<Sample> = Vec::new();
    // The first change warms up.
    for change in 0..=changes {
        let blocked = tap.settled(queries).await?;
        *port = if *port < 60_000 { *port + 1 } else { 10_000 };
        let mut instance = Instance::new(0);
        instance.port = *port;
        tap.arm();
        let sent = monotonic_nanos();
        write(writer.clone(), consul.address(), instance).await?;
        let arrived = loop {
            let arrival = arrival(&mut worker).await?;
            if arrival.port == *port {
                break arrival;
            }
        };
        let answered = tap
            .counts()
            .first_answer_at
            .ok_or("no answer passed the tap")?;
        let since = |start: u64, end: u64| micros(Duration::from_nanos(end.saturating_sub(start)));
        if change > 0 {
            samples.push(
                Sample::default()
                    .with("answer_to_first_reader_us", since(answered, arrived.first))
                    .with("answer_to_last_reader_us", since(answered, arrived.last))
                    .with("put_to_last_reader_us", since(sent, arrived.last))
                    .with("client_cpu_us_per_change", arrived.cpu_us - last.cpu_us)
                    .with("queries_on_the_wire", blocked as f64),
            );
        }
        last = arrived;
    }
    worker.end().await?;
    Ok(METRICS.iter().fold(Sample::default(), |sample, metric| {
        let values = samples
            .iter()
            .filter_map(|sample| sample.0.get(metric.name).copied());
        match median(values.collect()) {
            Some(middle) => sample.with(metric.name, middle),
            None => sample,
        }
    }))
}

async fn arrival(worker: &mut Worker) -> Outcome<Arrival> {
    let line = tokio::time::timeout(Duration::from_secs(60), worker.line()).await;
    Ok(serde_json::from_str(
        &line.map_err(|_| "no change arrived within a minute")??,
    )?)
}

/// Is the worker: readers until standard input ends, a line per change that all of them have.
pub(super) async fn measure(job: &Job) -> Outcome<()> {
    let (arrivals, told) = mpsc::channel(1024);
    let mut tasks = JoinSet::new();
    match job.contender.as_str() {
        OURS => each::<Ours>(job, &arrivals, &mut tasks).await?,
        BARE if job.readers == 1 => each::<ByHand>(job, &arrivals, &mut tasks).await?,
        BARE => shared(job, &arrivals, &mut tasks).await?,
        BARE_EACH => each::<ByHand>(job, &arrivals, &mut tasks).await?,
        #[cfg(feature = "peers")]
        subject::RS_CONSUL => each::<subject::RsConsul>(job, &arrivals, &mut tasks).await?,
        other => return Err(format!("{other} does not take part in {BENCH}").into()),
    }
    drop(arrivals);
    let readers = job.readers;
    tasks.spawn(collect(told, readers));
    let ended = input_ended();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => return Ok(()),
            Some(ended) = tasks.join_next() => ended??,
        }
    }
}

/// What a reader tells: the port it saw and when.
type Told = (u16, u64);

/// Prints a line for every port that all readers have seen.
async fn collect(mut told: mpsc::Receiver<Told>, readers: usize) -> Outcome<()> {
    let mut times = Vec::new();
    let mut current = 0;
    while let Some((port, at)) = told.recv().await {
        if port != current {
            current = port;
            times.clear();
        }
        times.push(at);
        if times.len() < readers {
            continue;
        }
        let arrival = Arrival {
            port,
            first: times.iter().copied().min().unwrap_or_default(),
            last: times.iter().copied().max().unwrap_or_default(),
            cpu_us: micros(cpu_time()),
        };
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &arrival)?;
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

/// Every reader follows by queries of its own.
async fn each<S: Follow>(
    job: &Job,
    arrivals: &mpsc::Sender<Told>,
    tasks: &mut JoinSet<Outcome<()>>,
) -> Outcome<()> {
    let subject = S::connect(&job.address).await?;
    for _ in 0..job.readers {
        let mut reader = subject.another().await?;
        let (service, arrivals) = (job.service.clone(), arrivals.clone());
        tasks.spawn(async move {
            loop {
                let seen = reader.next(&service).await?;
                let port = seen.port.ok_or("no instances")?;
                arrivals.send((port, seen.at)).await?;
            }
        });
    }
    Ok(())
}

/// One query, and a channel that holds its newest answer: what one writes by hand for many readers.
async fn shared(
    job: &Job,
    arrivals: &mpsc::Sender<Told>,
    tasks: &mut JoinSet<Outcome<()>>,
) -> Outcome<()> {
    let mut query = ByHand::connect(&job.address).await?;
    let (newest, _) = watch::channel(Arc::new(Vec::<ServiceEntry>::new()));
    for _ in 0..job.readers {
        let (mut newest, arrivals) = (newest.subscribe(), arrivals.clone());
        tasks.spawn(async move {
            loop {
                newest.changed().await?;
                let snapshot = Arc::clone(&newest.borrow_and_update());
                let at = monotonic_nanos();
                let port = snapshot.first().ok_or("no instances")?.service.port;
                arrivals.send((port, at)).await?;
            }
        });
    }
    let service = job.service.clone();
    tasks.spawn(async move {
        loop {
            let (_, entries) = query.next_entries(&service).await?;
            newest.send(Arc::new(entries))?;
        }
    });
    Ok(())
}
