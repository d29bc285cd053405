//! What was asked of the agent, counted for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Method;

/// What was asked of an agent so far.
///
/// A picture of the moment at which [`Agent::requests`](super::Agent::requests) was called.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Requests {
    counts: BTreeMap<(String, String), u64>,
    open: BTreeMap<String, usize>,
}

impl Requests {
    /// All requests that arrived, answered or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The requests with this method and exactly this path, without its query.
    #[must_use]
    pub fn count(&self, method: &Method, path: &str) -> u64 {
        self.counts
            .get(&(path.to_owned(), method.as_str().to_owned()))
            .copied()
            .unwrap_or(0)
    }

    /// The requests of any method whose path begins with `prefix`.
    #[must_use]
    pub fn count_under(&self, prefix: &str) -> u64 {
        self.counts
            .iter()
            .filter(|((path, _), _)| path.starts_with(prefix))
            .map(|(_, count)| count)
            .sum()
    }

    /// The blocking queries that are not answered yet.
    ///
    /// One whose caller gave up is no longer open.
    #[must_use]
    pub fn open_queries(&self) -> usize {
        self.open.values().sum()
    }

    /// The blocking queries whose path begins with `prefix` that are not answered yet.
    #[must_use]
    pub fn open_queries_under(&self, prefix: &str) -> usize {
        self.open
            .iter()
            .filter(|(path, _)| path.starts_with(prefix))
            .map(|(_, count)| count)
            .sum()
    }
}

#[derive(Debug, Default)]
pub(super) struct Traffic(Mutex<Requests>);

impl Traffic {
    pub(super) fn count(&self, method: &Method, path: &str) {
        let key = (path.to_owned(), method.as_str().to_owned());
        *self.lock().counts.entry(key).or_default() += 1;
    }

    /// Counts a blocking query for as long as the guard lives.
    pub(super) fn open(self: &Arc<Self>, path: &str) -> OpenQuery {
        *self.lock().open.entry(path.to_owned()).or_default() += 1;
        OpenQuery {
            traffic: Arc::clone(self),
            path: path.to_owned(),
        }
    }

    pub(super) fn requests(&self) -> Requests {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct OpenQuery {
    traffic: Arc<Traffic>,
    path: String,
}

impl Drop for OpenQuery {
    fn drop(&mut self) {
        let mut requests = self.traffic.lock();
        if let Some(count) = requests.open.get_mut(&self.path) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                requests.open.remove(&self.path);
            }
        }
    }
}
