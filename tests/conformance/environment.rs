//! Services that the environment describes, as an agent takes them.

use std::time::Duration;

use lictor::environment::Environment;
use serde_json::json;
use support::http;
use tokio::time::Instant;

use crate::TestAgent;

on_both_agents![
    what_the_environment_says_is_what_the_agent_has,
    a_ttl_check_of_the_environment_is_beaten,
];

async fn what_the_environment_says_is_what_the_agent_has(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("db"));
    let services = Environment::of([
        ("SERVICE_NAME", name.as_str()),
        ("SERVICE_TAGS", r"master,a\,b"),
        ("SERVICE_REGION", "us2"),
        ("SERVICE_IP", "192.0.2.1"),
        ("SERVICE_6379_PORT", "10000"),
        ("SERVICE_6379_CHECK_TCP", "true"),
        ("SERVICE_CHECK_TTL", "1m"),
    ])
    .host("box")
    .port(6379)
    .port(6380)
    .services()
    .unwrap();
    let mut registered = Vec::new();
    for service in services {
        registered.push(client.register(service).await.unwrap());
    }
    let told = async |id: &str| {
        let url = format!("{}/v1/agent/service/{id}", agent.http_url());
        http::get(&url).await.unwrap().json()
    };
    for (port, published) in [(6379, 10000), (6380, 6380)] {
        let service = told(&format!("box:{name}-{port}:{port}")).await;
        assert_eq!(service["Service"], format!("{name}-{port}"));
        assert_eq!(service["Address"], "192.0.2.1");
        assert_eq!(service["Port"], published);
        assert_eq!(service["Tags"], json!(["master", "a,b"]));
        let mut meta = service["Meta"].clone();
        let own = meta.as_object_mut().unwrap().remove("lictor-boot");
        assert!(own.is_some(), "{service}");
        assert_eq!(meta, json!({"region": "us2"}));
    }
    let checks = client
        .health()
        .checks(format!("{name}-6380"))
        .await
        .unwrap();
    assert_eq!(checks.len(), 1);
    for registration in registered {
        registration.close().await.unwrap();
    }
}

async fn a_ttl_check_of_the_environment_is_beaten(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("web"));
    let services = Environment::of([("SERVICE_CHECK_TTL", "500ms")])
        .name(name.as_str())
        .port(80)
        .services()
        .unwrap();
    let [service] = services.try_into().unwrap();
    let registration = client.register(service).await.unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let passing = client.health().service(&*name).passing().await.unwrap();
        assert_eq!(passing.len(), 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    registration.close().await.unwrap();
}
