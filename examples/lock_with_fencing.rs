//! A holder that was stopped wakes up late, and what it writes to refuses it.
//!
//! The first holder looks at its lock and is stopped before it writes, as by a long pause of a
//! virtual machine. Its session ends, a second one takes the lock and writes. Then the first wakes
//! up and writes, as it had decided to. No lock can prevent that; the fencing token makes a journal
//! in a file refuse it, and a check of the session makes Consul refuse it for its own keys.
//!
//! ```text
//! cargo run -p lictor-examples --example lock_with_fencing
//! cargo run -p lictor-examples --example lock_with_fencing -- --consul http://127.0.0.1:8500 --json
//! ```
//!
//! Without `--consul` or `CONSUL_HTTP_ADDR` it brings an agent of its own, in this process. It
//! fails if anything of the stale holder's got through.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use lictor::Client;
use lictor::api::txn::KvOp;
use lictor::coordination::{FenceGate, FencingToken, Lost, Profile, StaleToken};
use lictor_examples::place::{Options, Place};
use lictor_examples::{Findings, Result, example};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

#[tokio::main]
async fn main() -> ExitCode {
    example("lock_with_fencing", std::env::args().skip(1), run).await
}

// --- The resource --------------------------------------------------------------------------------

/// A file that one writes to at a time. It knows nothing of Consul, only tokens.
struct Journal {
    // The gate is asked and the line written in one critical section.
    inner: Mutex<(FenceGate, File)>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Line {
    token: FencingToken,
    text: String,
}

impl Journal {
    /// One that restarts refuses whom it refused before: the newest token stands in the file.
    fn open(path: &Path) -> Result<Self> {
        let newest = Self::lines(path)?.iter().map(|line| line.token).max();
        let gate = newest.map_or_else(FenceGate::new, FenceGate::starting_at);
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            inner: Mutex::new((gate, file)),
        })
    }

    fn write(&self, token: FencingToken, text: &str) -> Result<Result<(), StaleToken>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (gate, file) = &mut *inner;
        if let Err(stale) = gate.admit(token) {
            return Ok(Err(stale));
        }
        let text = text.to_owned();
        writeln!(file, "{}", serde_json::to_string(&Line { token, text })?)?;
        file.sync_data()?;
        Ok(Ok(()))
    }

    fn lines(path: &Path) -> Result<Vec<Line>> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let lines = BufReader::new(File::open(path)?).lines();
        lines
            .map(|line| Ok(serde_json::from_str(&line?)?))
            .collect()
    }
}

/// A file that is removed when the example ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

// --- The holders ---------------------------------------------------------------------------------

/// What both write to, and by which lock.
#[derive(Clone)]
struct Desk {
    client: Client,
    lock: String,
    data: String,
    journal: PathBuf,
}

/// What the first holder found when it woke up.
struct Woken {
    token: FencingToken,
    by_journal: Option<StaleToken>,
    by_consul: bool,
    by_clock: Option<Lost>,
}

/// The first holder. It has a runtime on one thread of its own, which stands still with it: no task
/// of it runs while it is stopped, not even the one that keeps the lease.
fn first(
    desk: &Desk,
    holds: oneshot::Sender<FencingToken>,
    wake: &mpsc::Receiver<()>,
) -> Result<Woken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let lock = desk.client.lock(&*desk.lock).profile(Profile::aggressive());
        let guard = lock.acquire().await?;
        let (token, kv) = (guard.token(), desk.client.kv());
        Journal::open(&desk.journal)?.write(token, "first")??;
        kv.fenced(&guard).put(&*desk.data, "first").await?;

        // It looks whether it still holds, decides to write, and is stopped.
        guard.check()?;
        holds.send(token).ok();
        wake.recv_timeout(Duration::from_secs(60))?;

        // It goes on as if no time had passed.
        let journal = Journal::open(&desk.journal)?;
        let by_journal = journal.write(token, "first, late")?.err();
        // This is what a fenced write sends. It is sent by hand here, because `fenced` looks at the
        // clock before: that is quicker, but only Consul's own look leaves no gap.
        let txn = desk.client.txn();
        let outcome = txn
            .kv(KvOp::check_session(&*desk.lock, guard.session()))
            .kv(KvOp::set(&*desk.data, "first, late"))
            .await?;
        let by_consul = outcome.committed().is_none();
        let by_clock = match kv.fenced(&guard).put(&*desk.data, "first, late").await {
            Ok(()) => None,
            Err(err) => std::error::Error::source(&err)
                .and_then(|source| source.downcast_ref::<Lost>())
                .cloned(),
        };
        guard.release().await?;
        Ok(Woken {
            token,
            by_journal,
            by_consul,
            by_clock,
        })
    })
}

