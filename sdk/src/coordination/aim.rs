//! What is tried by a session, and what came of it: keys of a lock, or a place of a semaphore.

use std::sync::Arc;

use tokio::time::Instant;

use super::attempt::{self, Released, Tried, Want};
use super::belief::Belief;
use super::fence::FencingToken;
use super::held::{Content, Hold};
use super::roster::{LOCK_FLAGS, SEMAPHORE_FLAGS};
use super::seat::{self, Bid};
use crate::client::Client;
use crate::error::Result;
use crate::ident::{Key, SessionId};

/// What is to be held.
#[derive(Clone, Debug)]
pub(super) enum Aim {
    Keys {
        wants: Vec<Want>,
        /// Tickets that are removed with it.
        tickets: Vec<Key>,
    },
    Place(Box<Bid>),
}

impl Aim {
    /// One try.
    pub(super) async fn attempt(
        &self,
        client: &Client,
        session: &SessionId,
        belief: &Belief,
    ) -> Tried {
        match self {
            Self::Keys { wants, tickets } => {
                attempt::attempt(client, session, wants, tickets, belief).await
            }
            Self::Place(bid) => seat::bid(client, session, bid, belief).await,
        }
    }

    /// Whether a try that was lost sight of has come to something: the index of its transaction.
    pub(super) async fn look(&self, client: &Client, session: &SessionId) -> Result<Option<u64>> {
        match self {
            Self::Keys { wants, .. } => attempt::taken(client, session, wants).await,
            Self::Place(bid) => seat::seated(client, session, &bid.prefix).await,
        }
    }

    /// Tickets that are gone once it has come to something.
    pub(super) fn tickets(&self) -> &[Key] {
        match self {
            Self::Keys { tickets, .. } => tickets,
            Self::Place(_) => &[],
        }
    }

    /// What is held now that the transaction of this index took it.
    pub(super) fn hold(&self, session: &SessionId, index: u64, belief: &Arc<Belief>) -> Hold {
        let content = |value: &bytes::Bytes, flags| Content {
            modify_index: index,
            value: value.clone(),
            flags,
        };
        let (keys, contents, seat) = match self {
            Self::Keys { wants, .. } => {
                let keys = wants.iter().map(|want| want.key.clone()).collect();
                let contents = wants.iter().map(|want| content(&want.value, LOCK_FLAGS));
                (keys, contents.collect(), None)
            }
            Self::Place(bid) => {
                let contents = vec![content(&bid.value, SEMAPHORE_FLAGS)];
                (vec![bid.key.clone()], contents, Some(bid.prefix.clone()))
            }
        };
        let token = FencingToken::new(index);
        Hold::new(
            keys,
            contents,
            seat,
            session.clone(),
            token,
            Arc::clone(belief),
        )
    }
}

/// Gives up what is held. Nothing is believed any more by now.
pub(super) async fn give_up(client: &Client, hold: &Hold, deadline: Instant) -> Result<Released> {
    match &hold.seat {
        None => attempt::unlock(client, hold, deadline).await,
        Some(prefix) => seat::leave(client, hold, prefix, deadline).await,
    }
}

/// How many watches tell early that what is held is not any more.
pub(super) fn watches(hold: &Hold) -> usize {
    match hold.seat {
        None => hold.keys.len(),
        Some(_) => 1,
    }
}

/// One of them. It ends with the hold.
pub(super) async fn watch(client: Client, hold: Arc<Hold>, place: usize) {
    let following = async {
        match &hold.seat {
            None => attempt::follow(&client, &hold, place).await,
            Some(prefix) => seat::follow(&client, &hold, prefix).await,
        }
    };
    tokio::select! {
        biased;
        _ = hold.lost() => {}
        () = following => {}
    }
}
