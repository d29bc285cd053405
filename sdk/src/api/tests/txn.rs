//! How transactions are sent, and what is refused before.

mod answers;

use std::time::Duration;

use super::Canned;
use crate::api::Consistency;
use crate::api::catalog::{NewCheck, NewService};
use crate::api::health::Status;
use crate::api::txn::{CheckOp, KvOp, NewNode, NodeOp, ServiceOp, Txn};
use crate::ident::SessionId;
use crate::transport::Lane;
use crate::{Client, ErrorKind};

const NOTHING: &str = r#"{"Results":[],"Errors":null}"#;

fn session() -> SessionId {
    SessionId::new("s-1").unwrap()
}

/// The body of a transaction with these operations.
async fn sent(fill: impl FnOnce(Txn) -> Txn) -> String {
    let canned = Canned::good(NOTHING);
    let _ = fill(canned.client().txn()).await.unwrap();
    assert_eq!(canned.asked(), "PUT /v1/txn");
    let request = canned.request();
    assert_eq!(request.headers()["content-type"], "application/json");
    String::from_utf8(request.body().to_vec()).unwrap()
}

/// The error of a transaction that is refused before it is sent.
async fn refused(fill: impl FnOnce(Txn) -> Txn) -> String {
    let canned = Canned::good(NOTHING);
    let err = fill(canned.client().txn()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
    assert!(canned.was_not_asked());
    err.to_string()
}

#[tokio::test]
async fn each_operation_on_keys_has_its_form() {
    for (op, body) in [
        (
            KvOp::set("a/1", vec![0, 255, b'\n']),
            r#"{"Verb":"set","Key":"a/1","Value":"AP8K"}"#,
        ),
        (
            KvOp::set("a", "").flags(u64::MAX),
            r#"{"Verb":"set","Key":"a","Flags":18446744073709551615}"#,
        ),
        (
            KvOp::cas("a", "v", 0).flags(7),
            r#"{"Verb":"cas","Key":"a","Value":"dg==","Flags":7,"Index":0}"#,
        ),
        (
            KvOp::lock("a", &session(), "v").flags(7),
            r#"{"Verb":"lock","Key":"a","Value":"dg==","Flags":7,"Session":"s-1"}"#,
        ),
        (
            KvOp::unlock("a", &session(), "v").flags(7),
            r#"{"Verb":"unlock","Key":"a","Value":"dg==","Flags":7,"Session":"s-1"}"#,
        ),
        (KvOp::get("a"), r#"{"Verb":"get","Key":"a"}"#),
        (
            KvOp::get_or_empty("a"),
            r#"{"Verb":"get-or-empty","Key":"a"}"#,
        ),
        (KvOp::get_tree("a/"), r#"{"Verb":"get-tree","Key":"a/"}"#),
        (
            KvOp::check_index("a", 9),
            r#"{"Verb":"check-index","Key":"a","Index":9}"#,
        ),
        (
            KvOp::check_session("a", &session()),
            r#"{"Verb":"check-session","Key":"a","Session":"s-1"}"#,
        ),
        (
            KvOp::check_not_exists("a"),
            r#"{"Verb":"check-not-exists","Key":"a"}"#,
        ),
        (KvOp::delete("a"), r#"{"Verb":"delete","Key":"a"}"#),
        (
            KvOp::delete_tree("a/"),
            r#"{"Verb":"delete-tree","Key":"a/"}"#,
        ),
        (KvOp::delete_tree(""), r#"{"Verb":"delete-tree","Key":""}"#),
        (
            KvOp::delete_cas("a", 9),
            r#"{"Verb":"delete-cas","Key":"a","Index":9}"#,
        ),
    ] {
        let want = format!(r#"[{{"KV":{body}}}]"#);
        assert_eq!(sent(|txn| txn.kv(op)).await, want);
    }
}

#[tokio::test]
async fn each_operation_on_the_catalog_has_its_form() {
    let node = || NewNode::new("n", "192.0.2.7");
    let full = node().id("u").meta("os", "x").tagged_address("wan", "w");
    for (op, body) in [
        (NodeOp::get("n"), r#"{"Verb":"get","Node":{"Node":"n"}}"#),
        (
            NodeOp::set(full),
            r#"{"Verb":"set","Node":{"Node":"n","Address":"192.0.2.7","ID":"u","TaggedAddresses":{"wan":"w"},"Meta":{"os":"x"}}}"#,
        ),
        (
            NodeOp::cas(node(), 9),
            r#"{"Verb":"cas","Node":{"Node":"n","Address":"192.0.2.7","ModifyIndex":9}}"#,
        ),
        (
            NodeOp::delete("n"),
            r#"{"Verb":"delete","Node":{"Node":"n"}}"#,
        ),
        (
            NodeOp::delete_cas("n", 9),
            r#"{"Verb":"delete-cas","Node":{"Node":"n","ModifyIndex":9}}"#,
        ),
    ] {
        let want = format!(r#"[{{"Node":{body}}}]"#);
        assert_eq!(sent(|txn| txn.node(op)).await, want);
    }
    let web = || NewService::new("web").id("web-1").port(80).tag("a");
    for (op, body) in [
        (
            ServiceOp::get("n", "web-1"),
            r#"{"Verb":"get","Node":"n","Service":{"ID":"web-1"}}"#,
        ),
        (
            ServiceOp::set("n", web()),
            r#"{"Verb":"set","Node":"n","Service":{"Service":"web","ID":"web-1","Tags":["a"],"Port":80}}"#,
        ),
        (
            ServiceOp::cas("n", web(), 0),
            r#"{"Verb":"cas","Node":"n","Service":{"Service":"web","ID":"web-1","Tags":["a"],"Port":80,"ModifyIndex":0}}"#,
        ),
        (
            ServiceOp::delete("n", "web", "web-1"),
            r#"{"Verb":"delete","Node":"n","Service":{"ID":"web-1","Service":"web"}}"#,
        ),
        (
            ServiceOp::delete_cas("n", "web", "web-1", 9),
            r#"{"Verb":"delete-cas","Node":"n","Service":{"ID":"web-1","Service":"web","ModifyIndex":9}}"#,
        ),
    ] {
        let want = format!(r#"[{{"Service":{body}}}]"#);
        assert_eq!(sent(|txn| txn.service(op)).await, want);
    }
    let alive = || NewCheck::new("c", "Alive", Status::Passing).interval(Duration::from_secs(5));
    for (op, body) in [
        (
            CheckOp::get("n", "c"),
            r#"{"Verb":"get","Check":{"Node":"n","CheckID":"c"}}"#,
        ),
        (
            CheckOp::set("n", alive()),
            r#"{"Verb":"set","Check":{"Node":"n","CheckID":"c","Name":"Alive","Status":"passing","Definition":{"Interval":"5s"}}}"#,
        ),
        (
            CheckOp::cas("n", alive(), 9),
            r#"{"Verb":"cas","Check":{"Node":"n","CheckID":"c","Name":"Alive","Status":"passing","Definition":{"Interval":"5s"},"ModifyIndex":9}}"#,
        ),
        (
            CheckOp::delete("n", "c"),
            r#"{"Verb":"delete","Check":{"Node":"n","CheckID":"c"}}"#,
        ),
        (
            CheckOp::delete_cas("n", "c", 9),
            r#"{"Verb":"delete-cas","Check":{"Node":"n","CheckID":"c","ModifyIndex":9}}"#,
        ),
    ] {
        let want = format!(r#"[{{"Check":{body}}}]"#);
        assert_eq!(sent(|txn| txn.check(op)).await, want);
    }
}

#[tokio::test]
async fn operations_are_sent_in_their_order() {
    let body = sent(|txn| {
        txn.kv(KvOp::check_index("a", 1))
            .node(NodeOp::get("n"))
            .kv(KvOp::lock("a", &session(), ""))
    });
    assert_eq!(
        body.await,
        r#"[{"KV":{"Verb":"check-index","Key":"a","Index":1}},{"Node":{"Verb":"get","Node":{"Node":"n"}}},{"KV":{"Verb":"lock","Key":"a","Session":"s-1"}}]"#
    );
}

#[tokio::test]
async fn namespace_and_partition_are_named_in_every_operation() {
    let canned = Canned::good(NOTHING);
    let client = Client::builder()
        .transport(canned.clone())
        .namespace("team")
        .partition("part")
        .build()
        .unwrap();
    let txn = client
        .txn()
        .kv(KvOp::get("a"))
        .node(NodeOp::get("n"))
        .service(ServiceOp::get("n", "s"))
        .check(CheckOp::get("n", "c"));
    let _ = txn.await.unwrap();
    assert_eq!(
        *canned.request().body(),
        r#"[{"KV":{"Verb":"get","Key":"a","Namespace":"team","Partition":"part"}},{"Node":{"Verb":"get","Node":{"Node":"n","Partition":"part"}}},{"Service":{"Verb":"get","Node":"n","Service":{"ID":"s","Namespace":"team","Partition":"part"}}},{"Check":{"Verb":"get","Check":{"Node":"n","CheckID":"c","Namespace":"team","Partition":"part"}}}]"#
    );
}

#[tokio::test]
async fn a_transaction_that_reads_may_say_who_answers_and_one_that_writes_may_not() {
    for (consistency, query) in [
        (Consistency::Default, ""),
        (Consistency::Stale, "?stale"),
        (Consistency::Consistent, "?consistent"),
        (Consistency::Leader, "?leader"),
        (
            Consistency::MaxStale(Duration::from_secs(5)),
            "?max_stale=5000ms",
        ),
    ] {
        let canned = Canned::good(NOTHING);
        let txn = canned.client().txn().kv(KvOp::get("a"));
        let _ = txn.consistency(consistency).await.unwrap();
        assert_eq!(canned.asked(), format!("PUT /v1/txn{query}"));
    }
    let said = refused(|txn| txn.kv(KvOp::get("a")).kv(KvOp::delete("a")).stale()).await;
    assert!(said.contains("transaction that writes"), "{said}");
    let said = refused(|txn| txn.node(NodeOp::delete("a")).consistent()).await;
    assert!(said.contains("transaction that writes"), "{said}");
    // The default says nothing.
    let body = sent(|txn| txn.kv(KvOp::delete("a")).consistency(Consistency::Default));
    assert_eq!(body.await, r#"[{"KV":{"Verb":"delete","Key":"a"}}]"#);
}

#[tokio::test]
async fn options_of_the_call_are_the_calls() {
    let canned = Canned::good(NOTHING);
    let txn = canned.client().txn().datacenter("dc2");
    let _ = txn.kv(KvOp::get("a")).await.unwrap();
    assert_eq!(canned.asked(), "PUT /v1/txn?dc=dc2");
    assert_eq!(canned.request().extensions().get(), Some(&Lane::Call));

    let canned = Canned::good(NOTHING);
    let txn = canned.client().txn().kv(KvOp::get("a")).beat();
    let _ = txn.token("t".parse().unwrap()).await.unwrap();
    assert_eq!(canned.request().extensions().get(), Some(&Lane::Beat));
    assert_eq!(canned.request().headers()["x-consul-token"], "t");
}

#[tokio::test]
async fn what_no_consul_can_take_is_refused_before_it_is_sent() {
    let full =
        |txn: Txn, count| (0..count).fold(txn, |txn, at| txn.kv(KvOp::delete(format!("k/{at}"))));
    assert!(refused(|txn| txn).await.contains("without operations"));
    let said = refused(|txn| full(txn, 129)).await;
    assert!(
        said.contains("129") && said.contains("at most 128"),
        "{said}"
    );
    sent(|txn| full(txn, 128)).await;

    let said = refused(|txn| txn.kv(KvOp::set("a", vec![0; 512 * 1024 + 1]))).await;
    assert!(said.contains("at most 524288"), "{said}");
    // In base64 it has a third more.
    let said = refused(|txn| txn.kv(KvOp::set("a", vec![0; 400_000]))).await;
    assert!(
        said.contains("533380 bytes") && said.contains("at most 524288"),
        "{said}"
    );
    sent(|txn| txn.kv(KvOp::set("a", vec![0; 393_000]))).await;

    let said = refused(|txn| txn.kv(KvOp::get("a")).kv(KvOp::set("", ""))).await;
    assert!(said.contains("operation 1: key"), "{said}");
    for op in [
        KvOp::get("/a"),
        KvOp::lock("a//b", &session(), ""),
        KvOp::get_tree(""),
        KvOp::get_tree("/"),
        KvOp::delete_tree("a//"),
        KvOp::get("a").flags(1),
        KvOp::delete("a").flags(0),
    ] {
        refused(|txn| txn.kv(op)).await;
    }
    for op in [
        NodeOp::get(""),
        NodeOp::set(NewNode::new("n", "")),
        NodeOp::cas(NewNode::new("", "a").meta("a", "b"), 1),
    ] {
        refused(|txn| txn.node(op)).await;
    }
    for op in [
        ServiceOp::get("", "s"),
        ServiceOp::get("n", ""),
        ServiceOp::set("n", NewService::new("")),
        ServiceOp::delete("n", "", "s"),
    ] {
        refused(|txn| txn.service(op)).await;
    }
    for op in [
        CheckOp::get("n", ""),
        CheckOp::set("", NewCheck::new("c", "", Status::Passing)),
        CheckOp::set("n", NewCheck::new("c", "", Status::Unknown)),
    ] {
        refused(|txn| txn.check(op)).await;
    }
}
