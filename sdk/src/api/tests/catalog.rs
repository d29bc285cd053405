use std::time::Duration;

use super::Canned;
use crate::ErrorKind;
use crate::api::catalog::{Catalog, Entry, NewCheck, NewService};
use crate::api::health::Status;

#[tokio::test]
async fn each_read_has_its_request() {
    macro_rules! asks {
        ($answer:literal, $call:expr, $asked:literal) => {
            let canned = Canned::good($answer);
            let call: fn(Catalog) -> _ = $call;
            call(canned.client().catalog()).await.unwrap();
            assert_eq!(canned.asked(), $asked);
        };
    }
    asks!(
        "[]",
        |catalog| catalog.datacenters(),
        "GET /v1/catalog/datacenters"
    );
    asks!("[]", |catalog| catalog.nodes(), "GET /v1/catalog/nodes");
    asks!(
        "{}",
        |catalog| catalog.services(),
        "GET /v1/catalog/services"
    );
    asks!(
        "[]",
        |catalog| catalog.service("a b"),
        "GET /v1/catalog/service/a%20b"
    );
    asks!(
        "[]",
        |catalog| catalog
            .service("web")
            .tag("v1")
            .merge_central_config()
            .peer("p"),
        "GET /v1/catalog/service/web?tag=v1&merge-central-config&peer=p"
    );
    asks!(
        "[]",
        |catalog| catalog.connect("web"),
        "GET /v1/catalog/connect/web"
    );
    asks!(
        "null",
        |catalog| catalog.node("n"),
        "GET /v1/catalog/node/n"
    );
    asks!(
        "null",
        |catalog| catalog.node_services("n"),
        "GET /v1/catalog/node-services/n"
    );
}

#[tokio::test]
async fn datacenters_and_nodes_are_lists_and_null_is_the_empty_one() {
    let canned = Canned::good(r#"["dc1","dc2"]"#);
    let all = canned.client().catalog().datacenters().await.unwrap();
    assert_eq!(*all, ["dc1", "dc2"]);
    let null = || Canned::good("null").client().catalog();
    assert!(null().datacenters().await.unwrap().is_empty());
    assert!(null().nodes().await.unwrap().is_empty());
    assert!(null().services().await.unwrap().is_empty());
    assert!(null().service("web").await.unwrap().is_empty());

    let canned = Canned::good(
        r#"[{"ID":"","Node":"ext","Address":"1.2.3.4","Datacenter":"dc1","TaggedAddresses":null,
            "Meta":null,"CreateIndex":20,"ModifyIndex":21}]"#,
    );
    let nodes = canned.client().catalog().nodes().await.unwrap();
    assert_eq!(*nodes[0].name(), "ext");
    assert_eq!((nodes[0].create_index(), nodes[0].modify_index()), (20, 21));
}

#[tokio::test]
async fn services_and_their_tags_are_sorted() {
    let canned = Canned::good(r#"{"web":["v1","eu"],"api":[],"db":null}"#);
    let services = canned.client().catalog().services().await.unwrap();
    let all: Vec<(&str, Vec<&str>)> = services
        .iter()
        .map(|service| (&**service.name(), service.tags().iter().collect()))
        .collect();
    assert_eq!(
        all,
        [("api", vec![]), ("db", vec![]), ("web", vec!["eu", "v1"])]
    );
}

#[tokio::test]
async fn an_instance_has_all_fields_of_itself_and_its_node() {
    let canned = Canned::good(
        r#"[{"ID":"u","Node":"n","Address":"10.0.0.1","Datacenter":"dc1",
            "TaggedAddresses":{"wan":"1.2.3.4"},"NodeMeta":{"os":"linux"},
            "ServiceKind":"mesh-gateway","ServiceID":"web1","ServiceName":"web",
            "ServiceTags":["v1"],"ServiceAddress":"","ServiceTaggedAddresses":
            {"lan":{"Address":"10.0.0.1","Port":80}},"ServiceWeights":{"Passing":5,"Warning":0},
            "ServiceMeta":{"a":"b"},"ServicePort":80,"ServiceSocketPath":"/s",
            "ServiceEnableTagOverride":true,"ServiceProxy":{"Mode":"direct"},
            "ServiceConnect":{"Native":true},"ServiceLocality":{"Region":"eu"},"PeerName":"peer",
            "Namespace":"ns","Partition":"pt","CreateIndex":13,"ModifyIndex":14,"New":1}]"#,
    );
    let all = canned.client().catalog().service("web").await.unwrap();
    let (node, service) = (all[0].node(), all[0].service());
    assert_eq!(
        (&**node.name(), node.id(), node.address()),
        ("n", "u", "10.0.0.1")
    );
    assert_eq!(node.datacenter().unwrap(), &"dc1");
    assert_eq!(node.tagged_addresses().get("wan"), Some("1.2.3.4"));
    assert_eq!(node.meta().get("os"), Some("linux"));
    assert_eq!((node.partition(), node.peer_name()), ("pt", Some("peer")));
    assert_eq!(service.kind(), crate::api::health::ServiceKind::MeshGateway);
    assert_eq!((&**service.id(), &**service.name()), ("web1", "web"));
    assert!(service.tags().contains("v1"));
    assert_eq!(service.tagged_addresses().get("lan").unwrap().port(), 80);
    let weights = service.weights();
    assert_eq!((weights.passing(), weights.warning()), (5, 0));
    assert_eq!(service.meta().get("a"), Some("b"));
    assert_eq!(service.socket_path(), Some("/s"));
    assert!(service.enable_tag_override());
    assert_eq!(service.proxy().unwrap().mode(), "direct");
    assert!(service.connect().unwrap().native());
    assert_eq!(service.locality().unwrap().region(), "eu");
    assert_eq!(
        (service.namespace(), service.peer_name()),
        ("ns", Some("peer"))
    );
    assert_eq!((service.create_index(), service.modify_index()), (13, 14));
    assert_eq!((all[0].address(), all[0].port()), ("10.0.0.1", 80));
}

