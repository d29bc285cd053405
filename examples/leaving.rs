//! A server that leaves while it is called: what the examples of a graceful end share.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use lictor::Client;
use lictor::lifecycle::{Report, Shutdown};
use lictor_tower::Channel;
use serde_json::json;

use crate::backend::{self, Backend};
use crate::place::Place;
use crate::summary::Calls;
use crate::{Findings, Result, until};

/// How a server left.
#[derive(Debug)]
pub struct Leaving {
    /// Which Consul it ran on.
    pub agent: String,
    /// What became of the calls meanwhile.
    pub calls: Calls,
    /// What each stage of its shutdown came to.
    pub report: Report,
}

/// Calls a service of two, one of them being `name`, while that one is shut down.
///
/// # Errors
///
/// If the other server cannot be started, or this one is never called.
pub async fn called(
    client: &Client,
    service: &str,
    name: &str,
    shutdown: Shutdown,
) -> Result<Calls> {
    let other = Backend::http(client, service, "stays").await?;
    let channel = Channel::builder(client.clone()).service(service).build()?;
    until("both are known", || channel.endpoints().len() == 2).await?;
    let mut calls = Calls::default();
    for number in 0..1_500_u32 {
        if number == 300 {
            // As SIGTERM does it.
            shutdown.begin();
        }
        let request = Request::get("/").body(Empty::<Bytes>::new())?;
        let called = async { backend::name_in(channel.request(request).await?).await };
        calls.note(called.await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    backend::close(vec![other]).await?;
    match calls.answered.get(name) {
        Some(_) => Ok(calls),
        None => Err(format!("{name} was never called").into()),
    }
}

impl Leaving {
    /// What came of it.
    #[must_use]
    pub fn new(place: &Place, calls: Calls, report: Report) -> Self {
        Self {
            agent: place.describe().to_owned(),
            calls,
            report,
        }
    }
}

impl Findings for Leaving {
    fn json(&self) -> String {
        let stages = self.report.stages.iter().map(|line| {
            json!({
                "stage": line.stage.to_string(),
                "seconds": line.took.as_secs_f64(),
                "outcome": line.outcome.to_string(),
            })
        });
        let stages: Vec<_> = stages.collect();
        json!({
            "agent": self.agent,
            "answered": self.calls.answered,
            "failed": self.calls.failed,
            "cause": self.report.cause.to_string(),
            "stages": stages,
        })
        .to_string()
    }

    /// Whether no call failed, and all was done in time.
    fn is_good(&self) -> bool {
        self.calls.failed.is_empty() && self.report.is_clean()
    }
}

impl fmt::Display for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "agent   {}", self.agent)?;
        for (name, count) in &self.calls.answered {
            writeln!(f, "  {name:<10}{count:>6}")?;
        }
        writeln!(f, "  {:<10}{:>6}", "failed", self.calls.failed.len())?;
        for failure in &self.calls.failed {
            writeln!(f, "    {failure}")?;
        }
        writeln!(f, "{}", self.report)
    }
}
