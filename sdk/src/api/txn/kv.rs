//! Operations on the key-value store.

use std::sync::Arc;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::{Expected, Op, Tenancy};
use crate::api::kv;
use crate::error::{Error, Result};
use crate::ident::{Key, SessionId};

/// An operation on the key-value store, in a transaction.
///
/// Those that write are answered with the key's new state, without its value; a deletion is
/// answered with nothing. Values are bytes, at most 512 KiB (Consul's default
/// `kv_max_value_size`), and the whole transaction has a limit of its own: see
/// [`Txn`](super::Txn).
#[derive(Clone, Debug)]
#[must_use = "an operation does nothing until it is put into a transaction"]
pub struct KvOp {
    op: Result<Op>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Body {
    verb: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Bytes::is_empty", serialize_with = "base64")]
    value: Bytes,
    #[serde(skip_serializing_if = "is_zero")]
    flags: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    #[serde(flatten)]
    pub(super) tenancy: Tenancy,
}

impl KvOp {
    /// Writes a value.
    ///
    /// As any plain write it leaves a lock on the key as it is, but sets the key's
    /// [lock index](super::KvEntry::lock_index) to 0.
    pub fn set(key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        Self::writing("set", key, value)
    }

    /// Writes a value if the key was last changed at this index; 0 means if it does not exist.
    pub fn cas(key: impl Into<Arc<str>>, value: impl Into<Bytes>, modify_index: u64) -> Self {
        Self::writing("cas", key, value).with(|body| body.index = Some(modify_index))
    }

    /// Writes a value and makes a session the key's holder.
    ///
    /// For the holder itself it succeeds, as often as it is asked; with the same value and flags
    /// it then changes nothing. The [index](super::KvEntry::modify_index) it is answered with grows
    /// from holder to holder, whatever else happens to the key.
    pub fn lock(key: impl Into<Arc<str>>, session: &SessionId, value: impl Into<Bytes>) -> Self {
        Self::writing("lock", key, value).with(|body| body.session = Some(session.clone()))
    }

    /// Writes a value and gives the key up, provided that the session holds it.
    ///
    /// Value and flags are replaced, too: hand in the old ones to keep them.
    pub fn unlock(key: impl Into<Arc<str>>, session: &SessionId, value: impl Into<Bytes>) -> Self {
        Self::writing("unlock", key, value).with(|body| body.session = Some(session.clone()))
    }

    /// Reads a key that must exist.
    pub fn get(key: impl Into<Arc<str>>) -> Self {
        Self::on_key("get", key, false, |key| Expected::Key {
            key,
            with_value: true,
        })
    }

    /// Reads a key that may be missing (Consul 1.14 and later).
    ///
    /// A missing one is answered with an entry that does not
    /// [exist](super::KvEntry::exists). An older Consul fails the transaction
    /// ([`FailureReason::Unsupported`](super::FailureReason::Unsupported)).
    pub fn get_or_empty(key: impl Into<Arc<str>>) -> Self {
        Self::on_key("get-or-empty", key, false, |key| Expected::Key {
            key,
            with_value: true,
        })
    }

    /// Reads all keys that begin with `prefix`, with their values; there may be none.
    ///
    /// The prefix is text, and must not be empty here. Two of these with a write between them are
    /// refused: Consul's answer does not tell where the first one's keys end.
    pub fn get_tree(prefix: impl AsRef<str>) -> Self {
        let op = kv::checked(prefix.as_ref()).and_then(|prefix| {
            if prefix.is_empty() {
                return Err(Error::invalid(
                    "key prefix: must not be empty; a transaction cannot read all keys",
                ));
            }
            Ok(Op {
                body: super::Body::Kv(Body::new("get-tree", prefix)),
                writes: false,
                result: Expected::Tree(prefix.to_owned()),
            })
        });
        Self { op }
    }

