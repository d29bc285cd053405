use std::sync::Arc;
use std::time::Duration;

use super::Canned;
use crate::api::health::{Check, ServiceEntry, ServiceKind, State, Status};
use crate::{Client, ErrorKind};

#[tokio::test]
async fn each_call_has_its_request() {
    macro_rules! asks {
        ($call:expr, $asked:literal) => {
            let canned = Canned::good("[]");
            let call: fn(crate::api::health::Health) -> _ = $call;
            assert!(call(canned.client().health()).await.unwrap().is_empty());
            assert_eq!(canned.asked(), $asked);
        };
    }
    asks!(|health| health.node("n 1"), "GET /v1/health/node/n%201");
    asks!(|health| health.checks("web"), "GET /v1/health/checks/web");
    asks!(|health| health.service("web"), "GET /v1/health/service/web");
    asks!(
        |health| health
            .service("web")
            .passing()
            .tag("v1")
            .tag("a&b")
            .merge_central_config()
            .peer("p"),
        "GET /v1/health/service/web?passing&tag=v1&tag=a%26b&merge-central-config&peer=p"
    );
    asks!(|health| health.connect("web"), "GET /v1/health/connect/web");
    asks!(|health| health.ingress("web"), "GET /v1/health/ingress/web");
    asks!(
        |health| health.state(State::Any),
        "GET /v1/health/state/any"
    );
    asks!(
        |health| health.state(State::Passing),
        "GET /v1/health/state/passing"
    );
    asks!(
        |health| health.state(State::Warning),
        "GET /v1/health/state/warning"
    );
    asks!(
        |health| health.state(State::Critical),
        "GET /v1/health/state/critical"
    );
}

#[tokio::test]
async fn a_name_that_cannot_be_is_refused_before_it_is_sent() {
    for name in ["", "/web", "a//b", "..", "a\nb"] {
        let canned = Canned::good("[]");
        let health = canned.client().health();
        for err in [
            health.service(name).await.unwrap_err(),
            health.connect(name).await.unwrap_err(),
            health.checks(name).await.unwrap_err(),
            health.node(name).await.unwrap_err(),
        ] {
            assert_eq!(err.kind(), ErrorKind::Invalid);
        }
        assert!(canned.was_not_asked());
    }
}

async fn entries(body: &str) -> Vec<Arc<ServiceEntry>> {
    let client: Client = Canned::good(body.to_owned()).client();
    client.health().service("web").await.unwrap().into_value()
}

async fn checks(body: &str) -> Vec<Arc<Check>> {
    let client = Canned::good(body.to_owned()).client();
    client.health().checks("web").await.unwrap().into_value()
}

