//! Everything the agent remembers, as pure values: the time is an argument of every call.
//!
//! Nothing here waits. What happens by itself (a missed heartbeat, the reaping of a service that
//! was critical for too long, the agent's repair of the catalog) is a timer with an instant;
//! [`State::advance`] lets all happen that is due, each at its own instant and in order.

mod agent;
pub(crate) mod catalog;
pub(crate) mod coordinates;
pub(crate) mod events;
pub(crate) mod kv;
pub(crate) mod local;
pub(crate) mod locks;
pub(crate) mod model;
pub(crate) mod queries;
mod servers;
pub(crate) mod session;
mod sync;
pub(crate) mod template;
pub(crate) mod txn;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::agent::ExistingChecks;
use self::catalog::Catalog;
use self::coordinates::{Coordinates, Place};
use self::events::Events;
use self::kv::Kv;
use self::local::Local;
use self::locks::Delays;
use self::model::{Check, Node, PASSING, Pairs, Service};
use self::queries::Queries;
use self::session::{SessionId, Sessions};

/// Who the agent is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) node: String,
    pub(crate) node_id: String,
    pub(crate) datacenter: String,
    pub(crate) address: String,
    pub(crate) server_port: u16,
    pub(crate) serf_port: u16,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Due {
    /// A heartbeat is missed.
    Ttl,
    /// A service was critical for too long.
    Reap,
    /// A changed output is told to the servers.
    Output,
    /// The catalog is compared with the agent's own list.
    Sync,
    /// A session was not renewed in time.
    Session(SessionId),
}

/// Services, keys and sessions as the servers hold them: what a Consul snapshot holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replica {
    pub(crate) catalog: Catalog,
    pub(crate) kv: Kv,
    pub(crate) sessions: Sessions,
    pub(crate) queries: Queries,
    pub(crate) coordinates: Coordinates,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) identity: Identity,
    pub(crate) replica: Replica,
    pub(crate) local: Local,
    /// What the agent has heard of by gossip.
    pub(crate) events: Events,
    /// Where the agent is in the network of all datacenters.
    pub(crate) wan: Place,
    /// Whether the servers have a leader, and since when they have none.
    pub(crate) leader: Leader,
    /// How often the servers lost their leader.
    losses: u64,
    /// The number of writes so far: Raft's log index.
    index: u64,
    /// Grows whenever something changed that a blocked query may wait for.
    version: u64,
    timers: BTreeSet<(Instant, Due, String)>,
    /// When the TTLs of sessions run out; each has its timer.
    expiries: BTreeMap<SessionId, Instant>,
    delays: Delays,
    sync_at: Option<Instant>,
    started: Instant,
    /// Whether the agent has something to tell the servers that it could not tell yet.
    behind: bool,
    /// Whether the agent is there at all.
    present: bool,
    seed: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Leader {
    Elected,
    Lost { at: Instant },
}

/// The reaper looks every 30 s (`check_reap_interval`).
const REAP_INTERVAL: Duration = Duration::from_secs(30);
/// `check_deregister_interval_min`.
const REAP_MIN: Duration = Duration::from_secs(60);
/// `check_update_interval`.
const OUTPUT_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// `ae_interval`.
const SYNC_INTERVAL: Duration = Duration::from_secs(60);

const SERF_HEALTH: &str = "serfHealth";
const CONSUL: &str = "consul";

impl State {
    pub(crate) fn new(identity: Identity, seed: u64, now: Instant) -> Self {
        let mut state = Self {
            replica: Replica::default(),
            local: Local::default(),
            events: Events::default(),
            wan: Place::at(0.0),
            leader: Leader::Elected,
            losses: 0,
            index: 0,
            version: 1,
            timers: BTreeSet::new(),
            expiries: BTreeMap::new(),
            delays: Delays::default(),
            sync_at: None,
            started: now,
            behind: false,
            present: true,
            seed,
            identity,
        };
        state.found(now);
        state
    }

    /// A fresh cluster of one server: its node, the service `consul`, and the node's own check.
    fn found(&mut self, now: Instant) {
        self.replica = Replica::default();
        self.begin_anew(now);
        // A fresh `consul agent -dev` writes its own node at index 10 and again, with all
        // addresses, at 12.
        self.index = 10;
        if self.present {
            self.ensure_self(true);
        }
        self.index = 12;
        if self.present {
            self.ensure_self(false);
        }
        self.version += 1;
        self.sync_all(now);
    }

