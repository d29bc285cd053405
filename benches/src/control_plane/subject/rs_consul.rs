//! The crate rs-consul as shipped: its default configuration.

use std::sync::Arc;
use std::time::Duration;

use rs_consul::types::{
    CreateOrUpdateKeyRequest, GetServiceNodesRequest, QueryOptions, ReadKeyRequest,
};
use rs_consul::{Config, Consul, ResponseMeta};

use super::{Follow, Health, Kv, Seen, Subject};
use crate::{Outcome, usage};

/// See the module.
pub(in crate::control_plane) struct RsConsul {
    client: Arc<Consul>,
    index: Option<u64>,
    held: Vec<rs_consul::types::ServiceNode>,
}

impl Subject for RsConsul {
    async fn connect(address: &str) -> Outcome<Self> {
        let config = Config {
            address: address.to_owned(),
            ..Config::default()
        };
        Ok(Self {
            client: Arc::new(Consul::new(config)),
            index: None,
            held: Vec::new(),
        })
    }

    async fn another(&self) -> Outcome<Self> {
        Ok(Self {
            client: Arc::clone(&self.client),
            index: None,
            held: Vec::new(),
        })
    }
}

impl Kv for RsConsul {
    async fn get(&mut self, key: &str) -> Outcome<usize> {
        let request = ReadKeyRequest::builder().key(key).build();
        let answer = self.client.read_key(request).await?;
        let value = answer
            .response
            .into_iter()
            .next()
            .and_then(|pair| pair.value);
        Ok(value.ok_or("no value")?.len())
    }

    async fn put(&mut self, key: &str, value: &'static [u8]) -> Outcome<()> {
        let request = CreateOrUpdateKeyRequest::builder().key(key).build();
        match self
            .client
            .create_or_update_key(request, value.to_vec())
            .await?
        {
            (true, _) => Ok(()),
            (false, _) => Err("not written".into()),
        }
    }
}

impl Health for RsConsul {
    async fn health(&mut self, service: &str) -> Outcome<Option<usize>> {
        let request = GetServiceNodesRequest::builder().service(service).build();
        let options = QueryOptions {
            timeout: Some(Duration::from_secs(60)),
            ..QueryOptions::default()
        };
        let answer = self
            .client
            .get_service_nodes(request, Some(options))
            .await?;
        Ok(Some(answer.response.len()))
    }
}

impl Follow for RsConsul {
    async fn next(&mut self, service: &str) -> Outcome<Seen> {
        let request = GetServiceNodesRequest::builder().service(service).build();
        let options = QueryOptions {
            timeout: Some(Duration::from_secs(90)),
            wait: Some(Duration::from_secs(60)),
            index: self.index,
            ..QueryOptions::default()
        };
        let ResponseMeta { response, index } = self
            .client
            .get_service_nodes(request, Some(options))
            .await?;
        let seen = Seen {
            index,
            at: usage::monotonic_nanos(),
            port: response.first().map(|entry| entry.service.port),
        };
        self.index = Some(index);
        self.held = response;
        Ok(seen)
    }
}
