//! The floor with decoding: bare reqwest calls, and `serde_json` into types written by hand.

use std::sync::Arc;

use reqwest::{Client, StatusCode};
use serde::Deserialize;

use super::{Subject, WAIT, Written, session, transaction};
use crate::Outcome;
use crate::control_plane::by_hand::KvPair;

/// See the module.
pub(in crate::coordination) struct ByHand {
    client: Client,
    address: Arc<str>,
    session: Arc<str>,
}

/// The answer to `PUT /v1/session/create`.
#[derive(Debug, Deserialize)]
struct Created {
    #[serde(rename = "ID")]
    id: String,
}

/// The answer to a transaction that was committed.
#[derive(Debug, Deserialize)]
struct Committed {
    #[serde(rename = "Results")]
    results: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "KV")]
    kv: KvPair,
}

impl ByHand {
    /// The key, and the index of the answer.
    async fn get(&self, key: &str, index: Option<u64>) -> Outcome<(Option<KvPair>, u64)> {
        let url = match index {
            None => format!("{}/v1/kv/{key}", self.address),
            Some(index) => format!("{}/v1/kv/{key}?index={index}&wait={WAIT}", self.address),
        };
        let answer = self.client.get(url).send().await?;
        let index = answer
            .headers()
            .get("X-Consul-Index")
            .ok_or("an answer without index")?
            .to_str()?
            .parse()?;
        if answer.status() == StatusCode::NOT_FOUND {
            answer.bytes().await?;
            return Ok((None, index));
        }
        let body = answer.error_for_status()?.bytes().await?;
        let pairs: Vec<KvPair> = serde_json::from_slice(&body)?;
        Ok((pairs.into_iter().next(), index))
    }

    /// The index of the transaction; `None` if it was rolled back.
    async fn commit(&self, body: Vec<u8>) -> Outcome<Option<u64>> {
        let url = format!("{}/v1/txn", self.address);
        let answer = self
            .client
            .put(url)
            .header("Content-Type", "application/json")
            .body(body)
            .send()
            .await?;
        if answer.status() == StatusCode::CONFLICT {
            answer.bytes().await?;
            return Ok(None);
        }
        let body = answer.error_for_status()?.bytes().await?;
        let committed: Committed = serde_json::from_slice(&body)?;
        let last = committed.results.last().ok_or("no results")?;
        Ok(Some(last.kv.modify_index))
    }
}

impl Subject for ByHand {
    type Guard = Written;

    async fn connect(address: &str) -> Outcome<Self> {
        let client = Client::builder().build()?;
        let answer = client
            .put(format!("{address}/v1/session/create"))
            .body(session())
            .send()
            .await?
            .error_for_status()?;
        let created: Created = serde_json::from_slice(&answer.bytes().await?)?;
        Ok(Self {
            client,
            address: address.into(),
            session: created.id.into(),
        })
    }

    fn another(&self) -> Self {
        Self {
            client: self.client.clone(),
            address: Arc::clone(&self.address),
            session: Arc::clone(&self.session),
        }
    }

    async fn lock(&mut self, key: &str) -> Outcome<Written> {
        let mut seen = None;
        loop {
            let (pair, index) = self.get(key, seen).await?;
            if pair.as_ref().is_some_and(|pair| pair.session.is_some()) {
                seen = Some(index);
                continue;
            }
            let modified = pair.map_or(0, |pair| pair.modify_index);
            let body = transaction("lock", key, modified, &self.session)?;
            if let Some(index) = self.commit(body).await? {
                return Ok(Written {
                    key: key.to_owned(),
                    index,
                });
            }
            seen = None;
        }
    }

    async fn unlock(&mut self, guard: Written) -> Outcome<()> {
        let body = transaction("unlock", &guard.key, guard.index, &self.session)?;
        match self.commit(body).await? {
            Some(_) => Ok(()),
            None => Err("not unlocked".into()),
        }
    }
}
