//! What is made of the answers to transactions.

use std::time::Duration;

use super::{NOTHING, refused, session};
use crate::ErrorKind;
use crate::api::health::Status;
use crate::api::tests::Canned;
use crate::api::txn::{
    CheckOp, FailureReason, KvOp, NodeOp, OpResult, Outcome, Results, ServiceOp, Txn,
};

/// The results of a transaction that is answered with these.
async fn results(answer: impl AsRef<str>, fill: impl FnOnce(Txn) -> Txn) -> Results {
    let answer = answer.as_ref();
    let canned = Canned::good(format!(r#"{{"Results":{answer},"Errors":null}}"#));
    let outcome = fill(canned.client().txn()).await.unwrap();
    outcome.committed().unwrap()
}

#[tokio::test]
async fn an_entry_tells_all_of_a_key_and_its_value_only_where_it_was_read() {
    let pair = r#"{"KV":{"LockIndex":2,"Key":"a","Flags":7,"Value":"djE=","Session":"s-1","CreateIndex":3,"ModifyIndex":9,"New":1}}"#;
    let read = results(format!("[{pair}]"), |txn| txn.kv(KvOp::get("a"))).await;
    let entry = read.kv(0).unwrap();
    assert_eq!(*entry.key(), "a");
    assert_eq!(entry.value(), Some(&b"v1"[..]));
    assert_eq!(entry.value_bytes().unwrap(), "v1");
    assert_eq!(entry.value_str(), Some("v1"));
    assert_eq!((entry.flags(), entry.lock_index()), (7, 2));
    assert_eq!(*entry.session().unwrap(), "s-1");
    assert_eq!((entry.create_index(), entry.modify_index()), (3, 9));
    assert!(entry.exists());

    let pair = pair.replace(r#""djE=""#, "null");
    let answer = format!("[{pair}]");
    let empty = results(&answer, |txn| txn.kv(KvOp::get("a"))).await;
    assert_eq!(empty.kv(0).unwrap().value(), Some(&b""[..]));
    let written = results(&answer, |txn| txn.kv(KvOp::lock("a", &session(), "v"))).await;
    let entry = written.kv(0).unwrap();
    assert_eq!((entry.value(), entry.value_bytes()), (None, None));
    assert_eq!((entry.value_str(), entry.modify_index()), (None, 9));
}

#[tokio::test]
async fn a_key_that_was_looked_for_in_vain_does_not_exist() {
    let answer = r#"[{"KV":{"Key":"a","Value":null,"Flags":0,"CreateIndex":0,"ModifyIndex":0}}]"#;
    let read = results(answer, |txn| txn.kv(KvOp::get_or_empty("a"))).await;
    let entry = read.kv(0).unwrap();
    assert!(!entry.exists());
    assert_eq!(entry.value(), None);
}

#[tokio::test]
async fn things_of_the_catalog_come_back_as_what_they_are() {
    let answer = r#"[
        {"Node":{"ID":"","Node":"n3","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":null,"Meta":null,"CreateIndex":168,"ModifyIndex":169}},
        {"Service":{"ID":"web1","Service":"web","Tags":null,"Address":"","Meta":null,"Port":80,"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"MeshGateway":{},"Expose":{}},"Connect":{},"CreateIndex":168,"ModifyIndex":170}},
        {"Check":{"Node":"n3","CheckID":"c1","Name":"","Status":"warning","Notes":"","Output":"","ServiceID":"","ServiceName":"","ServiceTags":null,"Type":"","Definition":{},"CreateIndex":168,"ModifyIndex":171}}]"#;
    let read = results(answer, |txn| {
        txn.node(NodeOp::get("N3"))
            .service(ServiceOp::get("n3", "web1"))
            .check(CheckOp::get("n3", "C1"))
    })
    .await;
    let node = read.node(0).unwrap();
    assert_eq!((node.address(), node.modify_index()), ("10.0.0.1", 169));
    let service = read.service(1).unwrap();
    assert_eq!((service.port(), service.modify_index()), (80, 170));
    let check = read.check(2).unwrap();
    assert_eq!(check.status(), Status::Warning);
    // Asked for something else, they are not there.
    assert!(read.kv(0).is_none() && read.tree(0).is_empty());
    assert!(read.node(1).is_none() && read.service(2).is_none());
    assert!(read.check(0).is_none() && read.get(3).is_none());
}

/// Keys in brief: `k` for one, in the form of a list of results.
fn keys(keys: &[&str]) -> String {
    let results: Vec<String> = keys
        .iter()
        .map(|key| match key.strip_suffix('?') {
            Some(key) => format!(r#"{{"KV":{{"Key":"{key}"}}}}"#),
            None => format!(r#"{{"KV":{{"Key":"{key}","ModifyIndex":5}}}}"#),
        })
        .collect();
    format!("[{}]", results.join(","))
}

/// The results in the same brevity.
fn told(results: &Results) -> Vec<String> {
    let brief = |result: &OpResult| match result {
        OpResult::Nothing => "-".to_owned(),
        OpResult::Kv(entry) => entry.key().to_string(),
        OpResult::Tree(pairs) => {
            let keys: Vec<&str> = pairs.iter().map(|pair| pair.key().as_str()).collect();
            format!("[{}]", keys.join(" "))
        }
        _ => "?".to_owned(),
    };
    results.iter().map(brief).collect()
}

#[tokio::test]
async fn results_find_their_operations_past_those_that_have_none() {
    let read = results(keys(&["a", "b", "c"]), |txn| {
        txn.kv(KvOp::delete("x"))
            .kv(KvOp::set("a", ""))
            .kv(KvOp::check_not_exists("y"))
            .kv(KvOp::check_index("b", 1))
            .kv(KvOp::delete_tree("z"))
            .kv(KvOp::check_session("c", &session()))
            .kv(KvOp::delete_cas("c", 5))
    });
    let read = read.await;
    assert_eq!(told(&read), ["-", "a", "-", "b", "-", "c", "-"]);
    assert_eq!(told(&read).len(), read.into_iter().count());
}

#[tokio::test]
async fn what_the_token_may_not_see_leaves_its_place_empty() {
    let read = results(keys(&["b", "d/1", "f"]), |txn| {
        txn.kv(KvOp::get("a"))
            .kv(KvOp::set("b", ""))
            .kv(KvOp::get("c"))
            .kv(KvOp::get_tree("d/"))
            .kv(KvOp::get("e"))
            .kv(KvOp::set("f", ""))
            .kv(KvOp::get("g"))
    });
    assert_eq!(told(&read.await), ["-", "b", "-", "[d/1]", "-", "f", "-"]);
    let read = results("[]", |txn| txn.kv(KvOp::get_tree("d/")).kv(KvOp::get("e")));
    assert_eq!(told(&read.await), ["[]", "-"]);
}

#[tokio::test]
async fn prefixes_are_told_apart_however_they_overlap() {
    let trees = |answer: &[&str], prefixes: &[&str]| {
        let (answer, prefixes) = (keys(answer), prefixes.join(" "));
        async move {
            let read = results(&answer, |txn| {
                let ops = prefixes.split(' ').map(|op| match op.strip_prefix('=') {
                    Some(key) => KvOp::get_or_empty(key),
                    None => KvOp::get_tree(op),
                });
                ops.fold(txn, Txn::kv)
            });
            told(&read.await).join(" ")
        }
    };
    for (answer, ops, want) in [
        (
            &["a/1", "a/2", "b/1"][..],
            &["a/", "b/"][..],
            "[a/1 a/2] [b/1]",
        ),
        (&["b/1", "a/1"], &["b/", "a/"], "[b/1] [a/1]"),
        (
            &["a/1", "a/b/1", "a/b/1"],
            &["a/", "a/b/"],
            "[a/1 a/b/1] [a/b/1]",
        ),
        (
            &["a/b/1", "a/1", "a/b/1"],
            &["a/b/", "a/"],
            "[a/b/1] [a/1 a/b/1]",
        ),
        (&["a/1", "a/1"], &["a/", "a/"], "[a/1] [a/1]"),
        (&["a/1", "a/2", "a/2"], &["a/", "=a/2"], "[a/1 a/2] a/2"),
        (
            &["a/1", "a/2", "a/1", "a/1"],
            &["a/", "=a/1", "=a/1"],
            "[a/1 a/2] a/1 a/1",
        ),
        (
            &["a/1", "a/2?", "a/1"],
            &["a/", "=a/2", "a/"],
            "[a/1] a/2 [a/1]",
        ),
        (
            &["a/2?", "a/3?"],
            &["a/", "=a/2", "a/", "=a/3"],
            "[] a/2 [] a/3",
        ),
        (&[], &["a/", "b/", "a/"], "[] [] []"),
    ] {
        assert_eq!(trees(answer, ops).await, want);
    }
}

#[tokio::test]
async fn a_key_that_is_written_behind_a_prefix_is_not_one_of_its_keys() {
    let read = results(keys(&["a/0", "a/1", "a/2", "a/3", "a/4"]), |txn| {
        txn.kv(KvOp::set("a/0", ""))
            .kv(KvOp::get_tree("a/"))
            .kv(KvOp::set("a/3", ""))
            .kv(KvOp::delete("a/1"))
            .kv(KvOp::set("a/4", ""))
    });
    assert_eq!(told(&read.await), ["a/0", "[a/1 a/2]", "a/3", "-", "a/4"]);

    for write in [
        KvOp::set("x", ""),
        KvOp::delete("x"),
        KvOp::lock("x", &session(), ""),
    ] {
        let said = refused(|txn| {
            txn.kv(KvOp::get_tree("a/"))
                .kv(write)
                .kv(KvOp::get_tree("b/"))
        });
        let said = said.await;
        assert!(said.contains("use two transactions"), "{said}");
    }
    // Writes before and behind them do no harm.
    let read = results(keys(&["a/1", "a/1", "a/1", "a/2"]), |txn| {
        txn.kv(KvOp::set("a/1", ""))
            .kv(KvOp::get_tree("a/"))
            .kv(KvOp::get_tree("a/1"))
            .kv(KvOp::set("a/2", ""))
    });
    assert_eq!(told(&read.await), ["a/1", "[a/1]", "[a/1]", "a/2"]);
}

#[tokio::test]
async fn a_result_of_no_operation_is_a_decoding_error() {
    for (answer, ops) in [
        (keys(&["b"]), vec![KvOp::get("a")]),
        (keys(&["a", "a"]), vec![KvOp::get("a")]),
        (keys(&["a"]), vec![KvOp::delete("a")]),
        (keys(&["b/1"]), vec![KvOp::get_tree("a/")]),
        (keys(&["a/2", "a/1"]), vec![KvOp::get_tree("a/")]),
        (
            r#"[{"Node":{"Node":"a"}}]"#.to_owned(),
            vec![KvOp::get("a")],
        ),
        (r#"[{"New":{}}]"#.to_owned(), vec![KvOp::get("a")]),
    ] {
        let canned = Canned::good(format!(r#"{{"Results":{answer}}}"#));
        let txn = ops.into_iter().fold(canned.client().txn(), Txn::kv);
        let err = txn.await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{answer}: {err}");
    }
    for body in [
        "",
        "[]",
        "null",
        r#"{"Results":5}"#,
        r#"{"Results":[null]}"#,
    ] {
        let canned = Canned::good(body);
        let err = canned.client().txn().kv(KvOp::get("a")).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}: {err}");
    }
}

#[tokio::test]
async fn a_rolled_back_transaction_tells_each_failure() {
    let canned = Canned::new(
        409,
        &[],
        r#"{"Results":null,"Errors":[
            {"OpIndex":1,"What":"failed to lock key \"a\", lock is already held"},
            {"OpIndex":3,"What":"failed session check for key \"b\", current session \"s-2\" != \"s-1\""}],
            "Index":0,"KnownLeader":true}"#,
    );
    let txn = canned.client().txn().kv(KvOp::get("a"));
    let Outcome::RolledBack(failures) = txn.await.unwrap() else {
        panic!("it is rolled back");
    };
    let [held, other] = failures.as_slice() else {
        panic!("{failures:?}");
    };
    assert_eq!(held.operation(), 1);
    assert_eq!(*held.reason(), FailureReason::LockHeld);
    assert_eq!(
        held.to_string(),
        r#"operation 1: failed to lock key "a", lock is already held"#
    );
    assert_eq!(other.operation(), 3);
    let FailureReason::OtherSession { current, expected } = other.reason() else {
        panic!("{other:?}");
    };
    assert_eq!(*current.as_ref().unwrap(), "s-2");
    assert_eq!(*expected.as_ref().unwrap(), "s-1");
    assert!(other.text().starts_with("failed session check"));
}

#[tokio::test]
async fn a_rollback_can_be_taken_for_an_error() {
    for (what, kind) in [
        ("Permission denied", ErrorKind::PermissionDenied),
        (r#"invalid session \"s\""#, ErrorKind::UnknownSession),
        (r#"unknown KV verb \"x\""#, ErrorKind::Unsupported),
        (r#"key \"a\" exists"#, ErrorKind::Conflict),
    ] {
        let body = format!(r#"{{"Errors":[{{"OpIndex":0,"What":"{what}"}}]}}"#);
        let canned = Canned::new(409, &[], body);
        let outcome = canned.client().txn().kv(KvOp::get("a")).await.unwrap();
        let err = outcome.clone().into_result().unwrap_err();
        assert_eq!(err.kind(), kind);
        assert!(
            err.to_string().contains("rolled back: operation 0: "),
            "{err}"
        );
        assert!(outcome.committed().is_none());
    }
    let canned = Canned::good(NOTHING);
    let outcome = canned.client().txn().kv(KvOp::delete("a")).await.unwrap();
    assert!(outcome.into_result().is_ok());
}

#[tokio::test]
async fn a_409_that_is_not_consuls_is_an_error() {
    for body in [
        "",
        "conflict",
        "{}",
        r#"{"Errors":null}"#,
        r#"{"Errors":[]}"#,
    ] {
        let canned = Canned::new(409, &[], body);
        let err = canned.client().txn().kv(KvOp::get("a")).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Conflict, "{body}");
    }
    let canned = Canned::new(
        413,
        &[],
        "Transaction contains too many operations (65 > 64)",
    );
    let err = canned.client().txn().kv(KvOp::get("a")).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::RequestTooLarge);
    let canned = Canned::new(403, &[], "ACL not found");
    let err = canned.client().txn().kv(KvOp::get("a")).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownToken);
}

#[tokio::test]
async fn a_token_that_a_failure_repeats_is_not_told() {
    let body = r#"{"Errors":[{"OpIndex":0,"What":"token s3cr3t lacks it"}]}"#;
    let canned = Canned::new(409, &[], body);
    let txn = canned.client().txn().kv(KvOp::get("a"));
    let outcome = txn.token("s3cr3t".parse().unwrap()).await.unwrap();
    let told = format!("{outcome:?} {:?}", outcome.clone().into_result());
    assert!(
        told.contains("lacks it") && !told.contains("s3cr3t"),
        "{told}"
    );
}

#[tokio::test]
async fn what_consul_says_about_a_read_is_handed_on() {
    let headers = [
        ("X-Consul-KnownLeader", "true"),
        ("X-Consul-LastContact", "15"),
    ];
    let canned = Canned::new(200, &headers, NOTHING);
    let outcome = canned.client().txn().kv(KvOp::get("a")).stale().await;
    let results = outcome.unwrap().committed().unwrap();
    assert_eq!(results.meta().known_leader(), Some(true));
    let contact = results.meta().last_contact();
    assert_eq!(contact, Some(Duration::from_millis(15)));
    assert_eq!(results.meta().index(), None);
}
