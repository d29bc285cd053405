//! The floors' types: what one writes by hand to decode Consul's answers with `serde_json`, every
//! field that Consul 1.8.7 sends, all text owned.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};

/// An element of `GET /v1/kv/KEY`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
pub struct KvPair {
    lock_index: u64,
    key: String,
    flags: u64,
    #[serde(deserialize_with = "base64")]
    pub(crate) value: Vec<u8>,
    pub(crate) session: Option<String>,
    create_index: u64,
    pub(crate) modify_index: u64,
}

fn base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    // `null` is how Consul writes the empty value.
    let text = Option::<&str>::deserialize(deserializer)?.unwrap_or_default();
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

/// An element of `GET /v1/health/service/NAME`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
pub struct ServiceEntry {
    node: Node,
    pub(crate) service: Service,
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    id: String,
    node: String,
    address: String,
    datacenter: String,
    tagged_addresses: Option<HashMap<String, String>>,
    meta: Option<HashMap<String, String>>,
    create_index: u64,
    modify_index: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
pub(crate) struct Service {
    #[serde(rename = "ID")]
    id: String,
    service: String,
    tags: Option<Vec<String>>,
    address: String,
    tagged_addresses: Option<HashMap<String, TaggedAddress>>,
    meta: Option<HashMap<String, String>>,
    pub(crate) port: u16,
    weights: Weights,
    enable_tag_override: bool,
    create_index: u64,
    modify_index: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
struct TaggedAddress {
    address: String,
    port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "decoding all fields is what is measured")]
struct Check {
    node: String,
    #[serde(rename = "CheckID")]
    check_id: String,
    name: String,
    status: String,
    notes: String,
    output: String,
    #[serde(rename = "ServiceID")]
    service_id: String,
    service_name: String,
    service_tags: Option<Vec<String>>,
    #[serde(rename = "Type")]
    kind: String,
    create_index: u64,
    modify_index: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_consul_is_decoded_by_hand() {
        let answer = br#"[{"LockIndex":0,"Key":"a/b","Flags":0,"Value":"aGVsbG8=","CreateIndex":11,"ModifyIndex":11}]"#;
        let pairs: Vec<KvPair> = serde_json::from_slice(answer).unwrap();
        assert_eq!(pairs[0].value, b"hello");
        let body = crate::bodies::array([crate::bodies::Instance::new(1).json().as_str()]);
        let entries: Vec<ServiceEntry> = serde_json::from_slice(&body).unwrap();
        assert_eq!(entries[0].service.port, 8080);
    }
}
