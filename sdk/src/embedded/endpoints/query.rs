//! Query parameters and the options that all reads share.

use std::time::Duration;

use http::HeaderMap;
use http::header::{AUTHORIZATION, CACHE_CONTROL};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::reply::{Layout, Refusal};
use crate::proto::duration;

/// What Go's `url.QueryEscape` escapes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Decoded parameters in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&');
        Self(
            pairs
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decoded(name), decoded(value))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// The first value of a parameter; empty when it is not there, as Go's `Values.Get`.
    pub(super) fn value(&self, name: &str) -> &str {
        self.first(name).unwrap_or_default()
    }

    /// All of them, by name, as Go's `Values.Encode` writes them.
    pub(super) fn encode(&self) -> String {
        let mut pairs: Vec<&(String, String)> = self.0.iter().collect();
        pairs.sort_by_key(|(name, _)| name);
        let encoded = |text: &str| {
            utf8_percent_encode(text, ESCAPED)
                .to_string()
                .replace("%20", "+")
        };
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
            .collect();
        pairs.join("&")
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Consistency {
    #[default]
    Leader,
    Stale,
    Consistent,
}

impl Consistency {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Stale => "stale",
            Self::Consistent => "consistent",
        }
    }
}

/// What every read of the servers' state may ask for.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Zero asks for an answer at once.
    pub(super) min_index: u64,
    pub(super) wait: Duration,
    pub(super) consistency: Consistency,
    pub(super) cached: bool,
    pub(super) datacenter: String,
    pub(super) layout: Layout,
}

/// Consul's default for a blocking query without `wait`, or with `wait=0s`.
const DEFAULT_WAIT: Duration = Duration::from_secs(5 * 60);
/// A longer `wait` is cut to this.
const MAX_WAIT: Duration = Duration::from_secs(10 * 60);

impl Options {
    pub(super) fn parse(params: &Params, headers: &HeaderMap) -> Result<Self, Refusal> {
        let (wait, min_index) = parse_wait(params)?;
        parse_cache_control(headers)?;
        let consistency = Self::consistency(params)?;
        Ok(Self {
            min_index,
            wait,
            consistency,
            cached: params.has("cached"),
            datacenter: params.value("dc").to_owned(),
            layout: layout(params),
        })
    }

    /// Which server may answer.
    pub(super) fn consistency(params: &Params) -> Result<Consistency, Refusal> {
        let mut consistency = Consistency::Leader;
        if params.has("stale") {
            consistency = Consistency::Stale;
        }
        let consistent = params.has("consistent");
        if let Some(text) = params.first("max_stale").filter(|text| !text.is_empty()) {
            if duration::parse(text).is_err() {
                return Err(Refusal::bad_request(format!(
                    "Invalid max_stale value \"{text}\""
                )));
            }
            consistency = Consistency::Stale;
        }
        if consistent {
            if consistency == Consistency::Stale {
                return Err(Refusal::bad_request(
                    "Cannot specify ?stale with ?consistent, conflicting semantics.",
                ));
            }
            if params.has("cached") {
                return Err(Refusal::bad_request(
                    "Cannot specify ?cached with ?consistent, conflicting semantics.",
                ));
            }
            consistency = Consistency::Consistent;
        }
        Ok(consistency)
    }
}

pub(super) fn layout(params: &Params) -> Layout {
    if params.has("pretty") {
        Layout::Pretty
    } else {
        Layout::Compact
    }
}

/// How long a blocking query asks to be held, with Consul's default and maximum, and the index
/// that its caller knows.
pub(super) fn parse_wait(params: &Params) -> Result<(Duration, u64), Refusal> {
    let wait = match params.value("wait") {
        "" => DEFAULT_WAIT,
        text => match duration::parse(text) {
            Ok(wait) if wait.is_zero() => DEFAULT_WAIT,
            Ok(wait) => wait.min(MAX_WAIT),
            // Go reads it, and its timer fires at once.
            Err(duration::Invalid::Negative(_)) => Duration::ZERO,
            Err(_) => return Err(Refusal::bad_request("Invalid wait time")),
        },
    };
    let min_index = match params.value("index") {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| Refusal::bad_request("Invalid index"))?,
    };
    Ok((wait, min_index))
}

fn parse_cache_control(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(header) = headers.get(CACHE_CONTROL) else {
        return Ok(());
    };
    let invalid = || Refusal::bad_request("Invalid Cache-Control header.");
    let text = header.to_str().map_err(|_| invalid())?;
    for directive in text.to_lowercase().split(',') {
        let (name, value) = directive.trim().split_once('=').unwrap_or((directive, ""));
        if matches!(name, "max-age" | "stale-if-error") && value.parse::<u32>().is_err() {
            return Err(invalid());
        }
    }
    Ok(())
}

/// The token of a request: the parameter, else Consul's header, else a bearer token.
pub(super) fn token<'a>(params: &'a Params, headers: &'a HeaderMap) -> &'a str {
    if let Some(token) = params.first("token").filter(|token| !token.is_empty()) {
        return token;
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(token) = header("x-consul-token").filter(|token| !token.is_empty()) {
        return token;
    }
    header(AUTHORIZATION.as_str())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map_or("", |(_, token)| token.trim())
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