/// As Consul 1.21 writes it, every field filled.
const FULL: &str = r#"[{
  "Node": {"ID": "u", "Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1", "Partition": "np",
    "PeerName": "peer", "TaggedAddresses": {"wan": "1.2.3.4", "lan": "10.0.0.1"},
    "Meta": {"os": "linux"}, "Locality": {"Region": "eu", "Zone": "eu-1a"},
    "CreateIndex": 1, "ModifyIndex": 2, "Unknown": {"a": [null]}},
  "Service": {"Kind": "connect-proxy", "ID": "web-1", "Service": "web", "Tags": ["b", "a"],
    "Address": "10.9.9.9", "TaggedAddresses": {"wan": {"Address": "5.6.7.8", "Port": 80},
    "lan": {"Address": "10.9.9.9", "Port": 8080}}, "Meta": {"version": "1"}, "Port": 8080,
    "SocketPath": "/run/web", "Weights": {"Passing": 10, "Warning": 3}, "EnableTagOverride": true,
    "Locality": {"Region": "eu", "Zone": "eu-1b"},
    "Proxy": {"DestinationServiceName": "app", "DestinationServiceID": "app-1",
      "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 9000,
      "LocalServiceSocketPath": "/run/app", "Mode": "transparent", "Config": {"a": {"b": 1}},
      "Upstreams": [{"DestinationType": "service", "DestinationName": "db",
        "DestinationNamespace": "ns", "DestinationPartition": "pt", "DestinationPeer": "pr",
        "Datacenter": "dc2", "LocalBindAddress": "127.0.0.2", "LocalBindPort": 5432,
        "LocalBindSocketPath": "/run/db", "LocalBindSocketMode": "0600", "Config": {"x": 1},
        "MeshGateway": {"Mode": "local"}}],
      "MeshGateway": {"Mode": "remote"},
      "Expose": {"Checks": true, "Paths": [{"ListenerPort": 1, "Path": "/h", "LocalPathPort": 2,
        "Protocol": "http", "ParsedFromCheck": true}]},
      "TransparentProxy": {"OutboundListenerPort": 15001, "DialedDirectly": true},
      "MutualTLSMode": "strict",
      "AccessLogs": {"Enabled": true, "DisableListenerLogs": true, "Type": "file", "Path": "/l",
        "JSONFormat": "{}", "TextFormat": "t"},
      "EnvoyExtensions": [{"Name": "builtin/lua", "Required": true, "Arguments": {"s": 1},
        "ConsulVersion": ">1", "EnvoyVersion": ">2"}]},
    "Connect": {"Native": true, "PeerMeta": {"SNI": ["s"], "SpiffeID": ["i"], "Protocol": "tcp"}},
    "PeerName": "peer", "Namespace": "sn", "Partition": "sp", "CreateIndex": 3, "ModifyIndex": 4},
  "Checks": [{"Node": "n1", "CheckID": "c1", "Name": "alive", "Status": "warning", "Notes": "why",
    "Output": "slow", "ServiceID": "web-1", "ServiceName": "web", "ServiceTags": ["b", "a"],
    "Type": "http", "Interval": "10s", "Timeout": "1m30s", "ExposedPort": 21500, "PeerName": "peer",
    "Namespace": "cn", "Partition": "cp", "CreateIndex": 5, "ModifyIndex": 6,
    "Definition": {"HTTP": "http://x", "TLSServerName": "x", "TLSSkipVerify": true,
      "Header": {"a": ["b"]}, "Method": "PUT", "Body": "{}", "DisableRedirects": true,
      "TCP": "x:1", "TCPUseTLS": true, "UDP": "x:2", "H2PING": "x:3", "H2PingUseTLS": true,
      "OSService": "svc", "SessionName": "sess", "Interval": "30s", "Timeout": 5000000000,
      "DeregisterCriticalServiceAfter": "1h0m0s", "OutputMaxSize": 100, "ScriptArgs": ["a", "b"],
      "DockerContainerID": "d", "Shell": "/bin/sh", "GRPC": "x:4/s", "GRPCUseTLS": true,
      "AliasNode": "n2", "AliasService": "other", "TTL": "15s"}}]}]"#;

#[tokio::test]
async fn every_field_of_node_and_instance_is_read() {
    let all = entries(FULL).await;
    let entry = &all[0];
    let node = entry.node();
    assert_eq!(*node.name(), "n1");
    assert_eq!((node.id(), node.address()), ("u", "10.0.0.1"));
    assert_eq!(node.datacenter().unwrap(), &"dc1");
    assert_eq!(node.tagged_addresses().get("wan"), Some("1.2.3.4"));
    assert_eq!(node.meta().iter().collect::<Vec<_>>(), [("os", "linux")]);
    let locality = node.locality().unwrap();
    assert_eq!((locality.region(), locality.zone()), ("eu", "eu-1a"));
    assert_eq!((node.partition(), node.peer_name()), ("np", Some("peer")));
    assert_eq!((node.create_index(), node.modify_index()), (1, 2));

    let service = entry.service();
    assert_eq!(service.kind(), ServiceKind::ConnectProxy);
    assert_eq!((&**service.id(), &**service.name()), ("web-1", "web"));
    assert_eq!(service.tags().iter().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!((service.address(), service.port()), ("10.9.9.9", 8080));
    let names: Vec<_> = service
        .tagged_addresses()
        .iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["lan", "wan"]);
    let wan = service.tagged_addresses().get("wan").unwrap();
    assert_eq!((wan.address(), wan.port()), ("5.6.7.8", 80));
    assert_eq!(service.meta().get("version"), Some("1"));
    assert_eq!(service.socket_path(), Some("/run/web"));
    let weights = service.weights();
    assert_eq!((weights.passing(), weights.warning()), (10, 3));
    assert!(service.enable_tag_override());
    assert_eq!(service.locality().unwrap().zone(), "eu-1b");
    assert_eq!(service.peer_name(), Some("peer"));
    assert_eq!((service.namespace(), service.partition()), ("sn", "sp"));
    assert_eq!((service.create_index(), service.modify_index()), (3, 4));
    let connect = service.connect().unwrap();
    assert!(connect.native());
    let peer = connect.peer_meta().unwrap();
    assert!(peer.sni().contains("s") && peer.spiffe_id().contains("i"));
    assert_eq!(peer.protocol(), "tcp");

    assert_eq!((entry.address(), entry.port()), ("10.9.9.9", 8080));
    assert_eq!((entry.status(), entry.weight()), (Status::Warning, 3));
}

