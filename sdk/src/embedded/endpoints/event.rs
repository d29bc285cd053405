//! User events.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use tokio::time::Instant;

use super::Call;
use super::query::Options;
use super::reply::{self, Refusal, Reply};
use crate::embedded::state::State;
use crate::embedded::state::events::{Event, index_of};
use crate::embedded::state::session::SessionId;

/// What gossip has room for beside what is always there, once the Lamport time takes one byte.
const ROOM: usize = 416;

impl Call {
    pub(super) fn event_fire(&self) -> Result<Reply, Refusal> {
        if self.rest.is_empty() {
            return Err(Refusal::bad_request("Missing name"));
        }
        self.check_datacenter(self.params.value("dc"))?;
        let filter = |name| self.plain_filter(name);
        let (node, service, tag) = (filter("node")?, filter("service")?, filter("tag")?);
        if !tag.is_empty() && service.is_empty() {
            let text = "Cannot provide tag filter without service filter";
            return Err(Refusal::internal(text));
        }
        let mut locked = self.core.lock();
        let state = &mut locked.state;
        let id = SessionId::new(state.random(u64::MAX), state.random(u64::MAX));
        let event = Event {
            id: id.to_string(),
            name: self.rest.clone(),
            payload: Bytes::clone(&self.body),
            node_filter: node,
            service_filter: service,
            tag_filter: tag,
            time: state.events.next_time(),
        };
        if !fits(&event) {
            return Err(Refusal::internal(
                "1 error occurred:\n\t* error broadcasting event to segment \"\": user event \
                 exceeds configured limit of 512 bytes before encoding\n\n",
            ));
        }
        // Who fired it is not told its time.
        let reply = reply::json(&View::new(&event, 0), self.layout());
        let is_for_us = is_for(&event, state);
        state.events.hear(event, is_for_us);
        state.touch();
        Ok(reply)
    }

    pub(super) async fn event_list(&self) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        let name = self.params.value("name");
        let _open = (options.min_index > 0).then(|| self.core.traffic.open(&self.path));
        let until = Instant::now() + options.wait;
        let mut changes = self.core.subscribe();
        loop {
            {
                let locked = self.core.lock();
                changes.mark_unchanged();
                let found: Vec<_> = locked.state.events.list(name).collect();
                let index = found.last().map_or(1, |event| index_of(&event.id));
                if index != options.min_index || Instant::now() >= until {
                    let views: Vec<_> = found
                        .iter()
                        .map(|event| View::new(event, event.time))
                        .collect();
                    let mut reply = reply::json(&views, options.layout);
                    reply::set(&mut reply, "x-consul-index", &index.to_string());
                    return Ok(reply);
                }
            }
            tokio::time::timeout_at(until, changes.changed()).await.ok();
        }
    }

    /// A filter without the signs of regular expressions, which this agent does not know.
    fn plain_filter(&self, name: &str) -> Result<String, Refusal> {
        let text = self.params.value(name);
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | ' ' | ':');
        if text.chars().all(plain) {
            return Ok(text.to_owned());
        }
        if text.matches('(').count() != text.matches(')').count() {
            let missing = if text.contains('(') {
                "closing )"
            } else {
                "opening ("
            };
            let what = if text.contains('(') {
                "missing"
            } else {
                "unexpected"
            };
            let text =
                format!("Invalid {name} filter: error parsing regexp: {what} {missing}: `{text}`");
            return Err(Refusal::internal(text));
        }
        Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("The embedded agent does not serve a regular expression: {text}"),
        ))
    }
}

/// Whether gossip takes it.
fn fits(event: &Event) -> bool {
    let name = event.name.len();
    let payload = event.payload.len();
    let filters = [&event.node_filter, &event.service_filter, &event.tag_filter];
    let filters = filters.into_iter().filter(|filter| !filter.is_empty());
    let filters: usize = filters
        .map(|filter| filter.len() + 4 + usize::from(filter.len() >= 32))
        .sum();
    let names = 2 * name + 2 * usize::from(name >= 19) + usize::from(name >= 32);
    let time = usize::from(event.time >= 128);
    let used = names + filters + payload + time;
    // A payload that is not there is not even named; a short one has a short length.
    let saved = match payload {
        0 => 5,
        1..256 => 1,
        _ => 0,
    };
    used <= ROOM + saved
}

/// Whether this agent takes part: its node, or one of the services that it looks after, is meant.
///
/// Consul looks for the pattern in the IDs of services and not in their names.
fn is_for(event: &Event, state: &State) -> bool {
    if !state.identity.node.contains(&event.node_filter) {
        return false;
    }
    if event.service_filter.is_empty() {
        return true;
    }
    state.local.services.values().any(|service| {
        service.id.contains(&event.service_filter)
            && (event.tag_filter.is_empty()
                || service
                    .tags
                    .iter()
                    .any(|tag| tag.contains(&event.tag_filter)))
    })
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct View<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    payload: Option<String>,
    node_filter: &'a str,
    service_filter: &'a str,
    tag_filter: &'a str,
    version: u8,
    #[serde(rename = "LTime")]
    time: u64,
}

impl<'a> View<'a> {
    fn new(event: &'a Event, time: u64) -> Self {
        Self {
            id: &event.id,
            name: &event.name,
            payload: (!event.payload.is_empty()).then(|| STANDARD.encode(&event.payload)),
            node_filter: &event.node_filter,
            service_filter: &event.service_filter,
            tag_filter: &event.tag_filter,
            version: 1,
            time,
        }
    }
}
