use std::time::Duration;

use super::Canned;
use crate::ErrorKind;
use crate::api::session::{Behavior, NewSession};
use crate::ident::SessionId;
use crate::transport::Lane;

const ID: &str = "6571927e-2b4d-005e-9025-0e4dab74127d";

fn id() -> SessionId {
    SessionId::new(ID).unwrap()
}

/// What is sent to make this session.
async fn sent(session: NewSession) -> String {
    let canned = Canned::good(format!(r#"{{"ID":"{ID}"}}"#));
    let made = canned.client().session().create(&session).await.unwrap();
    assert_eq!(made, ID);
    assert_eq!(canned.asked(), "PUT /v1/session/create");
    let request = canned.request();
    assert_eq!(request.headers()["content-type"], "application/json");
    String::from_utf8(request.body().to_vec()).unwrap()
}

#[tokio::test]
async fn a_session_is_sent_with_what_is_set_and_nothing_else() {
    assert_eq!(sent(NewSession::new()).await, "{}");
    let full = NewSession::new()
        .name("lead \"er")
        .node("n-1")
        .ttl(Duration::from_millis(10_500))
        .lock_delay(Duration::from_millis(1500))
        .behavior(Behavior::Delete)
        .node_checks(["serfHealth", "disk"])
        .service_checks(["service:web"]);
    assert_eq!(
        sent(full).await,
        r#"{"Name":"lead \"er","Node":"n-1","TTL":"10.5s","LockDelay":"1.5s","Behavior":"delete","NodeChecks":["serfHealth","disk"],"ServiceChecks":[{"ID":"service:web"}]}"#
    );
}

#[tokio::test]
async fn no_checks_are_an_empty_list_which_is_not_the_same_as_none() {
    let none = r#"{"NodeChecks":[]}"#;
    assert_eq!(sent(NewSession::new().no_checks()).await, none);
    let empty = NewSession::new().node_checks(Vec::<String>::new());
    assert_eq!(sent(empty).await, none);
    let emptied = NewSession::new().service_checks(["service:web"]);
    assert_eq!(sent(emptied.no_checks()).await, none);
}

#[tokio::test]
async fn the_bounds_of_a_session_are_sent() {
    let day = Duration::from_secs(24 * 60 * 60);
    let longest = NewSession::new().ttl(day);
    assert_eq!(sent(longest).await, r#"{"TTL":"24h0m0s"}"#);
    // A server may be told to take less than its default of 10 s.
    let short = NewSession::new().ttl(Duration::from_secs(1));
    assert_eq!(sent(short).await, r#"{"TTL":"1s"}"#);
    let none = NewSession::new().lock_delay(Duration::ZERO);
    assert_eq!(sent(none).await, r#"{"LockDelay":"0s"}"#);
    let minute = NewSession::new().lock_delay(Duration::from_secs(60));
    assert_eq!(sent(minute).await, r#"{"LockDelay":"1m0s"}"#);
    let release = NewSession::new().behavior(Behavior::Release);
    assert_eq!(sent(release).await, r#"{"Behavior":"release"}"#);
}

#[tokio::test]
async fn a_session_that_no_consul_can_take_is_refused_before_it_is_sent() {
    let new = NewSession::new;
    let day = Duration::from_secs(24 * 60 * 60);
    for (session, why) in [
        (new().ttl(Duration::ZERO), "above zero"),
        (new().ttl(day + Duration::from_nanos(1)), "at most 24 h"),
        (
            new().lock_delay(Duration::from_millis(60_001)),
            "at most 60 s",
        ),
        (new().behavior(Behavior::Unknown), "to release or to delete"),
        (new().node(""), "node name"),
        (new().node_checks([""]), "check ID"),
        (new().service_checks(["a//b"]), "check ID"),
        // The first thing that was wrong stays.
        (new().node("").ttl(Duration::ZERO), "node name"),
    ] {
        let canned = Canned::good("{}");
        let create = canned.client().session().create(&session);
        let err = create.await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid);
        assert!(err.to_string().contains(why), "{err}");
        assert!(canned.was_not_asked());
    }
}

#[tokio::test]
async fn renewals_and_destructions_go_out_beside_all_other_calls() {
    let canned = Canned::good(r#"[{"ID":"x","Node":"n"}]"#);
    canned.client().session().renew(&id()).await.unwrap();
    assert_eq!(canned.asked(), format!("PUT /v1/session/renew/{ID}"));
    assert_eq!(canned.request().extensions().get(), Some(&Lane::Beat));

    let canned = Canned::good("true");
    canned.client().session().destroy(&id()).await.unwrap();
    assert_eq!(canned.asked(), format!("PUT /v1/session/destroy/{ID}"));
    assert_eq!(canned.request().extensions().get(), Some(&Lane::Beat));
    assert!(canned.request().body().is_empty());
}

#[tokio::test]
async fn reads_take_all_options_of_reads() {
    let canned = Canned::good("[]");
    let info = canned.client().session().info(&id());
    let info = info.stale().wait_for_change(3, Duration::from_secs(1));
    assert_eq!(*info.await.unwrap(), None);
    assert_eq!(
        canned.asked(),
        format!("GET /v1/session/info/{ID}?stale&index=3&wait=1000ms")
    );
    let canned = Canned::good("[]");
    let list = canned.client().session().list().consistent();
    assert!(list.datacenter("dc2").await.unwrap().is_empty());
    assert_eq!(canned.asked(), "GET /v1/session/list?consistent&dc=dc2");
    let canned = Canned::good("null");
    assert!(
        canned
            .client()
            .session()
            .node("a b")
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(canned.asked(), "GET /v1/session/node/a%20b");
}

#[tokio::test]
async fn a_session_has_all_fields_of_old_and_new_consul() {
    let canned = Canned::good(
        r#"[{"ID":"6571927e","Name":"n","Node":"node-1","LockDelay":1500000000,"Behavior":"delete",
            "TTL":"1m30s","NodeChecks":["serfHealth"],"ServiceChecks":[{"ID":"service:web","Namespace":"ns"}],
            "Checks":["old"],"Namespace":"team","Partition":"part","CreateIndex":3,"ModifyIndex":4,"New":[1]},
           {"ID":"b","Name":"","Node":"n","LockDelay":-5,"Behavior":"","TTL":"","NodeChecks":[],
            "ServiceChecks":null,"CreateIndex":5,"ModifyIndex":5},
           {"ID":"c","Node":"n","LockDelay":0,"Behavior":"keep","TTL":"0s","NodeChecks":null}]"#,
    );
    let sessions = canned.client().session().list().await.unwrap();
    assert_eq!(sessions.meta().index(), Some(7));
    let [full, plain, bare] = sessions.value().as_slice() else {
        panic!("{sessions:?}");
    };
    assert_eq!((&**full.id(), full.name()), ("6571927e", "n"));
    assert_eq!(*full.node(), "node-1");
    assert_eq!(full.lock_delay(), Duration::from_millis(1500));
    assert_eq!(full.behavior(), Behavior::Delete);
    assert_eq!(full.ttl(), Some(Duration::from_secs(90)));
    assert_eq!(full.node_checks(), ["serfHealth"]);
    assert_eq!(*full.service_checks()[0].id(), "service:web");
    assert_eq!(full.service_checks()[0].namespace(), "ns");
    assert_eq!(full.checks(), ["old"]);
    assert_eq!((full.namespace(), full.partition()), ("team", "part"));
    assert_eq!((full.create_index(), full.modify_index()), (3, 4));

    assert_eq!((plain.ttl(), plain.lock_delay()), (None, Duration::ZERO));
    assert_eq!(plain.behavior(), Behavior::Release);
    assert!(plain.node_checks().is_empty() && plain.service_checks().is_empty());
    assert!(plain.checks().is_empty());
    assert_eq!((bare.ttl(), bare.name()), (None, ""));
    assert_eq!(bare.behavior(), Behavior::Unknown);
}

#[tokio::test]
async fn a_renewal_of_what_is_gone_is_none_and_a_foreign_404_is_an_error() {
    let gone = format!("Session id '{ID}' not found");
    let canned = Canned::new(404, &[], gone);
    assert_eq!(canned.client().session().renew(&id()).await.unwrap(), None);

    let canned = Canned::new(404, &[], "no such upstream");
    let err = canned.client().session().renew(&id()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);

    let text = "failed session lookup: index error: UUID must be 36 characters";
    let canned = Canned::new(500, &[], text);
    let err = canned.client().session().renew(&id()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownSession);
}

#[tokio::test]
async fn what_is_no_answer_of_the_endpoint_is_a_decoding_error() {
    for body in ["", "{}", "null", "[]", "true"] {
        let canned = Canned::good(body);
        let err = canned.client().session().renew(&id()).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}");
        let canned = Canned::good(body);
        let create = canned.client().session().create(&NewSession::new());
        assert_eq!(
            create.await.unwrap_err().kind(),
            ErrorKind::Decode,
            "{body}"
        );
    }
    for body in ["", "false", "null", "1"] {
        let canned = Canned::good(body);
        let err = canned.client().session().destroy(&id()).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}");
    }
}

#[tokio::test]
async fn what_consul_refuses_of_a_session_is_told() {
    for text in [
        "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]",
        "Missing check 'nope' registration",
        "Missing node registration",
        "Check 'service:web' is in critical state",
    ] {
        let canned = Canned::new(500, &[], text);
        let create = canned.client().session().create(&NewSession::new());
        assert_eq!(
            create.await.unwrap_err().kind(),
            ErrorKind::Refused,
            "{text}"
        );
    }
}
