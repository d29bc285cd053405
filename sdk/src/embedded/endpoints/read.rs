//! Reads of what the servers hold: catalog, health and keys, with blocking.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::super::state::catalog::Instance;
use super::super::state::coordinates::Place;
use super::super::state::kv::Kv;
use super::super::state::model::{Check, Node, PASSING};
use super::super::state::session::{Session, SessionId};
use super::super::state::{Identity, Replica, tags_by_service};
use super::coordinate::NodePlace;
use super::filter::Filter;
use super::prepared;
use super::reply::{self, Layout, Reply};
use super::views::{
    CheckView, HealthView, KeyView, NodeServiceView, NodeView, ServiceNodeView, SessionView,
};

/// A read with everything that decides its answer.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) what: What,
    pub(super) narrow: Narrow,
    pub(super) filter: Option<Filter>,
    /// The node from which nodes are sorted by their distance; none if it is empty.
    pub(super) near: String,
    pub(super) layout: Layout,
    pub(super) headers: Headers,
    pub(super) cacheable: bool,
}

#[derive(Debug)]
pub(super) enum What {
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
    Session { id: SessionId },
    Sessions,
    NodeSessions { node: String },
    Queries,
    Query { id: SessionId },
    Places,
    Place { node: String },
}

/// Which headers an answer has besides its index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Headers {
    /// The consistency, and the index on errors too.
    Catalog,
    /// The index on errors too.
    Session,
    Kv,
}

/// Whether a service is looked for by its name or by whom its proxies serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Plain,
    Connect,
}

/// What leaves instances, nodes or checks out of an answer.
#[derive(Debug, Default)]
pub(super) struct Narrow {
    pub(super) tags: Vec<String>,
    pub(super) passing: bool,
    pub(super) node_meta: Vec<(String, String)>,
}

impl Narrow {
    fn allows_tags(&self, instance: &Instance<'_>) -> bool {
        let has_tag = |wanted: &String| {
            instance
                .service
                .tags
                .iter()
                .any(|tag| tag.to_lowercase() == *wanted)
        };
        self.tags.iter().all(has_tag)
    }

    fn allows(&self, instance: &Instance<'_>) -> bool {
        self.allows_tags(instance)
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
    pub(super) fn index(&self, replica: &Replica, now: Instant) -> u64 {
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
            What::HealthNode { .. } | What::HealthChecks { .. } | What::HealthState { .. } => {
                catalog.checks_index()
            }
            What::Key { key, .. } => kv.key_index(key),
            What::Prefix { prefix } | What::Keys { prefix, .. } => kv.prefix_index(prefix, now),
            What::Session { .. } | What::Sessions | What::NodeSessions { .. } => {
                replica.sessions.index()
            }
            What::Queries | What::Query { .. } => replica.queries.index(),
            What::Places | What::Place { .. } => replica.coordinates.index(),
        };
        // A client that was told zero would never block.
        index.max(1)
    }

    /// Changes when something is written that a server would wake this query for.
    ///
    /// A server watches what a query read, and not its index: an index may move, by a write to
    /// something else in the same table, without waking anybody. Who found nothing is woken by
    /// every write of the kind, because a server cannot watch what is not there.
    pub(super) fn stamp(&self, replica: &Replica) -> u64 {
        let catalog = &replica.catalog;
        let mut stamp = DefaultHasher::new();
        let checks = |stamp: &mut DefaultHasher, check: &Check| {
            (&check.node, &check.id, check.written).hash(stamp);
        };
        match &self.what {
            What::Nodes => return catalog.nodes_index(),
            What::Services => {
                catalog.services_written().hash(&mut stamp);
                if self.narrow.by_node() {
                    catalog.nodes_index().hash(&mut stamp);
                }
            }
            What::Service { name, kind } | What::HealthService { name, kind }
                if *kind == Kind::Plain && !replica.exists(name, *kind) =>
            {
                return catalog.services_written();
            }
            What::HealthService {
                name,
                kind: Kind::Plain,
            } if self.narrow.tags.is_empty() => return catalog.service_index(name, true, true),
            What::Service { name, kind } => {
                for instance in replica.find(name, *kind) {
                    instance_stamp(&mut stamp, &instance);
                }
            }
            What::HealthService { name, kind } => {
                for instance in replica.find(name, *kind) {
                    let service = instance.service;
                    (&service.id, service.modified).hash(&mut stamp);
                    if self.narrow.allows_tags(&instance) {
                        instance_stamp(&mut stamp, &instance);
                        instance.checks().for_each(|it| checks(&mut stamp, it));
                    }
                }
            }
            What::NodeMap { node } | What::NodeList { node } => {
                let modified = catalog.node(node).map(|node| node.modified);
                modified.hash(&mut stamp);
                for service in catalog.node_services(node) {
                    (&service.id, service.modified).hash(&mut stamp);
                }
            }
            What::HealthNode { node } if catalog.node(node).is_none() => {
                return catalog.checks_written();
            }
            What::HealthNode { node } => {
                catalog
                    .node_checks(node)
                    .for_each(|it| checks(&mut stamp, it));
            }
            What::HealthChecks { name } => {
                let mut none = true;
                for check in catalog.instances(name).flat_map(|it| it.own_checks()) {
                    checks(&mut stamp, check);
                    none = false;
                }
                if none {
                    return catalog.service_checks_written();
                }
            }
            What::HealthState { state } if state == "any" => return catalog.checks_written(),
            What::HealthState { state } => {
                let mut none = true;
                for check in catalog.all_checks() {
                    if check.status == state.as_str() {
                        checks(&mut stamp, check);
                        none = false;
                    }
                }
                if none {
                    return catalog.checks_written();
                }
            }
            What::Key { .. } | What::Prefix { .. } | What::Keys { .. } => {
                return replica.kv.index();
            }
            What::Sessions => return replica.sessions.index(),
            What::Queries | What::Query { .. } => return replica.queries.index(),
            What::Places | What::Place { .. } => return replica.coordinates.index(),
            What::Session { id } => {
                let session = replica.sessions.session(*id);
                return session.map_or_else(|| replica.sessions.index(), |it| it.created);
            }
            What::NodeSessions { node } => {
                let mut none = true;
                for session in replica.sessions.of_node(node) {
                    session.id.hash(&mut stamp);
                    none = false;
                }
                if none {
                    return replica.sessions.index();
                }
            }
        }
        stamp.finish()
    }

