//! A service as one door to it sees it at one moment.

use std::fmt;

use serde::Serialize;

use crate::balance::{Backend, Balance};
use crate::source;

use super::status::{EndpointState, EndpointStatus};

/// A service as a channel sees it at one moment: for logs, debug pages and tests.
///
/// Made by [`Channel::snapshot`](super::Channel::snapshot),
/// [`Balanced::snapshot`](crate::layer::Balanced::snapshot) and
/// [`Dialer::snapshot`](crate::tcp::Dialer::snapshot). It displays as lines, one for the service
/// and one for each endpoint, and serializes with the names of its fields; times are milliseconds
/// with a fraction, in fields whose names end with `_ms`. Names may be added and do not change.
///
/// Numbers are read one after the other and not at one moment. Counts begin with the channel, or
/// where they are an endpoint's with the endpoint.
///
/// # Examples
///
/// ```
/// use lictor_tower::Channel;
/// use lictor_tower::endpoint::Endpoint;
/// use lictor_tower::source;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let source = source::fixed([Endpoint::new("10.0.0.1:80".parse()?)]);
/// let channel = Channel::from_source(source).name("web").build()?;
/// channel.wait_ready().await?;
///
/// let snapshot = channel.snapshot();
/// assert_eq!(snapshot.endpoints.len(), 1);
/// let page = serde_json::to_value(&snapshot)?;
/// assert_eq!(page["service"], "web");
/// assert_eq!(page["endpoints"][0]["target"], "10.0.0.1:80");
/// assert_eq!(page["endpoints"][0]["state"]["is"], "ready");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The name of the service; none if the channel knows none.
    pub service: Option<String>,
    /// How well the source knows the service; none if nobody can tell, see
    /// [`observe_source`](super::Builder::observe_source).
    pub source: Option<source::Status>,
    /// Requests whose response has not ended, on endpoints that have left, too; of a dialer, open
    /// connections.
    pub in_flight: u64,
    /// Requests in line: for the first resolution, for a place among
    /// [`max_in_flight`](super::Builder::max_in_flight), for an endpoint.
    pub waiting: usize,
    /// Too few endpoints are well, and requests go to ejected ones as well; see
    /// [`panic_threshold`](super::Builder::panic_threshold).
    pub ignores_ejections: bool,
    /// Attempts that went to another endpoint after one that was in vain.
    pub retries: u64,
    /// Attempts beside another of the same request.
    pub hedges: u64,
    /// Attempts for which no connection could be opened.
    pub refused: u64,
    /// Requests that were shed, see [`Overloaded`](crate::ErrorKind::Overloaded).
    pub shed: u64,
    /// Retries for which the budget had nothing left.
    pub budget_exhausted: u64,
    /// The endpoints, the preferred ones first; at the end those that have left and have requests
    /// under way.
    pub endpoints: Vec<EndpointStatus>,
}

impl Snapshot {
    pub(crate) fn of<S: Backend>(balance: &Balance<S>) -> Self {
        let telemetry = balance.telemetry();
        let totals = telemetry.totals();
        let endpoints = EndpointStatus::all(balance);
        Self {
            service: telemetry.service().map(str::to_owned),
            source: telemetry.source(),
            in_flight: endpoints.iter().map(|one| u64::from(one.in_flight)).sum(),
            waiting: telemetry.waiting(),
            ignores_ejections: balance.snapshot().panics(),
            retries: totals.retries,
            hedges: totals.hedges,
            refused: totals.refused,
            shed: totals.shed,
            budget_exhausted: totals.starved,
            endpoints,
        }
    }

    /// Of a door that could not be built.
    pub(crate) fn closed() -> Self {
        Self {
            service: None,
            source: None,
            in_flight: 0,
            waiting: 0,
            ignores_ejections: false,
            retries: 0,
            hedges: 0,
            refused: 0,
            shed: 0,
            budget_exhausted: 0,
            endpoints: Vec::new(),
        }
    }

    /// How many endpoints take requests as they should: in rotation, and not left alone.
    #[must_use]
    pub fn ready(&self) -> usize {
        let is_ready = |one: &&EndpointStatus| one.state == EndpointState::Ready;
        self.endpoints.iter().filter(is_ready).count()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} of {} endpoints ready, {} in flight, {} waiting, {} retries, {} hedges, \
             {} refused, {} shed",
            self.service.as_deref().unwrap_or("(no name)"),
            self.ready(),
            self.endpoints.len(),
            self.in_flight,
            self.waiting,
            self.retries,
            self.hedges,
            self.refused,
            self.shed,
        )?;
        match &self.source {
            None | Some(source::Status::Live) => {}
            Some(status) => write!(f, ", source {status}")?,
        }
        if self.ignores_ejections {
            f.write_str(", ejections are ignored")?;
        }
        for endpoint in &self.endpoints {
            write!(f, "\n  {endpoint}")?;
        }
        Ok(())
    }
}
