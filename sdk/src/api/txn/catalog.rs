//! Operations on the catalog: nodes, instances of services, checks.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{Body, Expected, Op, Tenancy};
use crate::api::catalog::{self, NewCheck, NewService};
use crate::error::{Error, Result};
use crate::ident::{CheckId, NodeName, ServiceId, ServiceName};

/// A node to be put into the catalog by a transaction.
///
/// Only what is set is sent. What was wrong is told when the transaction is awaited.
#[derive(Clone, Debug)]
#[must_use = "a node does nothing until it is put into a transaction"]
pub struct NewNode {
    node: Result<Node>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Node {
    #[serde(rename = "Node")]
    name: NodeName,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modify_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) partition: Option<String>,
}

impl NewNode {
    /// A node under this name, reached at this address (an IP or a host name).
    pub fn new(node: impl Into<Arc<str>>, address: impl Into<String>) -> Self {
        let address = address.into();
        let node = Node::named(node).and_then(|node| {
            if address.is_empty() {
                return Err(Error::invalid("node address: must not be empty"));
            }
            Ok(Node {
                address: Some(address),
                ..node
            })
        });
        Self { node }
    }

    /// A UUID for the node, by which it may be renamed later. Default: none.
    #[doc(alias = "ID")]
    pub fn id(self, uuid: impl Into<String>) -> Self {
        self.with(|node| node.id = Some(uuid.into()))
    }

    /// A further address under a name, such as `wan`. Default: none.
    pub fn tagged_address(self, name: impl Into<String>, address: impl Into<String>) -> Self {
        self.with(|node| {
            node.tagged_addresses.insert(name.into(), address.into());
        })
    }

    /// A piece of metadata. Default: none. The limits are those of
    /// [`Entry::meta`](crate::api::catalog::Entry::meta).
    pub fn meta(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|node| {
            node.meta.insert(key.into(), value.into());
        })
    }

    fn with(mut self, change: impl FnOnce(&mut Node)) -> Self {
        if let Ok(node) = &mut self.node {
            change(node);
        }
        self
    }
}

impl Node {
    fn named(name: impl Into<Arc<str>>) -> Result<Self> {
        Ok(Self {
            name: NodeName::new(name)?,
            address: None,
            id: None,
            tagged_addresses: BTreeMap::new(),
            meta: BTreeMap::new(),
            modify_index: None,
            partition: None,
        })
    }

    fn at(self, modify_index: u64) -> Self {
        Self {
            modify_index: Some(modify_index),
            ..self
        }
    }
}

/// An operation on a node of the catalog, in a transaction.
#[derive(Clone, Debug)]
#[must_use = "an operation does nothing until it is put into a transaction"]
pub struct NodeOp {
    op: Result<Op>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeBody {
    verb: &'static str,
    pub(super) node: Node,
}

impl NodeOp {
    /// Reads a node that must exist.
    pub fn get(node: impl Into<Arc<str>>) -> Self {
        Self::new("get", Node::named(node))
    }

    /// Writes a node, whether it exists or not.
    pub fn set(node: NewNode) -> Self {
        Self::new("set", node.node)
    }

    /// Writes a node if it was last changed at this index; 0 means if it does not exist.
    pub fn cas(node: NewNode, modify_index: u64) -> Self {
        Self::new("cas", node.node.map(|node| node.at(modify_index)))
    }

    /// Deletes a node with its services and checks, which ends its sessions; a missing one is no
    /// failure.
    pub fn delete(node: impl Into<Arc<str>>) -> Self {
        Self::new("delete", Node::named(node))
    }

    /// Deletes a node if it was last changed at this index; a missing one is a failure.
    pub fn delete_cas(node: impl Into<Arc<str>>, modify_index: u64) -> Self {
        let node = Node::named(node).map(|node| node.at(modify_index));
        Self::new("delete-cas", node)
    }

    fn new(verb: &'static str, node: Result<Node>) -> Self {
        let op = node.map(|node| Op {
            writes: writes(verb),
            result: match deletes(verb) {
                true => Expected::Nothing,
                false => Expected::Node(node.name.clone()),
            },
            body: Body::Node(NodeBody { verb, node }),
        });
        Self { op }
    }

