//! Variables that are known and have no effect.

use std::collections::BTreeSet;
use std::fmt;

use super::registrator::Words;

/// A variable that changes nothing, and why.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Unused {
    pub(super) variable: String,
    why: String,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has no effect: {}", self.variable, self.why)
    }
}

/// A kind of check: the word that asks for it, what it is called, and the words that are for it
/// alone. The first that is said counts.
const KINDS: [(&str, &str, &[&str]); 7] = [
    ("check_http", "an HTTP", &["check_http_method"]),
    ("check_https", "an HTTPS", &["check_https_method"]),
    ("check_cmd", "a command", &[]),
    ("check_script", "a script", &[]),
    ("check_ttl", "a TTL", &[]),
    ("check_tcp", "a TCP", &[]),
    (
        "check_grpc",
        "a gRPC",
        &["check_grpc_use_tls", "check_tls_skip_verify"],
    ),
];

/// What a check of any kind has.
const ALL: [&str; 2] = ["check_initial_status", "check_deregister_after"];

/// What a check has that the agent makes by itself.
const TIMED: [&str; 2] = ["check_interval", "check_timeout"];

impl Words {
    /// What has no effect on any service: words for a port that none is on, and words about checks
    /// that are not made.
    ///
    /// `all` are the ports of the process, `served` those whose services are registered. Words that
    /// give way to others for one port are no mistake, and neither are those of services that are not
    /// registered.
    pub(super) fn unused(&self, all: &BTreeSet<u16>, served: &BTreeSet<u16>) -> Vec<Unused> {
        let mut unused = BTreeSet::new();
        for (port, words) in &self.special {
            if port.parse().is_ok_and(|port| all.contains(&port)) {
                continue;
            }
            let ports: Vec<String> = all.iter().map(u16::to_string).collect();
            let why = match &*ports {
                [] => format!("no service is on port {port}"),
                ports => format!("no service is on port {port}, only on {}", ports.join(", ")),
            };
            unused.extend(words.values().map(|said| Unused {
                variable: said.variable.clone(),
                why: why.clone(),
            }));
        }
        let mut used = BTreeSet::new();
        let mut idle = Vec::new();
        for port in served {
            let kind = KINDS.iter().find(|(word, ..)| self.has(word, *port));
            for word in self.keys(*port) {
                let Some(said) = self.said(word, Some(*port)) else {
                    continue;
                };
                if !word.starts_with("check_") || self.is_for(kind, word, *port) {
                    used.insert(&said.variable);
                    continue;
                }
                let why = match kind {
                    Some((_, kind, _)) => format!(
                        "the check of the service on port {port} is {kind} one, which has no \
                         use for it"
                    ),
                    None => format!(
                        "the service on port {port} has no check: ask for one, such as by \
                         SERVICE_CHECK_HTTP"
                    ),
                };
                idle.push((&said.variable, why));
            }
        }
        for (variable, why) in idle {
            if !used.contains(variable) && unused.iter().all(|one| one.variable != *variable) {
                let variable = variable.clone();
                unused.insert(Unused { variable, why });
            }
        }
        unused.into_iter().collect()
    }

    fn has(&self, word: &str, port: u16) -> bool {
        self.said(word, Some(port)).is_some()
    }

    /// Whether a check of this kind has a use for a word.
    fn is_for(&self, kind: Option<&(&str, &str, &[&str])>, word: &str, port: u16) -> bool {
        let Some((own, _, only)) = kind else {
            return false;
        };
        match word {
            "check_tls_skip_verify" => only.contains(&word) && self.has("check_grpc_use_tls", port),
            _ if TIMED.contains(&word) => *own != "check_ttl",
            _ => word == *own || only.contains(&word) || ALL.contains(&word),
        }
    }
}
