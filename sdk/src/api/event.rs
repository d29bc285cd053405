//! User events, told to all agents of a datacenter by gossip: `/v1/event`.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::endpoint::{Answered, answers_with_list};
use super::kv::value;
use super::{Endpoint, Read, Write};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::EventName;
use crate::proto::json::Text;
use crate::proto::query::Target;

impl Client {
    /// User events.
    #[must_use]
    pub fn event(&self) -> Events {
        Events {
            client: self.clone(),
        }
    }
}

/// Calls about user events.
///
/// An event is a name and a few bytes, told to every agent of a datacenter within seconds, without
/// a server, a quorum or a promise: one that is out of reach then never hears of it. For what must
/// not be missed there are keys.
///
/// To hear of them, see [`Read::follow`](crate::api::Read::follow).
#[derive(Clone, Debug)]
pub struct Events {
    client: Client,
}

impl Events {
    /// Tells an event to all agents; the answer is the event with its ID.
    ///
    /// Gossip has little room: name, payload and [filters](Write::node) together must fit into 512
    /// bytes as Consul packs them, which leaves 414 to the payload of an event with a name of one
    /// letter, and two less for each further one. What can never fit is refused when the call is
    /// awaited. Consul refuses the rest with
    /// [`ErrorKind::RequestTooLarge`](crate::ErrorKind::RequestTooLarge), and a filter that is no
    /// regular expression with [`ErrorKind::Refused`](crate::ErrorKind::Refused).
    #[doc(alias = "PUT /v1/event/fire/:name")]
    pub fn fire(&self, name: impl Into<Arc<str>>, payload: impl Into<Bytes>) -> Write<Fire> {
        let (name, payload) = (EventName::new(name), payload.into());
        let room = Fire {
            name: name.as_ref().map_or(0, |name| name.len()),
            payload: payload.len(),
            filters: 0,
        };
        Write::named(&self.client, "/v1/event/fire/", name, room)
            .bytes(payload)
            .checked()
    }

    /// The last events that this agent has heard of, 256 at most, the oldest first.
    ///
    /// The index of the answer stands for its last event; it may go up and down.
    #[doc(alias = "GET /v1/event/list")]
    pub fn list(&self) -> Read<List> {
        Read::new(&self.client, Target::new("/v1/event/list"), List(()))
    }
}

macro_rules! filters {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        impl Write<Fire> {$(
            $(#[$doc])*
            pub fn $name(mut self, pattern: impl AsRef<str>) -> Self {
                let pattern = pattern.as_ref();
                self.endpoint.filters += filter_room(pattern.len());
                self.parameter(stringify!($name), pattern).checked()
            }
        )*}
    };
}

filters! {
    /// Only agents whose node's name fits this regular expression (Go's). Default: all.
    node;
    /// Only agents that a service is registered with whose ID fits this regular expression (Go's);
    /// Consul does not look at names. Default: all.
    service;
    /// Only agents with such a service that has a tag that fits this regular expression (Go's);
    /// needs a service filter, and is refused without one. Default: all.
    tag;
}

impl Read<List> {
    /// Only events of this name. Default: all.
    ///
    /// It is all that Consul looks at here: who an event is for was decided when it was
    /// [fired](Write::node), and an agent lists those that were for itself (measured on 1.8.7).
    pub fn name(self, name: impl AsRef<str>) -> Self {
        self.parameter("name", name.as_ref())
    }
}

impl Write<Fire> {
    /// Refuses what can never be told.
    fn checked(self) -> Self {
        let room = self.endpoint.room();
        let Some(over) = self
            .endpoint
            .used()
            .checked_sub(ROOM)
            .filter(|over| *over > 0)
        else {
            return self;
        };
        let payload = self.endpoint.payload;
        self.refuse(Error::invalid(if over > payload {
            format!("event: its name and its filters are {over} bytes too long for Consul's gossip")
        } else {
            format!(
                "event with a payload of {payload} bytes: Consul's gossip has room for {room} \
                 beside its name and its filters"
            )
        }))
    }
}

