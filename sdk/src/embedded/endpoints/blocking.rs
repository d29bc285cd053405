//! Reads that may have to wait: for a leader, or for something newer than their caller knows.

use std::time::Duration;

use tokio::time::Instant;

use super::Call;
use super::fields;
use super::query::{Consistency, Options, go_bool};
use super::read::{Headers, Kind, Narrow, Read, What};
use super::reply::{self, Refusal, Reply};
use super::routes::Endpoint;
use crate::embedded::state::{Leader, State};

/// How long a server without a leader holds a request (`rpc_hold_timeout`).
const LEADER_WAIT: Duration = Duration::from_secs(7);

impl Call {
    /// Answers a read of the catalog or of health.
    pub(super) async fn server_read(&self, endpoint: Endpoint) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        let named = |what: &str| {
            if self.rest.is_empty() {
                Err(Refusal::bad_request(format!("Missing {what}")))
            } else {
                Ok(self.rest.clone())
            }
        };
        let what = match endpoint {
            Endpoint::CatalogServices => What::Services,
            Endpoint::CatalogService => What::Service {
                name: named("service name")?,
                kind: Kind::Plain,
            },
            Endpoint::CatalogConnect => What::Service {
                name: named("service name")?,
                kind: Kind::Connect,
            },
            Endpoint::CatalogNode => What::NodeMap {
                node: named("node name")?,
            },
            Endpoint::CatalogNodeServices => What::NodeList {
                node: named("node name")?,
            },
            Endpoint::HealthNode => What::HealthNode {
                node: named("node name")?,
            },
            Endpoint::HealthChecks => What::HealthChecks {
                name: named("service name")?,
            },
            Endpoint::HealthService => What::HealthService {
                name: named("service name")?,
                kind: Kind::Plain,
            },
            Endpoint::HealthConnect => What::HealthService {
                name: named("service name")?,
                kind: Kind::Connect,
            },
            Endpoint::HealthState => What::HealthState {
                state: named("check state")?,
            },
            _ => What::Nodes,
        };
        let cacheable = matches!(
            what,
            What::Services | What::Service { .. } | What::HealthService { .. }
        );
        let filterable = match what {
            What::Nodes => fields::NODE,
            What::Service { .. } => fields::SERVICE_NODE,
            What::NodeMap { .. } | What::NodeList { .. } => fields::SERVICE,
            What::HealthService { .. } => fields::HEALTH,
            _ => fields::CHECK,
        };
        let mut read = Read {
            narrow: self.narrow(endpoint)?,
            filter: None,
            near: self.near(),
            layout: options.layout,
            headers: Headers::Catalog,
            cacheable,
            what,
        };
        // Consul 1.8.7 reads no filter for the names of services.
        if endpoint != Endpoint::CatalogServices {
            read.filter = self
                .filter(filterable)
                .map_err(|refusal| read.failed(refusal))?;
        }
        self.read(&read, &options).await
    }

    /// Answers a read of one key, of a prefix, or of the names of keys.
    pub(super) async fn key_read(&self) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        let key = self.rest.clone();
        let what = if self.params.has("keys") {
            let separator = match self.params.value("separator") {
                // Consul takes the misspelt name too.
                "" => self.params.value("seperator"),
                separator => separator,
            };
            What::Keys {
                prefix: key,
                separator: separator.to_owned(),
            }
        } else if self.params.has("recurse") {
            What::Prefix { prefix: key }
        } else if key.is_empty() {
            return Err(Refusal::bad_request("Missing key name"));
        } else {
            What::Key {
                key,
                raw: self.params.has("raw"),
            }
        };
        let read = Read {
            narrow: Narrow::default(),
            filter: None,
            near: String::new(),
            layout: options.layout,
            headers: Headers::Kv,
            cacheable: false,
            what,
        };
        self.read(&read, &options).await
    }

    /// The node from which distances are asked for; `_agent` is that of the agent that was asked,
    /// also where one of another datacenter answers.
    pub(super) fn near(&self) -> String {
        match self.params.value("near") {
            "_agent" => self.asked_node(),
            node => node.to_owned(),
        }
    }

    pub(super) fn asked_node(&self) -> String {
        self.asked.lock().state.identity.node.clone()
    }

    fn narrow(&self, endpoint: Endpoint) -> Result<Narrow, Refusal> {
        let mut narrow = Narrow {
            node_meta: self
                .params
                .all("node-meta")
                .map(|pair| pair.split_once(':').unwrap_or((pair, "")))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            ..Narrow::default()
        };
        let by_service = matches!(
            endpoint,
            Endpoint::CatalogService
                | Endpoint::CatalogConnect
                | Endpoint::HealthService
                | Endpoint::HealthConnect
        );
        if by_service {
            narrow.tags = self.params.all("tag").map(str::to_lowercase).collect();
        }
        let by_health = matches!(endpoint, Endpoint::HealthService | Endpoint::HealthConnect);
        if by_health && let Some(passing) = self.params.first("passing") {
            narrow.passing = match passing {
                "" => true,
                text => go_bool(text)
                    .ok_or_else(|| Refusal::bad_request("Invalid value for ?passing"))?,
            };
        }
        Ok(narrow)
    }

    /// Holds a read until there is something newer than the caller knows, or its time is up.
    pub(super) async fn read(&self, read: &Read, options: &Options) -> Result<Reply, Refusal> {
        let failed = |refusal: Refusal| read.failed(refusal);
        self.check_datacenter(&options.datacenter).map_err(failed)?;
        let asked_leader = options.consistency != Consistency::Stale;
        if asked_leader {
            self.await_leader().await.map_err(failed)?;
        }
        let _open = (options.min_index > 0).then(|| self.core.traffic.open(&self.path));
        let mut changes = self.core.subscribe();
        let mut start = None;
        let mut evaluated = None;
        loop {
            let wake_at = {
                let now = Instant::now();
                let mut locked = self.core.lock();
                changes.mark_unchanged();
                let lost = locked.state.losses();
                let replaced = locked.replaced;
                let (deadline, lost_at_start, replaced_at_start) =
                    *start.get_or_insert_with(|| {
                        // The server adds up to a sixteenth of the wait, so that queries that
                        // began together do not end together.
                        let jitter = locked.state.random_part(options.wait / 16);
                        (now + options.wait + jitter, lost, replaced)
                    });
                let left = !locked.state.is_present();
                if left || (asked_leader && lost != lost_at_start) {
                    let text = "rpc error making call: EOF";
                    return Err(failed(Refusal::internal(text)));
                }
                let replica = &locked.state.replica;
                let stamp = read.stamp(replica);
                let index = match evaluated {
                    Some((known, index)) if known == stamp => index,
                    _ => read.index(replica, now),
                };
                evaluated = Some((stamp, index));
                let restored = replaced != replaced_at_start;
                if restored
                    || options.min_index == 0
                    || index > options.min_index
                    || now >= deadline
                {
                    let cached = read.cache_key(&self.path, options);
                    let hit = cached.map(|key| !locked.cached.insert(key));
                    let state = &locked.state;
                    // A restore wakes who waits, but with what was there before it.
                    let (replica, index) = match &locked.former {
                        Some(former) if restored => (&**former, read.index(former, now)),
                        _ => (&state.replica, index),
                    };
                    let body = read.body(replica, &state.identity);
                    return Ok(read.with_headers(body, index, state, options, hit, now));
                }
                locked
                    .state
                    .next_due()
                    .map_or(deadline, |due| due.min(deadline))
            };
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        // The sender is part of the core, which this call holds.
                        return Err(Refusal::internal("agent stopped"));
                    }
                }
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    /// Waits for the servers to have a leader, as long as a server would.
    pub(super) async fn await_leader(&self) -> Result<(), Refusal> {
        let mut changes = self.core.subscribe();
        let until = Instant::now() + LEADER_WAIT;
        loop {
            if self.core.lock().state.leader == Leader::Elected {
                return Ok(());
            }
            let waited = tokio::time::timeout_at(until, changes.changed()).await;
            if !matches!(waited, Ok(Ok(()))) {
                return Err(Refusal::internal("No cluster leader"));
            }
        }
    }
}

