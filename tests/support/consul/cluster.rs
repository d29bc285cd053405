//! Several servers that elect a leader.

use serde_json::json;

use super::{Agent, Options};
use crate::wait::eventually_some;

/// Servers with data folders on one loopback address, told apart by their ports.
#[derive(Debug)]
pub struct Cluster {
    /// The servers, named `server-0`, `server-1`, …
    pub servers: Vec<Agent>,
}

impl Cluster {
    /// Starts `count` servers and waits until they have a leader and know one another.
    ///
    /// # Panics
    ///
    /// When there is no Consul, or the servers elect nobody.
    pub async fn start(count: u32) -> Self {
        let mut servers: Vec<Agent> = Vec::new();
        for index in 0..count {
            let known: Vec<String> = servers.iter().map(Agent::gossip_addr).collect();
            let options = Options::new()
                .server_of(count)
                .node_name(&format!("server-{index}"))
                .config("retry_join", json!(known));
            servers.push(Agent::launch(options).await);
        }
        for server in &servers {
            server.ready().await;
        }
        Self { servers }
    }

    /// Which of the running servers leads, as an index into [`servers`](Self::servers).
    ///
    /// # Panics
    ///
    /// When there is no leader within a minute.
    pub async fn leader(&self) -> usize {
        eventually_some(super::PATIENCE, async || {
            for asked in self
                .servers
                .iter()
                .filter(|server| server.process.is_some())
            {
                let Ok(answer) = asked.api("GET", "/v1/status/leader", "").await else {
                    continue;
                };
                let leads = |server: &Agent| {
                    let own = format!(":{}\"", server.ports.server);
                    server.process.is_some() && answer.text().ends_with(&own)
                };
                if let Some(index) = self.servers.iter().position(leads) {
                    return Some(index);
                }
            }
            None
        })
        .await
    }
}