#[tokio::test]
async fn a_node_has_its_services_in_either_form_and_an_unknown_one_is_none() {
    let map = r#"{"Node":{"Node":"n"},"Services":{"b":{"ID":"b","Service":"x"},
        "a":{"ID":"a","Service":"x"}}}"#;
    let list = r#"{"Node":{"Node":"n"},"Services":[{"ID":"b","Service":"x"},
        {"ID":"a","Service":"x"}]}"#;
    for body in [map, list] {
        let canned = Canned::good(body);
        let node = canned.client().catalog().node("n").await.unwrap();
        let node = node.into_value().unwrap();
        assert_eq!(*node.node().name(), "n");
        let ids: Vec<_> = node
            .services()
            .iter()
            .map(|service| &**service.id())
            .collect();
        assert_eq!(ids, ["a", "b"]);
    }
    for body in ["null", r#"{"Node":null,"Services":null}"#] {
        let canned = Canned::good(body);
        assert_eq!(*canned.client().catalog().node("n").await.unwrap(), None);
    }
    let canned = Canned::good("[]");
    let err = canned.client().catalog().node("n").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Decode);
}

async fn registered(entry: Entry) -> serde_json::Value {
    let canned = Canned::good("true");
    canned.client().catalog().register(entry).await.unwrap();
    assert_eq!(canned.asked(), "PUT /v1/catalog/register");
    assert_eq!(
        canned.request().headers()["content-type"],
        "application/json"
    );
    serde_json::from_slice(canned.request().body()).unwrap()
}

#[tokio::test]
async fn only_what_is_set_is_registered() {
    assert_eq!(
        registered(Entry::new("n", "1.2.3.4")).await,
        serde_json::json!({"Node": "n", "Address": "1.2.3.4"})
    );
    let entry = Entry::new("n", "1.2.3.4")
        .service(NewService::new("db"))
        .check(NewCheck::new("c", "C", Status::Passing));
    assert_eq!(
        registered(entry).await,
        serde_json::json!({
            "Node": "n", "Address": "1.2.3.4", "Service": {"Service": "db"},
            "Checks": [{"Node": "n", "CheckID": "c", "Name": "C", "Status": "passing"}]
        })
    );
}

