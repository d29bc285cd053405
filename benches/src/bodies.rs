//! Answers of `/v1/health/service/NAME`, written as Consul 1.8.7 writes them in server mode:
//! the same fields in the same order, without white space, about 1 KB per instance.

use std::fmt::Write;

/// The name of the service that all instances belong to.
pub const SERVICE: &str = "web";

/// One instance of the service, told from the others by its number.
#[derive(Debug, Clone, Copy)]
pub struct Instance {
    /// Its number.
    pub number: usize,
    /// The port it listens on.
    pub port: u16,
    /// Whether its check passes, with the index at which that was written.
    pub passing: bool,
    /// The index at which it was written last.
    pub index: u64,
}

impl Instance {
    /// The instance of that number as it was registered at first.
    #[must_use]
    pub fn new(number: usize) -> Self {
        Self {
            number,
            port: 8080,
            passing: true,
            index: 100 + number as u64,
        }
    }

    /// The instance's element of the answer.
    #[must_use]
    pub fn json(&self) -> String {
        let Self {
            number,
            port,
            passing,
            index,
        } = *self;
        let created = 100 + number as u64;
        let address = address(number);
        let node = format!("node-{number:05}");
        let id = format!("{SERVICE}-{number:05}");
        let uuid = format!("6f1c8a52-3b7e-4d19-9c40-{number:012x}");
        let tags = r#"["v1.4.2","primary"]"#;
        let (status, output) = if passing {
            (
                "passing",
                "HTTP GET http://service.local:8080/health: 200 OK Output: ok",
            )
        } else {
            (
                "warning",
                "HTTP GET http://service.local:8080/health: 429 Too Many Requests Output: busy",
            )
        };
        let mut json = String::with_capacity(1400);
        write!(
            json,
            concat!(
                r#"{{"Node":{{"ID":"{uuid}","Node":"{node}","Address":"{address}","Datacenter":"dc1","#,
                r#""TaggedAddresses":{{"lan":"{address}","wan":"{address}"}},"#,
                r#""Meta":{{"consul-network-segment":""}},"CreateIndex":{created},"ModifyIndex":{created}}},"#,
                r#""Service":{{"ID":"{id}","Service":"{service}","Tags":{tags},"Address":"{address}","#,
                r#""TaggedAddresses":{{"lan_ipv4":{{"Address":"{address}","Port":{port}}},"#,
                r#""wan_ipv4":{{"Address":"{address}","Port":{port}}}}},"#,
                r#""Meta":{{"version":"1.4.2","zone":"eu-1a"}},"Port":{port},"#,
                r#""Weights":{{"Passing":1,"Warning":1}},"EnableTagOverride":false,"#,
                r#""Proxy":{{"MeshGateway":{{}},"Expose":{{}}}},"Connect":{{}},"#,
                r#""CreateIndex":{created},"ModifyIndex":{created}}},"#,
                r#""Checks":[{{"Node":"{node}","CheckID":"serfHealth","Name":"Serf Health Status","#,
                r#""Status":"passing","Notes":"","Output":"Agent alive and reachable","ServiceID":"","#,
                r#""ServiceName":"","ServiceTags":[],"Type":"","Definition":{{}},"#,
                r#""CreateIndex":{created},"ModifyIndex":{created}}},"#,
                r#"{{"Node":"{node}","CheckID":"service:{id}","Name":"Service '{service}' check","#,
                r#""Status":"{status}","Notes":"","Output":"{output}","ServiceID":"{id}","#,
                r#""ServiceName":"{service}","ServiceTags":{tags},"Type":"http","Definition":{{}},"#,
                r#""CreateIndex":{created},"ModifyIndex":{index}}}]}}"#,
            ),
            uuid = uuid,
            node = node,
            address = address,
            created = created,
            id = id,
            service = SERVICE,
            tags = tags,
            port = port,
            status = status,
            output = output,
            index = index,
        )
        // Writing to a string does not fail.
        .ok();
        json
    }

    /// What registers the instance in a real catalog (`PUT /v1/catalog/register`).
    ///
    /// Without the check `serfHealth`: the leader removes nodes that have it and are not in its gossip.
    #[must_use]
    pub fn registration(&self) -> serde_json::Value {
        let node = format!("node-{:05}", self.number);
        let id = format!("{SERVICE}-{:05}", self.number);
        let address = address(self.number);
        serde_json::json!({
            "Node": node,
            "ID": format!("6f1c8a52-3b7e-4d19-9c40-{:012x}", self.number),
            "Address": address,
            "TaggedAddresses": {"lan": address, "wan": address},
            "NodeMeta": {"consul-network-segment": ""},
            "Service": {
                "ID": id,
                "Service": SERVICE,
                "Tags": ["v1.4.2", "primary"],
                "Address": address,
                "TaggedAddresses": {
                    "lan_ipv4": {"Address": address, "Port": self.port},
                    "wan_ipv4": {"Address": address, "Port": self.port},
                },
                "Meta": {"version": "1.4.2", "zone": "eu-1a"},
                "Port": self.port,
                "Weights": {"Passing": 1, "Warning": 1},
            },
            "Checks": [
                {"Node": node, "CheckID": "alive", "Name": "Node health status", "Status": "passing",
                 "Output": "Agent alive and reachable"},
                {"Node": node, "CheckID": format!("service:{id}"), "Name": "Service 'web' check",
                 "ServiceID": id, "Status": "passing", "Type": "http",
                 "Output": "HTTP GET http://service.local:8080/health: 200 OK Output: ok"},
            ],
        })
    }
}

fn address(number: usize) -> String {
    format!(
        "10.{}.{}.{}",
        number >> 16,
        (number >> 8) & 255,
        number & 255
    )
}

/// The elements as one answer.
#[must_use]
pub fn array<'a>(elements: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut body = vec![b'['];
    for (position, element) in elements.into_iter().enumerate() {
        if position > 0 {
            body.push(b',');
        }
        body.extend_from_slice(element.as_bytes());
    }
    body.push(b']');
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_json_of_about_one_kilobyte_per_instance() {
        let elements: Vec<_> = (0..100)
            .map(|number| Instance::new(number).json())
            .collect();
        let body = array(elements.iter().map(String::as_str));
        let entries: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap();
        assert_eq!(entries.len(), 100);
        assert_eq!(entries[7]["Service"]["ID"], "web-00007");
        assert_eq!(entries[7]["Checks"][1]["ModifyIndex"], 107);
        let each = body.len() / 100;
        assert!((1_000..1_500).contains(&each), "{each} bytes per instance");
    }

    #[test]
    fn instances_sort_by_node_name_as_they_are_numbered() {
        // Consul answers in the order of node names.
        let names: Vec<_> = [9, 10, 99, 100, 9_999]
            .map(|n| Instance::new(n).json())
            .to_vec();
        assert!(names.is_sorted_by_key(|json| {
            json.split(r#""Node":""#)
                .nth(1)
                .map(|rest| rest.chars().take(10).collect::<String>())
        }));
    }
}
