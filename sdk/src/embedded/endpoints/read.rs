//! Reads of what the servers hold: catalog, health and keys, with blocking.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::super::state::catalog::Instance;
use super::super::state::kv::{self, Kv};
use super::super::state::model::{Node, PASSING};
use super::super::state::{Identity, Leader, Replica, State, tags_by_service};
use super::Call;
use super::query::{Consistency, Options};
use super::reply::{self, Layout, Refusal, Reply};
use super::routes::Endpoint;
use super::views::{CheckView, HealthView, NodeServiceView, NodeView, ServiceNodeView};

/// How long a server without a leader holds a request (`rpc_hold_timeout`).
const LEADER_WAIT: Duration = Duration::from_secs(7);

/// A read with everything that decides its answer.
#[derive(Debug)]
pub(super) struct Read {
    what: What,
    narrow: Narrow,
    layout: Layout,
    /// KV answers say no consistency, and their errors no index.
    is_kv: bool,
    cacheable: bool,
}

#[derive(Debug)]
enum What {
    Nodes,
    Services,
    Service { name: String, kind: Kind },
    NodeMap { node: String },
    NodeList { node: String },
    HealthNode { node: String },
    HealthChecks { name: String },
    HealthService { name: String, kind: Kind },
    HealthState { state: String },
    Key { key: String, raw: bool },
    Prefix { prefix: String },
    Keys { prefix: String, separator: String },
}

/// Whether a service is looked for by its name or by whom its proxies serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Plain,
    Connect,
}

/// What leaves instances, nodes or checks out of an answer.
#[derive(Debug, Default)]
struct Narrow {
    tags: Vec<String>,
    passing: bool,
    node_meta: Vec<(String, String)>,
}

impl Narrow {
    fn allows(&self, instance: &Instance<'_>) -> bool {
        let has_tag = |wanted: &String| {
            instance
                .service
                .tags
                .iter()
                .any(|tag| tag.to_lowercase() == *wanted)
        };
        self.tags.iter().all(has_tag)
            && self.allows_node(instance.node)
            && !(self.passing && instance.checks().any(|check| check.status != PASSING))
    }

    fn by_node(&self) -> bool {
        !self.node_meta.is_empty()
    }

    fn allows_node(&self, node: &Node) -> bool {
        self.node_meta.iter().all(|(key, value)| {
            node.meta
                .as_ref()
                .and_then(|meta| meta.get(key))
                .is_some_and(|known| known == value)
        })
    }
}

impl Read {
    /// The index of the answer as of `now`.
    fn index(&self, replica: &Replica, now: Instant) -> u64 {
        let (catalog, kv) = (&replica.catalog, &replica.kv);
        let index = match &self.what {
            What::Nodes => catalog.nodes_index(),
            // Whether a node has some metadata is asked of another table.
            What::Services if self.narrow.by_node() => {
                catalog.services_index().max(catalog.nodes_index())
            }
            What::Services => catalog.services_index(),
            What::Service { name, kind } => {
                catalog.service_index(name, replica.exists(name, *kind), false)
            }
            What::HealthService { name, kind } => {
                catalog.service_index(name, replica.exists(name, *kind), true)
            }
            What::NodeMap { node } | What::NodeList { node } => {
                if catalog.node(node).is_some() {
                    catalog.nodes_index().max(catalog.services_index())
                } else {
                    0
                }
            }
            What::HealthChecks { .. } | What::HealthState { .. } if self.narrow.by_node() => {
                catalog.checks_index().max(catalog.nodes_index())
            }
            What::HealthNode { .. } | What::HealthChecks { .. } | What::HealthState { .. } => {
                catalog.checks_index()
            }
            What::Key { key, .. } => kv.key_index(key),
            What::Prefix { prefix } | What::Keys { prefix, .. } => kv.prefix_index(prefix, now),
        };
        // A client that was told zero would never block.
        index.max(1)
    }

