//! Settings that a program follows while it serves: changed, overridden, spoilt, repaired, deleted.
//!
//! Readers load the settings without a lock, all the time. An operator changes the document, sets
//! one value for this service alone, makes a mistake, which changes nothing and is told with its
//! reason, repairs it, and deletes all, after which the last good settings stay. Then eight
//! operators raise one number at the same time, and no step of theirs is lost.
//!
//! ```text
//! cargo run -p lictor-examples --example live_config
//! cargo run -p lictor-examples --example live_config -- --consul http://127.0.0.1:8500 --json
//! ```
//!
//! Without `--consul` or `CONSUL_HTTP_ADDR` it brings an agent of its own, in this process. It
//! fails if a reader ever saw settings that are not good, or a step was lost.

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lictor::Client;
use lictor::config::{Config, State};
use lictor_examples::place::{Options, Place};
use lictor_examples::{Findings, Result, example};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

#[tokio::main]
async fn main() -> ExitCode {
    example("live_config", std::env::args().skip(1), run).await
}

// --- The settings --------------------------------------------------------------------------------

#[derive(Debug, Deserialize, Serialize)]
struct Limits {
    requests: u32,
    timeout_ms: u64,
    peers: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 10,
            timeout_ms: 1000,
            peers: Vec::new(),
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), String> {
        match self.requests {
            0 => Err("`requests` is 0, which lets nobody in".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Waits until the settings are in such a state, and says how long that took.
async fn until(
    config: &Config<Limits>,
    wanted: impl Fn(&State<Limits>) -> bool,
) -> Result<Duration> {
    let start = Instant::now();
    let mut states = config.states();
    let reached = async {
        while let Some(state) = states.next().await {
            if wanted(&state) {
                return Ok(start.elapsed());
            }
        }
        Err("the settings are no longer followed".into())
    };
    match timeout(Duration::from_secs(30), reached).await {
        Ok(reached) => reached,
        Err(_) => Err(format!("waited 30 s in vain; still {}", config.state()).into()),
    }
}

/// Reads the settings as a server does for each request, until told to end.
async fn reader(config: Config<Limits>, end: Arc<AtomicBool>, reads: Arc<AtomicU64>) -> u64 {
    let mut bad = 0;
    while !end.load(Ordering::Relaxed) {
        for _ in 0..100 {
            bad += u64::from(config.get().check().is_err());
        }
        reads.fetch_add(100, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
    bad
}

const OPERATORS: u64 = 8;
const STEPS: u64 = 10;

/// Many raise one number at the same time.
async fn raise(client: &Client, key: &str) -> Result<u64> {
    let mut operators = JoinSet::new();
    for _ in 0..OPERATORS {
        let (kv, key) = (client.kv(), key.to_owned());
        operators.spawn(async move {
            for _ in 0..STEPS {
                let raise = |number: Option<u64>| Some(number.unwrap_or(0) + 1);
                kv.update(&*key, raise).await?;
            }
            Ok::<_, lictor::Error>(())
        });
    }
    while let Some(done) = operators.join_next().await {
        done??;
    }
    let number = client.kv().get_as::<u64>(key).await?.into_value();
    Ok(number.map_or(0, lictor::api::kv::Typed::into_value))
}

async fn run(options: &Options) -> Result<Report> {
    let place = Place::find(options).await?;
    let client = place.client()?;
    let kv = client.kv();
    // Names of its own, so that a second run on the same Consul is not in the way.
    let base = format!("lictor/examples/live-config-{}", std::process::id());
    let (document, folder) = (format!("{base}/all"), format!("{base}/web"));

    kv.put_as(&*document, &serde_json::json!({"requests": 100}))
        .await?;
    let config = client
        .config::<Limits>()
        .defaults(&Limits::default())
        .key(&*document)
        .tree(&folder)
        .validate(Limits::check);
    let config = config.open().await?;
    let end = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..2 {
        readers.spawn(reader(config.clone(), Arc::clone(&end), Arc::clone(&reads)));
    }

    // A change for all.
    kv.put_as(&*document, &serde_json::json!({"requests": 200}))
        .await?;
    let changed = until(&config, |state| state.value().requests == 200).await?;

    // Two values for this service alone, each by its key.
    kv.put(format!("{folder}/requests"), "50").await?;
    kv.put(format!("{folder}/peers/0"), "10.0.0.1").await?;
    let overridden = until(&config, |state| {
        let limits = state.value();
        limits.requests == 50 && limits.peers == ["10.0.0.1"] && limits.timeout_ms == 1000
    })
    .await?;

    // A mistake, and a value that the program itself refuses.
    let mut rejected = Vec::new();
    for mistake in ["5O", "0"] {
        kv.put(format!("{folder}/requests"), mistake).await?;
        let says = |state: &State<Limits>| match state {
            State::Rejected { error, .. } => error.to_string().contains(match mistake {
                "0" => "lets nobody in",
                _ => "5O",
            }),
            _ => false,
        };
        until(&config, says).await?;
        rejected.push(config.state().to_string());
        if config.get().requests != 50 {
            return Err("a bad value came into force".into());
        }
    }
    kv.put(format!("{folder}/requests"), "60").await?;
    let repaired = until(&config, |state| {
        state.is_current() && state.value().requests == 60
    })
    .await?;

    // All is deleted, by accident.
    kv.delete_tree(format!("{base}/")).await?;
    until(&config, |state| matches!(state, State::Removed(_))).await?;
    let kept = config.get().requests;

    end.store(true, Ordering::Relaxed);
    let mut bad = 0;
    while let Some(done) = readers.join_next().await {
        bad += done?;
    }
    let counter = format!("{base}/count");
    let raised = raise(&client, &counter).await?;
    kv.delete(counter).await?;
    Ok(Report {
        agent: place.describe().to_owned(),
        changed,
        overridden,
        repaired,
        rejected,
        kept,
        reads: reads.load(Ordering::Relaxed),
        bad,
        raised,
    })
}

// --- The report ----------------------------------------------------------------------------------

struct Report {
    agent: String,
    changed: Duration,
    overridden: Duration,
    repaired: Duration,
    rejected: Vec<String>,
    /// Of which value the settings are that stayed after all was deleted.
    kept: u32,
    reads: u64,
    bad: u64,
    raised: u64,
}

/// Milliseconds with one digit behind the point.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

impl Findings for Report {
    fn is_good(&self) -> bool {
        self.bad == 0
            && self.reads > 0
            // The layers are watched one by one: whose deletion is seen first is a matter of chance.
            && [60, 200].contains(&self.kept)
            && self.rejected.len() == 2
            && self.raised == OPERATORS * STEPS
    }

    fn json(&self) -> String {
        serde_json::json!({
            "agent": self.agent,
            "changed_ms": ms(self.changed),
            "overridden_ms": ms(self.overridden),
            "repaired_ms": ms(self.repaired),
            "rejected": self.rejected,
            "kept": self.kept,
            "reads": self.reads,
            "bad_reads": self.bad,
            "raised": self.raised,
            "good": self.is_good(),
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "agent                           {}", self.agent)?;
        writeln!(
            f,
            "a change was in force after     {:>8.1} ms",
            ms(self.changed)
        )?;
        writeln!(
            f,
            "own values were after           {:>8.1} ms",
            ms(self.overridden)
        )?;
        writeln!(
            f,
            "a repair was after              {:>8.1} ms",
            ms(self.repaired)
        )?;
        for told in &self.rejected {
            writeln!(f, "{told}")?;
        }
        writeln!(f, "after the deletion of all       {} requests", self.kept)?;
        writeln!(
            f,
            "reads                           {}, {} of them bad",
            self.reads, self.bad
        )?;
        writeln!(
            f,
            "{OPERATORS} operators, {STEPS} steps each     {}",
            self.raised
        )
    }
}
