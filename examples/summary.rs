//! Which instance answered how many calls, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::json;

use crate::{Findings, Result};

/// What an example did, part by part.
#[derive(Debug)]
pub struct Summary {
    /// Which Consul it ran on.
    pub agent: String,
    /// What was called, and how that went.
    pub parts: Vec<(&'static str, Calls)>,
}

/// What became of some calls.
#[derive(Debug, Default)]
pub struct Calls {
    /// How many each instance answered, by what it says its name is.
    pub answered: BTreeMap<String, u64>,
    /// What the errors say.
    pub failed: Vec<String>,
}

impl Calls {
    /// Notes what came of a call.
    pub fn note(&mut self, outcome: Result<String>) {
        match outcome {
            Ok(name) => *self.answered.entry(name).or_default() += 1,
            Err(error) => {
                let mut text = error.to_string();
                let mut cause = error.source();
                while let Some(error) = cause {
                    text.push_str(": ");
                    text.push_str(&error.to_string());
                    cause = error.source();
                }
                self.failed.push(text);
            }
        }
    }
}

impl Findings for Summary {
    fn json(&self) -> String {
        let parts = self.parts.iter().map(|(what, calls)| {
            json!({ "what": what, "answered": calls.answered, "failed": calls.failed })
        });
        let parts: Vec<_> = parts.collect();
        json!({ "agent": self.agent, "parts": parts }).to_string()
    }

    /// Whether no call failed.
    fn is_good(&self) -> bool {
        self.parts.iter().all(|(_, calls)| calls.failed.is_empty())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "agent   {}", self.agent)?;
        for (what, calls) in &self.parts {
            writeln!(f, "{what}")?;
            for (name, count) in &calls.answered {
                writeln!(f, "  {name:<10}{count:>6}")?;
            }
            writeln!(f, "  {:<10}{:>6}", "failed", calls.failed.len())?;
            for failure in &calls.failed {
                writeln!(f, "    {failure}")?;
            }
        }
        Ok(())
    }
}
