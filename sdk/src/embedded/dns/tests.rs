use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use http::{Method, Request};
use tower_service::Service as _;

use super::{Transport, answer};
use crate::embedded::Agent;

async fn put(agent: &Agent, path: &str, body: &str) {
    let request = Request::builder()
        .method(Method::PUT)
        .uri(path)
        .body(body.to_owned().into())
        .unwrap();
    let reply = agent.clone().call(request).await.unwrap();
    assert!(reply.status().is_success(), "{path}: {}", reply.status());
}

fn ask(agent: &Agent, name: &str, of: RecordType, how: Transport, edns: Option<u16>) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), of));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    let packet = answer(&agent.core, &message.to_vec().unwrap(), how).unwrap();
    if how == Transport::Udp {
        assert!(packet.len() <= usize::from(edns.unwrap_or(512)).max(512));
    }
    Message::from_vec(&packet).unwrap()
}

fn tcp(agent: &Agent, name: &str, of: RecordType) -> Message {
    ask(agent, name, of, Transport::Tcp, None)
}

fn texts(message: &Message) -> Vec<String> {
    let mut texts: Vec<String> = message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    texts.sort();
    texts
}

async fn three_instances() -> Agent {
    let agent = Agent::in_memory();
    for body in [
        r#"{"Name":"web","ID":"w1","Port":80,"Tags":["prod","a.b"],"Address":"10.0.0.1",
            "Weights":{"Passing":5,"Warning":2},"Check":{"TTL":"9h","Status":"warning"}}"#,
        r#"{"Name":"web","ID":"w2","Port":81,"Check":{"TTL":"9h","Status":"passing"}}"#,
        r#"{"Name":"web","ID":"w3","Port":82,"Address":"10.0.0.3","Check":{"TTL":"9h"}}"#,
    ] {
        put(&agent, "/v1/agent/service/register", body).await;
    }
    agent
}

#[tokio::test]
async fn targets_are_healthy_instances_with_the_weight_of_their_status() {
    let agent = three_instances().await;
    for name in [
        "web.service.consul.",
        "WEB.service.dc1.consul.",
        "_web._tcp.service.consul.",
        "_web._tcp.consul.",
    ] {
        let reply = tcp(&agent, name, RecordType::SRV);
        assert_eq!(
            texts(&reply),
            [
                "1 1 81 embedded.node.dc1.consul.",
                "1 2 80 0a000001.addr.dc1.consul."
            ],
            "{name}"
        );
        let added = reply.additionals.iter().filter_map(|r| r.data.ip_addr());
        assert_eq!(added.count(), 2, "{name}");
        assert!(reply.metadata.authoritative);
        assert!(reply.answers.iter().all(|record| record.ttl == 0));
    }
}

#[tokio::test]
async fn a_tag_narrows_and_only_tcp_is_no_tag() {
    let agent = three_instances().await;
    for name in [
        "prod.web.service.consul.",
        "a.b.web.service.consul.",
        "_web._prod.service.consul.",
    ] {
        let reply = tcp(&agent, name, RecordType::A);
        assert_eq!(texts(&reply), ["10.0.0.1"], "{name}");
    }
    let reply = tcp(&agent, "_web._udp.service.consul.", RecordType::SRV);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn what_is_not_there_is_no_name_and_comes_with_the_domains_soa() {
    let agent = three_instances().await;
    for name in [
        "nope.service.consul.",
        "web.service.dc2.consul.",
        "nope.node.consul.",
        "x.query.consul.",
        "consul.",
    ] {
        let reply = tcp(&agent, name, RecordType::A);
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NXDomain,
            "{name}"
        );
        assert_eq!(reply.authorities.len(), 1, "{name}");
    }
    let foreign = tcp(&agent, "example.com.", RecordType::A);
    assert_eq!(foreign.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn an_address_of_another_family_is_no_data() {
    let agent = three_instances().await;
    let reply = tcp(&agent, "web.service.consul.", RecordType::AAAA);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    assert_eq!(reply.authorities.len(), 1);
}

#[tokio::test]
async fn nodes_and_hex_addresses_have_addresses() {
    let agent = three_instances().await;
    for (name, of, want) in [
        ("embedded.node.consul.", RecordType::A, "127.0.0.1"),
        ("embedded.node.dc1.consul.", RecordType::A, "127.0.0.1"),
        ("0a000001.addr.dc1.consul.", RecordType::A, "10.0.0.1"),
        (
            "20010db8000000000000000000000002.addr.dc1.consul.",
            RecordType::AAAA,
            "2001:db8::2",
        ),
    ] {
        assert_eq!(texts(&tcp(&agent, name, of)), [want], "{name}");
    }
}

#[tokio::test]
async fn udp_cuts_silently_and_tcp_tells_all() {
    let agent = Agent::in_memory();
    for at in 0..120 {
        let body = format!(
            r#"{{"Node":"b{at}","Address":"10.1.0.{at}","Service":{{"Service":"big","Port":{at}}}}}"#
        );
        put(&agent, "/v1/catalog/register", &body).await;
    }
    let count = |how, edns| {
        let reply = ask(&agent, "big.service.consul.", RecordType::SRV, how, edns);
        assert!(!reply.metadata.truncation);
        reply.answers.len()
    };
    assert_eq!(count(Transport::Udp, None), 3);
    assert_eq!(count(Transport::Udp, Some(1232)), 21);
    assert_eq!(count(Transport::Tcp, None), 120);
}

#[tokio::test]
async fn a_name_as_address_is_the_target_itself() {
    let agent = Agent::in_memory();
    let body = r#"{"Name":"ext","Port":5,"Address":"backend.example.com"}"#;
    put(&agent, "/v1/agent/service/register", body).await;
    let srv = tcp(&agent, "ext.service.consul.", RecordType::SRV);
    assert_eq!(texts(&srv), ["1 1 5 backend.example.com."]);
    let alias = tcp(&agent, "ext.service.consul.", RecordType::A);
    assert_eq!(texts(&alias), ["backend.example.com."]);
}

#[test]
fn nonsense_is_not_answered() {
    let agent = Agent::in_memory();
    for packet in [&b""[..], &[0; 5], &[0xff; 40]] {
        assert_eq!(answer(&agent.core, packet, Transport::Udp), None);
    }
}
