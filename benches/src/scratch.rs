//! A directory for the time of a run.

use std::path::{Path, PathBuf};

use crate::Outcome;

/// A fresh directory that is removed when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in memory (`/dev/shm`) if the machine has that, so that no disk is measured.
    ///
    /// # Errors
    /// If no directory can be made.
    pub fn new(name: &str) -> Outcome<Self> {
        let leaf = format!(
            "lictor-{name}-{}-{}",
            std::process::id(),
            crate::usage::monotonic_nanos()
        );
        let candidates = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
        let mut failure = None;
        for parent in candidates {
            let path = parent.join(&leaf);
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) => failure = Some(error),
            }
        }
        Err(format!("no scratch directory: {failure:?}").into())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in a temporary directory is no reason to fail a bench that has ended.
        std::fs::remove_dir_all(&self.0).ok();
    }
}
