//! Places in the space of round-trip times.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// A place.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Place {
    pub(crate) vec: Vec<f64>,
    pub(crate) error: f64,
    pub(crate) adjustment: f64,
    pub(crate) height: f64,
}

impl Place {
    /// Where everybody is before anything was measured, so far from there in the first dimension.
    pub(crate) fn at(seconds: f64) -> Self {
        let mut vec = vec![0.0; 8];
        if let Some(first) = vec.first_mut() {
            *first = seconds;
        }
        Self {
            vec,
            error: 1.5,
            adjustment: 0.0,
            height: 0.000_01,
        }
    }

    /// The estimated round-trip time to another place, as Serf reckons it; `None` if there is none.
    pub(crate) fn distance_to(&self, other: &Self) -> Option<Duration> {
        let pairs = self.vec.iter().zip(&other.vec);
        let square: f64 = pairs.map(|(one, other)| (one - other).powi(2)).sum();
        let raw = square.sqrt() + self.height + other.height;
        // Adjustments may be negative, and only count while the whole is not.
        let adjusted = raw + self.adjustment + other.adjustment;
        let seconds = if adjusted > 0.0 { adjusted } else { raw };
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// The nodes that have one, by their names without regard to case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coordinates {
    all: BTreeMap<String, (String, Place)>,
    index: u64,
}

fn fold(name: &str) -> String {
    name.to_lowercase()
}

impl Coordinates {
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = (&String, &Place)> {
        self.all.values().map(|(node, place)| (node, place))
    }

    pub(crate) fn get(&self, node: &str) -> Option<&Place> {
        self.all.get(&fold(node)).map(|(_, place)| place)
    }

    pub(crate) fn put(&mut self, index: u64, node: &str, place: Place) {
        self.all.insert(fold(node), (node.to_owned(), place));
        self.index = index;
    }

    pub(crate) fn remove(&mut self, index: u64, node: &str) {
        if self.all.remove(&fold(node)).is_some() {
            self.index = index;
        }
    }

    /// Sorts by the distance of nodes from the one that is named; those without a place come last,
    /// and equals stay as they are. Nothing is sorted if the named one has no place.
    pub(crate) fn sort<T>(&self, near: &str, items: &mut [T], node: impl Fn(&T) -> &str) {
        let Some(from) = self.get(near) else {
            return;
        };
        items.sort_by_cached_key(|item| {
            let place = self.get(node(item));
            place
                .and_then(|place| from.distance_to(place))
                .unwrap_or(Duration::MAX)
        });
    }
}
