//! How what is told is written as JSON or the like: for debug pages, and stable.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::endpoint::Target;
use crate::source::Status;

/// A time as milliseconds with a fraction: what pages and people reckon in.
pub(crate) fn millis<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1_000.0)
}

/// As `host:port`.
impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// As a map with `state`, and `age_ms` and `reason` where there are such.
impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Told<'a> {
            state: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            age_ms: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
        }
        let told = |state| Told {
            state,
            age_ms: None,
            reason: None,
        };
        match self {
            Self::Unknown => told("unknown"),
            Self::Live => told("live"),
            Self::Failing { reason } => Told {
                reason: Some(reason),
                ..told("failing")
            },
            Self::Stale { age, reason } => Told {
                age_ms: Some(age.as_secs_f64() * 1_000.0),
                reason: Some(reason),
                ..told("stale")
            },
        }
        .serialize(serializer)
    }
}