#[tokio::test]
async fn every_part_of_an_entry_is_sent() {
    let entry = Entry::new("n", "1.2.3.4")
        .id("u")
        .tagged_address("wan", "5.6.7.8")
        .meta("external-node", "true")
        .locality("eu", "eu-1a")
        .skip_node_update()
        .service(
            NewService::new("db")
                .id("db-1")
                .kind("connect-proxy")
                .tag("a")
                .tag("b")
                .address("db.example.org")
                .port(5432)
                .tagged_address("wan", "5.6.7.8", 5433)
                .meta("k", "v")
                .weights(10, 0)
                .enable_tag_override()
                .socket_path("/s")
                .locality("eu", "")
                .proxy(&serde_json::json!({"DestinationServiceName": "x"}))
                .connect_native(),
        )
        .check(
            NewCheck::new("c1", "one", Status::Critical)
                .service_id("db-1")
                .notes("n")
                .output("o")
                .http("http://x")
                .tcp("x:1")
                .interval(Duration::from_secs(30))
                .timeout(Duration::from_millis(1500))
                .deregister_critical_service_after(Duration::from_secs(3600)),
        )
        .check(
            NewCheck::new("c2", "two", Status::Warning)
                .interval(Duration::from_secs(1))
                .definition(&serde_json::json!({"UDP": "x:2"})),
        );
    assert_eq!(
        registered(entry).await,
        serde_json::json!({
            "Node": "n", "Address": "1.2.3.4", "ID": "u", "TaggedAddresses": {"wan": "5.6.7.8"},
            "NodeMeta": {"external-node": "true"}, "Locality": {"Region": "eu", "Zone": "eu-1a"},
            "SkipNodeUpdate": true,
            "Service": {"Service": "db", "ID": "db-1", "Kind": "connect-proxy", "Tags": ["a", "b"],
                "Address": "db.example.org", "Port": 5432,
                "TaggedAddresses": {"wan": {"Address": "5.6.7.8", "Port": 5433}},
                "Meta": {"k": "v"}, "Weights": {"Passing": 10, "Warning": 0},
                "EnableTagOverride": true, "SocketPath": "/s", "Locality": {"Region": "eu"},
                "Proxy": {"DestinationServiceName": "x"}, "Connect": {"Native": true}},
            "Checks": [
                {"Node": "n", "CheckID": "c1", "Name": "one", "Status": "critical", "Notes": "n",
                 "Output": "o", "ServiceID": "db-1", "Definition": {"HTTP": "http://x",
                 "TCP": "x:1", "Interval": "30s", "Timeout": "1.5s",
                 "DeregisterCriticalServiceAfter": "1h0m0s"}},
                {"Node": "n", "CheckID": "c2", "Name": "two", "Status": "warning",
                 "Definition": {"UDP": "x:2"}}]
        })
    );
}

#[tokio::test]
async fn the_first_thing_that_is_wrong_with_an_entry_is_told_and_nothing_is_sent() {
    let check = |status| NewCheck::new("c", "C", status);
    for (entry, why) in [
        (Entry::new("", "x"), "node name"),
        (Entry::new("n", ""), "node address"),
        (
            Entry::new("n", "x").service(NewService::new("a//b")),
            "service name",
        ),
        (
            Entry::new("n", "x").service(NewService::new("a").id("").weights(0, 0)),
            "service ID",
        ),
        (
            Entry::new("n", "x").service(NewService::new("a").weights(0, 1)),
            "weight 0",
        ),
        (
            Entry::new("n", "x").check(check(Status::Maintenance)),
            "maintenance",
        ),
        (
            Entry::new("n", "x").check(check(Status::Passing).service_id("")),
            "service ID",
        ),
        (
            Entry::new("n", "x").check(NewCheck::new("", "C", Status::Passing)),
            "check ID",
        ),
    ] {
        let canned = Canned::good("true");
        let err = canned.client().catalog().register(entry).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid);
        assert!(err.to_string().contains(why), "{why}: {err}");
        assert!(canned.was_not_asked());
    }
}

#[tokio::test]
async fn what_is_taken_out_is_named_by_node_and_id() {
    macro_rules! sends {
        ($call:expr, $body:literal) => {
            let canned = Canned::good("true");
            let call: fn(Catalog) -> _ = $call;
            call(canned.client().catalog()).await.unwrap();
            assert_eq!(canned.asked(), "PUT /v1/catalog/deregister");
            assert_eq!(canned.request().body(), $body);
        };
    }
    sends!(|catalog| catalog.deregister_node("n"), r#"{"Node":"n"}"#);
    sends!(
        |catalog| catalog.deregister_service("n", "web-1"),
        r#"{"Node":"n","ServiceID":"web-1"}"#
    );
    sends!(
        |catalog| catalog.deregister_check("n", "c"),
        r#"{"Node":"n","CheckID":"c"}"#
    );
    let canned = Canned::good("true");
    let catalog = canned.client().catalog();
    for err in [
        catalog.deregister_node("").await.unwrap_err(),
        catalog.deregister_service("n", "").await.unwrap_err(),
        catalog.deregister_service("", "web").await.unwrap_err(),
        catalog.deregister_check("n", "").await.unwrap_err(),
    ] {
        assert_eq!(err.kind(), ErrorKind::Invalid);
    }
    assert!(canned.was_not_asked());
}

#[tokio::test]
async fn a_change_that_is_not_confirmed_is_an_error() {
    for body in ["false", "", "null"] {
        let canned = Canned::good(body);
        let catalog = canned.client().catalog();
        let err = catalog.deregister_node("n").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}");
    }
}
