//! What came out, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde_json::json;

use crate::Findings;
use tokio::time::Instant;

use crate::load::{Failure, Tally};

/// What the quickstart found.
#[derive(Debug)]
pub struct Report {
    /// Which Consul it ran on.
    pub agent: String,
    /// All calls.
    pub tally: Tally,
    /// When the server began to die that nobody deregistered.
    pub dying: Instant,
    /// When nothing was left of it.
    pub dead: Instant,
    /// From the start of a new server until the client knew it.
    pub join: Duration,
    /// From the wish to leave until the client no longer knew the server.
    pub leave: Duration,
    /// From the death of a server until the client no longer knew it.
    pub crash: Duration,
    /// From the leader's wish to leave until the client knew the next leader.
    pub hand_over: Duration,
    /// From the death of the leader until the client knew the next one.
    pub failover: Duration,
    /// Whether SRV and HTTP discovery found the same; `None` if nobody answers DNS queries.
    pub srv_equals_http: Option<bool>,
}

impl Report {
    /// The calls that failed and need not have: all but those that were on their way, or being
    /// answered, when the server died.
    pub fn needless(&self) -> impl Iterator<Item = &Failure> {
        self.tally
            .failures
            .iter()
            .filter(|one| !self.in_flight(one))
    }

    fn in_flight(&self, failure: &Failure) -> bool {
        failure.was_sent && failure.began <= self.dead && self.dying <= failure.failed
    }
}

impl Findings for Report {
    /// Whether nothing failed that need not have failed.
    fn is_good(&self) -> bool {
        self.needless().next().is_none() && self.srv_equals_http != Some(false)
    }

    fn json(&self) -> String {
        json!({
            "agent": self.agent,
            "calls": self.tally.calls,
            "failed": self.needless().count(),
            "lost_in_flight": self.tally.failures.len() - self.needless().count(),
            "per_instance": self.tally.per_instance,
            "join_ms": ms(self.join),
            "leave_ms": ms(self.leave),
            "crash_ms": ms(self.crash),
            "leader_leave_ms": ms(self.hand_over),
            "leader_crash_ms": ms(self.failover),
            "srv_equals_http": self.srv_equals_http,
        })
        .to_string()
    }
}

/// Milliseconds with one digit behind the point.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needless = self.needless().count();
        let lost = self.tally.failures.len() - needless;
        writeln!(f, "agent            {}", self.agent)?;
        writeln!(f, "calls            {}", self.tally.calls)?;
        writeln!(f, "failed           {needless}")?;
        writeln!(
            f,
            "lost in flight   {lost}   (on the server that was aborted)"
        )?;
        for (instance, calls) in &self.tally.per_instance {
            writeln!(f, "  {instance:<15}{calls}")?;
        }
        writeln!(
            f,
            "a new server was known after      {:>8.1} ms",
            ms(self.join)
        )?;
        writeln!(
            f,
            "a leaving one was gone after      {:>8.1} ms",
            ms(self.leave)
        )?;
        writeln!(
            f,
            "an aborted one was gone after     {:>8.1} ms",
            ms(self.crash)
        )?;
        writeln!(
            f,
            "another led after a goodbye       {:>8.1} ms",
            ms(self.hand_over)
        )?;
        writeln!(
            f,
            "another led after a crash         {:>8.1} ms",
            ms(self.failover)
        )?;
        let same = match self.srv_equals_http {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "not compared: nobody answers DNS queries",
        };
        writeln!(f, "SRV and HTTP found the same       {same}")?;
        for failure in self.needless() {
            writeln!(f, "needless failure: {}", failure.text)?;
        }
        Ok(())
    }
}
