//! Places in the space of round-trip times.

use std::collections::BTreeMap;

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
}

/// The nodes that have one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coordinates {
    all: BTreeMap<String, Place>,
    index: u64,
}

impl Coordinates {
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = (&String, &Place)> {
        self.all.iter()
    }

    pub(crate) fn get(&self, node: &str) -> Option<&Place> {
        self.all.get(node)
    }

    pub(crate) fn put(&mut self, index: u64, node: &str, place: Place) {
        self.all.insert(node.to_owned(), place);
        self.index = index;
    }
}