#[tokio::test]
async fn every_field_of_a_proxy_is_read() {
    let all = entries(FULL).await;
    let proxy = all[0].service().proxy().unwrap();
    assert_eq!(proxy.destination_service_name(), "app");
    assert_eq!(proxy.destination_service_id(), "app-1");
    assert_eq!(proxy.local_service_address(), "127.0.0.1");
    assert_eq!(proxy.local_service_port(), 9000);
    assert_eq!(proxy.local_service_socket_path(), Some("/run/app"));
    assert_eq!(proxy.mode(), "transparent");
    assert_eq!(proxy.config().unwrap().as_str(), r#"{"a": {"b": 1}}"#);
    assert_eq!(proxy.mesh_gateway_mode(), "remote");
    assert_eq!(proxy.mutual_tls_mode(), "strict");
    let upstream = &proxy.upstreams()[0];
    assert_eq!(upstream.destination_type(), "service");
    assert_eq!(upstream.destination_name(), "db");
    assert_eq!(upstream.destination_namespace(), "ns");
    assert_eq!(upstream.destination_partition(), "pt");
    assert_eq!(upstream.destination_peer(), Some("pr"));
    assert_eq!(upstream.datacenter(), "dc2");
    assert_eq!(upstream.local_bind_address(), "127.0.0.2");
    assert_eq!(upstream.local_bind_port(), 5432);
    assert_eq!(upstream.local_bind_socket_path(), Some("/run/db"));
    assert_eq!(upstream.local_bind_socket_mode(), "0600");
    assert_eq!(upstream.config().unwrap().as_str(), r#"{"x": 1}"#);
    assert_eq!(upstream.mesh_gateway_mode(), "local");
    let expose = proxy.expose().unwrap();
    assert!(expose.checks());
    let path = &expose.paths()[0];
    assert_eq!((path.listener_port(), path.local_path_port()), (1, 2));
    assert_eq!((path.path(), path.protocol()), ("/h", "http"));
    assert!(path.parsed_from_check());
    let transparent = proxy.transparent_proxy().unwrap();
    assert_eq!(transparent.outbound_listener_port(), 15001);
    assert!(transparent.dialed_directly());
    let logs = proxy.access_logs().unwrap();
    assert!(logs.enabled() && logs.disable_listener_logs());
    assert_eq!((logs.sink(), logs.path()), ("file", Some("/l")));
    assert_eq!(
        (logs.json_format(), logs.text_format()),
        (Some("{}"), Some("t"))
    );
    let extension = &proxy.envoy_extensions()[0];
    assert!(extension.required());
    assert_eq!(extension.name(), "builtin/lua");
    assert_eq!(extension.arguments().unwrap().as_str(), r#"{"s": 1}"#);
    assert_eq!(
        (extension.consul_version(), extension.envoy_version()),
        (">1", ">2")
    );
}

#[tokio::test]
async fn every_field_of_a_check_is_read() {
    let all = entries(FULL).await;
    let check = &all[0].checks()[0];
    assert_eq!((&**check.node(), &**check.id()), ("n1", "c1"));
    assert_eq!((check.name(), check.kind()), ("alive", "http"));
    assert_eq!(check.status(), Status::Warning);
    assert_eq!((check.notes(), check.output()), ("why", "slow"));
    assert_eq!(check.service_id().unwrap(), &"web-1");
    assert_eq!(check.service_name().unwrap(), &"web");
    assert_eq!(check.service_tags().iter().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(check.interval(), Some(Duration::from_secs(10)));
    assert_eq!(check.timeout(), Some(Duration::from_secs(90)));
    assert_eq!(check.exposed_port(), Some(21500));
    assert_eq!(check.peer_name(), Some("peer"));
    assert_eq!((check.namespace(), check.partition()), ("cn", "cp"));
    assert_eq!((check.create_index(), check.modify_index()), (5, 6));
    let how = check.definition().unwrap();
    assert_eq!(
        (how.http(), how.tls_server_name()),
        (Some("http://x"), Some("x"))
    );
    assert!(how.tls_skip_verify() && how.disable_redirects() && how.tcp_use_tls());
    assert!(how.h2ping_use_tls() && how.grpc_use_tls());
    assert_eq!(how.header().unwrap().as_str(), r#"{"a": ["b"]}"#);
    assert_eq!((how.method(), how.body()), (Some("PUT"), Some("{}")));
    assert_eq!((how.tcp(), how.udp()), (Some("x:1"), Some("x:2")));
    assert_eq!((how.h2ping(), how.grpc()), (Some("x:3"), Some("x:4/s")));
    assert_eq!(
        (how.os_service(), how.session_name()),
        (Some("svc"), Some("sess"))
    );
    assert_eq!(how.interval(), Some(Duration::from_secs(30)));
    assert_eq!(how.timeout(), Some(Duration::from_secs(5)));
    assert_eq!(
        how.deregister_critical_service_after(),
        Some(Duration::from_secs(3600))
    );
    assert_eq!(how.output_max_size(), 100);
    assert_eq!(how.script_args().len(), 2);
    assert_eq!(
        (how.docker_container_id(), how.shell()),
        (Some("d"), Some("/bin/sh"))
    );
    assert_eq!(
        (how.alias_node(), how.alias_service()),
        (Some("n2"), Some("other"))
    );
    assert_eq!(how.ttl(), Some(Duration::from_secs(15)));
}

#[tokio::test]
async fn what_is_missing_null_or_empty_is_absent() {
    for body in [
        r#"[{"Node":{"Node":"n"},"Service":{"ID":"a","Service":"b"}}]"#,
        r#"[{"Node":{"Node":"n","ID":null,"Address":null,"Datacenter":null,"TaggedAddresses":null,
            "Meta":null,"CreateIndex":null,"ModifyIndex":null,"Locality":null},
            "Service":{"ID":"a","Service":"b","Kind":null,"Tags":null,"Address":null,"Meta":null,
            "TaggedAddresses":null,"Port":null,"Weights":null,"EnableTagOverride":null,
            "Proxy":null,"Connect":null,"Locality":null,"SocketPath":null},"Checks":null}]"#,
        r#"[{"Node":{"Node":"n","ID":"","TaggedAddresses":{},"Meta":{},"PeerName":""},
            "Service":{"ID":"a","Service":"b","Kind":"","Tags":[],"TaggedAddresses":{},"Meta":{},
            "Proxy":{"Mode":"","MeshGateway":{},"Expose":{},"Config":{},"Upstreams":[]},
            "Connect":{}},"Checks":[]}]"#,
    ] {
        let all = entries(body).await;
        let entry = &all[0];
        let (node, service) = (entry.node(), entry.service());
        assert_eq!(
            (node.id(), node.address(), node.peer_name()),
            ("", "", None)
        );
        assert!(node.tagged_addresses().is_empty() && node.meta().is_empty());
        assert!(node.datacenter().is_none() && node.locality().is_none());
        assert_eq!(service.kind(), ServiceKind::Typical);
        assert!(service.tags().is_empty() && service.tagged_addresses().is_empty());
        assert!(service.proxy().is_none(), "{:?}", service.proxy());
        assert!(service.connect().is_none() && service.socket_path().is_none());
        let weights = service.weights();
        assert_eq!((weights.passing(), weights.warning()), (1, 1));
        assert_eq!((entry.address(), entry.port()), ("", 0));
        // Without any check an instance passes.
        assert_eq!((entry.status(), entry.weight()), (Status::Passing, 1));
    }
    assert!(entries("null").await.is_empty());
}

