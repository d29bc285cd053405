//! The client of this repository, as its README shows it.

use lictor::Client;
use lictor::api::health::ServiceEntry;
use lictor::watch::Watch;

use super::{Follow, Health, Kv, Seen, Subject};
use crate::{Outcome, usage};

/// See the module.
pub(in crate::control_plane) struct Ours {
    client: Client,
    watch: Option<Watch<ServiceEntry>>,
}

impl Subject for Ours {
    async fn connect(address: &str) -> Outcome<Self> {
        let client = Client::builder().address(address).build()?;
        Ok(Self {
            client,
            watch: None,
        })
    }

    async fn another(&self) -> Outcome<Self> {
        Ok(Self {
            client: self.client.clone(),
            watch: None,
        })
    }
}

impl Kv for Ours {
    async fn get(&mut self, key: &str) -> Outcome<usize> {
        let pair = self.client.kv().get(key).await?.into_value();
        Ok(pair.ok_or("no pair")?.value().len())
    }

    async fn put(&mut self, key: &str, value: &'static [u8]) -> Outcome<()> {
        match self.client.kv().put(key, value).await? {
            true => Ok(()),
            false => Err("not written".into()),
        }
    }
}

impl Health for Ours {
    async fn health(&mut self, service: &str) -> Outcome<Option<usize>> {
        let entries = self.client.health().service(service).await?;
        Ok(Some(entries.len()))
    }
}

impl Follow for Ours {
    async fn next(&mut self, service: &str) -> Outcome<Seen> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            // Every reader opens a watch of its own; that they share one query is the client's doing.
            none => none.insert(self.client.health().service(service).watch()?),
        };
        let snapshot = watch.changed().await?;
        Ok(Seen {
            at: usage::monotonic_nanos(),
            index: snapshot.index().ok_or("a snapshot without index")?,
            port: snapshot.first().map(|entry| entry.service().port()),
        })
    }
}
