//! Sessions as the servers keep them, with Consul's index rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::proto::duration;

/// The identifier of a session.
///
/// Consul keeps how it was spelt where a key names its holder; here all spellings are one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct SessionId(u128);

impl SessionId {
    pub(crate) fn new(high: u64, low: u64) -> Self {
        Self((u128::from(high) << 64) | u128::from(low))
    }

    /// Reads an identifier as generously as the index of the servers does: hyphens may stand
    /// anywhere.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() != 36 {
            return Err(Malformed::Length);
        }
        let hyphens = text.bytes().filter(|byte| *byte == b'-').count();
        if hyphens > 4 {
            return Err(Malformed::Hyphens(hyphens));
        }
        if !(text.len() - hyphens).is_multiple_of(2) {
            return Err(Malformed::Odd);
        }
        let mut bits: u128 = 0;
        for byte in text.bytes().filter(|byte| *byte != b'-') {
            let Some(digit) = char::from(byte).to_digit(16) else {
                return Err(Malformed::Digit(byte));
            };
            // With fewer hyphens there are more digits than an identifier has. None is found
            // under them, and none is found under the last 32 of them either.
            bits = (bits << 4) | u128::from(digit);
        }
        Ok(Self(bits))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |shift: u32, digits: u32| (self.0 >> shift) & ((1 << (4 * digits)) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            part(96, 8),
            part(80, 4),
            part(64, 4),
            part(48, 4),
            part(0, 12)
        )
    }
}

/// Why a text is no identifier, in the words of the servers' index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Malformed {
    Length,
    Hyphens(usize),
    Odd,
    Digit(u8),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed session lookup: index error: ")?;
        match self {
            Self::Length => f.write_str("UUID must be 36 characters"),
            Self::Hyphens(count) => {
                write!(f, "UUID should have maximum of 4 \"-\"; got {count}")
            }
            Self::Odd => f.write_str("Input (without hyphens) must be even length"),
            Self::Digit(byte) => write!(f, "Invalid UUID: {}", no_hex_digit(*byte)),
        }
    }
}

/// Go's text for a byte that is no hexadecimal digit.
pub(crate) fn no_hex_digit(byte: u8) -> String {
    let shown = char::from(byte);
    format!("encoding/hex: invalid byte: U+{byte:04X} '{shown}'")
}

/// The session that somebody names, who may name none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum Named {
    #[default]
    Nobody,
    Session(SessionId),
    Malformed(String, Malformed),
}

impl Named {
    pub(crate) fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self::Nobody;
        }
        match SessionId::parse(text) {
            Ok(id) => Self::Session(id),
            Err(malformed) => Self::Malformed(text.to_owned(), malformed),
        }
    }

    /// Whether this names who holds a key.
    pub(crate) fn is(&self, holder: Option<SessionId>) -> bool {
        match self {
            Self::Nobody => holder.is_none(),
            Self::Session(id) => holder == Some(*id),
            Self::Malformed(..) => false,
        }
    }
}

impl From<SessionId> for Named {
    fn from(id: SessionId) -> Self {
        Self::Session(id)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => Ok(()),
            Self::Session(id) => write!(f, "{id}"),
            Self::Malformed(text, _) => f.write_str(text),
        }
    }
}

/// What becomes of the keys that a session holds when it ends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Behavior {
    #[default]
    Release,
    Delete,
}

impl Behavior {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Delete => "delete",
        }
    }
}

/// How long a session lives without a renewal, at least.
///
/// It is told as it was spelt. Zero is for ever.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ttl {
    pub(crate) text: String,
    pub(crate) time: Duration,
}

impl From<Duration> for Ttl {
    fn from(time: Duration) -> Self {
        Self {
            text: duration::format(time),
            time,
        }
    }
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ServiceCheck {
    pub(crate) id: String,
    pub(crate) namespace: String,
}

/// A session as it is asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct SessionSpec {
    pub(crate) name: String,
    /// The node with which the session ends.
    pub(crate) node: String,
    pub(crate) lock_delay: Duration,
    pub(crate) behavior: Behavior,
    pub(crate) ttl: Ttl,
    // The checks with which the session ends. Absent and empty lists mean the same and are told
    // apart.
    pub(crate) node_checks: Option<Vec<String>>,
    pub(crate) service_checks: Option<Vec<ServiceCheck>>,
    /// The name of both lists before Consul 1.7.
    pub(crate) checks: Vec<String>,
}

impl SessionSpec {
    /// The IDs of all checks with which the session ends.
    pub(crate) fn check_ids(&self) -> impl Iterator<Item = &String> {
        let services = self.service_checks.iter().flatten().map(|check| &check.id);
        self.checks
            .iter()
            .chain(self.node_checks.iter().flatten())
            .chain(services)
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) spec: SessionSpec,
    /// Consul never changes a session, so that this is its modify index too.
    pub(crate) created: u64,
}

/// The sessions by ID, found by node and by check as well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    by_id: BTreeMap<SessionId, Arc<Session>>,
    by_node: BTreeSet<(String, SessionId)>,
    by_check: BTreeSet<(String, String, SessionId)>,
    index: u64,
}

fn fold(name: &str) -> String {
    name.to_lowercase()
}

impl Sessions {
    pub(crate) fn session(&self, id: SessionId) -> Option<&Arc<Session>> {
        self.by_id.get(&id)
    }

    /// All sessions by ID.
    pub(crate) fn list(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.by_id.values()
    }

    /// The sessions of one node by ID.
    pub(crate) fn of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Session>> {
        let node = fold(node);
        self.by_node
            .range((node.clone(), SessionId(0))..)
            .take_while(move |(of, _)| *of == node)
            .filter_map(|(_, id)| self.by_id.get(id))
    }

    /// The sessions that end with a check.
    pub(crate) fn of_check(&self, node: &str, check: &str) -> Vec<SessionId> {
        // Most checks have none, and most writes are of checks.
        if self.by_check.is_empty() {
            return Vec::new();
        }
        let (node, check) = (fold(node), fold(check));
        self.by_check
            .range((node.clone(), check.clone(), SessionId(0))..)
            .take_while(|(of, by, _)| *of == node && *by == check)
            .map(|(_, _, id)| *id)
            .collect()
    }

    /// The index of the last creation or end of any session.
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn insert(&mut self, index: u64, id: SessionId, spec: SessionSpec) {
        let node = fold(&spec.node);
        for check in spec.check_ids() {
            self.by_check.insert((node.clone(), fold(check), id));
        }
        self.by_node.insert((node, id));
        let created = index;
        self.by_id
            .insert(id, Arc::new(Session { id, spec, created }));
        self.index = index;
    }

    pub(crate) fn remove(&mut self, index: u64, id: SessionId) -> Option<Arc<Session>> {
        let session = self.by_id.remove(&id)?;
        let node = fold(&session.spec.node);
        for check in session.spec.check_ids() {
            self.by_check.remove(&(node.clone(), fold(check), id));
        }
        self.by_node.remove(&(node, id));
        self.index = index;
        Some(session)
    }
}
