//! The floor without decoding: a bare reqwest call whose body is read and dropped.

use reqwest::Client;

use super::by_hand::blocking_query;
use super::{Follow, Health, Seen, Subject};
use crate::{Outcome, usage};

/// See the module.
pub(in crate::control_plane) struct Fetch {
    client: Client,
    address: String,
    index: u64,
}

impl Subject for Fetch {
    async fn connect(address: &str) -> Outcome<Self> {
        let client = Client::builder().build()?;
        Ok(Self {
            client,
            address: address.to_owned(),
            index: 0,
        })
    }

    async fn another(&self) -> Outcome<Self> {
        Ok(Self {
            client: self.client.clone(),
            address: self.address.clone(),
            index: 0,
        })
    }
}

impl Health for Fetch {
    async fn health(&mut self, service: &str) -> Outcome<Option<usize>> {
        let url = format!("{}/v1/health/service/{service}", self.address);
        let answer = self.client.get(url).send().await?.error_for_status()?;
        answer.bytes().await?;
        Ok(None)
    }
}

impl Follow for Fetch {
    async fn next(&mut self, service: &str) -> Outcome<Seen> {
        let (index, _) = blocking_query(&self.client, &self.address, service, self.index).await?;
        self.index = index;
        Ok(Seen {
            index,
            at: usage::monotonic_nanos(),
            port: None,
        })
    }
}
