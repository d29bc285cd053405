//! The user events that an agent has heard of.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

/// A user event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) payload: Bytes,
    pub(crate) node_filter: String,
    pub(crate) service_filter: String,
    pub(crate) tag_filter: String,
    /// The Lamport time.
    pub(crate) time: u64,
}

/// An agent keeps so many.
const KEPT: usize = 256;

#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    kept: VecDeque<Arc<Event>>,
    time: u64,
}

impl Events {
    /// The Lamport time of the next event: a fresh agent begins at 2.
    pub(crate) fn next_time(&self) -> u64 {
        self.time.max(1) + 1
    }

    /// Takes in an event that went round; one that is not for this agent only moves the time.
    pub(crate) fn hear(&mut self, event: Event, is_for_us: bool) {
        self.time = event.time;
        if !is_for_us {
            return;
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Arc::new(event));
    }

    /// Those of a name, or all of them, the oldest first.
    pub(crate) fn list(&self, name: &str) -> impl Iterator<Item = &Arc<Event>> {
        let fits = move |event: &&Arc<Event>| name.is_empty() || event.name == name;
        self.kept.iter().filter(fits)
    }
}

/// The index that stands for a list: both halves of the ID of its last event, laid over each other.
pub(crate) fn index_of(id: &str) -> u64 {
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |text: Option<&str>| {
        let text = text.unwrap_or_default();
        u64::from_str_radix(text, 16).unwrap_or_default()
    };
    half(digits.get(..16)) ^ half(digits.get(16..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_an_id_is_consuls() {
        // What Consul 1.8.7 answered.
        let index = index_of("d82f06c3-389e-790c-9472-4508d67de76f");
        assert_eq!(index, 5_502_628_862_881_930_851);
    }
}
