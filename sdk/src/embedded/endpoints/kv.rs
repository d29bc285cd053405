//! Writes of the key-value store.

use bytes::Bytes;
use http::{Method, StatusCode};

use super::Call;
use super::query::Options;
use super::reply::{self, Refusal, Reply};
use crate::embedded::state::locks::LockRefused;
use crate::embedded::state::session::Named;

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
        // A body of unknown length is not measured before it is stored.
        let length = self.announced_length().unwrap_or(0);
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
        let key = &self.rest;
        let mut locked = self.core.lock();
        let state = &mut locked.state;
        let done = if let Some(session) = self.params.first("acquire") {
            let session = Named::parse(session);
            match state.acquire(key, &session, flags, value, Self::now()) {
                Ok(()) => true,
                Err(LockRefused::Held | LockRefused::Delayed) => false,
                Err(refused) => return Err(Refusal::internal(refused.to_string())),
            }
        } else if let Some(session) = self.params.first("release") {
            state
                .release(key, &Named::parse(session), flags, value)
                .map_err(|refused| Refusal::internal(refused.to_string()))?
        } else {
            let index = state.next_index();
            match cas {
                Some(cas) => state.replica.kv.cas(index, key, cas, flags, value),
                None => {
                    state.replica.kv.put(index, key, flags, value);
                    true
                }
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

    /// At most one of these parameters may be there.
    fn one_of(&self, names: &[&str]) -> Result<(), Refusal> {
        let set = names.iter().filter(|name| self.params.has(name));
        if set.count() > 1 {
            let text = format!("Conflicting flags: {}", self.params.encode());
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
