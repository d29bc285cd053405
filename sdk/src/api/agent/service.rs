//! A service, as its own agent tells it.

use std::ops::Deref;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::api::model::ServiceInstance;
use crate::proto::json::{Json, Text};

/// An instance of a service, as its own agent tells it.
///
/// Dereferences to what all endpoints tell about an instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentService {
    instance: ServiceInstance,
    own: Own,
}

/// What only an agent tells.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
struct Own {
    content_hash: Text,
    datacenter: Text,
    connect: Option<OwnConnect>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
struct OwnConnect {
    sidecar_service: Option<Json>,
}

impl AgentService {
    /// What all endpoints tell about an instance.
    #[must_use]
    pub fn instance(&self) -> &ServiceInstance {
        &self.instance
    }

    /// A hash of its content, where [`Agent::service`](super::Agent::service) tells it.
    #[must_use]
    pub fn content_hash(&self) -> Option<&str> {
        self.own.content_hash.non_empty()
    }

    /// The agent's datacenter (1.10).
    #[must_use]
    pub fn datacenter(&self) -> Option<&str> {
        self.own.datacenter.non_empty()
    }

    /// The definition of its sidecar proxy, where the agent tells it.
    #[must_use]
    pub fn sidecar_service(&self) -> Option<&Json> {
        self.own.connect.as_ref()?.sidecar_service.as_ref()
    }
}

impl Deref for AgentService {
    type Target = ServiceInstance;

    fn deref(&self) -> &ServiceInstance {
        &self.instance
    }
}

impl<'de> Deserialize<'de> for AgentService {
    /// Reads the text twice: an agent has few services, and a type that knows the rest already.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let instance = serde_json::from_str(text).map_err(serde::de::Error::custom)?;
        let own = serde_json::from_str(text).map_err(serde::de::Error::custom)?;
        Ok(Self { instance, own })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_tell_and_what_only_the_agent_tells_are_both_read() {
        let service: AgentService = serde_json::from_str(
            r#"{"ID":"web-1","Service":"web","Tags":null,"Port":80,"Weights":{"Passing":2,"Warning":1},
                "Connect":{"SidecarService":{"Port":1}},"ContentHash":"7e8d","Datacenter":"dc1","New":[]}"#,
        )
        .unwrap();
        assert_eq!(service.id(), "web-1");
        assert_eq!(service.port(), 80);
        assert_eq!(service.weights().passing(), 2);
        assert_eq!(service.content_hash(), Some("7e8d"));
        assert_eq!(service.datacenter(), Some("dc1"));
        assert_eq!(service.sidecar_service().unwrap().as_str(), r#"{"Port":1}"#);
    }
}
