//! Writes of the catalog with what follows from them: sessions end with their nodes and checks.

use tokio::time::Instant;

use super::State;
use super::catalog::Refused;
use super::model::{CRITICAL, Check};

impl State {
    /// Writes a check; sessions that are bound to it end when it is critical.
    pub(crate) fn write_check(
        &mut self,
        index: u64,
        check: Check,
        now: Instant,
    ) -> Result<(), Refused> {
        // A check without a status is critical.
        let critical = check.status == CRITICAL || check.status.is_empty();
        let (node, id) = (check.node.clone(), check.id.clone());
        self.replica.catalog.ensure_check(index, check)?;
        if critical {
            self.end_sessions_of_check(index, &node, &id, now);
        }
        Ok(())
    }

    /// Deletes a check, with the sessions that are bound to it.
    pub(crate) fn delete_check(&mut self, index: u64, node: &str, id: &str, now: Instant) {
        if self.replica.catalog.check(node, id).is_some() {
            self.replica.catalog.delete_check(index, node, id);
            self.end_sessions_of_check(index, node, id, now);
        }
    }

    /// Deletes a service and its checks, with the sessions that are bound to them.
    pub(crate) fn delete_service(&mut self, index: u64, node: &str, id: &str, now: Instant) {
        let catalog = &self.replica.catalog;
        if catalog.service(node, id).is_none() {
            return;
        }
        let checks: Vec<String> = catalog
            .checks_of(node, id)
            .map(|check| check.id.clone())
            .collect();
        self.replica.catalog.delete_service(index, node, id);
        for check in checks {
            self.end_sessions_of_check(index, node, &check, now);
        }
    }

    /// Deletes a node and all that is on it: services, checks, sessions and its place.
    pub(crate) fn delete_node(&mut self, index: u64, node: &str, now: Instant) {
        if self.replica.catalog.node(node).is_none() {
            return;
        }
        self.replica.catalog.delete_node(index, node);
        self.replica.coordinates.remove(index, node);
        let sessions: Vec<_> = self
            .replica
            .sessions
            .of_node(node)
            .map(|session| session.id)
            .collect();
        for id in sessions {
            self.invalidate(index, id, now);
        }
    }

    fn end_sessions_of_check(&mut self, index: u64, node: &str, check: &str, now: Instant) {
        for id in self.replica.sessions.of_check(node, check) {
            self.invalidate(index, id, now);
        }
    }
}