    pub(super) fn into_op(self) -> Result<Op> {
        self.op
    }
}

/// An operation on an instance of a service in the catalog, in a transaction.
///
/// Consul takes fewer fields of a service here than elsewhere, and leaves the others out without a
/// word: tagged addresses, unix sockets and the mesh, and in old versions kind and proxy as well
/// (measured on 1.8.7, read in the source of later ones).
#[derive(Clone, Debug)]
#[must_use = "an operation does nothing until it is put into a transaction"]
pub struct ServiceOp {
    op: Result<Op>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceBody {
    verb: &'static str,
    node: NodeName,
    pub(super) service: Service,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Service {
    #[serde(flatten)]
    form: ServiceForm,
    #[serde(skip_serializing_if = "Option::is_none")]
    modify_index: Option<u64>,
    #[serde(flatten)]
    pub(super) tenancy: Tenancy,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum ServiceForm {
    New(Box<catalog::ServiceBody>),
    Known {
        #[serde(rename = "ID")]
        id: ServiceId,
        #[serde(rename = "Service", skip_serializing_if = "Option::is_none")]
        name: Option<ServiceName>,
    },
}

impl ServiceOp {
    /// Reads an instance that must exist, by its ID.
    pub fn get(node: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Self {
        let form = ServiceId::new(id).map(|id| ServiceForm::Known { id, name: None });
        Self::new("get", node, form, None)
    }

    /// Writes an instance at a node that must exist, whether it exists or not.
    pub fn set(node: impl Into<Arc<str>>, service: NewService) -> Self {
        let form = service.into_body().map(Box::new).map(ServiceForm::New);
        Self::new("set", node, form, None)
    }

    /// Writes an instance if it was last changed at this index; 0 means if it does not exist.
    pub fn cas(node: impl Into<Arc<str>>, service: NewService, modify_index: u64) -> Self {
        let form = service.into_body().map(Box::new).map(ServiceForm::New);
        Self::new("cas", node, form, Some(modify_index))
    }

    /// Deletes an instance with its checks; a missing one is no failure.
    ///
    /// Consul wants the service's name with the ID, for the token must have the right to write it.
    pub fn delete(
        node: impl Into<Arc<str>>,
        service: impl Into<Arc<str>>,
        id: impl Into<Arc<str>>,
    ) -> Self {
        Self::new("delete", node, known(service, id), None)
    }

    /// Deletes an instance if it was last changed at this index; a missing one is a failure.
    pub fn delete_cas(
        node: impl Into<Arc<str>>,
        service: impl Into<Arc<str>>,
        id: impl Into<Arc<str>>,
        modify_index: u64,
    ) -> Self {
        Self::new("delete-cas", node, known(service, id), Some(modify_index))
    }

    fn new(
        verb: &'static str,
        node: impl Into<Arc<str>>,
        form: Result<ServiceForm>,
        modify_index: Option<u64>,
    ) -> Self {
        let op = NodeName::new(node).and_then(|node| {
            let form = form?;
            Ok(Op {
                writes: writes(verb),
                result: match (&form, deletes(verb)) {
                    (_, true) => Expected::Nothing,
                    (ServiceForm::New(body), false) => Expected::Service(body.id()?),
                    (ServiceForm::Known { id, .. }, false) => Expected::Service(id.clone()),
                },
                body: Body::Service(Box::new(ServiceBody {
                    verb,
                    node,
                    service: Service {
                        form,
                        modify_index,
                        tenancy: Tenancy::default(),
                    },
                })),
            })
        });
        Self { op }
    }

    pub(super) fn into_op(self) -> Result<Op> {
        self.op
    }
}

fn known(service: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Result<ServiceForm> {
    Ok(ServiceForm::Known {
        name: Some(ServiceName::new(service)?),
        id: ServiceId::new(id)?,
    })
}

/// An operation on a check in the catalog, in a transaction.
#[derive(Clone, Debug)]
#[must_use = "an operation does nothing until it is put into a transaction"]
pub struct CheckOp {
    op: Result<Op>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CheckBody {
    verb: &'static str,
    pub(super) check: Check,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Check {
    #[serde(flatten)]
    form: CheckForm,
    #[serde(skip_serializing_if = "Option::is_none")]
    modify_index: Option<u64>,
    #[serde(flatten)]
    pub(super) tenancy: Tenancy,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum CheckForm {
    New(Box<catalog::CheckBody>),
    Known {
        #[serde(rename = "Node")]
        node: NodeName,
        #[serde(rename = "CheckID")]
        id: CheckId,
    },
}

impl CheckOp {
    /// Reads a check that must exist.
    pub fn get(node: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Self {
        Self::known("get", node, id, None)
    }

    /// Writes a check of a node that must exist, as must the instance that is checked.
    pub fn set(node: impl Into<Arc<str>>, check: NewCheck) -> Self {
        Self::fresh("set", node, check, None)
    }

    /// Writes a check if it was last changed at this index; 0 means if it does not exist.
    pub fn cas(node: impl Into<Arc<str>>, check: NewCheck, modify_index: u64) -> Self {
        Self::fresh("cas", node, check, Some(modify_index))
    }

    /// Deletes a check; a missing one is no failure.
    pub fn delete(node: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Self {
        Self::known("delete", node, id, None)
    }

    /// Deletes a check if it was last changed at this index; a missing one is a failure.
    pub fn delete_cas(
        node: impl Into<Arc<str>>,
        id: impl Into<Arc<str>>,
        modify_index: u64,
    ) -> Self {
        Self::known("delete-cas", node, id, Some(modify_index))
    }

    fn known(
        verb: &'static str,
        node: impl Into<Arc<str>>,
        id: impl Into<Arc<str>>,
        modify_index: Option<u64>,
    ) -> Self {
        let op = NodeName::new(node).and_then(|node| {
            let id = CheckId::new(id)?;
            let result = match deletes(verb) {
                true => Expected::Nothing,
                false => Expected::Check(node.clone(), id.clone()),
            };
            let form = CheckForm::Known { node, id };
            Ok(Self::op(verb, form, modify_index, result))
        });
        Self { op }
    }

    fn fresh(
        verb: &'static str,
        node: impl Into<Arc<str>>,
        check: NewCheck,
        modify_index: Option<u64>,
    ) -> Self {
        let op = NodeName::new(node).and_then(|node| {
            let body = check.into_body(node.clone())?;
            let result = Expected::Check(node, body.id().clone());
            let form = CheckForm::New(Box::new(body));
            Ok(Self::op(verb, form, modify_index, result))
        });
        Self { op }
    }

    fn op(verb: &'static str, form: CheckForm, modify_index: Option<u64>, result: Expected) -> Op {
        let check = Check {
            form,
            modify_index,
            tenancy: Tenancy::default(),
        };
        Op {
            body: Body::Check(Box::new(CheckBody { verb, check })),
            writes: writes(verb),
            result,
        }
    }

    pub(super) fn into_op(self) -> Result<Op> {
        self.op
    }
}

/// Of all operations on the catalog only this one leaves it as it is.
fn writes(verb: &str) -> bool {
    verb != "get"
}

fn deletes(verb: &str) -> bool {
    matches!(verb, "delete" | "delete-cas")
}
