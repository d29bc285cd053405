//! What both agents must do before any case can mean something.

use support::http;

use crate::{Kind, TestAgent};

on_both_agents![
    the_agent_has_a_leader,
    the_agent_says_its_version,
    the_agent_takes_dns_over_tcp,
    a_client_reaches_the_agent,
    names_of_a_case_are_its_own,
];

async fn the_agent_has_a_leader(agent: &TestAgent) {
    let url = format!("{}/v1/status/leader", agent.http_url());
    let answer = http::get(&url).await.unwrap();
    assert_eq!(answer.status, 200);
    let leader = answer.json();
    assert!(leader.as_str().is_some_and(|leader| leader.contains(':')));
}

async fn the_agent_says_its_version(agent: &TestAgent) {
    let url = format!("{}/v1/agent/self", agent.http_url());
    let answer = http::get(&url).await.unwrap().json();
    let version = answer["Config"]["Version"].as_str().unwrap();
    assert_eq!(version.split('.').count(), 3, "{version}");
    if let Kind::Consul(major, minor) = agent.kind() {
        assert!(
            version.starts_with(&format!("{major}.{minor}.")),
            "{version}"
        );
    }
}

async fn the_agent_takes_dns_over_tcp(agent: &TestAgent) {
    let addr = agent.dns_addr();
    assert!(tokio::net::TcpStream::connect(addr).await.is_ok());
}

async fn a_client_reaches_the_agent(agent: &TestAgent) {
    let key = agent.name("key");
    let client = agent.client();
    assert!(client.kv().put(key.as_str(), "value").await.unwrap());
    let url = format!("{}/v1/kv/{key}?raw", agent.http_url());
    assert_eq!(http::get(&url).await.unwrap().text(), "value");
}

async fn names_of_a_case_are_its_own(agent: &TestAgent) {
    let name = agent.name("web");
    assert!(name.ends_with("-web") && name.len() > 8, "{name}");
    assert_eq!(name, agent.name("web"));
}