impl Read {
    /// What the agent's cache would keep the answer under, if it may come from there.
    fn cache_key(&self, path: &str, options: &Options) -> Option<String> {
        let wanted = options.cached && self.cacheable;
        wanted.then(|| format!("{path} {:?}", self.narrow))
    }

    fn with_headers(
        &self,
        mut reply: Reply,
        index: u64,
        state: &State,
        options: &Options,
        hit: Option<bool>,
        now: Instant,
    ) -> Reply {
        reply::set(&mut reply, "x-consul-index", &index.to_string());
        let (known, contact) = match state.leader {
            Leader::Elected => ("true", 0),
            Leader::Lost { at } => ("false", now.saturating_duration_since(at).as_millis()),
        };
        reply::set(&mut reply, "x-consul-knownleader", known);
        reply::set(&mut reply, "x-consul-lastcontact", &contact.to_string());
        if self.headers == Headers::Catalog {
            reply::set(
                &mut reply,
                "x-consul-effective-consistency",
                options.consistency.as_str(),
            );
            // The agent's cache is this memory itself: from the second time on it has everything,
            // and nothing in it is old.
            match hit {
                Some(true) => {
                    reply::set(&mut reply, "x-cache", "HIT");
                    reply::set(&mut reply, "age", "0");
                }
                Some(false) => reply::set(&mut reply, "x-cache", "MISS"),
                None => {}
            }
        }
        reply
    }

    /// Consul writes the index headers of all but KV answers even when it fails.
    fn failed(&self, refusal: Refusal) -> Refusal {
        if self.headers == Headers::Kv {
            refusal
        } else {
            with_first_index(refusal)
        }
    }
}

/// The headers of an answer that no server had a part in.
pub(super) fn with_first_index(mut refusal: Refusal) -> Refusal {
    reply::set(&mut refusal.0, "x-consul-index", "1");
    reply::set(&mut refusal.0, "x-consul-knownleader", "false");
    reply::set(&mut refusal.0, "x-consul-lastcontact", "0");
    refusal
}
