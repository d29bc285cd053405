//! Nodes, services and checks as the servers keep them, with Consul's index rules.
//!
//! Each table has an index, each service name has one, and one tells when a service name last
//! became extinct. Which of them a query answers with was measured on Consul 1.8.7.

use std::collections::{BTreeMap, BTreeSet, btree_set};
use std::fmt;
use std::sync::Arc;

use super::model::{CRITICAL, Check, Node, Service};

#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    nodes: BTreeMap<String, Entry>,
    /// Service name → the instances of it.
    by_name: BTreeMap<String, BTreeSet<InstanceKey>>,
    /// Service name → the instances that take mesh traffic for it.
    by_connect_name: BTreeMap<String, BTreeSet<InstanceKey>>,
    indexes: Indexes,
}

/// Keys are lower case: the server looks nodes, services and checks up without regard to case.
type InstanceKey = (String, String);

#[derive(Clone, Debug, Default)]
struct Indexes {
    nodes: u64,
    services: u64,
    checks: u64,
    /// When a service was last written or deleted; unlike its index, no check moves it.
    services_written: u64,
    /// When a check was last written or deleted; unlike its index, no service moves it.
    checks_written: u64,
    /// The same for checks of services alone.
    service_checks_written: u64,
    by_service: BTreeMap<String, u64>,
    last_extinction: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    node: Arc<Node>,
    services: BTreeMap<String, Arc<Service>>,
    checks: BTreeMap<String, Arc<Check>>,
    /// (Service ID or empty, check ID), so that one instance's checks are found without a walk
    /// over the checks of all others on the node.
    checks_by_service: BTreeSet<(String, String)>,
}

/// One instance of a service with the node it runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instance<'a> {
    entry: &'a Entry,
    pub(crate) node: &'a Arc<Node>,
    pub(crate) service: &'a Arc<Service>,
}

impl<'a> Instance<'a> {
    /// The instance's checks by ID, without the node's own.
    pub(crate) fn own_checks(&self) -> impl Iterator<Item = &'a Arc<Check>> + use<'a> {
        self.entry.checks_of(&fold(&self.service.id))
    }

    /// The node's own checks, then the instance's, each by ID.
    pub(crate) fn checks(&self) -> impl Iterator<Item = &'a Arc<Check>> + use<'a> {
        self.entry.checks_of("").chain(self.own_checks())
    }
}

impl Entry {
    fn checks_of<'a>(&'a self, service_id: &str) -> impl Iterator<Item = &'a Arc<Check>> + use<'a> {
        let id = service_id.to_owned();
        self.checks_by_service
            .range((id.clone(), String::new())..)
            .take_while(move |(service, _)| *service == id)
            .filter_map(|(_, check)| self.checks.get(check))
    }
}

/// A walk over the instances of one name.
#[derive(Clone, Debug)]
pub(crate) struct Instances<'a> {
    nodes: &'a BTreeMap<String, Entry>,
    keys: Option<btree_set::Iter<'a, InstanceKey>>,
}

impl<'a> Iterator for Instances<'a> {
    type Item = Instance<'a>;

    fn next(&mut self) -> Option<Instance<'a>> {
        self.keys.as_mut()?.find_map(|(node, id)| {
            let entry = self.nodes.get(node)?;
            Some(Instance {
                entry,
                node: &entry.node,
                service: entry.services.get(id)?,
            })
        })
    }
}

/// What a service or a check lacks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    NoNode,
    NoService,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNode => "Missing node registration",
            Self::NoService => "Missing service registration",
        })
    }
}

fn fold(name: &str) -> String {
    name.to_lowercase()
}

