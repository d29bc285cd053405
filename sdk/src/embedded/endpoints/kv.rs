//! Writes of the key-value store.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};

use super::Call;
use super::query::Options;
use super::reply::{self, Refusal, Reply};

/// `kv_max_value_size`, 512 KiB.
const MAX_VALUE: u64 = 512 * 1024;

impl Call {
    pub(super) async fn kv(self) -> Result<Reply, Refusal> {
        match self.method {
            Method::PUT => self.key_put().await,
            Method::DELETE => self.key_delete().await,
            _ => self.key_read().await,
        }
    }

    async fn key_put(self) -> Result<Reply, Refusal> {
        Options::parse(&self.params, &self.headers)?;
        if self.rest.is_empty() {
            return Err(Refusal::bad_request("Missing key name"));
        }
        self.one_of(&["acquire", "cas", "release"])?;
        let flags = self.number("flags")?.unwrap_or(0);
        let cas = self.number("cas")?;
        if self.params.has("acquire") || self.params.has("release") {
            return Err(self.unserved("?acquire= or ?release=, because it has no sessions"));
        }
        // A body of unknown length is not measured before it is stored.
        let announced = self.headers.get(CONTENT_LENGTH);
        let length = announced
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or(self.body.len() as u64);
        if length > MAX_VALUE {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "Request body({length} bytes) too large, max size: {MAX_VALUE} bytes. See \
                     https://www.consul.io/docs/agent/options.html#kv_max_value_size."
                ),
            ));
        }
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let value = Bytes::clone(&self.body);
        let mut locked = self.core.lock();
        let index = locked.state.next_index();
        let kv = &mut locked.state.replica.kv;
        let done = match cas {
            Some(cas) => kv.cas(index, &self.rest, cas, flags, value),
            None => {
                kv.put(index, &self.rest, flags, value);
                true
            }
        };
        Ok(reply::json(&done, self.layout()))
    }

    async fn key_delete(self) -> Result<Reply, Refusal> {
        Options::parse(&self.params, &self.headers)?;
        let recurse = self.params.has("recurse");
        if self.rest.is_empty() && !recurse {
            return Err(Refusal::bad_request("Missing key name"));
        }
        self.one_of(&["cas", "recurse"])?;
        let cas = self.number("cas")?;
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let now = Self::now();
        let mut locked = self.core.lock();
        let index = locked.state.next_index();
        let kv = &mut locked.state.replica.kv;
        let done = match cas {
            // Consul takes a zero for "whatever is there" no more than any other wrong index.
            Some(cas) => kv.delete_cas(index, now, &self.rest, cas),
            None if recurse => {
                kv.delete_tree(index, now, &self.rest);
                true
            }
            None => {
                kv.delete(index, now, &self.rest);
                true
            }
        };
        Ok(reply::json(&done, self.layout()))
    }

    /// At most one of these parameters may be there; they are in alphabetical order.
    fn one_of(&self, names: &[&str]) -> Result<(), Refusal> {
        let set: Vec<String> = names
            .iter()
            .filter_map(|name| Some(format!("{name}={}", self.params.first(name)?)))
            .collect();
        if set.len() > 1 {
            let text = format!("Conflicting flags: {}", set.join("&"));
            return Err(Refusal::bad_request(text));
        }
        Ok(())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.params.first(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let reason = if digits {
                "value out of range"
            } else {
                "invalid syntax"
            };
            Refusal::internal(format!("strconv.ParseUint: parsing {text:?}: {reason}"))
        })
    }
}