    /// Fails the transaction unless the key was last changed at this index.
    ///
    /// A missing key fails it, too, whatever the index.
    pub fn check_index(key: impl Into<Arc<str>>, modify_index: u64) -> Self {
        Self::on_key("check-index", key, false, |key| Expected::Key {
            key,
            with_value: false,
        })
        .with(|body| body.index = Some(modify_index))
    }

    /// Fails the transaction unless the session holds the key.
    pub fn check_session(key: impl Into<Arc<str>>, session: &SessionId) -> Self {
        Self::on_key("check-session", key, false, |key| Expected::Key {
            key,
            with_value: false,
        })
        .with(|body| body.session = Some(session.clone()))
    }

    /// Fails the transaction if the key exists.
    pub fn check_not_exists(key: impl Into<Arc<str>>) -> Self {
        Self::on_key("check-not-exists", key, false, |_| Expected::Nothing)
    }

    /// Deletes one key; a missing one is no failure.
    pub fn delete(key: impl Into<Arc<str>>) -> Self {
        Self::on_key("delete", key, true, |_| Expected::Nothing)
    }

    /// Deletes all keys that begin with `prefix`; the empty prefix means all.
    ///
    /// The prefix is text: `app` also deletes `apple`.
    pub fn delete_tree(prefix: impl AsRef<str>) -> Self {
        let op = kv::checked(prefix.as_ref()).map(|prefix| Op {
            body: super::Body::Kv(Body::new("delete-tree", prefix)),
            writes: true,
            result: Expected::Nothing,
        });
        Self { op }
    }

    /// Deletes one key if it was last changed at this index.
    ///
    /// A missing one is no failure, whatever the index (measured on 1.8.7).
    pub fn delete_cas(key: impl Into<Arc<str>>, modify_index: u64) -> Self {
        Self::on_key("delete-cas", key, true, |_| Expected::Nothing)
            .with(|body| body.index = Some(modify_index))
    }

    /// A number stored with the value, for the application to use. Default: 0.
    ///
    /// Only [`set`](Self::set), [`cas`](Self::cas), [`lock`](Self::lock) and
    /// [`unlock`](Self::unlock) store one; with any other operation it is refused.
    pub fn flags(mut self, flags: u64) -> Self {
        if let Ok(op) = &mut self.op
            && let super::Body::Kv(body) = &mut op.body
        {
            match body.verb {
                "set" | "cas" | "lock" | "unlock" => body.flags = flags,
                verb => {
                    self.op = Err(Error::invalid(format!(
                        "flags of `{verb}`: it stores none; leave them out"
                    )));
                }
            }
        }
        self
    }

    fn writing(verb: &'static str, key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        let value = value.into();
        if let Err(err) = kv::fits(&value) {
            return Self { op: Err(err) };
        }
        Self::on_key(verb, key, true, |key| Expected::Key {
            key,
            with_value: false,
        })
        .with(|body| body.value = value)
    }

    fn on_key(
        verb: &'static str,
        key: impl Into<Arc<str>>,
        writes: bool,
        result: impl FnOnce(Key) -> Expected,
    ) -> Self {
        let op = Key::new(key).map(|key| Op {
            body: super::Body::Kv(Body::new(verb, &key)),
            writes,
            result: result(key),
        });
        Self { op }
    }

    fn with(mut self, change: impl FnOnce(&mut Body)) -> Self {
        if let Ok(op) = &mut self.op
            && let super::Body::Kv(body) = &mut op.body
        {
            change(body);
        }
        self
    }

    pub(super) fn into_op(self) -> Result<Op> {
        self.op
    }
}

impl Body {
    fn new(verb: &'static str, key: &str) -> Self {
        Self {
            verb,
            key: key.to_owned(),
            value: Bytes::new(),
            flags: 0,
            index: None,
            session: None,
            tenancy: Tenancy::default(),
        }
    }
}

fn base64<S: Serializer>(value: &Bytes, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(value, &STANDARD))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
