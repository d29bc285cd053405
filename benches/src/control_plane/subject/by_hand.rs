//! The floor with decoding: a bare reqwest call, and `serde_json` into types written by hand.

use bytes::Bytes;
use reqwest::{Client, Response};

use super::{Follow, Health, Kv, Seen, Subject};
use crate::control_plane::by_hand::{KvPair, ServiceEntry};
use crate::{Outcome, usage};

/// See the module.
pub(in crate::control_plane) struct ByHand {
    client: Client,
    address: String,
    index: u64,
    /// What a follower has in its hands, as every watch has.
    held: Vec<ServiceEntry>,
}

impl ByHand {
    /// The answer to the next blocking query.
    pub(in crate::control_plane) async fn next_entries(
        &mut self,
        service: &str,
    ) -> Outcome<(u64, Vec<ServiceEntry>)> {
        let (index, body) =
            blocking_query(&self.client, &self.address, service, self.index).await?;
        self.index = index;
        Ok((index, serde_json::from_slice(&body)?))
    }
}

/// One blocking query: the index and the body of its answer.
pub(super) async fn blocking_query(
    client: &Client,
    address: &str,
    service: &str,
    index: u64,
) -> Outcome<(u64, Bytes)> {
    let url = format!("{address}/v1/health/service/{service}?index={index}&wait=60s&stale=");
    let answer = client.get(url).send().await?.error_for_status()?;
    let index = index_of(&answer)?;
    Ok((index, answer.bytes().await?))
}

fn index_of(answer: &Response) -> Outcome<u64> {
    let index = answer
        .headers()
        .get("X-Consul-Index")
        .ok_or("an answer without index")?;
    Ok(index.to_str()?.parse()?)
}

impl Subject for ByHand {
    async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self {
            client: Client::builder().build()?,
            address: address.to_owned(),
            index: 0,
            held: Vec::new(),
        })
    }

    async fn another(&self) -> Outcome<Self> {
        Ok(Self {
            client: self.client.clone(),
            address: self.address.clone(),
            index: 0,
            held: Vec::new(),
        })
    }
}

impl Kv for ByHand {
    async fn get(&mut self, key: &str) -> Outcome<usize> {
        let url = format!("{}/v1/kv/{key}", self.address);
        let answer = self.client.get(url).send().await?.error_for_status()?;
        let pairs: Vec<KvPair> = serde_json::from_slice(&answer.bytes().await?)?;
        Ok(pairs.first().ok_or("no pair")?.value.len())
    }

    async fn put(&mut self, key: &str, value: &'static [u8]) -> Outcome<()> {
        let url = format!("{}/v1/kv/{key}", self.address);
        let answer = self
            .client
            .put(url)
            .body(value)
            .send()
            .await?
            .error_for_status()?;
        match serde_json::from_slice(&answer.bytes().await?)? {
            true => Ok(()),
            false => Err("not written".into()),
        }
    }
}

impl Health for ByHand {
    async fn health(&mut self, service: &str) -> Outcome<Option<usize>> {
        let url = format!("{}/v1/health/service/{service}", self.address);
        let answer = self.client.get(url).send().await?.error_for_status()?;
        let entries: Vec<ServiceEntry> = serde_json::from_slice(&answer.bytes().await?)?;
        Ok(Some(entries.len()))
    }
}

impl Follow for ByHand {
    async fn next(&mut self, service: &str) -> Outcome<Seen> {
        let (index, entries) = self.next_entries(service).await?;
        let seen = Seen {
            index,
            at: usage::monotonic_nanos(),
            port: entries.first().map(|entry| entry.service.port),
        };
        self.held = entries;
        Ok(seen)
    }
}