/// What is left of Consul's 512 bytes for the names and values (measured on 1.8.7).
const ROOM: usize = 416;

/// What a filter takes: its name, and one byte or two for its length.
fn filter_room(length: usize) -> usize {
    length + 4 + usize::from(length >= 32)
}

/// The telling of an event: [`Events::fire`].
#[derive(Clone, Debug)]
pub struct Fire {
    name: usize,
    payload: usize,
    filters: usize,
}

impl Fire {
    /// What name and filters take. The name is there twice, once behind a prefix of 13 bytes.
    fn beside(&self) -> usize {
        2 * self.name
            + 2 * usize::from(self.name >= 19)
            + usize::from(self.name >= 32)
            + self.filters
    }

    fn used(&self) -> usize {
        let saved = match self.payload {
            // It is left out then.
            0 => 5,
            1..256 => 1,
            _ => 0,
        };
        (self.beside() + self.payload).saturating_sub(saved)
    }

    /// The largest payload that may fit.
    fn room(&self) -> usize {
        let left = ROOM.saturating_sub(self.beside());
        if left < 255 { left + 1 } else { left }
    }
}

impl Endpoint for Fire {
    type Output = Event;

    fn interpret(&self, answer: Answered) -> Result<Event> {
        answer.good()?.decode()
    }
}

/// A user event.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Event {
    #[serde(rename = "ID")]
    id: Text,
    #[serde(rename = "Name")]
    name: EventName,
    #[serde(default, rename = "Payload", deserialize_with = "value")]
    payload: Bytes,
    #[serde(default, rename = "NodeFilter")]
    node_filter: Text,
    #[serde(default, rename = "ServiceFilter")]
    service_filter: Text,
    #[serde(default, rename = "TagFilter")]
    tag_filter: Text,
    #[serde(default, rename = "LTime")]
    time: u64,
}

impl Event {
    /// What tells it from all others.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &EventName {
        &self.name
    }

    /// Its payload; empty if it has none.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Which nodes it is for; `None` for all.
    #[must_use]
    pub fn node_filter(&self) -> Option<&str> {
        self.node_filter.non_empty()
    }

    /// Which services it is for; `None` for all.
    #[must_use]
    pub fn service_filter(&self) -> Option<&str> {
        self.service_filter.non_empty()
    }

    /// Which tags it is for; `None` for all.
    #[must_use]
    pub fn tag_filter(&self) -> Option<&str> {
        self.tag_filter.non_empty()
    }

    /// Its Lamport time, by which agents tell earlier ones from later ones; 0 in the answer to who
    /// fired it.
    #[doc(alias = "LTime")]
    #[must_use]
    pub fn time(&self) -> u64 {
        self.time
    }
}

/// The last events: [`Events::list`].
#[derive(Clone, Debug)]
pub struct List(());

answers_with_list!(List => Event);

#[cfg(test)]
mod tests {
    use super::*;

    /// What Consul 1.8.7 took at most, probed byte by byte with a small Lamport time.
    #[test]
    fn the_room_is_what_was_measured() {
        for (name, most) in [
            (1, 414),
            (2, 412),
            (4, 408),
            (31, 352),
            (32, 349),
            (50, 313),
            (100, 214),
        ] {
            let fire = |payload| Fire {
                name,
                payload,
                filters: 0,
            };
            assert!(fire(most).used() <= ROOM, "{name} {most}");
            assert!(fire(most + 1).used() > ROOM, "{name} {most}");
            assert_eq!(fire(0).room(), most);
        }
        for (filters, most) in [
            (filter_room(1), 409),
            (filter_room(10), 400),
            (2 * filter_room(1), 404),
            (2 * filter_room(1) + filter_room(40), 359),
        ] {
            let fire = Fire {
                name: 1,
                payload: most,
                filters,
            };
            assert!(fire.used() <= ROOM, "{filters}");
        }
    }
}
