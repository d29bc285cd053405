//! Transactions: several reads and writes that happen together or not at all.
//!
//! Usable without HTTP. A transaction over keys alone costs what it changes; one that writes the
//! catalog copies the catalog, so that it can be taken back.

mod catalog;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

pub(crate) use self::catalog::check_node_id;
use self::catalog::name_service;
use super::State;
use super::catalog::Catalog;
use super::kv::Entry;
use super::locks::LockRefused;
use super::model::{Check, Node, Service};
use super::session::{Named, SessionId, Sessions};

/// One step of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Kv(KvOp),
    Node(Verb, Node),
    /// A service on the node with this name.
    Service(Verb, String, Service),
    Check(Verb, Check),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct KvOp {
    pub(crate) verb: KvVerb,
    pub(crate) key: String,
    pub(crate) value: Bytes,
    pub(crate) flags: u64,
    pub(crate) index: u64,
    pub(crate) session: Named,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum KvVerb {
    Set,
    Cas,
    Lock,
    Unlock,
    #[default]
    Get,
    GetTree,
    CheckIndex,
    CheckSession,
    CheckNotExists,
    Delete,
    DeleteCas,
    DeleteTree,
    Unknown(String),
}

/// What is done to a node, a service or a check; its `modified` is the index to compare with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verb {
    Get,
    Set,
    Cas,
    Delete,
    DeleteCas,
    Unknown(String),
}

/// What one step found or wrote. Steps that delete, and those that found nothing, have none.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// A key with its value.
    Key(String, Entry),
    /// A key of which the value is not told.
    Bare(String, Entry),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Check(Arc<Check>),
}