    /// Writes the agent's own node and what the servers keep on it.
    fn ensure_self(&mut self, bare: bool) {
        let identity = &self.identity;
        let addresses = ["lan", "lan_ipv4", "wan", "wan_ipv4"]
            .into_iter()
            .filter(|name| !name.ends_with("ipv4") || identity.address.contains('.'))
            .map(|name| (name.to_owned(), identity.address.clone()));
        let node = Node {
            id: identity.node_id.clone(),
            name: identity.node.clone(),
            address: identity.address.clone(),
            tagged_addresses: (!bare).then(|| addresses.collect()),
            meta: (!bare)
                .then(|| Pairs::from([("consul-network-segment".to_owned(), String::new())])),
            ..Node::default()
        };
        let service = Service {
            id: CONSUL.to_owned(),
            name: CONSUL.to_owned(),
            port: i64::from(identity.server_port),
            meta: [
                ("non_voter", "false"),
                ("raft_version", "3"),
                ("serf_protocol_current", "2"),
                ("serf_protocol_max", "5"),
                ("serf_protocol_min", "1"),
                ("version", VERSION),
            ]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
            ..Service::default()
        };
        let check = Check {
            node: identity.node.clone(),
            id: SERF_HEALTH.to_owned(),
            name: "Serf Health Status".to_owned(),
            status: PASSING.into(),
            output: "Agent alive and reachable".to_owned(),
            ..Check::default()
        };
        let catalog = &mut self.replica.catalog;
        catalog.ensure_node(self.index, node);
        if catalog.service(&service.id, CONSUL).is_none() {
            // The node was just written, so neither can be refused.
            let _ = catalog.ensure_service(self.index, &self.identity.node, service);
        }
        if catalog.check(&self.identity.node, SERF_HEALTH).is_none() {
            let _ = catalog.ensure_check(self.index, check);
        }
        let (places, own) = (&mut self.replica.coordinates, &self.identity.node);
        if !bare && places.get(own).is_none() {
            // An agent tells its place as soon as its node is known.
            places.put(self.index, own, Place::at(0.0));
        }
    }

    /// Grows with every change that a blocked query may wait for.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }

    pub(crate) fn touch(&mut self) {
        self.version += 1;
    }

    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    /// The index of the next write: every write takes one, even if it changes nothing.
    pub(crate) fn next_index(&mut self) -> u64 {
        self.index += 1;
        self.version += 1;
        self.index
    }

    /// When something next happens by itself.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _, _)| *at)
    }

    /// Lets everything happen that is due by `now`.
    pub(crate) fn advance(&mut self, now: Instant) {
        while self.next_due().is_some_and(|at| at <= now) {
            let Some((at, due, id)) = self.timers.pop_first() else {
                return;
            };
            match due {
                Due::Ttl => self.expire(&id, at),
                Due::Reap => self.reap(&id, at),
                Due::Output => self.tell_output(&id, at),
                Due::Sync => {
                    self.sync_at = None;
                    self.sync_all(at);
                }
                Due::Session(id) => {
                    self.expire_session(id, at);
                }
            }
        }
    }

    /// A number in `0..bound` from the seed; equal seeds and calls give equal numbers.
    pub(crate) fn random(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        mixed % bound.max(1)
    }

    /// A random part of `whole`, at most all of it.
    pub(crate) fn random_part(&mut self, whole: Duration) -> Duration {
        let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random(nanos))
    }

    /// An older copy took the place of what the servers hold.
    ///
    /// The log index goes on, as on a real online restore: only what is in the copy is old.
    pub(crate) fn restored(&mut self, now: Instant) {
        self.next_index();
        self.begin_anew(now);
        self.plan_sync(now);
    }

    /// What the servers keep in memory alone is lost: TTLs are counted from now on, and what was
    /// locked a moment ago is free.
    fn begin_anew(&mut self, now: Instant) {
        self.delays = Delays::default();
        self.restart_ttls(now);
    }

    /// Starts the cluster afresh: keys and foreign nodes are gone, indexes begin anew, and the
    /// agent tells its own services again.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.found(now);
    }
}

/// The version that this agent speaks for.
pub(crate) const VERSION: &str = "1.8.7";

/// Services by name with the tags of all instances, for `catalog/services`.
pub(crate) fn tags_by_service<'a>(
    instances: impl Iterator<Item = catalog::Instance<'a>>,
) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut found: BTreeMap<&'a str, BTreeSet<&'a str>> = BTreeMap::new();
    for instance in instances {
        let service: &'a Arc<Service> = instance.service;
        found
            .entry(service.name.as_str())
            .or_default()
            .extend(service.tags.iter().map(String::as_str));
    }
    found
}
