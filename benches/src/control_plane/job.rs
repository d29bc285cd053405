//! What a worker is asked to measure; the Go program reads the same JSON.

use serde::{Deserialize, Serialize};

/// The first argument of a worker; the second is the job.
pub const MODE: &str = "__measure";

/// One measurement of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Job {
    /// The bench.
    pub bench: String,
    /// The contender.
    pub contender: String,
    /// The server's address, as `http://127.0.0.1:PORT`.
    pub address: String,
    /// The service to ask for.
    pub service: String,
    /// Concurrent loops.
    pub concurrency: usize,
    /// Readers of a watch.
    pub readers: usize,
    /// How long to run before measuring, in milliseconds.
    pub warm_up_ms: u64,
    /// How long to measure, in milliseconds.
    pub measured_ms: u64,
    /// How many operations or updates to measure at least.
    pub at_least: u64,
}

impl Job {
    /// The same job, just long enough to count what does not vary with time.
    #[must_use]
    pub fn brief(&self) -> Self {
        Self {
            warm_up_ms: 0,
            measured_ms: 0,
            at_least: self.at_least.min(3),
            ..self.clone()
        }
    }
}