    fn body(&self, replica: &Replica, identity: &Identity) -> Reply {
        let (catalog, dc) = (&replica.catalog, identity.datacenter.as_str());
        match &self.what {
            What::Nodes => {
                let nodes = catalog
                    .nodes()
                    .filter(|node| self.narrow.allows_node(node))
                    .map(|node| NodeView::new(node, dc));
                self.list(nodes)
            }
            What::Services => {
                let instances = catalog
                    .all_instances()
                    .filter(|instance| self.narrow.allows_node(instance.node));
                reply::json(&tags_by_service(instances), self.layout)
            }
            What::Service { name, kind } => {
                let found = replica
                    .find(name, *kind)
                    .filter(|instance| self.narrow.allows(instance))
                    .map(|instance| ServiceNodeView::new(instance, dc));
                self.list(found)
            }
            What::HealthService { name, kind } => {
                let found = replica
                    .find(name, *kind)
                    .filter(|instance| self.narrow.allows(instance))
                    .map(|instance| HealthView::new(instance, dc));
                self.list(found)
            }
            What::NodeMap { node } => {
                let Some(found) = catalog.node(node) else {
                    return reply::json(&Value::Null, self.layout);
                };
                let services: BTreeMap<&str, NodeServiceView<'_>> = catalog
                    .node_services(node)
                    .map(|service| (service.id.as_str(), NodeServiceView::new(service)))
                    .collect();
                reply::json(
                    &NodeAndServices {
                        node: Some(NodeView::new(found, dc)),
                        services: Some(services),
                    },
                    self.layout,
                )
            }
            What::NodeList { node } => {
                let found = catalog.node(node);
                let services: Vec<NodeServiceView<'_>> = catalog
                    .node_services(node)
                    .map(|service| NodeServiceView::new(service))
                    .collect();
                reply::json(
                    &NodeAndServices {
                        node: found.map(|node| NodeView::new(node, dc)),
                        services: found.is_some().then_some(services),
                    },
                    self.layout,
                )
            }
            What::HealthNode { node } => {
                self.list(catalog.node_checks(node).map(|check| CheckView::new(check)))
            }
            What::HealthChecks { name } => {
                let mut checks: Vec<_> = catalog
                    .instances(name)
                    .filter(|instance| self.narrow.allows_node(instance.node))
                    .flat_map(|instance| instance.own_checks())
                    .collect();
                checks.sort_by(|one, other| (&one.node, &one.id).cmp(&(&other.node, &other.id)));
                self.list(checks.into_iter().map(|check| CheckView::new(check)))
            }
            What::HealthState { state } => {
                let checks = catalog
                    .all_checks()
                    .filter(|check| state == "any" || check.status == state.as_str())
                    .filter(|check| {
                        self.narrow.node_meta.is_empty()
                            || catalog
                                .node(&check.node)
                                .is_some_and(|node| self.narrow.allows_node(node))
                    });
                self.list(checks.map(|check| CheckView::new(check)))
            }
            What::Key { key, raw } => match replica.kv.entry(key) {
                None => reply::empty(StatusCode::NOT_FOUND),
                Some(entry) if *raw => raw_value(entry.value.clone()),
                Some(entry) => reply::json(&[KeyView::new(key, entry)], self.layout),
            },
            What::Prefix { prefix } => {
                let found: Vec<KeyView<'_>> = replica
                    .kv
                    .list(prefix)
                    .map(|(key, entry)| KeyView::new(key, entry))
                    .collect();
                if found.is_empty() {
                    reply::empty(StatusCode::NOT_FOUND)
                } else {
                    reply::json(&found, self.layout)
                }
            }
            What::Keys { prefix, separator } => {
                let keys = keys(&replica.kv, prefix, separator);
                // At the root an empty list is an answer, further down it is none.
                if keys.is_empty() && !prefix.is_empty() {
                    reply::empty(StatusCode::NOT_FOUND)
                } else {
                    reply::json(&keys, self.layout)
                }
            }
        }
    }

    fn list<T: Serialize>(&self, items: impl Iterator<Item = T>) -> Reply {
        reply::json(&items.collect::<Vec<T>>(), self.layout)
    }
}

impl Replica {
    fn exists(&self, name: &str, kind: Kind) -> bool {
        self.find(name, kind).next().is_some()
    }

    fn find(&self, name: &str, kind: Kind) -> impl Iterator<Item = Instance<'_>> {
        match kind {
            Kind::Plain => self.catalog.instances(name),
            Kind::Connect => self.catalog.connect_instances(name),
        }
    }
}

