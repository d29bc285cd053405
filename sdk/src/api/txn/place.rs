//! Which result belongs to which operation.
//!
//! Consul lists results without saying whose they are. They stand in the operations' order, but
//! deletions and some checks have none, a read of a prefix has any number, and one that the token
//! may not see is left out without a word.

use std::collections::VecDeque;

use super::answer::{KvEntry, OpResult, Wire};
use super::{Expected, Op};
use crate::api::kv::Pair;
use crate::api::model::Check;
use crate::error::{Error, Result};

/// Whether results could be told apart: not where two reads of prefixes have a write between.
///
/// Without one, both see the same keys, so that the second begins where the keys stop to grow or
/// to fit. Behind a write they may go on as if they were the first one's.
pub(super) fn can_be_told_apart(ops: &[Op]) -> Result<()> {
    let mut written_since_tree = None;
    for op in ops {
        if let Expected::Tree(prefix) = &op.result {
            if written_since_tree == Some(true) {
                return Err(Error::invalid(format!(
                    "transaction: `get_tree` of {prefix:?} behind a write behind another \
                     `get_tree`: Consul's answer would not tell their keys apart, so use two \
                     transactions"
                )));
            }
            written_since_tree = Some(false);
        } else if op.writes {
            written_since_tree = written_since_tree.map(|_| true);
        }
    }
    Ok(())
}

/// Gives each operation its result.
///
/// # Errors
///
/// A result that belongs to no operation.
pub(super) fn place(expected: &[Expected], wire: Vec<Wire>) -> Result<Vec<OpResult>, String> {
    let mut wire = VecDeque::from(wire);
    let mut results: Vec<OpResult> = expected.iter().map(|_| OpResult::Nothing).collect();
    let last_tree = expected
        .iter()
        .rposition(|expected| matches!(expected, Expected::Tree(_)));
    let split = last_tree.map_or(0, |last_tree| last_tree + 1);
    let (to_tree, behind) = (expected.get(..split), expected.get(split..));
    let (to_tree, behind) = (to_tree.unwrap_or_default(), behind.unwrap_or_default());

    // What stands behind the last prefix may have been made behind it, and go on as its keys would:
    // it is taken from the end.
    let slots = results.iter_mut().rev();
    for (expected, slot) in behind.iter().rev().zip(slots) {
        if let Some(result) = wire.back_mut().and_then(|wire| expected.take(wire)) {
            wire.pop_back();
            *slot = result;
        }
    }
    for (expected, slot) in to_tree.iter().zip(&mut results) {
        if let Expected::Tree(prefix) = expected {
            *slot = OpResult::Tree(tree(prefix, &mut wire));
        } else if let Some(result) = wire.front_mut().and_then(|wire| expected.take(wire)) {
            wire.pop_front();
            *slot = result;
        }
    }
    match wire.is_empty() {
        true => Ok(results),
        false => Err(format!("{} results belong to no operation", wire.len())),
    }
}

/// The keys at the front that one read of a prefix can have found.
fn tree(prefix: &str, wire: &mut VecDeque<Wire>) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    while let Some(pair) = wire.front_mut().and_then(|wire| {
        wire.kv.take_if(|pair| {
            pair.key().starts_with(prefix)
                // What does not exist was looked for by another operation.
                && pair.modify_index() > 0
                && pairs.last().is_none_or(|last| last.key() < pair.key())
        })
    }) {
        wire.pop_front();
        pairs.push(pair);
    }
    pairs
}

impl Expected {
    /// This operation's result, taken out of the wire's if it can be that.
    fn take(&self, wire: &mut Wire) -> Option<OpResult> {
        match self {
            Self::Nothing | Self::Tree(_) => None,
            Self::Key { key, with_value } => {
                let pair = wire.kv.take_if(|pair| pair.key() == key)?;
                Some(OpResult::Kv(KvEntry::new(pair, *with_value)))
            }
            Self::Node(name) => {
                let node = wire.node.take_if(|node| alike(node.name(), name))?;
                Some(OpResult::Node(node))
            }
            // The node of an instance is not told.
            Self::Service(id) => {
                let service = wire.service.take_if(|service| alike(service.id(), id))?;
                Some(OpResult::Service(service))
            }
            Self::Check(node, id) => {
                let check = wire.check.take_if(|check| is_check(check, node, id))?;
                Some(OpResult::Check(check))
            }
        }
    }
}

fn is_check(check: &Check, node: &str, id: &str) -> bool {
    alike(check.node(), node) && alike(check.id(), id)
}

/// Consul finds what is in its catalog whatever the case of the letters.
fn alike(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}