async fn run(options: &Options) -> Result<Report> {
    let place = Place::find(options).await?;
    // Names of its own, so that a second run on the same Consul is not in the way.
    let name = format!("lock-with-fencing-{}", std::process::id());
    let journal = Scratch(std::env::temp_dir().join(&name));
    std::fs::remove_file(&journal.0).ok();
    let desk = Desk {
        client: place.client()?,
        lock: format!("lictor/examples/{name}/lock"),
        data: format!("lictor/examples/{name}/data"),
        journal: journal.0.clone(),
    };

    // The first holds, has written, and is stopped.
    let (holds, first_holds) = oneshot::channel();
    let (wake, woken) = mpsc::channel();
    // A client belongs to the runtime that its connections were made in.
    let theirs = Desk {
        client: place.client()?,
        ..desk.clone()
    };
    let (done, late) = oneshot::channel();
    std::thread::spawn(move || done.send(first(&theirs, holds, &woken)).ok());
    let stopped = match first_holds.await {
        Ok(_) => Instant::now(),
        Err(_) => return Err(late.await?.err().unwrap_or("it never held".into())),
    };

    // Nobody releases the lock: the session has to end, and its lock-delay to run.
    let lock = desk.client.lock(&*desk.lock).profile(Profile::aggressive());
    let lock = lock.deadline(Duration::from_secs(60));
    let guard = lock.acquire().await?;
    let takeover = stopped.elapsed();
    let kv = desk.client.kv();
    Journal::open(&desk.journal)?.write(guard.token(), "second")??;
    kv.fenced(&guard).put(&*desk.data, "second").await?;

    // The first wakes up.
    wake.send(())?;
    let late = late.await??;

    guard.check()?;
    let data = kv.get(&*desk.data).await?.into_value();
    let data = data.and_then(|pair| pair.value_str().map(str::to_owned));
    let journal = Journal::lines(&desk.journal)?;
    let report = Report {
        agent: place.describe().to_owned(),
        takeover,
        second: guard.token(),
        late,
        journal: journal.into_iter().map(|line| line.text).collect(),
        data,
    };
    guard.release().await?;
    kv.delete(&*desk.lock).await?;
    kv.delete(&*desk.data).await?;
    Ok(report)
}

// --- The report ----------------------------------------------------------------------------------

struct Report {
    agent: String,
    takeover: Duration,
    second: FencingToken,
    late: Woken,
    journal: Vec<String>,
    data: Option<String>,
}

impl Findings for Report {
    /// Whether nothing of the stale holder's got through, wherever it tried.
    fn is_good(&self) -> bool {
        self.late.by_journal.is_some()
            && self.late.by_consul
            && self.late.by_clock.is_some()
            && self.journal == ["first", "second"]
            && self.data.as_deref() == Some("second")
            && self.second > self.late.token
    }

    fn json(&self) -> String {
        serde_json::json!({
            "agent": self.agent,
            "takeover_ms": u64::try_from(self.takeover.as_millis()).unwrap_or(u64::MAX),
            "tokens": [self.late.token, self.second],
            "refused_by_journal": self.late.by_journal.is_some(),
            "refused_by_consul": self.late.by_consul,
            "refused_by_clock": self.late.by_clock.is_some(),
            "journal": self.journal,
            "data": self.data,
            "good": self.is_good(),
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = |what: Option<String>| what.unwrap_or("LET THROUGH".to_owned());
        writeln!(f, "agent                    {}", self.agent)?;
        writeln!(f, "first holder's token     {}", self.late.token)?;
        writeln!(
            f,
            "second holder's token    {}, after {:?}",
            self.second, self.takeover
        )?;
        let by_journal = self.late.by_journal.map(|stale| stale.to_string());
        writeln!(f, "late write to journal    {}", refused(by_journal))?;
        let by_consul = self.late.by_consul.then(|| "rolled back".to_owned());
        writeln!(f, "late write to Consul     {}", refused(by_consul))?;
        let by_clock = self.late.by_clock.as_ref().map(Lost::to_string);
        writeln!(f, "late fenced write        {}", refused(by_clock))?;
        writeln!(f, "journal                  {}", self.journal.join(", "))?;
        let data = self.data.as_deref().unwrap_or("nothing");
        writeln!(f, "data in Consul           {data}")
    }
}