#[tokio::test]
async fn the_address_is_the_nodes_where_the_instance_has_none() {
    let all = entries(
        r#"[{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"a","Service":"a","Address":"",
            "Port":70000}}]"#,
    )
    .await;
    assert_eq!((all[0].address(), all[0].port()), ("10.0.0.1", 0));
}

#[tokio::test]
async fn the_worst_check_decides_and_maintenance_is_worse_than_critical() {
    async fn status(checks: &[(&str, &str)]) -> Status {
        let checks: Vec<String> = checks
            .iter()
            .map(|(id, status)| format!(r#"{{"Node":"n","CheckID":"{id}","Status":"{status}"}}"#))
            .collect();
        let body = format!(
            r#"[{{"Node":{{"Node":"n"}},"Service":{{"ID":"a","Service":"a"}},"Checks":[{}]}}]"#,
            checks.join(",")
        );
        entries(&body).await[0].status()
    }
    assert_eq!(status(&[]).await, Status::Passing);
    let (pass, warn, fail) = (("a", "passing"), ("b", "warning"), ("c", "critical"));
    let strange = ("d", "purple");
    assert_eq!(status(&[pass, pass]).await, Status::Passing);
    assert_eq!(status(&[warn, pass]).await, Status::Warning);
    assert_eq!(status(&[warn, fail, pass]).await, Status::Critical);
    assert_eq!(status(&[warn, strange]).await, Status::Unknown);
    assert_eq!(status(&[fail, strange]).await, Status::Critical);
    for id in ["_node_maintenance", "_service_maintenance:a"] {
        assert_eq!(status(&[fail, (id, "critical")]).await, Status::Maintenance);
    }
}

#[tokio::test]
async fn what_repeats_within_an_answer_is_one_allocation() {
    let one = |n: usize| {
        format!(
            r#"{{"Node":{{"Node":"n","Address":"10.0.0.1","Meta":{{"a":"b"}}}},
               "Service":{{"ID":"a{n}","Service":"web","Tags":["x","y"]}},"Checks":[
               {{"Node":"n","CheckID":"serfHealth","Status":"passing","Output":"alive"}}]}}"#
        )
    };
    let body = format!("[{}]", (0..20).map(one).collect::<Vec<_>>().join(","));
    let all = entries(&body).await;
    assert!(std::ptr::eq(all[0].node(), all[19].node()));
    assert_eq!(all[0].checks()[0], all[19].checks()[0]);
    assert_ne!(all[0], all[19]);
}

