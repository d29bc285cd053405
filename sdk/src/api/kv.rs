//! The key-value store: `/v1/kv`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Deserializer};

use super::endpoint::{self, Answered, Gathering};
use super::{Endpoint, Read, Write};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::{Key, SessionId, prefix_like, shortened};

pub use super::typed::{GetAs, Typed};

impl Client {
    /// The key-value store.
    #[must_use]
    pub fn kv(&self) -> Kv {
        Kv {
            client: self.clone(),
        }
    }
}

/// Calls to the key-value store.
///
/// Keys are text; see [`Key`] for what Consul's HTTP server cannot take. Values are bytes, at most
/// 512 KiB (Consul's default `kv_max_value_size`).
#[derive(Clone, Debug)]
pub struct Kv {
    client: Client,
}

impl Kv {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// One key, or `None` if it does not exist.
    #[doc(alias = "GET /v1/kv/:key")]
    pub fn get(&self, key: impl Into<Arc<str>>) -> Read<Get> {
        Read::named(&self.client, PATH, Key::new(key), Get(()))
    }

    /// One key's value as it is, without its metadata; `None` if it does not exist.
    ///
    /// Saves the third by which JSON and base64 inflate a value.
    #[doc(alias = "?raw")]
    pub fn raw(&self, key: impl Into<Arc<str>>) -> Read<Raw> {
        Read::named(&self.client, PATH, Key::new(key), Raw(())).flag("raw")
    }

    /// All keys that begin with `prefix`, with their values; the empty prefix means all.
    ///
    /// The prefix is text: `app` also finds `apple`.
    #[doc(alias = "?recurse")]
    pub fn list(&self, prefix: impl AsRef<str>) -> Read<List> {
        Read::named(&self.client, PATH, checked(prefix.as_ref()), List(())).flag("recurse")
    }

    /// The names of all keys that begin with `prefix`, without their values.
    #[doc(alias = "?keys")]
    pub fn keys(&self, prefix: impl AsRef<str>) -> Read<Keys> {
        Read::named(&self.client, PATH, checked(prefix.as_ref()), Keys(())).flag("keys")
    }

    /// Writes a value; the answer says whether it was written.
    ///
    /// Without [`cas`](Write::cas) it always is.
    #[doc(alias = "PUT /v1/kv/:key")]
    pub fn put(&self, key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Write<Put> {
        self.writing(key, value.into(), Put(()))
    }

    /// Writes a value and makes a session the key's holder; the answer says whether it was done.
    ///
    /// It is not while another session holds the key, nor during the lock-delay after one ended
    /// (which of the two, only a [transaction](Client::txn) tells). For the holder itself it
    /// succeeds, as often as it is asked. A session that is gone is answered with
    /// [`ErrorKind::UnknownSession`](crate::ErrorKind::UnknownSession).
    ///
    /// A lock is an agreement: a [`put`](Self::put) or [`delete`](Self::delete) does not look at
    /// it.
    #[doc(alias = "?acquire")]
    pub fn acquire(
        &self,
        key: impl Into<Arc<str>>,
        session: &SessionId,
        value: impl Into<Bytes>,
    ) -> Write<Acquire> {
        self.writing(key, value.into(), Acquire(()))
            .parameter("acquire", session)
    }

    /// Writes a value and gives the key up; the answer says whether the session held it.
    ///
    /// If it did not, nothing is written. The value is replaced, too: hand in the old one to keep
    /// it.
    #[doc(alias = "?release")]
    pub fn release(
        &self,
        key: impl Into<Arc<str>>,
        session: &SessionId,
        value: impl Into<Bytes>,
    ) -> Write<Release> {
        self.writing(key, value.into(), Release(()))
            .parameter("release", session)
    }

    /// Deletes one key; the answer says whether it is gone.
    ///
    /// Without [`cas`](Write::cas) it always is; a key that never was is gone, too.
    #[doc(alias = "DELETE /v1/kv/:key")]
    pub fn delete(&self, key: impl Into<Arc<str>>) -> Write<Delete> {
        Write::named(&self.client, PATH, Key::new(key), Delete(())).deleting()
    }

    /// Deletes all keys that begin with `prefix`; the empty prefix means all.
    ///
    /// The prefix is text: `app` also deletes `apple`.
    #[doc(alias = "?recurse")]
    pub fn delete_tree(&self, prefix: impl AsRef<str>) -> Write<DeleteTree> {
        Write::named(&self.client, PATH, checked(prefix.as_ref()), DeleteTree(()))
            .deleting()
            .flag("recurse")
    }

    fn writing<E>(&self, key: impl Into<Arc<str>>, value: Bytes, endpoint: E) -> Write<E> {
        let fits = fits(&value);
        let write = Write::named(&self.client, PATH, Key::new(key), endpoint).bytes(value);
        match fits {
            Ok(()) => write,
            Err(err) => write.refuse(err),
        }
    }
}

const PATH: &str = "/v1/kv/";

/// `kv_max_value_size` of a server, by default.
const MAX_VALUE: usize = 512 * 1024;

/// Whether Consul takes a value of this size.
pub(super) fn fits(value: &Bytes) -> Result<()> {
    let size = value.len();
    if size > MAX_VALUE {
        return Err(Error::invalid(format!(
            "value of {size} bytes: Consul takes at most {MAX_VALUE}"
        )));
    }
    Ok(())
}

/// A prefix of keys that Consul's HTTP server takes.
pub(super) fn checked(prefix: &str) -> Result<&str> {
    match prefix_like(prefix) {
        Ok(()) => Ok(prefix),
        Err(reason) => Err(Error::invalid(format!(
            "key prefix {:?}: {reason}",
            shortened(prefix)
        ))),
    }
}

impl Read<Keys> {
    /// Only up to the next `separator` behind the prefix, as a file system lists one folder.
    pub fn separator(self, separator: impl AsRef<str>) -> Self {
        self.parameter("separator", separator.as_ref())
    }
}

macro_rules! takes_flags {
    ($($endpoint:ty),*) => {$(
        impl Write<$endpoint> {
            /// A number stored with the value, for the application to use.
            ///
            /// Default: 0. A write without flags sets them to 0.
            pub fn flags(mut self, flags: u64) -> Self {
                self.call.target.push_number("flags", flags);
                self
            }
        }
    )*};
}

takes_flags!(Put, Acquire, Release);

impl Write<Put> {
    /// Writes only if the key was last changed at this index; 0 means only if it does not exist.
    ///
    /// A lost answer leaves open whether it was written: read the key again and compare.
    pub fn cas(mut self, modify_index: u64) -> Self {
        self.call.target.push_number("cas", modify_index);
        self
    }
}

impl Write<Delete> {
    /// Deletes only if the key was last changed at this index.
    ///
    /// A key that does not exist counts as deleted, whatever the index (measured on 1.8.7).
    /// Range: above zero; Consul answers 0 as it answers a wrong index.
    pub fn cas(mut self, modify_index: u64) -> Self {
        self.call.target.push_number("cas", modify_index);
        self
    }
}

/// A key with its value and metadata.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Pair {
    key: Key,
    #[serde(default, deserialize_with = "value")]
    value: Bytes,
    #[serde(default)]
    flags: u64,
    #[serde(default)]
    session: Option<SessionId>,
    #[serde(default)]
    lock_index: u64,
    #[serde(default)]
    create_index: u64,
    #[serde(default)]
    modify_index: u64,
}

