//! How the agent brings what it knows into the catalog ("anti-entropy").

use std::sync::Arc;

use tokio::time::Instant;

use super::model::{Check, Service};
use super::{CONSUL, Due, Leader, SERF_HEALTH, SYNC_INTERVAL, State};

impl State {
    /// Tells the servers of one service and of all its checks, or that they are gone.
    pub(super) fn push_service(&mut self, id: &str, now: Instant) {
        if self.is_behind(now) {
            return;
        }
        self.ensure_node();
        let index = self.next_index();
        let node = self.identity.node.clone();
        let Some(service) = self.local.services.get(id).cloned() else {
            self.delete_service(index, &node, id, now);
            return;
        };
        self.tell_service(index, &service);
        let checks: Vec<Arc<Check>> = self
            .local
            .checks_of(id)
            .map(|local| Arc::clone(&local.check))
            .collect();
        let gone: Vec<String> = self
            .replica
            .catalog
            .checks_of(&node, id)
            .filter(|check| self.local.check(&check.id).is_none())
            .map(|check| check.id.clone())
            .collect();
        for check in checks {
            self.tell_check(index, &check, now);
        }
        for check in gone {
            let index = self.next_index();
            self.delete_check(index, &node, &check, now);
        }
    }

    /// Tells the servers of one check and its service, or that it is gone.
    pub(super) fn push_check(&mut self, id: &str, now: Instant) {
        if self.is_behind(now) {
            return;
        }
        self.ensure_node();
        let index = self.next_index();
        let Some(local) = self.local.check(id) else {
            let node = self.identity.node.clone();
            self.delete_check(index, &node, id, now);
            return;
        };
        let check = Arc::clone(&local.check);
        if let Some(service) = self.local.services.get(&check.service_id).cloned() {
            self.tell_service(index, &service);
        }
        self.tell_check(index, &check, now);
    }

    /// Compares the catalog with the agent's own list and repairs what differs.
    pub(super) fn sync_all(&mut self, now: Instant) {
        if self.is_behind(now) {
            return;
        }
        self.behind = false;
        self.ensure_node();
        let node = self.identity.node.clone();
        let catalog = &self.replica.catalog;
        let foreign_services: Vec<String> = catalog
            .node_services(&node)
            .filter(|service| {
                service.id != CONSUL && !self.local.services.contains_key(&service.id)
            })
            .map(|service| service.id.clone())
            .collect();
        let foreign_checks: Vec<String> = catalog
            .node_checks(&node)
            .filter(|check| check.id != SERF_HEALTH && self.local.check(&check.id).is_none())
            .map(|check| check.id.clone())
            .collect();
        for id in foreign_services {
            let index = self.next_index();
            self.delete_service(index, &node, &id, now);
        }
        for id in foreign_checks {
            let index = self.next_index();
            self.delete_check(index, &node, &id, now);
        }
        let services: Vec<Arc<Service>> = self.local.services.values().cloned().collect();
        for service in services {
            let known = self.replica.catalog.service(&node, &service.id);
            if !known.is_some_and(|known| known.is_same(&service)) {
                let index = self.next_index();
                self.tell_service(index, &service);
            }
        }
        let checks: Vec<Arc<Check>> = self
            .local
            .checks()
            .map(|local| Arc::clone(&local.check))
            .collect();
        for check in checks {
            let known = self.replica.catalog.check(&node, &check.id);
            if !known.is_some_and(|known| known.is_same(&check)) {
                let index = self.next_index();
                self.tell_check(index, &check, now);
            }
        }
    }

    /// The catalog was written by somebody else: the agent looks after its part within a minute.
    pub(crate) fn plan_sync(&mut self, now: Instant) {
        if self.sync_at.is_none() {
            let at = now + SYNC_INTERVAL;
            self.sync_at = Some(at);
            self.timers.insert((at, Due::Sync, String::new()));
        }
    }

    /// The servers have a leader again: what could not be told is told.
    pub(crate) fn elect(&mut self, now: Instant) {
        let former = std::mem::replace(&mut self.leader, Leader::Elected);
        if former != Leader::Elected {
            self.restart_ttls(now);
        }
        self.touch();
        if self.behind {
            self.sync_all(now);
        }
    }

    pub(crate) fn lose_leader(&mut self, now: Instant) {
        self.leader = Leader::Lost { at: now };
        // Nobody else can tell that a session expired.
        self.stop_ttls();
        self.losses += 1;
        self.touch();
    }

    pub(crate) fn is_present(&self) -> bool {
        self.present
    }

    /// The agent leaves, and the servers forget its node: services, checks and sessions.
    pub(crate) fn leave(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.present, false) {
            return;
        }
        self.behind = true;
        let index = self.next_index();
        let node = self.identity.node.clone();
        self.delete_node(index, &node, now);
    }

    /// An agent that left starts again with what it knew.
    pub(crate) fn rejoin(&mut self, now: Instant) {
        self.present = true;
        self.touch();
        if self.behind {
            self.sync_all(now);
        }
    }

    fn is_behind(&mut self, now: Instant) -> bool {
        if !self.present {
            self.behind = true;
            return true;
        }
        match self.leader {
            Leader::Elected => false,
            Leader::Lost { at } => {
                self.behind |= at <= now;
                true
            }
        }
    }

    /// Writes the agent's own node again if somebody deleted it.
    fn ensure_node(&mut self) {
        let catalog = &self.replica.catalog;
        let node = &self.identity.node;
        if catalog.node(node).is_none() || catalog.check(node, SERF_HEALTH).is_none() {
            self.next_index();
            self.ensure_self(false);
        }
    }

    // The node of the agent itself is there and the service is told before its checks,
    // so that the catalog has no reason to refuse either.

    fn tell_service(&mut self, index: u64, service: &Service) {
        let _ = self
            .replica
            .catalog
            .ensure_service(index, &self.identity.node, service.clone());
    }

    fn tell_check(&mut self, index: u64, check: &Check, now: Instant) {
        let _ = self.write_check(index, check.clone(), now);
    }
}
