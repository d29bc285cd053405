use super::Canned;
use crate::ErrorKind;
use crate::ident::SessionId;

#[tokio::test]
async fn each_call_has_its_request() {
    macro_rules! asks {
        ($answer:literal, $call:expr, $asked:literal) => {
            let canned = Canned::good($answer);
            let call: fn(crate::api::kv::Kv) -> _ = $call;
            call(canned.client().kv()).await.unwrap();
            assert_eq!(canned.asked(), $asked);
        };
    }
    asks!(
        "[]",
        |kv| kv.get("a b?c#d%e/ü+&"),
        "GET /v1/kv/a%20b%3Fc%23d%25e/%C3%BC%2B%26"
    );
    asks!("x", |kv| kv.raw("a"), "GET /v1/kv/a?raw");
    asks!("[]", |kv| kv.list("app/"), "GET /v1/kv/app/?recurse");
    asks!("[]", |kv| kv.list(""), "GET /v1/kv/?recurse");
    asks!(
        "[]",
        |kv| kv.keys("app/").separator("/"),
        "GET /v1/kv/app/?keys&separator=%2F"
    );
    asks!("true", |kv| kv.put("a", "v"), "PUT /v1/kv/a");
    asks!(
        "true",
        |kv| kv.put("a", "v").cas(0).flags(7),
        "PUT /v1/kv/a?cas=0&flags=7"
    );
    asks!("true", |kv| kv.delete("a"), "DELETE /v1/kv/a");
    asks!("true", |kv| kv.delete("a").cas(9), "DELETE /v1/kv/a?cas=9");
    asks!(
        "true",
        |kv| kv.delete_tree("app/"),
        "DELETE /v1/kv/app/?recurse"
    );
}

#[tokio::test]
async fn a_lock_is_taken_and_given_up_with_a_value() {
    let session = SessionId::new("6571927e-2b4d-005e-9025-0e4dab74127d").unwrap();
    let canned = Canned::good("true");
    let kv = canned.client().kv();
    assert!(kv.acquire("a b", &session, "me").flags(7).await.unwrap());
    assert_eq!(
        canned.asked(),
        "PUT /v1/kv/a%20b?acquire=6571927e-2b4d-005e-9025-0e4dab74127d&flags=7"
    );
    assert_eq!(*canned.request().body(), "me");

    let canned = Canned::good("false");
    let kv = canned.client().kv();
    assert!(!kv.release("a", &session, "left").flags(8).await.unwrap());
    assert_eq!(
        canned.asked(),
        "PUT /v1/kv/a?release=6571927e-2b4d-005e-9025-0e4dab74127d&flags=8"
    );
    assert_eq!(*canned.request().body(), "left");

    let canned = Canned::good("true");
    let kv = canned.client().kv();
    let too_large = vec![0; 512 * 1024 + 1];
    for write in [
        kv.acquire("", &session, "").await,
        kv.release("/a", &session, "").await,
        kv.acquire("a", &session, too_large.clone()).await,
        kv.release("a", &session, too_large).await,
    ] {
        assert_eq!(write.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert!(canned.was_not_asked());
}

#[tokio::test]
async fn an_acquire_with_a_session_that_is_gone_tells_it() {
    let session = SessionId::new("nope").unwrap();
    for text in [
        r#"invalid session "00000000-0000-0000-0000-000000000000""#,
        "failed session lookup: index error: UUID must be 36 characters",
    ] {
        let canned = Canned::new(500, &[], text);
        let acquire = canned.client().kv().acquire("a", &session, "");
        let err = acquire.await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownSession, "{text}");
        assert!(err.is_unknown_session() && !err.is_transient());
    }
}

#[tokio::test]
async fn a_value_is_sent_as_it_is() {
    let canned = Canned::good("true");
    let value = vec![0, 255, b'\n'];
    let written = canned.client().kv().put("a", value.clone()).await.unwrap();
    assert!(written);
    assert_eq!(*canned.request().body(), value);
    assert_eq!(
        canned.request().headers()["content-type"],
        "application/octet-stream"
    );
}

#[tokio::test]
async fn a_pair_has_all_fields_and_unknown_ones_do_no_harm() {
    let canned = Canned::good(
        r#"[{"LockIndex":1,"Key":"a/b","Flags":18446744073709551615,"Value":"AP8K","Session":"s-1",
            "CreateIndex":2,"ModifyIndex":3,"Partition":"p","New":[1]}]"#,
    );
    let pair = canned.client().kv().get("a/b").await.unwrap();
    assert_eq!(pair.meta().index(), Some(7));
    let pair = pair.into_value().unwrap();
    assert_eq!(*pair.key(), "a/b");
    assert_eq!(pair.value(), [0, 255, b'\n']);
    assert_eq!(pair.value_str(), None);
    assert_eq!(pair.flags(), u64::MAX);
    assert_eq!(pair.session().unwrap(), &"s-1");
    assert_eq!(
        (pair.lock_index(), pair.create_index(), pair.modify_index()),
        (1, 2, 3)
    );
}

#[tokio::test]
async fn an_empty_value_is_null_on_the_wire() {
    let canned = Canned::good(r#"[{"Key":"a","Value":null,"Flags":0}]"#);
    let pair = canned.client().kv().get("a").await.unwrap().into_value();
    assert_eq!(pair.unwrap().value(), b"");
}

#[tokio::test]
async fn a_missing_key_has_an_index_and_a_foreign_404_is_an_error() {
    let missing = || Canned::new(404, &[("X-Consul-Index", "5")], "");
    let answer = missing().client().kv().get("a").await.unwrap();
    assert_eq!((answer.value(), answer.meta().index()), (&None, Some(5)));
    assert_eq!(*missing().client().kv().raw("a").await.unwrap(), None);
    assert!(missing().client().kv().list("a").await.unwrap().is_empty());
    assert!(missing().client().kv().keys("a").await.unwrap().is_empty());

    let canned = Canned::new(404, &[], "no such upstream");
    let err = canned.client().kv().get("a").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_consul_could_not_take_is_refused_before_it_is_sent() {
    for key in ["", "/a", "a//b", "a/../b", "a\0b"] {
        let canned = Canned::good("true");
        let kv = canned.client().kv();
        assert_eq!(kv.get(key).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(
            kv.put(key, "").await.unwrap_err().kind(),
            ErrorKind::Invalid
        );
        assert_eq!(kv.delete(key).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert!(canned.was_not_asked());
    }
    let canned = Canned::good("true");
    let kv = canned.client().kv();
    let err = kv.put("a", vec![0; 512 * 1024 + 1]).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(canned.was_not_asked());
    assert!(kv.put("a", vec![0; 512 * 1024]).await.unwrap());
}

#[tokio::test]
async fn whether_it_was_done_is_told_and_nothing_else_is_taken_for_it() {
    for (body, done) in [("true", true), ("false\n", false)] {
        let canned = Canned::good(body);
        assert_eq!(canned.client().kv().delete("a").await.unwrap(), done);
    }
    for body in ["", "null", "1", "\"true\""] {
        let canned = Canned::good(body);
        let err = canned.client().kv().put("a", "").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}");
    }
}

#[tokio::test]
async fn values_that_are_not_base64_are_decoding_errors() {
    for body in [
        r#"[{"Key":"a","Value":"%%"}]"#,
        r#"[{"Key":"a","Value":5}]"#,
    ] {
        let canned = Canned::good(body);
        let err = canned.client().kv().get("a").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode);
    }
}
