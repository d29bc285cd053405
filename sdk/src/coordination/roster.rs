//! Who has a place in a semaphore: the reference client's document, and the keys beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::api::kv::Pair;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};

/// The flags that the reference client marks the key of a lock with.
pub(super) const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// The flags that the reference client marks the keys of a semaphore with.
pub(super) const SEMAPHORE_FLAGS: u64 = 0xe0f6_9a2b_aa41_4de0;

/// Under which keys a semaphore stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Prefix {
    /// With its slash.
    folder: Arc<str>,
    document: Key,
}

impl Prefix {
    /// The reference client joins paths: what that would change is refused, because two spellings
    /// would be one semaphore there and two here.
    pub(super) fn new(text: &str) -> Result<Self> {
        let wrong = |why: &str| Err(Error::invalid(format!("semaphore prefix {text:?}: {why}")));
        let bare = text.strip_suffix('/').unwrap_or(text);
        if bare.is_empty() {
            return wrong("must not be empty");
        }
        if bare.contains("//") || bare.ends_with('/') {
            return wrong("must not have two slashes in a row");
        }
        if bare.split('/').any(|part| part == "." || part == "..") {
            return wrong("must not have `.` or `..` between its slashes");
        }
        let folder: Arc<str> = format!("{bare}/").into();
        let document = Key::new(format!("{folder}.lock"))?;
        Ok(Self { folder, document })
    }

    /// What all keys of the semaphore begin with.
    pub(super) fn folder(&self) -> &str {
        &self.folder
    }

    /// Without the slash, for people.
    pub(super) fn name(&self) -> &str {
        self.folder.strip_suffix('/').unwrap_or(&self.folder)
    }

    /// The key of the document.
    pub(super) fn document(&self) -> &Key {
        &self.document
    }

    /// The key that a session with a place holds.
    pub(super) fn contender(&self, session: &str) -> Result<Key> {
        Key::new(format!("{}{session}", self.folder))
    }
}

/// The document: how many places there are, and whose they are.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Roster {
    pub(super) limit: u32,
    // Go writes a map without entries as `{}` or `null`; being listed is what counts.
    #[serde(default, deserialize_with = "holders")]
    pub(super) holders: BTreeMap<String, bool>,
}

fn holders<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<String, bool>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Roster {
    pub(super) const fn new(limit: u32) -> Self {
        Self {
            limit,
            holders: BTreeMap::new(),
        }
    }

    pub(super) fn with(&self, session: &str) -> Self {
        let mut with = self.clone();
        with.holders.insert(session.to_owned(), true);
        with
    }

    pub(super) fn without(&self, session: &str) -> Self {
        let mut without = self.clone();
        without.holders.remove(session);
        without
    }

    /// As the reference client writes it.
    pub(super) fn bytes(&self) -> Result<Bytes> {
        let text = serde_json::to_vec(self);
        text.map(Bytes::from)
            .map_err(|err| Error::new(ErrorKind::Invalid).caused_by(err))
    }
}

/// All keys of a semaphore at one moment.
#[derive(Debug)]
pub(super) struct Scene {
    /// The index to wait from.
    pub(super) index: u64,
    /// The document, unless it is missing or empty.
    pub(super) roster: Option<Roster>,
    /// The index of the document's last change; 0 if it does not exist.
    pub(super) roster_index: u64,
    /// The keys beside it, by what stands behind the prefix.
    beside: BTreeMap<String, Arc<Pair>>,
}

/// One that has ended without giving its place back, or whose key was left.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Dead {
    pub(super) session: String,
    pub(super) key: Key,
    /// The index of its key's last change; 0 if that is gone.
    pub(super) modify_index: u64,
    /// Whether the document lists it.
    pub(super) listed: bool,
}

/// What a scene means for one session.
#[derive(Debug)]
pub(super) struct Standing {
    /// How many places are not to be had, for now: those of the living and of the dead.
    pub(super) taken: usize,
    /// Those among them that can be had once their lock-delay is over.
    pub(super) dead: Vec<Dead>,
    /// Sessions of the living.
    pub(super) living: Vec<String>,
}