/// The keys under a prefix; with a separator each is cut after the first one that follows.
fn keys<'a>(kv: &'a Kv, prefix: &'a str, separator: &str) -> Vec<&'a str> {
    let found = kv.list(prefix).map(|(key, _)| key.as_str());
    if separator.is_empty() {
        return found.collect();
    }
    let cut = |key: &'a str| {
        let rest = key.strip_prefix(prefix).unwrap_or_default();
        let kept = rest
            .find(separator)
            .map_or(key.len(), |at| prefix.len() + at + separator.len());
        key.get(..kept).unwrap_or(key)
    };
    found
        .map(cut)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn raw_value(value: Bytes) -> Reply {
    let mut reply = reply::empty(StatusCode::OK);
    *reply.body_mut() = value;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    // A browser must not take a stored value for a page of Consul's own.
    reply::set(&mut reply, "content-security-policy", "sandbox");
    reply::set(&mut reply, "x-content-type-options", "nosniff");
    reply
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeAndServices<'a, S> {
    node: Option<NodeView<'a>>,
    services: Option<S>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeyView<'a> {
    lock_index: u64,
    key: &'a str,
    flags: u64,
    value: Option<String>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> KeyView<'a> {
    fn new(key: &'a str, entry: &kv::Entry) -> Self {
        Self {
            lock_index: 0,
            key,
            flags: entry.flags,
            value: (!entry.value.is_empty()).then(|| STANDARD.encode(&entry.value)),
            create_index: entry.created,
            modify_index: entry.modified,
        }
    }
}

impl Call {
    /// Answers a read of the catalog or of health.
    pub(super) async fn server_read(&self, endpoint: Endpoint) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        if self.params.has("filter") && endpoint != Endpoint::CatalogServices {
            return Err(self.unserved("?filter="));
        }
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
        let read = Read {
            narrow: self.narrow(endpoint)?,
            layout: options.layout,
            is_kv: false,
            cacheable,
            what,
        };
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
            layout: options.layout,
            is_kv: true,
            cacheable: false,
            what,
        };
        self.read(&read, &options).await
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
    async fn read(&self, read: &Read, options: &Options) -> Result<Reply, Refusal> {
        let failed = |refusal: Refusal| read.failed(refusal);
        self.check_datacenter(&options.datacenter).map_err(failed)?;
        let asked_leader = options.consistency != Consistency::Stale;
        if asked_leader {
            self.await_leader().await.map_err(failed)?;
        }
        let _open = (options.min_index > 0).then(|| self.core.traffic.open(&self.path));
        let mut changes = self.core.subscribe();
        let mut start = None;
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
                if asked_leader && lost != lost_at_start {
                    let text = "rpc error making call: EOF";
                    return Err(failed(Refusal::internal(text)));
                }
                if replaced != replaced_at_start
                    && let Some(former) = &locked.former
                {
                    // A restore wakes who waits, but with what was there before it.
                    let reply = read.reply(former, &locked.state, options, now);
                    return Ok(reply);
                }
                let index = read.index(&locked.state.replica, now);
                if options.min_index == 0 || index > options.min_index || now >= deadline {
                    let state = &locked.state;
                    return Ok(read.reply(&state.replica, state, options, now));
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
    fn reply(&self, replica: &Replica, state: &State, options: &Options, now: Instant) -> Reply {
        let mut reply = self.body(replica, &state.identity);
        let index = self.index(replica, now);
        reply::set(&mut reply, "x-consul-index", &index.to_string());
        let (known, contact) = match state.leader {
            Leader::Elected => ("true", 0),
            Leader::Lost { at } => ("false", now.saturating_duration_since(at).as_millis()),
        };
        reply::set(&mut reply, "x-consul-knownleader", known);
        reply::set(&mut reply, "x-consul-lastcontact", &contact.to_string());
        if !self.is_kv {
            reply::set(
                &mut reply,
                "x-consul-effective-consistency",
                options.consistency.as_str(),
            );
            if options.cached && self.cacheable {
                // The agent's cache is this memory itself: always there and never old.
                reply::set(&mut reply, "x-cache", "HIT");
                reply::set(&mut reply, "age", "0");
            }
        }
        reply
    }

    /// Consul writes the index headers of catalog and health answers even when it fails.
    fn failed(&self, mut refusal: Refusal) -> Refusal {
        if !self.is_kv {
            reply::set(&mut refusal.0, "x-consul-index", "1");
            reply::set(&mut refusal.0, "x-consul-knownleader", "false");
            reply::set(&mut refusal.0, "x-consul-lastcontact", "0");
        }
        refusal
    }
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
