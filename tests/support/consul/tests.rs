//! A harness that does not do what it says would make every test above it worthless.

use std::time::Duration;

use super::*;

async fn put(agent: &Agent, key: &str, value: &str) {
    let path = format!("/v1/kv/{key}");
    let answer = agent.api("PUT", &path, value).await.unwrap();
    assert_eq!(answer.text().trim(), "true");
}

async fn status_of(agent: &Agent, path: &str) -> u16 {
    agent.api("GET", path, "").await.unwrap().status
}

#[tokio::test]
async fn a_development_server_answers_http_and_dns() {
    let agent = Agent::start().await;
    put(&agent, "a", "1").await;
    assert_eq!(status_of(&agent, "/v1/kv/a").await, 200);
    assert!(std::net::TcpStream::connect(agent.dns_addr()).is_ok());
}

#[tokio::test]
async fn a_killed_agent_refuses_connections_and_leaves_nothing_behind() {
    let mut agent = Agent::start().await;
    let dir = agent.dir.clone();
    agent.kill();
    assert!(std::net::TcpStream::connect(agent.http_addr()).is_err());
    drop(agent);
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_dropped_agent_is_gone_with_its_folder() {
    let agent = Agent::start().await;
    let (dir, addr) = (agent.dir.clone(), agent.http_addr());
    drop(agent);
    assert!(!dir.exists());
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[tokio::test]
async fn a_frozen_agent_does_not_answer_until_it_is_thawed() {
    let agent = Agent::start().await;
    agent.freeze();
    let path = "/v1/agent/self";
    let asked = agent.api("GET", path, "");
    let answer = tokio::time::timeout(Duration::from_millis(500), asked).await;
    assert!(answer.is_err(), "a frozen agent answered");
    agent.thaw();
    eventually(PATIENCE, async || {
        agent
            .api("GET", path, "")
            .await
            .is_ok_and(|answer| answer.is_success())
    })
    .await;
}

#[tokio::test]
async fn a_server_with_data_remembers_and_a_wiped_one_forgets() {
    let mut agent = Agent::options().server().start().await;
    put(&agent, "kept", "1").await;
    agent.restart_with_data().await;
    assert_eq!(status_of(&agent, "/v1/kv/kept").await, 200);
    agent.wipe_and_restart().await;
    assert_eq!(status_of(&agent, "/v1/kv/kept").await, 404);
}

#[tokio::test]
async fn a_wiped_client_agent_forgets_its_services_and_comes_back_as_the_same_node() {
    let server = Agent::start().await;
    let mut client = Agent::options()
        .client_of(&server)
        .node_id("11111111-2222-3333-4444-555555555555")
        .start()
        .await;
    let service = r#"{"Name": "web", "Port": 80}"#;
    let path = "/v1/agent/service/register";
    let answer = client.api("PUT", path, service).await.unwrap();
    assert!(answer.is_success(), "{}", answer.text());
    assert_eq!(status_of(&client, "/v1/agent/service/web").await, 200);
    client.wipe_and_restart().await;
    assert_eq!(status_of(&client, "/v1/agent/service/web").await, 404);
}

#[tokio::test]
async fn an_agent_that_leaves_ends_its_process() {
    let mut agent = Agent::options().server().start().await;
    agent.leave().await;
    assert!(std::net::TcpStream::connect(agent.http_addr()).is_err());
}

#[tokio::test]
async fn a_revoked_token_is_refused() {
    let agent = Agent::options().acl().start().await;
    assert_eq!(status_of(&agent, "/v1/acl/tokens").await, 200);
    let url = format!("{}/v1/kv/mine", agent.http_url());
    let token = agent
        .create_token("writer", r#"key_prefix "" { policy = "write" }"#)
        .await;
    let with_token = [("x-consul-token", token.secret.as_str())];
    let put = async |headers| {
        http::request("PUT", &url, headers, "1")
            .await
            .unwrap()
            .status
    };
    assert_eq!(put(&[]).await, 403);
    assert_eq!(put(&with_token).await, 200);
    agent.revoke_token(&token).await;
    eventually(PATIENCE, async || put(&with_token).await == 403).await;
}

#[tokio::test]
async fn an_agent_with_mutual_tls_answers_only_callers_with_a_certificate() {
    let agent = Agent::options().tls(Verify::Callers).start().await;
    let url = format!("{}/v1/status/leader", agent.https_url());
    let identity = agent.client_identity();
    let answer = https_get(&url, agent.ca_file(), Some(identity)).await;
    assert_eq!(answer.unwrap().status, 200);
    assert!(https_get(&url, agent.ca_file(), None).await.is_err());
}

#[tokio::test]
async fn an_agent_with_plain_tls_answers_everybody_who_trusts_its_authority() {
    let agent = Agent::options().tls(Verify::Nobody).start().await;
    let url = format!("{}/v1/status/leader", agent.https_url());
    let answer = https_get(&url, agent.ca_file(), None).await;
    assert_eq!(answer.unwrap().status, 200);
    let stranger = Authority::new("somebody else");
    let elsewhere = agent.dir.join("stranger.pem");
    fs::write(&elsewhere, stranger.pem()).unwrap();
    assert!(https_get(&url, &elsewhere, None).await.is_err());
}

async fn https_get(
    url: &str,
    ca_file: &Path,
    identity: Option<&crate::certs::IdentityFiles>,
) -> io::Result<Answer> {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca_file).unwrap())
        .unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some(files) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&files.certificate).unwrap()],
                PrivateKeyDer::from_pem_file(&files.key).unwrap(),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    let addr = url.strip_prefix("https://").unwrap();
    let addr = addr.split_once('/').unwrap().0;
    let stream = tokio::net::TcpStream::connect(addr).await?;
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await?;
    http::request_over(stream, "GET", url, &[], "").await
}

#[tokio::test]
async fn three_servers_elect_another_leader_when_theirs_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.leader().await;
    cluster.servers[first].kill();
    let second = {
        let cluster = &cluster;
        crate::wait::eventually_some(PATIENCE, async || {
            let now = cluster.leader().await;
            (now != first).then_some(now)
        })
        .await
    };
    put(&cluster.servers[second], "after", "1").await;
}