    pub(super) fn body(&self, replica: &Replica, identity: &Identity) -> Reply {
        let (catalog, dc) = (&replica.catalog, identity.datacenter.as_str());
        match &self.what {
            What::Nodes => {
                let nodes = catalog.nodes();
                let mut nodes: Vec<_> =
                    nodes.filter(|node| self.narrow.allows_node(node)).collect();
                self.sort(replica, &mut nodes, |node| &node.name);
                self.list(nodes.into_iter().map(|node| NodeView::new(node, dc)))
            }
            What::Services => {
                let instances = catalog
                    .all_instances()
                    .filter(|instance| self.narrow.allows_node(instance.node));
                reply::json(&tags_by_service(instances), self.layout)
            }
            What::Service { name, kind } => {
                let found = self.instances(replica, name, *kind).into_iter();
                self.list(found.map(|instance| ServiceNodeView::new(instance, dc)))
            }
            What::HealthService { name, kind } => {
                let found = self.instances(replica, name, *kind).into_iter();
                self.list(found.map(|instance| HealthView::new(instance, dc)))
            }
            What::NodeMap { node } => {
                let Some(found) = catalog.node(node) else {
                    return reply::json(&Value::Null, self.layout);
                };
                let services: BTreeMap<&str, NodeServiceView<'_>> = catalog
                    .node_services(node)
                    .map(|service| (service.id.as_str(), NodeServiceView::new(service)))
                    .filter(|(_, service)| self.allows(service))
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
                    .filter(|service| self.allows(service))
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
                self.sort(replica, &mut checks, |check| &check.node);
                self.list(checks.into_iter().map(|check| CheckView::new(check)))
            }
            What::HealthState { state } => {
                let mut checks: Vec<_> = catalog
                    .all_checks()
                    .filter(|check| state == "any" || check.status == state.as_str())
                    .filter(|check| {
                        self.narrow.node_meta.is_empty()
                            || catalog
                                .node(&check.node)
                                .is_some_and(|node| self.narrow.allows_node(node))
                    })
                    .collect();
                self.sort(replica, &mut checks, |check| &check.node);
                self.list(checks.into_iter().map(|check| CheckView::new(check)))
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
            What::Session { id } => self.sessions(replica.sessions.session(*id).into_iter()),
            What::Sessions => self.sessions(replica.sessions.list()),
            What::NodeSessions { node } => self.sessions(replica.sessions.of_node(node)),
            What::Queries => {
                let all = replica.queries.list();
                self.list(all.map(|(id, query)| prepared::view(id, query)))
            }
            What::Query { id } => {
                let found = replica.queries.get(*id).into_iter();
                self.list(found.map(|query| prepared::view(*id, query)))
            }
            What::Places => self.list(replica.coordinates.list().map(node_place)),
            What::Place { node } => {
                // It is told by the name by which it was asked for.
                let found = replica.coordinates.get(node).into_iter();
                self.list(found.map(|place| node_place((node, place))))
            }
        }
    }

    fn instances<'a>(&self, replica: &'a Replica, name: &str, kind: Kind) -> Vec<Instance<'a>> {
        let found = replica.find(name, kind);
        let mut found: Vec<_> = found.filter(|it| self.narrow.allows(it)).collect();
        self.sort(replica, &mut found, |instance| &instance.node.name);
        found
    }

    /// A place that changed wakes nobody: only when something else did is all sorted anew.
    fn sort<T>(&self, replica: &Replica, items: &mut [T], node: impl Fn(&T) -> &str) {
        replica.coordinates.sort(&self.near, items, node);
    }

    fn sessions<'a>(&self, sessions: impl Iterator<Item = &'a Arc<Session>>) -> Reply {
        let sessions: Vec<_> = sessions.map(|session| SessionView::new(session)).collect();
        reply::json(&sessions, self.layout)
    }

    fn list<T: Serialize>(&self, items: impl Iterator<Item = T>) -> Reply {
        let items: Vec<T> = items.filter(|item| self.allows(item)).collect();
        reply::json(&items, self.layout)
    }

    fn allows<T: Serialize>(&self, item: &T) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.allows(item))
    }
}

fn node_place((node, place): (&String, &Place)) -> NodePlace {
    NodePlace {
        node: node.clone(),
        segment: "",
        coord: place.clone(),
    }
}

fn instance_stamp(stamp: &mut DefaultHasher, instance: &Instance<'_>) {
    let (node, service) = (instance.node, instance.service);
    (&node.name, node.modified, &service.id, service.modified).hash(stamp);
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
