use std::time::Duration;

use serde_json::{Value, json};

use super::*;

fn sent<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

const TEN: Duration = Duration::from_secs(10);

#[test]
fn only_what_is_set_is_sent() {
    assert_eq!(sent(&ServiceDefinition::new("web")), json!({"Name": "web"}));
    assert_eq!(sent(&CheckDefinition::ttl(TEN)), json!({"TTL": "10s"}));
}

#[test]
fn a_full_definition_is_sent_as_consul_names_it() {
    let service = ServiceDefinition::new("web")
        .id("web-1")
        .address("10.0.0.1")
        .port(8080)
        .tag("v1")
        .tag("eu")
        .meta("k", "v")
        .weights(10, 2)
        .tagged_address("wan", "1.2.3.4", 80)
        .enable_tag_override()
        .sidecar_service(&json!({}))
        .locality("eu", "eu-1")
        .socket_path("/run/web.sock")
        .check(CheckDefinition::ttl(Duration::from_millis(1500)).status(Status::Passing));
    assert_eq!(
        sent(&service),
        json!({
            "Name": "web", "ID": "web-1", "Address": "10.0.0.1", "Port": 8080,
            "Tags": ["v1", "eu"], "Meta": {"k": "v"},
            "Weights": {"Passing": 10, "Warning": 2},
            "TaggedAddresses": {"wan": {"Address": "1.2.3.4", "Port": 80}},
            "EnableTagOverride": true, "SocketPath": "/run/web.sock",
            "Connect": {"SidecarService": {}},
            "Locality": {"Region": "eu", "Zone": "eu-1"},
            "Checks": [{"TTL": "1.5s", "Status": "passing"}],
        })
    );
}

#[test]
fn every_type_of_check_is_sent_as_consul_names_it() {
    for (check, json) in [
        (
            CheckDefinition::http("http://a/", TEN)
                .method("POST")
                .header("A", "1")
                .header("A", "2")
                .body("x")
                .tls_server_name("a")
                .danger_skip_tls_verify()
                .disable_redirects()
                .timeout(Duration::from_millis(500)),
            json!({"HTTP": "http://a/", "Interval": "10s", "Timeout": "500ms", "Method": "POST",
                "Header": {"A": ["1", "2"]}, "Body": "x", "TLSServerName": "a",
                "TLSSkipVerify": true, "DisableRedirects": true}),
        ),
        (
            CheckDefinition::tcp("a:1", TEN).use_tls(true),
            json!({"TCP": "a:1", "Interval": "10s", "TCPUseTLS": true}),
        ),
        (
            CheckDefinition::udp("a:1", TEN),
            json!({"UDP": "a:1", "Interval": "10s"}),
        ),
        (
            CheckDefinition::grpc("a:1/s", TEN).use_tls(true),
            json!({"GRPC": "a:1/s", "Interval": "10s", "GRPCUseTLS": true}),
        ),
        (
            CheckDefinition::h2ping("a:1", TEN),
            json!({"H2PING": "a:1", "Interval": "10s"}),
        ),
        (
            CheckDefinition::h2ping("a:1", TEN).use_tls(false),
            json!({"H2PING": "a:1", "Interval": "10s", "H2PingUseTLS": false}),
        ),
        (
            CheckDefinition::script(["test", "-e", "/x"], TEN),
            json!({"ScriptArgs": ["test", "-e", "/x"], "Interval": "10s"}),
        ),
        (
            CheckDefinition::docker("c", ["true"], TEN).shell("/bin/bash"),
            json!({"DockerContainerID": "c", "ScriptArgs": ["true"], "Shell": "/bin/bash", "Interval": "10s"}),
        ),
        (
            CheckDefinition::os_service("sshd", TEN),
            json!({"OSService": "sshd", "Interval": "10s"}),
        ),
        (
            CheckDefinition::alias_service("db-1"),
            json!({"AliasService": "db-1"}),
        ),
        (
            CheckDefinition::alias_node("n1"),
            json!({"AliasNode": "n1"}),
        ),
        (
            CheckDefinition::tcp("a:1", TEN)
                .id("c")
                .name("n")
                .notes("o")
                .success_before_passing(2)
                .failures_before_warning(3)
                .failures_before_critical(4)
                .deregister_critical_service_after(Duration::from_secs(90))
                .output_max_size(100),
            json!({"TCP": "a:1", "Interval": "10s", "CheckID": "c", "Name": "n", "Notes": "o",
                "SuccessBeforePassing": 2, "FailuresBeforeWarning": 3, "FailuresBeforeCritical": 4,
                "DeregisterCriticalServiceAfter": "1m30s", "OutputMaxSize": 100}),
        ),
    ] {
        assert_eq!(sent(&check), json);
        ServiceDefinition::new("web")
            .check(check)
            .validate()
            .unwrap();
    }
}

#[test]
fn a_lone_check_names_its_service_and_its_own_id() {
    let check = CheckDefinition::ttl(TEN).id("c").name("n");
    let service = ServiceId::new("web-1").unwrap();
    assert_eq!(
        sent(&check.of(Some(&service))),
        json!({"ServiceID": "web-1", "ID": "c", "Name": "n", "TTL": "10s"})
    );
}

#[test]
fn checks_without_an_id_are_found_under_the_one_that_the_agent_gives() {
    let ids = |service: &ServiceDefinition| -> Vec<String> {
        let ids = service.checks_by_id();
        ids.map(|(id, _)| (*id).to_owned()).collect()
    };
    let one = ServiceDefinition::new("web")
        .id("w")
        .check(CheckDefinition::ttl(TEN));
    assert_eq!(ids(&one), ["service:w"]);
    let three = one
        .check(CheckDefinition::ttl(TEN).id("own"))
        .check(CheckDefinition::ttl(TEN));
    assert_eq!(ids(&three), ["service:w:1", "own", "service:w:3"]);
}