/// A step that failed, and with it the transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    /// The number of the step, from zero.
    pub(crate) op: usize,
    pub(crate) why: Why,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Why {
    NoKey,
    /// A key that could not be locked.
    Lock(String, LockRefused),
    NotHeld(String),
    /// A key whose index is another one than a `cas` or `delete-cas` said.
    Stale(&'static str, String),
    Missing(String),
    Exists(String),
    /// The key of a check of its index or its session is not there.
    Unchecked(&'static str, String),
    Index {
        key: String,
        current: u64,
        asked: u64,
    },
    Session {
        key: String,
        current: Option<SessionId>,
        asked: String,
    },
    UnknownVerb(&'static str, String),
    /// What a node, a service or a check lacks, in Consul's words.
    Catalog(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str("Must provide key"),
            Self::Lock(key, refused @ LockRefused::Held) => {
                write!(f, "failed to lock key {key:?}, {refused}")
            }
            Self::Lock(key, refused @ LockRefused::Delayed) => {
                write!(f, "failed to lock key {key:?} due to {refused}")
            }
            Self::Lock(_, refused) => refused.fmt(f),
            Self::NotHeld(key) => write!(
                f,
                "failed to unlock key {key:?}, lock isn't held, or is held by another session"
            ),
            Self::Stale(verb, key) => write!(f, "failed to {verb} key {key:?}, index is stale"),
            Self::Missing(key) => write!(f, "key {key:?} doesn't exist"),
            Self::Exists(key) => write!(f, "key {key:?} exists"),
            Self::Unchecked(what, key) => {
                write!(f, "failed to check {what}, key {key:?} doesn't exist")
            }
            Self::Index {
                key,
                current,
                asked,
            } => write!(
                f,
                "failed index check for key {key:?}, current modify index {current} != {asked}"
            ),
            Self::Session {
                key,
                current,
                asked,
            } => {
                let current = current.map(|id| id.to_string()).unwrap_or_default();
                write!(
                    f,
                    "failed session check for key {key:?}, current session {current:?} != {asked:?}"
                )
            }
            Self::UnknownVerb(of, verb) => write!(f, "unknown {of} verb {verb:?}"),
            Self::Catalog(text) => f.write_str(text),
        }
    }
}

impl Op {
    /// Whether the step makes a transaction one that the servers have to agree on.
    pub(crate) fn is_write(&self) -> bool {
        match self {
            Self::Kv(op) => matches!(
                op.verb,
                KvVerb::Set
                    | KvVerb::Cas
                    | KvVerb::Lock
                    | KvVerb::Unlock
                    | KvVerb::Delete
                    | KvVerb::DeleteCas
                    | KvVerb::DeleteTree
            ),
            Self::Node(verb, _) | Self::Service(verb, ..) | Self::Check(verb, _) => {
                *verb != Verb::Get
            }
        }
    }

    /// Whether the step is of the catalog and may change it.
    fn writes_catalog(&self) -> bool {
        !matches!(self, Self::Kv(_)) && self.is_write()
    }
}

impl State {
    /// Carries out all steps under one index, or none of them.
    ///
    /// A transaction without writes takes no index.
    ///
    /// # Errors
    ///
    /// All steps that failed: those after the first one were tried as well.
    pub(crate) fn transact(
        &mut self,
        mut ops: Vec<Op>,
        now: Instant,
    ) -> Result<Vec<Found>, Vec<Failure>> {
        self.look_over(&mut ops, now)?;
        let writes = ops.iter().any(Op::is_write);
        let index = if writes {
            self.next_index()
        } else {
            self.index()
        };
        let mut copy: Option<(Catalog, Sessions)> = None;
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        self.replica.kv.begin();
        for (at, op) in ops.into_iter().enumerate() {
            if copy.is_none() && op.writes_catalog() {
                copy = Some((self.replica.catalog.clone(), self.replica.sessions.clone()));
            }
            let done = match op {
                Op::Kv(op) => self.step(index, op, &mut found, now),
                Op::Node(verb, node) => self.node_step(index, &verb, node, now),
                Op::Service(verb, node, service) => {
                    self.service_step(index, &verb, &node, service, now)
                }
                Op::Check(verb, check) => self.check_step(index, &verb, check, now),
            };
            match done {
                Ok(one) => found.extend(one),
                Err(why) => failures.push(Failure { op: at, why }),
            }
        }
        let wrote_catalog = copy.is_some();
        if failures.is_empty() {
            self.replica.kv.commit();
            if wrote_catalog {
                self.plan_sync(now);
            }
            return Ok(found);
        }
        // What sessions left behind stays: the delay of a lock is no part of a transaction.
        self.replica.kv.roll_back();
        if let Some((catalog, sessions)) = copy {
            self.replica.catalog = catalog;
            self.replica.sessions = sessions;
        }
        Err(failures)
    }

    /// What a server refuses before it asks the others, and what it fills in.
    fn look_over(&self, ops: &mut [Op], now: Instant) -> Result<(), Vec<Failure>> {
        let mut failures = Vec::new();
        for (at, op) in ops.iter_mut().enumerate() {
            let looked = match op {
                Op::Kv(op) if op.key.is_empty() && op.verb != KvVerb::DeleteTree => Err(Why::NoKey),
                Op::Kv(op) if op.verb == KvVerb::Lock && self.is_delayed(&op.key, now) => {
                    Err(Why::Lock(op.key.clone(), LockRefused::Delayed))
                }
                Op::Kv(_)
                | Op::Node(Verb::Get, _)
                | Op::Service(Verb::Get, ..)
                | Op::Check(Verb::Get, _) => Ok(()),
                Op::Node(_, node) if node.name.is_empty() => {
                    Err(Why::Catalog("Must provide node".to_owned()))
                }
                Op::Node(_, node) => check_node_id(&node.id)
                    .map_err(|wrong| Why::Catalog(format!("Bad node ID: {wrong}"))),
                Op::Service(_, _, service) => name_service(service),
                Op::Check(_, check) => {
                    if check.id.is_empty() {
                        check.id.clone_from(&check.name);
                    }
                    Ok(())
                }
            };
            if let Err(why) = looked {
                failures.push(Failure { op: at, why });
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    fn step(
        &mut self,
        index: u64,
        op: KvOp,
        found: &mut Vec<Found>,
        now: Instant,
    ) -> Result<Option<Found>, Why> {
        let (key, kv) = (op.key, &mut self.replica.kv);
        match op.verb {
            KvVerb::Set => kv.put(index, &key, op.flags, op.value),
            KvVerb::Cas => {
                if !kv.cas(index, &key, op.index, op.flags, op.value) {
                    return Err(Why::Stale("set", key));
                }
            }
            KvVerb::Lock => {
                self.lock(index, &key, &op.session, op.flags, op.value)
                    .map_err(|refused| Why::Lock(key.clone(), refused))?;
            }
            KvVerb::Unlock => {
                let done = self
                    .unlock(index, &key, &op.session, op.flags, op.value)
                    .map_err(|refused| Why::Lock(key.clone(), refused))?;
                if !done {
                    return Err(Why::NotHeld(key));
                }
            }
            KvVerb::Get => {
                let Some(entry) = kv.entry(&key).cloned() else {
                    return Err(Why::Missing(key));
                };
                return Ok(Some(Found::Key(key, entry)));
            }
            KvVerb::GetTree => {
                let tree = kv.list(&key);
                found.extend(tree.map(|(key, entry)| Found::Key(key.clone(), entry.clone())));
                return Ok(None);
            }
            KvVerb::CheckIndex => match kv.entry(&key) {
                None => return Err(Why::Unchecked("index", key)),
                Some(entry) if entry.modified != op.index => {
                    return Err(Why::Index {
                        key,
                        current: entry.modified,
                        asked: op.index,
                    });
                }
                Some(_) => {}
            },
            KvVerb::CheckSession => match kv.entry(&key) {
                None => return Err(Why::Unchecked("session", key)),
                Some(entry) if !op.session.is(entry.session) => {
                    return Err(Why::Session {
                        key,
                        current: entry.session,
                        asked: op.session.to_string(),
                    });
                }
                Some(_) => {}
            },
            KvVerb::CheckNotExists => {
                if kv.entry(&key).is_some() {
                    return Err(Why::Exists(key));
                }
            }
            KvVerb::Delete => kv.delete(index, now, &key),
            KvVerb::DeleteTree => kv.delete_tree(index, now, &key),
            KvVerb::DeleteCas => {
                if !kv.delete_cas(index, now, &key, op.index) {
                    return Err(Why::Stale("delete", key));
                }
            }
            KvVerb::Unknown(verb) => return Err(Why::UnknownVerb("KV", verb)),
        }
        let deleted = matches!(
            op.verb,
            KvVerb::Delete | KvVerb::DeleteTree | KvVerb::DeleteCas
        );
        let entry = self.replica.kv.entry(&key).filter(|_| !deleted).cloned();
        Ok(entry.map(|entry| Found::Bare(key, entry)))
    }
}
