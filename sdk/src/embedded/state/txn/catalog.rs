//! The steps of a transaction that are of the catalog.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Found, Verb, Why};
use crate::embedded::state::State;
use crate::embedded::state::model::{Check, Node, Service};
use crate::embedded::state::session::no_hex_digit;

impl State {
    pub(super) fn node_step(
        &mut self,
        index: u64,
        verb: &Verb,
        node: Node,
        now: Instant,
    ) -> Result<Option<Found>, Why> {
        let name = node.name.clone();
        let stale = |done| Why::Catalog(format!("failed to {done} node {name:?}, index is stale"));
        let catalog = &mut self.replica.catalog;
        let modified = catalog.node(&name).map(|known| known.modified);
        match verb {
            Verb::Get => {
                let known = if node.id.is_empty() {
                    catalog.node(&name)
                } else {
                    check_node_id(&node.id).map_err(|wrong| {
                        let id = &node.id;
                        Why::Catalog(format!(
                            "node lookup by ID failed, wrong UUID: {wrong} for '{id}'"
                        ))
                    })?;
                    catalog.nodes().find(|known| known.id == node.id)
                };
                return match known {
                    Some(known) => Ok(Some(Found::Node(Arc::clone(known)))),
                    None => Err(Why::Catalog(format!("node {name:?} doesn't exist"))),
                };
            }
            Verb::Set => catalog.ensure_node(index, node),
            Verb::Cas => {
                if !is_current(modified, node.modified) {
                    return Err(stale("set"));
                }
                catalog.ensure_node(index, node);
            }
            Verb::Delete => {
                self.delete_node(index, &name, now);
                return Ok(None);
            }
            Verb::DeleteCas => {
                if modified != Some(node.modified) {
                    return Err(stale("delete"));
                }
                self.delete_node(index, &name, now);
                return Ok(None);
            }
            Verb::Unknown(verb) => return Err(Why::UnknownVerb("Node", verb.clone())),
        }
        Ok(self.replica.catalog.node(&name).cloned().map(Found::Node))
    }

    pub(super) fn service_step(
        &mut self,
        index: u64,
        verb: &Verb,
        node: &str,
        service: Service,
        now: Instant,
    ) -> Result<Option<Found>, Why> {
        let id = service.id.clone();
        let stale = |done| {
            Why::Catalog(format!(
                "failed to {done} service {id:?} on node {node:?}, index is stale"
            ))
        };
        let known = self.replica.catalog.service(node, &id);
        let modified = known.map(|known| known.modified);
        match verb {
            Verb::Get => {
                return match known {
                    Some(known) => Ok(Some(Found::Service(Arc::clone(known)))),
                    None => Err(Why::Catalog(format!(
                        "service {id:?} on node {node:?} doesn't exist"
                    ))),
                };
            }
            Verb::Set => {}
            Verb::Cas => {
                if !is_current(modified, service.modified) {
                    return Err(stale("set"));
                }
            }
            Verb::Delete => {
                self.delete_service(index, node, &id, now);
                return Ok(None);
            }
            Verb::DeleteCas => {
                if modified != Some(service.modified) {
                    return Err(stale("delete"));
                }
                self.delete_service(index, node, &id, now);
                return Ok(None);
            }
            Verb::Unknown(verb) => return Err(Why::UnknownVerb("Service", verb.clone())),
        }
        let catalog = &mut self.replica.catalog;
        if catalog.node(node).is_some() && id.is_empty() {
            return Err(unidentified("service"));
        }
        catalog
            .ensure_service(index, node, service)
            .map_err(|refused| Why::Catalog(refused.to_string()))?;
        Ok(catalog.service(node, &id).cloned().map(Found::Service))
    }

    pub(super) fn check_step(
        &mut self,
        index: u64,
        verb: &Verb,
        check: Check,
        now: Instant,
    ) -> Result<Option<Found>, Why> {
        let (id, node) = (check.id.clone(), check.node.clone());
        let stale = |done| {
            Why::Catalog(format!(
                "failed to {done} check {id:?} on node {node:?}, index is stale"
            ))
        };
        let known = self.replica.catalog.check(&node, &id);
        let modified = known.map(|known| known.modified);
        match verb {
            Verb::Get => {
                return match known {
                    Some(known) => Ok(Some(Found::Check(Arc::clone(known)))),
                    None => Err(Why::Catalog(format!(
                        "check {id:?} on node {node:?} doesn't exist"
                    ))),
                };
            }
            Verb::Set => self.set_check(index, check, now)?,
            Verb::Cas => {
                if !is_current(modified, check.modified) {
                    return Err(stale("set"));
                }
                // Consul 1.8.7 forgets why it could not write, and goes on.
                let _ = self.set_check(index, check, now);
            }
            Verb::Delete => {
                self.delete_check(index, &node, &id, now);
                return Ok(None);
            }
            Verb::DeleteCas => {
                if modified != Some(check.modified) {
                    return Err(stale("delete"));
                }
                self.delete_check(index, &node, &id, now);
                return Ok(None);
            }
            Verb::Unknown(verb) => return Err(Why::UnknownVerb("Check", verb.clone())),
        }
        let written = self.replica.catalog.check(&node, &id).cloned();
        Ok(written.map(Found::Check))
    }

    fn set_check(&mut self, index: u64, check: Check, now: Instant) -> Result<(), Why> {
        if check.id.is_empty() && self.replica.catalog.node(&check.node).is_some() {
            return Err(unidentified("check"));
        }
        self.write_check(index, check, now)
            .map_err(|refused| Why::Catalog(refused.to_string()))
    }
}

/// Whether a check-and-set may go on: zero means "only if absent".
fn is_current(modified: Option<u64>, asked: u64) -> bool {
    modified.unwrap_or(0) == asked
}

fn unidentified(what: &str) -> Why {
    Why::Catalog(format!(
        "failed inserting {what}: object missing primary index"
    ))
}

/// Gives a service without an ID its name.
pub(super) fn name_service(service: &mut Service) -> Result<(), Why> {
    if service.name.is_empty() && !service.id.is_empty() {
        let text = "Must provide service name with ID";
        return Err(Why::Catalog(text.to_owned()));
    }
    if service.id.is_empty() {
        service.id.clone_from(&service.name);
    }
    Ok(())
}

/// Why a text is no ID of a node; none at all is allowed.
pub(crate) fn check_node_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        return Ok(());
    }
    if id.len() != 36 {
        return Err("uuid string is wrong length".to_owned());
    }
    let at_hyphens = |at| matches!(at, 8 | 13 | 18 | 23);
    for (at, byte) in id.bytes().enumerate() {
        if at_hyphens(at) && byte != b'-' {
            return Err("uuid is improperly formatted".to_owned());
        }
    }
    for (at, byte) in id.bytes().enumerate() {
        if !at_hyphens(at) && !byte.is_ascii_hexdigit() {
            return Err(no_hex_digit(byte));
        }
    }
    Ok(())
}
