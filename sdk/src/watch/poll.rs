//! Prepared queries, which cannot wait for a change: they are asked again and again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::body::Decoded;
use super::engine::State;
use super::reader::Watch;
use super::snapshot::{Content, Outage, Status};
use crate::api::health::ServiceEntry;
use crate::api::query::Execute;
use crate::api::{Consistency, Read};
use crate::client::{Call, Client};
use crate::error::{Error, Result};
use crate::proto::backoff::Backoff;

/// The shortest interval at which a prepared query may be asked: 1 s.
///
/// Each time the servers look all up anew, and ask other datacenters if there is nothing.
pub const SHORTEST_POLL: Duration = Duration::from_secs(1);

impl Read<Execute> {
    /// A live view of what a prepared query finds, by asking every `interval`.
    ///
    /// Consul cannot wait for a change of it. The interval is varied by a tenth, so that many
    /// clients do not ask at the same moment. Readers of equal queries at equal intervals share
    /// them. Instances are in order of node and ID, because Consul shuffles them, unless the query
    /// is asked [near](Self::near) a node. In which datacenter they are tells
    /// [`Node::datacenter`](crate::api::health::Node::datacenter).
    ///
    /// Starts a task, which ends when the last of its readers is dropped.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// use std::time::Duration;
    ///
    /// let web = client.query().execute("web-anywhere");
    /// let mut web = web.watch_every(Duration::from_secs(10))?;
    /// println!("{} instances", web.changed().await?.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if an argument of the read was refused or the interval is shorter than
    /// [`SHORTEST_POLL`]; [`ErrorKind::NoRuntime`](crate::ErrorKind::NoRuntime) outside of a Tokio runtime.
    pub fn watch_every(self, interval: Duration) -> Result<Watch<ServiceEntry>> {
        if interval < SHORTEST_POLL {
            return Err(Error::invalid(format!(
                "a prepared query every {interval:?}: must be at least {SHORTEST_POLL:?} apart"
            )));
        }
        let call = self.assemble()?;
        let confirmed = self.assemble_uncached(Consistency::Consistent)?;
        let about = format!("{} every {interval:?}", call.target.as_str());
        let client = self.client.clone();
        Watch::run_by(&self.client, &about, |state| {
            let poller = Poller {
                keeps_order: call.target.has("near"),
                client,
                call,
                confirmed,
                interval,
                state,
                decoded: Decoded::new(),
                version: 0,
            };
            poller.ask_forever()
        })
    }
}

struct Poller {
    client: Client,
    call: Call,
    /// The same of a leader that has read its log back, for the first answer after a failure: a
    /// server that has just become it finds nothing before that.
    confirmed: Call,
    interval: Duration,
    keeps_order: bool,
    state: watch::Sender<State<ServiceEntry>>,
    decoded: Decoded<ServiceEntry>,
    version: u64,
}

const FIRST_RETRY: Duration = Duration::from_millis(250);

impl Poller {
    async fn ask_forever(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, self.interval);
        loop {
            let asked_at = Instant::now();
            match self.ask().await {
                Ok(()) => {
                    backoff.reset();
                    let about: f64 = rand::rng().random_range(0.9..1.1);
                    sleep_until(asked_at + self.interval.mul_f64(about)).await;
                }
                Err(err) => {
                    self.failed(err);
                    let draw = rand::rng().random();
                    sleep(backoff.next(draw)).await;
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct Found<'a> {
            #[serde(borrow, rename = "Nodes")]
            nodes: Option<&'a RawValue>,
        }
        let was_away = matches!(self.state.borrow().status, Status::Stale(_));
        let call = if was_away {
            &self.confirmed
        } else {
            &self.call
        };
        let raw = self.client.send(call.clone()).await?.good()?;
        let meta = raw.meta();
        let found: Found<'_> =
            serde_json::from_slice(&raw.body).map_err(|err| raw.unexpected(err))?;
        let nodes = found.nodes.map_or("[]", RawValue::get);
        let nodes = Bytes::copy_from_slice(nodes.as_bytes());
        self.decoded
            .update(nodes)
            .map_err(|err| raw.unexpected(err))?;
        let mut items = self.decoded.items().to_vec();
        if !self.keeps_order {
            let place = |entry: &Arc<ServiceEntry>| {
                let node = entry.node().name().as_str().to_owned();
                (node, entry.service().id().as_str().to_owned())
            };
            items.sort_by_cached_key(place);
        }
        let now = Instant::now();
        let known = self.state.borrow().content.as_ref().map(Arc::clone);
        let content = known.filter(|known| known.items == items);
        let content = content.unwrap_or_else(|| {
            self.version += 1;
            Arc::new(Content {
                items,
                meta,
                version: self.version,
                received_at: now,
                body: self.decoded.body(),
                is_kept: false,
            })
        });
        super::careful::tell(
            &self.state,
            State {
                content: Some(content),
                status: Status::Live,
                confirmed_at: now,
            },
        );
        Ok(())
    }

    fn failed(&self, error: Error) {
        let mut state = self.state.borrow().clone();
        state.status = match state.status {
            Status::Connecting { .. } => Status::Connecting { error: Some(error) },
            Status::Stale(Outage { since, .. }) => Status::Stale(Outage { since, error }),
            Status::Live | Status::Suspect(_) => {
                let path = self.call.target.path();
                tracing::warn!(path, error = %error.chain(), "a prepared query failed, what it found before stays");
                let since = Instant::now();
                Status::Stale(Outage { since, error })
            }
        };
        super::careful::tell(&self.state, state);
    }
}