impl Scene {
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] where something else than a semaphore stands.
    pub(super) fn read(prefix: &Prefix, pairs: Vec<Arc<Pair>>, index: u64) -> Result<Self> {
        let mut scene = Self {
            index,
            roster: None,
            roster_index: 0,
            beside: BTreeMap::new(),
        };
        for pair in pairs {
            if pair.key() == prefix.document() {
                scene.roster_index = pair.modify_index();
                scene.roster = document(prefix, &pair)?;
            } else if let Some(name) = pair.key().strip_prefix(prefix.folder()) {
                scene.beside.insert(name.to_owned(), Arc::clone(&pair));
            }
        }
        Ok(scene)
    }

    /// A session's key, if it holds it.
    pub(super) fn own(&self, session: &SessionId) -> Option<&Pair> {
        let pair = self.beside(session)?;
        (pair.session() == Some(session)).then_some(pair)
    }

    /// A session's key, whoever holds it.
    pub(super) fn beside(&self, session: &str) -> Option<&Pair> {
        self.beside.get(session).map(|pair| &**pair)
    }

    pub(super) fn lists(&self, session: &str) -> bool {
        let roster = self.roster.as_ref();
        roster.is_some_and(|roster| roster.holders.contains_key(session))
    }

    /// The sessions that hold a key of their own: those with a place, and those of the reference
    /// client that wait for one.
    pub(super) fn contenders(&self) -> impl Iterator<Item = &str> {
        let own = self.beside.iter().filter(|(name, pair)| {
            let session = pair.session().map(SessionId::as_str);
            session == Some(name.as_str())
        });
        own.map(|(name, _)| name.as_str())
    }

    pub(super) fn standing(&self, prefix: &Prefix, session: &str) -> Standing {
        let mut standing = Standing {
            taken: 0,
            dead: Vec::new(),
            living: Vec::new(),
        };
        let listed = self.roster.iter().flat_map(|roster| roster.holders.keys());
        for holder in listed.filter(|holder| *holder != session) {
            standing.taken += 1;
            let pair = self.beside(holder);
            let key = prefix.contender(holder);
            match (pair, key) {
                (Some(pair), Ok(key)) if pair.session().is_none() => {
                    standing.dead.push(Dead {
                        session: holder.clone(),
                        key,
                        modify_index: pair.modify_index(),
                        listed: true,
                    });
                }
                (None, Ok(key)) => standing.dead.push(Dead {
                    session: holder.clone(),
                    key,
                    modify_index: 0,
                    listed: true,
                }),
                _ => standing.living.push(holder.clone()),
            }
        }
        // A key that nobody holds and the document does not list: its session ended, and another
        // client has struck it off without waiting for the lock-delay.
        for (name, pair) in &self.beside {
            let left = pair.session().is_none()
                && pair.flags() == SEMAPHORE_FLAGS
                && name != session
                && is_session(name)
                && !self.lists(name);
            if left {
                standing.taken += 1;
                standing.dead.push(Dead {
                    session: name.clone(),
                    key: pair.key().clone(),
                    modify_index: pair.modify_index(),
                    listed: false,
                });
            }
        }
        standing
    }
}