#[tokio::test]
async fn checks_of_nodes_have_no_service() {
    let all = checks(
        r#"[{"Node":"n","CheckID":"serfHealth","Name":"Serf Health Status","Status":"passing",
            "ServiceID":"","ServiceName":"","ServiceTags":[],"Type":"","Definition":{},
            "Interval":"","Timeout":"","ExposedPort":0}]"#,
    )
    .await;
    let check = &all[0];
    assert!(check.service_id().is_none() && check.service_name().is_none());
    assert!(check.definition().is_none() && check.exposed_port().is_none());
    assert!(check.interval().is_none() && check.timeout().is_none());
    assert_eq!(check.status(), Status::Passing);
    assert!(!format!("{check:?}").is_empty());
}

#[tokio::test]
async fn an_answer_without_names_is_a_decoding_error() {
    for body in [
        r#"[{"Node":{"ID":"x"},"Service":{"ID":"a","Service":"a"}}]"#,
        r#"[{"Node":{"Node":"n"},"Service":{"Service":"a"}}]"#,
        r#"[{"Node":{"Node":"n"},"Service":null}]"#,
        r#"[{"Service":{"ID":"a","Service":"a"}}]"#,
        r#"[{"Node":{"Node":"n"},"Service":{"ID":"a","Service":"a","Port":"80"}}]"#,
    ] {
        let canned = Canned::good(body);
        let err = canned.client().health().service("web").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}");
    }
}

#[test]
fn elements_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone + PartialEq + std::fmt::Debug + 'static>() {}
    shared::<ServiceEntry>();
    shared::<Check>();
    shared::<crate::api::catalog::CatalogService>();
    shared::<crate::api::catalog::NodeServices>();
    shared::<crate::api::catalog::ServiceTags>();
}
