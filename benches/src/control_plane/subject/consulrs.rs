//! The crate consulrs 0.1.0.
//!
//! Its releases have no health call (its repository has had one since 2022). It is given here by
//! the crate's own seam for endpoints, into its own types where they hold what Consul answers and
//! in its style (every field an `Option`) where they do not.

use std::collections::HashMap;
use std::sync::Arc;

use consulrs::api::catalog::common::Node;
use consulrs::api::check::common::HealthCheck;
use consulrs::api::features::FeaturedEndpoint;
use consulrs::api::{Features, exec_with_result};
use consulrs::client::{ConsulClient, ConsulClientSettingsBuilder};
use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use serde::Deserialize;

use super::{Health, Kv, Subject};
use crate::Outcome;

/// See the module.
pub(in crate::control_plane) struct Consulrs(Arc<ConsulClient>);

impl Subject for Consulrs {
    async fn connect(address: &str) -> Outcome<Self> {
        let settings = ConsulClientSettingsBuilder::default()
            .address(address)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(ConsulClient::new(settings)?)))
    }

    async fn another(&self) -> Outcome<Self> {
        Ok(Self(Arc::clone(&self.0)))
    }
}

impl Kv for Consulrs {
    async fn get(&mut self, key: &str) -> Outcome<usize> {
        let answer = consulrs::kv::read(&*self.0, key, None).await?;
        let pair = answer.response.into_iter().next().ok_or("no pair")?;
        let value: Vec<u8> = pair.value.ok_or("no value")?.try_into()?;
        Ok(value.len())
    }

    async fn put(&mut self, key: &str, value: &'static [u8]) -> Outcome<()> {
        match consulrs::kv::set(&*self.0, key, value, None)
            .await?
            .response
        {
            true => Ok(()),
            false => Err("not written".into()),
        }
    }
}

impl Health for Consulrs {
    async fn health(&mut self, service: &str) -> Outcome<Option<usize>> {
        let endpoint = HealthService {
            service: service.to_owned(),
        };
        let answer = exec_with_result(&*self.0, endpoint).await?;
        Ok(Some(answer.response.len()))
    }
}

#[derive(Debug)]
struct HealthService {
    service: String,
}

impl Endpoint for HealthService {
    type Response = Vec<Entry>;

    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        format!("health/service/{}", self.service)
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::GET
    }
}

impl FeaturedEndpoint for HealthService {
    fn features(&self) -> Option<Features> {
        None
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
struct Entry {
    node: Node,
    service: Service,
    checks: Vec<HealthCheck>,
}

/// The crate's own `AgentService` cannot hold tagged addresses with ports.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
struct Service {
    #[serde(rename = "ID")]
    id: Option<String>,
    service: Option<String>,
    tags: Option<Vec<String>>,
    address: Option<String>,
    tagged_addresses: Option<HashMap<String, TaggedAddress>>,
    meta: Option<HashMap<String, String>>,
    port: Option<u64>,
    weights: Option<Weights>,
    enable_tag_override: Option<bool>,
    create_index: Option<u64>,
    modify_index: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
struct TaggedAddress {
    address: Option<String>,
    port: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
struct Weights {
    passing: Option<u64>,
    warning: Option<u64>,
}