/// Whether a name can be a session's: 36 hexadecimal digits and dashes.
fn is_session(name: &str) -> bool {
    name.len() == 36
        && name
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

fn document(prefix: &Prefix, pair: &Pair) -> Result<Option<Roster>> {
    let conflict = |what: &str| {
        Err(Error::new(ErrorKind::Conflict).context(format!(
            "semaphore {}: {} {what}",
            prefix.name(),
            prefix.document()
        )))
    };
    match pair.flags() {
        SEMAPHORE_FLAGS => {}
        LOCK_FLAGS => return conflict("is a lock, by its flags: take another prefix"),
        _ => return conflict("is no semaphore's, by its flags: take another prefix"),
    }
    if pair.value().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(pair.value()) {
        Ok(roster) => Ok(Some(roster)),
        Err(_) => conflict("does not hold what a semaphore writes"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "aaaaaaaa-0000-0000-0000-000000000000";
    const B: &str = "bbbbbbbb-0000-0000-0000-000000000000";
    const C: &str = "cccccccc-0000-0000-0000-000000000000";

    fn pair(key: &str, session: Option<&str>, flags: u64, value: &str) -> Arc<Pair> {
        use base64::Engine;
        let value = base64::engine::general_purpose::STANDARD.encode(value);
        let pair = json!({
            "Key": key, "Session": session, "Flags": flags, "Value": value, "ModifyIndex": 7
        });
        Arc::new(serde_json::from_value(pair).unwrap())
    }

    fn prefix() -> Prefix {
        Prefix::new("jobs").unwrap()
    }

    fn contender(session: &str, held: bool) -> Arc<Pair> {
        let key = format!("jobs/{session}");
        pair(&key, held.then_some(session), SEMAPHORE_FLAGS, "")
    }

    fn listing(sessions: &[&str]) -> Arc<Pair> {
        let mut roster = Roster::new(2);
        for session in sessions {
            roster = roster.with(session);
        }
        let text = String::from_utf8(roster.bytes().unwrap().to_vec()).unwrap();
        pair("jobs/.lock", None, SEMAPHORE_FLAGS, &text)
    }

    fn standing(pairs: Vec<Arc<Pair>>, session: &str) -> Standing {
        let scene = Scene::read(&prefix(), pairs, 1).unwrap();
        scene.standing(&prefix(), session)
    }

    #[test]
    fn the_document_is_the_reference_clients() {
        let text = Roster::new(3).with(A).bytes().unwrap();
        let wanted = format!(r#"{{"Limit":3,"Holders":{{"{A}":true}}}}"#);
        assert_eq!(text, wanted);
        for empty in [
            r#"{"Limit":3,"Holders":null}"#,
            r#"{"Limit":3,"Holders":{}}"#,
            r#"{"Limit":3}"#,
        ] {
            let roster: Roster = serde_json::from_str(empty).unwrap();
            assert_eq!(roster, Roster::new(3));
        }
    }

    #[test]
    fn a_prefix_has_one_spelling() {
        assert_eq!(Prefix::new("a/b/").unwrap(), Prefix::new("a/b").unwrap());
        for wrong in ["", "/", "a//b", "a//", "a/../b", "./a"] {
            let err = Prefix::new(wrong).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Invalid, "{wrong}");
        }
    }

    #[test]
    fn the_dead_keep_their_places_until_they_are_taken_over() {
        let all = vec![listing(&[A, B]), contender(A, true), contender(B, false)];
        let standing = standing(all, C);
        assert_eq!(standing.taken, 2);
        assert_eq!(standing.living, [A]);
        assert_eq!(standing.dead.len(), 1);
        assert_eq!(standing.dead[0].session, B);
        assert_eq!(standing.dead[0].modify_index, 7);
    }

    #[test]
    fn one_whose_key_is_gone_is_dead_too() {
        let standing = standing(vec![listing(&[A])], C);
        assert_eq!((standing.taken, standing.dead[0].modify_index), (1, 0));
    }

    #[test]
    fn one_that_another_client_struck_off_too_early_still_counts() {
        let left = standing(
            vec![listing(&[A]), contender(A, true), contender(B, false)],
            C,
        );
        assert_eq!(left.taken, 2);
        assert!(!left.dead[0].listed);
        // One of the reference client's that waits holds its key, and no place.
        let waits = standing(
            vec![listing(&[A]), contender(A, true), contender(B, true)],
            C,
        );
        assert_eq!((waits.taken, waits.dead.len()), (1, 0));
        // Nor does anything else that stands there.
        let other = pair("jobs/config", None, 0, "x");
        let deep = pair(&format!("jobs/x/{B}"), None, SEMAPHORE_FLAGS, "");
        assert_eq!(standing(vec![other, deep], C).taken, 0);
    }

    #[test]
    fn ones_own_place_is_not_in_the_way() {
        let standing = standing(vec![listing(&[A]), contender(A, true)], A);
        assert_eq!(standing.taken, 0);
    }

    #[test]
    fn what_is_no_semaphore_is_told() {
        for (flags, value, says) in [
            (LOCK_FLAGS, "", "is a lock"),
            (0, "", "no semaphore's"),
            (SEMAPHORE_FLAGS, "hello", "does not hold"),
        ] {
            let pairs = vec![pair("jobs/.lock", None, flags, value)];
            let err = Scene::read(&prefix(), pairs, 1).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Conflict);
            assert!(err.to_string().contains(says), "{err}");
        }
    }
}
