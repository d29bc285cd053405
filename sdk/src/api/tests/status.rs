use super::Canned;
use crate::ErrorKind;

#[tokio::test]
async fn the_leader_is_a_text_and_nobody_while_there_is_none() {
    let canned = Canned::good(r#""10.0.0.1:8300""#);
    let leader = canned.client().status().leader().await.unwrap();
    assert_eq!(leader.as_deref(), Some("10.0.0.1:8300"));
    assert_eq!(canned.asked(), "GET /v1/status/leader");

    let canned = Canned::good(r#""""#);
    assert_eq!(*canned.client().status().leader().await.unwrap(), None);
}

#[tokio::test]
async fn peers_are_a_list_and_null_is_the_empty_one() {
    let canned = Canned::good(r#"["10.0.0.1:8300","10.0.0.2:8300"]"#);
    let peers = canned.client().status().peers().await.unwrap();
    assert_eq!(*peers, ["10.0.0.1:8300", "10.0.0.2:8300"]);
    assert_eq!(canned.asked(), "GET /v1/status/peers");

    let canned = Canned::good("null");
    assert!(canned.client().status().peers().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_an_address_is_a_decoding_error() {
    for body in ["", "{", "{}", "7", "[1]"] {
        let canned = Canned::good(body);
        let err = canned.client().status().leader().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}");
    }
}