impl Catalog {
    pub(crate) fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(&fold(name)).map(|entry| &entry.node)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().map(|entry| &entry.node)
    }

    pub(crate) fn service(&self, node: &str, id: &str) -> Option<&Arc<Service>> {
        self.nodes.get(&fold(node))?.services.get(&fold(id))
    }

    pub(crate) fn check(&self, node: &str, id: &str) -> Option<&Arc<Check>> {
        self.nodes.get(&fold(node))?.checks.get(&fold(id))
    }

    /// The checks of one service on one node by ID; of the node itself when the ID is empty.
    pub(crate) fn checks_of(&self, node: &str, service: &str) -> impl Iterator<Item = &Arc<Check>> {
        let service = fold(service);
        self.nodes
            .get(&fold(node))
            .into_iter()
            .flat_map(move |entry| entry.checks_of(&service))
    }

    /// The services on one node by ID.
    pub(crate) fn node_services(&self, node: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.nodes
            .get(&fold(node))
            .into_iter()
            .flat_map(|entry| entry.services.values())
    }

    /// The checks of one node, of the node itself and of its services, by ID.
    pub(crate) fn node_checks(&self, node: &str) -> impl Iterator<Item = &Arc<Check>> {
        self.nodes
            .get(&fold(node))
            .into_iter()
            .flat_map(|entry| entry.checks.values())
    }

    /// The instances of a service, by node and ID.
    pub(crate) fn instances(&self, name: &str) -> Instances<'_> {
        self.resolve(self.by_name.get(&fold(name)))
    }

    /// The instances that take mesh traffic for a service, by node and ID.
    pub(crate) fn connect_instances(&self, name: &str) -> Instances<'_> {
        self.resolve(self.by_connect_name.get(&fold(name)))
    }

    /// All instances, by service name.
    pub(crate) fn all_instances(&self) -> impl Iterator<Item = Instance<'_>> {
        self.by_name
            .values()
            .flat_map(|keys| self.resolve(Some(keys)))
    }

    /// The checks of all nodes, by node and ID.
    pub(crate) fn all_checks(&self) -> impl Iterator<Item = &Arc<Check>> {
        self.nodes.values().flat_map(|entry| entry.checks.values())
    }

    fn resolve<'a>(&'a self, keys: Option<&'a BTreeSet<InstanceKey>>) -> Instances<'a> {
        Instances {
            nodes: &self.nodes,
            keys: keys.map(BTreeSet::iter),
        }
    }

    pub(crate) fn nodes_index(&self) -> u64 {
        self.indexes.nodes
    }

    pub(crate) fn services_index(&self) -> u64 {
        self.indexes.services
    }

    pub(crate) fn checks_index(&self) -> u64 {
        self.indexes.checks
    }

    pub(crate) fn services_written(&self) -> u64 {
        self.indexes.services_written
    }

    pub(crate) fn checks_written(&self) -> u64 {
        self.indexes.checks_written
    }

    pub(crate) fn service_checks_written(&self) -> u64 {
        self.indexes.service_checks_written
    }

    /// The index of a query for one service name.
    ///
    /// A name without instances answers with the last extinction of any name, so that a watch on
    /// it is woken by neither changes nor arrivals of others; before the first extinction it
    /// answers with the tables' indexes.
    pub(crate) fn service_index(&self, name: &str, exists: bool, with_checks: bool) -> u64 {
        if !exists && let Some(index) = self.indexes.last_extinction {
            return index;
        }
        if let Some(index) = self.indexes.by_service.get(&fold(name)) {
            return *index;
        }
        let tables = self.indexes.nodes.max(self.indexes.services);
        if with_checks {
            tables.max(self.indexes.checks)
        } else {
            tables
        }
    }

    /// Writes a node; an identical one changes nothing.
    pub(crate) fn ensure_node(&mut self, index: u64, mut node: Node) {
        let key = fold(&node.name);
        if let Some(entry) = self.nodes.get_mut(&key) {
            node.created = entry.node.created;
            node.modified = entry.node.modified;
            if *entry.node == node {
                return;
            }
            node.modified = index;
            entry.node = Arc::new(node);
            self.touch_services_of(index, &key);
        } else {
            node.created = index;
            node.modified = index;
            self.nodes.insert(
                key,
                Entry {
                    node: Arc::new(node),
                    ..Entry::default()
                },
            );
        }
        self.indexes.nodes = index;
    }

    /// Writes a service of a known node; an identical one changes nothing.
    pub(crate) fn ensure_service(
        &mut self,
        index: u64,
        node: &str,
        mut service: Service,
    ) -> Result<(), Refused> {
        let node_key = fold(node);
        let Some(entry) = self.nodes.get_mut(&node_key) else {
            return Err(Refused::NoNode);
        };
        let key = (node_key, fold(&service.id));
        let former = entry.services.get(&key.1).cloned();
        service.created = index;
        service.modified = index;
        if let Some(former) = &former {
            service.created = former.created;
            if former.is_same(&service) {
                return Ok(());
            }
        }
        let name = fold(&service.name);
        let connect_name = service.connect_name().map(fold);
        entry.services.insert(key.1.clone(), Arc::new(service));
        if let Some(former) = former {
            // A changed name is no extinction to Consul 1.8.7: who waits for the old name sleeps on.
            self.unlist(&key, &former);
        }
        if let Some(connect_name) = connect_name {
            self.by_connect_name
                .entry(connect_name)
                .or_default()
                .insert(key.clone());
        }
        self.by_name.entry(name.clone()).or_default().insert(key);
        self.indexes.by_service.insert(name, index);
        self.indexes.services = index;
        self.indexes.services_written = index;
        Ok(())
    }

    /// Writes a check of a known node, and of a known service if it names one.
    pub(crate) fn ensure_check(&mut self, index: u64, mut check: Check) -> Result<(), Refused> {
        let node_key = fold(&check.node);
        let Some(entry) = self.nodes.get_mut(&node_key) else {
            return Err(Refused::NoNode);
        };
        if check.status.is_empty() {
            check.status = CRITICAL.into();
        }
        let service_key = fold(&check.service_id);
        if !check.service_id.is_empty() {
            let Some(service) = entry.services.get(&service_key) else {
                return Err(Refused::NoService);
            };
            check.service_name.clone_from(&service.name);
            check.service_tags = Arc::clone(&service.tags);
        }
        check.created = index;
        check.modified = index;
        check.written = index;
        let mut changed = true;
        let check_key = fold(&check.id);
        if let Some(former) = entry.checks.get(&check_key) {
            check.created = former.created;
            if former.is_same(&check) {
                check.modified = former.modified;
                changed = false;
            }
            let former_key = (fold(&former.service_id), fold(&former.id));
            entry.checks_by_service.remove(&former_key);
        }
        entry
            .checks_by_service
            .insert((service_key, check_key.clone()));
        let service_name = fold(&check.service_name);
        entry.checks.insert(check_key, Arc::new(check));
        if changed {
            self.touch(index, &node_key, &service_name);
        }
        // The table's index moves even when the check is the same.
        self.indexes.checks = index;
        self.note_check(index, &service_name);
        Ok(())
    }

    pub(crate) fn delete_check(&mut self, index: u64, node: &str, id: &str) {
        let node_key = fold(node);
        let Some(entry) = self.nodes.get_mut(&node_key) else {
            return;
        };
        let Some(check) = entry.checks.remove(&fold(id)) else {
            return;
        };
        entry
            .checks_by_service
            .remove(&(fold(&check.service_id), fold(&check.id)));
        if check.service_id.is_empty() {
            self.indexes.services = index;
        }
        let service_name = fold(&check.service_name);
        self.touch(index, &node_key, &service_name);
        self.indexes.checks = index;
        self.note_check(index, &service_name);
    }

    pub(crate) fn delete_service(&mut self, index: u64, node: &str, id: &str) {
        let key = (fold(node), fold(id));
        let Some(entry) = self.nodes.get_mut(&key.0) else {
            return;
        };
        let Some(service) = entry.services.get(&key.1).cloned() else {
            return;
        };
        let checks: Vec<String> = entry
            .checks_of(&key.1)
            .map(|check| check.id.clone())
            .collect();
        for check in checks {
            self.delete_check(index, node, &check);
        }
        if let Some(entry) = self.nodes.get_mut(&key.0) {
            entry.services.remove(&key.1);
        }
        self.unlist(&key, &service);
        let name = fold(&service.name);
        if self.by_name.contains_key(&name) {
            self.indexes.by_service.insert(name, index);
        } else {
            self.indexes.by_service.remove(&name);
            self.indexes.last_extinction = Some(index);
        }
        self.indexes.checks = index;
        self.indexes.services = index;
        self.indexes.services_written = index;
    }

    pub(crate) fn delete_node(&mut self, index: u64, node: &str) {
        let key = fold(node);
        let Some(entry) = self.nodes.get(&key) else {
            return;
        };
        let services: Vec<String> = entry.services.keys().cloned().collect();
        let checks: Vec<String> = entry.checks.keys().cloned().collect();
        for id in services {
            self.delete_service(index, node, &id);
        }
        for id in checks {
            self.delete_check(index, node, &id);
        }
        self.nodes.remove(&key);
        self.indexes.nodes = index;
    }

    /// Takes an instance off the lists of its names.
    fn unlist(&mut self, key: &InstanceKey, service: &Service) {
        if let Some(name) = service.connect_name() {
            take(&mut self.by_connect_name, &fold(name), key);
        }
        take(&mut self.by_name, &fold(&service.name), key);
    }

    fn note_check(&mut self, index: u64, service_name: &str) {
        self.indexes.checks_written = index;
        if !service_name.is_empty() {
            self.indexes.service_checks_written = index;
        }
    }

    /// A check changed: its service, or without one every service of its node, has a new index.
    fn touch(&mut self, index: u64, node_key: &str, service_name: &str) {
        if service_name.is_empty() {
            self.touch_services_of(index, node_key);
        } else if let Some(known) = self.indexes.by_service.get_mut(service_name) {
            *known = index;
        }
    }

    fn touch_services_of(&mut self, index: u64, node_key: &str) {
        let Some(entry) = self.nodes.get(node_key) else {
            return;
        };
        for service in entry.services.values() {
            if let Some(known) = self.indexes.by_service.get_mut(&fold(&service.name)) {
                *known = index;
            }
        }
    }
}

fn take(names: &mut BTreeMap<String, BTreeSet<InstanceKey>>, name: &str, key: &InstanceKey) {
    if let Some(keys) = names.get_mut(name) {
        keys.remove(key);
        if keys.is_empty() {
            names.remove(name);
        }
    }
}