impl Pair {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The value; empty if Consul has none.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The value, shared.
    #[must_use]
    pub fn value_bytes(&self) -> Bytes {
        self.value.clone()
    }

    /// The value as text, if it is UTF-8.
    #[must_use]
    pub fn value_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }

    /// The number that the last write stored with the value.
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.flags
    }

    /// The session that holds the key as a lock.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// How often the key was acquired as a lock; a plain write sets it back to 0.
    #[must_use]
    pub fn lock_index(&self) -> u64 {
        self.lock_index
    }

    /// The index at which the key came to be.
    #[must_use]
    pub fn create_index(&self) -> u64 {
        self.create_index
    }

    /// The index of the last change: what [`cas`](Write::cas) compares.
    #[must_use]
    pub fn modify_index(&self) -> u64 {
        self.modify_index
    }
}

/// Consul writes values in base64 and an empty one as `null`.
pub(super) fn value<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Bytes, D::Error> {
    struct Base64;

    impl serde::de::Visitor<'_> for Base64 {
        type Value = Bytes;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a value in base64, or null")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Bytes, E> {
            STANDARD.decode(text).map(Bytes::from).map_err(E::custom)
        }

        fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<Bytes, E> {
            Ok(Bytes::new())
        }
    }

    deserializer.deserialize_any(Base64)
}

/// One key: [`Kv::get`].
#[derive(Clone, Debug)]
pub struct Get(());

impl Endpoint for Get {
    type Output = Option<Pair>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        match present(answer)? {
            Some(raw) => Ok(raw.json::<Vec<Pair>>()?.pop()),
            None => Ok(None),
        }
    }
}

/// One key's bare value: [`Kv::raw`].
#[derive(Clone, Debug)]
pub struct Raw(());

impl Endpoint for Raw {
    type Output = Option<Bytes>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        Ok(present(answer)?.map(|raw| raw.body))
    }
}

/// All keys of a prefix: [`Kv::list`].
#[derive(Clone, Debug)]
pub struct List(());

impl Endpoint for List {
    type Output = Vec<Arc<Pair>>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        match present(answer)? {
            Some(raw) => raw.json(),
            None => Ok(Vec::new()),
        }
    }

    fn gathering(&self) -> Option<Gathering<Self::Output>> {
        endpoint::list()
    }
}

/// The names of all keys of a prefix: [`Kv::keys`].
#[derive(Clone, Debug)]
pub struct Keys(());

impl Endpoint for Keys {
    type Output = Vec<Key>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        match present(answer)? {
            Some(raw) => raw.json(),
            None => Ok(Vec::new()),
        }
    }
}

/// A write: [`Kv::put`].
#[derive(Clone, Debug)]
pub struct Put(());

/// The taking of a lock: [`Kv::acquire`].
#[derive(Clone, Debug)]
pub struct Acquire(());

/// The giving up of a lock: [`Kv::release`].
#[derive(Clone, Debug)]
pub struct Release(());

/// The deletion of one key: [`Kv::delete`].
#[derive(Clone, Debug)]
pub struct Delete(());

/// The deletion of all keys of a prefix: [`Kv::delete_tree`].
#[derive(Clone, Debug)]
pub struct DeleteTree(());

macro_rules! answers_whether_done {
    ($($endpoint:ty),*) => {$(
        impl Endpoint for $endpoint {
            type Output = bool;

            fn interpret(&self, answer: Answered) -> Result<bool> {
                answer.good()?.decode()
            }
        }
    )*};
}

answers_whether_done!(Put, Acquire, Release, Delete, DeleteTree);

/// A good answer, or `None` for the 404 that a missing key has.
///
/// Only Consul's own answer counts: it has an index and an empty body. A 404 of something that
/// stands in between would otherwise read as a missing key.
fn present(answer: Answered) -> Result<Option<crate::client::Raw>> {
    let raw = answer.0;
    if raw.status == StatusCode::NOT_FOUND && raw.meta().index().is_some() {
        return Ok(None);
    }
    raw.good().map(Some)
}
