//! Health that means something: probes that look whether the service can do its work.
//!
//! That a process runs says little about whether it serves. A probe is an async closure that finds
//! out, such as a query to the database behind the service; the worst of all probes is what the
//! service's TTL check says.
//!
//! ```no_run
//! use std::time::Duration;
//! use lictor::api::agent::{CheckDefinition, ServiceDefinition};
//! use lictor::probe::{Health, Probe};
//!
//! # async fn ask_the_database() -> Result<(), std::io::Error> { Ok(()) }
//! # async fn free_bytes() -> u64 { 0 }
//! # async fn example(client: lictor::Client) -> lictor::Result<()> {
//! let web = ServiceDefinition::new("web")
//!     .port(8080)
//!     .check(CheckDefinition::ttl(Duration::from_secs(15)));
//! let registration = client
//!     .register(web)
//!     .probe(Probe::new("database", || async { ask_the_database().await }).failures(3))
//!     .probe(Probe::new("disk", || async {
//!         match free_bytes().await {
//!             0..1_000 => Health::critical("full"),
//!             1_000..10_000 => Health::warning("nearly full"),
//!             _ => Health::passing("enough"),
//!         }
//!     }))
//!     .probe(Probe::plugin("load", "/usr/lib/nagios/plugins/check_load", ["-w", "4", "-c", "8"]))
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! - Probes run side by side, each at its own [interval](Probe::interval) and in a task of its own. No
//!   heartbeat ever waits for one.
//! - One that is not back after its [deadline](Probe::deadline) has failed: it is dropped, or if it
//!   holds up its thread and cannot be, it is not started again before it has come back.
//! - One that panics has failed, and runs again at its next turn.
//! - The worst one counts, and the text of the check names those that are not well. While all pass
//!   the text never changes, because each change wakes every watcher of the service.
//! - A registration waits until each probe has had its first result, so that a service is not told to
//!   be well before it was looked at. After that a new text is at the agent at once; in the catalog,
//!   while the status stays, after Consul's `check_update_interval`, 5 minutes by default.

mod plugin;
mod rounds;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::api::health::Status;
use crate::error::{Error, Result};

pub(crate) use rounds::{Rounds, Verdict};

/// The longest text that is kept of a finding, in bytes.
const LONGEST: usize = 512;

/// How something is, as a probe found it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Health {
    status: Status,
    output: Arc<str>,
}

impl Health {
    /// All is well.
    pub fn passing(output: impl Into<String>) -> Self {
        Self::new(Status::Passing, &output.into())
    }

    /// It works, but something is wrong.
    pub fn warning(output: impl Into<String>) -> Self {
        Self::new(Status::Warning, &output.into())
    }

    /// It does not work.
    pub fn critical(output: impl Into<String>) -> Self {
        Self::new(Status::Critical, &output.into())
    }

    fn new(status: Status, output: &str) -> Self {
        Self {
            status,
            output: shortened(output.trim()).into(),
        }
    }

    /// Passing, warning or critical.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The text for people: up to 512 bytes of what was given.
    #[must_use]
    pub fn output(&self) -> &str {
        &self.output
    }
}

/// The beginning of a text, cut between letters.
fn shortened(text: &str) -> String {
    cut(text, LONGEST)
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    // A letter has four bytes at most.
    let mut ends = (0..=most).rev();
    let kept = ends.find_map(|end| text.get(..end)).unwrap_or_default();
    format!("{kept}…")
}

/// What a probe may answer: a [`Health`], nothing at all for "all is well", or a `Result` of either,
/// whose error is critical.
pub trait IntoHealth {
    /// As a finding.
    fn into_health(self) -> Health;
}

impl IntoHealth for Health {
    fn into_health(self) -> Health {
        self
    }
}

impl IntoHealth for () {
    fn into_health(self) -> Health {
        Health::passing("")
    }
}

impl<T: IntoHealth, E: fmt::Display> IntoHealth for Result<T, E> {
    fn into_health(self) -> Health {
        match self {
            Ok(found) => found.into_health(),
            Err(err) => Health::critical(err.to_string()),
        }
    }
}

type Run = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Health> + Send>> + Send + Sync>;

/// Something that is looked at again and again.
///
/// It does nothing until it is given to [`Register::probe`](crate::registration::Register::probe).
#[derive(Clone)]
#[must_use]
pub struct Probe {
    name: Arc<str>,
    run: Run,
    interval: Duration,
    deadline: Option<Duration>,
    failures: u32,
    successes: u32,
}

impl Probe {
    /// A probe of this name, which people read when it fails.
    ///
    /// The closure makes a future that finds out how things are; it is dropped at the
    /// [`deadline`](Self::deadline). It should ask the thing itself, not something that was stored.
    pub fn new<F, Fut>(name: impl Into<Arc<str>>, find: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoHealth> + Send + 'static,
    {
        let run: Run = Arc::new(move || {
            let found = find();
            Box::pin(async move { found.await.into_health() })
        });
        Self::of(name.into(), run)
    }

    fn of(name: Arc<str>, run: Run) -> Self {
        Self {
            name,
            run,
            interval: Duration::from_secs(10),
            deadline: None,
            failures: 1,
            successes: 1,
        }
    }

    /// How often it runs, from the start of one run to the start of the next.
    ///
    /// Default: 10 s, as Consul's own examples have it. Range: 10 ms and more.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// After how long a run has failed.
    ///
    /// Default: the interval, and 5 s at most. Range: above zero, and not more than the interval.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How many findings in a row must be worse than what is told, until that changes.
    ///
    /// Default: 1, as for Consul's own checks. Range: 1 and more. The first finding always counts.
    pub fn failures(mut self, runs: u32) -> Self {
        self.failures = runs;
        self
    }

    /// How many findings in a row must be better than what is told, until that changes.
    ///
    /// Default: 1, as for Consul's own checks. Range: 1 and more. The first finding always counts.
    pub fn successes(mut self, runs: u32) -> Self {
        self.successes = runs;
        self
    }

    fn deadline_or_default(&self) -> Duration {
        self.deadline
            .unwrap_or_else(|| self.interval.min(Duration::from_secs(5)))
    }

    /// Looks whether its settings can work.
    pub(crate) fn validate(&self) -> Result<()> {
        let name = &self.name;
        let wrong = |reason: String| Err(Error::invalid(format!("probe {name:?}: {reason}")));
        if name.trim().is_empty() {
            return wrong("must have a name, which people read when it fails".into());
        }
        if self.interval < Duration::from_millis(10) {
            let interval = self.interval;
            return wrong(format!("interval {interval:?}: must be at least 10 ms"));
        }
        let deadline = self.deadline_or_default();
        if deadline.is_zero() || deadline > self.interval {
            return wrong(format!(
                "deadline {deadline:?}: must be above zero and not more than the interval, {:?}",
                self.interval
            ));
        }
        if self.failures == 0 || self.successes == 0 {
            return wrong("failures and successes must be 1 or more".into());
        }
        Ok(())
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("name", &self.name)
            .field("interval", &self.interval)
            .field("deadline", &self.deadline_or_default())
            .field("failures", &self.failures)
            .field("successes", &self.successes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
