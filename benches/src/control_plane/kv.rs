//! `kv_get` and `kv_put`: small requests at a concurrency, on a real Consul.

use std::time::Duration;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, OURS, Sample};
use crate::control_plane::Stage;
use crate::control_plane::job::Job;
use crate::control_plane::subject::{self, ByHand, Kv, Ours, Raw, Subject};
use crate::load::{self, Operation, Window};

/// Read one key after the other.
pub(super) const GET: &str = "kv_get";

/// Overwrite one key after the other.
pub(super) const PUT: &str = "kv_put";

/// 120 bytes, and text, because one of the peers takes no other values.
const VALUE: &[u8; 120] =
    b"{\"upstream\":\"web\",\"timeout_ms\":1500,\"retries\":2,\"weights\":[1,2,3,4],\"comment\":\"a setting of the size they usually have\"}";

const METRICS: [Metric; 4] = [
    Metric {
        name: "client_cpu_us_per_op",
        title: "CPU µs/op",
    },
    Metric {
        name: "ops_per_s",
        title: "ops/s",
    },
    Metric {
        name: "p50_us",
        title: "p50 µs",
    },
    Metric {
        name: "p99_us",
        title: "p99 µs",
    },
];

/// Keys per loop; each loop has its own, so that writers do not meet.
const KEYS: u64 = 16;

pub(super) async fn run(stage: &mut Stage, bench: &'static str) -> Outcome<()> {
    let Some(consul) = &stage.consul else {
        return Ok(());
    };
    let quick = stage.args.quick;
    let concurrencies: &[u64] = if quick { &[1, 64] } else { &[1, 16, 64] };
    for &concurrency in concurrencies {
        let mut contenders = vec![
            Contender::OURS,
            Contender::floor("reqwest"),
            Contender::floor("hyper"),
        ];
        contenders.extend(subject::peers(
            stage,
            &[subject::RS_CONSUL, subject::CONSULRS, subject::GO],
        ));
        fill(&consul.address(), concurrency).await?;
        let mut contest =
            Contest::new(bench, &METRICS, contenders).param("concurrency", concurrency);
        contest
            .run(stage.args.rounds(), async |contender: &Contender, _| {
                let job = Job {
                    bench: bench.to_owned(),
                    contender: contender.name.to_owned(),
                    address: consul.address(),
                    concurrency: usize::try_from(concurrency)?,
                    warm_up_ms: if quick { 40 } else { 300 },
                    measured_ms: if quick { 120 } else { 1_000 },
                    at_least: 20 * concurrency,
                    ..Job::default()
                };
                stage.measure(&job).await
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}

/// The keys of one loop.
fn keys(number: u64) -> impl Iterator<Item = String> {
    (0..KEYS).map(move |key| format!("bench/{number:02}/setting-{key:02}"))
}

/// Writes the keys of all loops.
async fn fill(address: &str, loops: u64) -> Outcome<()> {
    let mut writer = ByHand::connect(address).await?;
    for key in (0..loops).flat_map(keys) {
        writer.put(&key, VALUE).await?;
    }
    Ok(())
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    match job.contender.as_str() {
        OURS => contender::<Ours>(job).await,
        "reqwest" => contender::<ByHand>(job).await,
        "hyper" => contender::<Raw>(job).await,
        #[cfg(feature = "peers")]
        subject::RS_CONSUL => contender::<subject::RsConsul>(job).await,
        #[cfg(feature = "peers")]
        subject::CONSULRS => contender::<subject::Consulrs>(job).await,
        other => Err(format!("{other} does not take part in {}", job.bench).into()),
    }
}

async fn contender<S: Kv>(job: &Job) -> Outcome<Sample> {
    let first = S::connect(&job.address).await?;
    let mut loops = Vec::new();
    for number in 0..job.concurrency as u64 {
        loops.push(Loop {
            subject: first.another().await?,
            keys: keys(number).collect(),
            write: job.bench == PUT,
        });
    }
    drop(first);
    let window = Window {
        warm_up: Duration::from_millis(job.warm_up_ms),
        measured: Duration::from_millis(job.measured_ms),
        at_least: job.at_least,
    };
    Ok(load::closed_loop(loops, window).await?.sample())
}

struct Loop<S> {
    subject: S,
    keys: Vec<String>,
    write: bool,
}

impl<S: Kv> Operation for Loop<S> {
    async fn run(&mut self, turn: u64) -> Outcome<()> {
        let turn = usize::try_from(turn)? % self.keys.len().max(1);
        let key = self.keys.get(turn).ok_or("no keys")?;
        if self.write {
            return self.subject.put(key, VALUE).await;
        }
        match self.subject.get(key).await? {
            length if length == VALUE.len() => Ok(()),
            length => Err(format!("a value of {length} bytes").into()),
        }
    }
}
