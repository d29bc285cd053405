//! Bad input: a server that lies, stalls or floods, and an agent that is not there or not well.
//! Each gets an error of its own kind, in bounded time and memory, and no secret is told.

use std::error::Error as _;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use lictor::{Client, Error, ErrorKind};
use support::hostile::{Hostile, Reply};
use tokio::time::Instant;

/// Nobody has to wait longer than a client's deadline, and this for a slow machine.
const SLACK: Duration = Duration::from_secs(10);

const DEADLINE: Duration = Duration::from_millis(500);

const LIMIT: usize = 1 << 20;

async fn server(reply: Reply) -> Hostile {
    Hostile::start(reply).await.unwrap()
}

fn client(address: impl Into<String>) -> Client {
    let client = Client::builder().address(address).response_limit(LIMIT);
    client.timeout(SLACK).build().unwrap()
}

/// The error of one read, which must come in time.
async fn error(client: &Client) -> Error {
    let began = Instant::now();
    let err = client.health().service("web").await.unwrap_err();
    assert!(began.elapsed() < SLACK + SLACK, "{:?}", began.elapsed());
    err
}

/// The error of one read of a server that answers like this.
async fn told(reply: Reply) -> Error {
    error(&client(server(reply).await.url())).await
}

/// Everything an error says to people: itself, its debug form, and its causes.
fn whole(err: &Error) -> String {
    let mut text = format!("{err}\n{err:?}");
    let mut cause = err.source();
    while let Some(err) = cause {
        text += &format!("\n{err}\n{err:?}");
        cause = err.source();
    }
    text
}

#[tokio::test]
async fn what_is_not_http_is_a_broken_connection() {
    for reply in [
        Reply::garbage(),
        Reply::truncated("[]"),
        Reply::broken_chunk(),
        Reply::Raw(Bytes::new()),
        Reply::Raw(Bytes::from_static(b"HTTP/1.1 200 OK")),
        Reply::Raw(Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n[]",
        )),
        Reply::Raw(Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n[]",
        )),
        Reply::Raw(Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n[]",
        )),
        Reply::Raw(Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n[]",
        )),
        Reply::Reset,
    ] {
        let err = told(reply.clone()).await;
        assert_eq!(err.kind(), ErrorKind::Transport, "{reply:?}: {err}");
        assert!(err.is_transient() && !err.is_connect());
        assert!(
            err.to_string().contains("GET /v1/health/service/web"),
            "{err}"
        );
    }
}

#[tokio::test]
async fn bytes_behind_an_answer_are_not_taken_for_the_next_one() {
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]HTTP/1.1 200 OK\r\n\
                    content-length: 6\r\n\r\n[\"no\"]";
    let server = server(Reply::ThenSilence(Bytes::from_static(smuggled.as_bytes()))).await;
    let client = client(server.url());
    for _ in 0..3 {
        assert!(client.status().peers().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_answer_that_never_ends_is_given_up_at_the_limit() {
    // Elements that are decoded as they come, and one that never ends.
    let node = r#""Node":{"Node":"n","Address":"192.0.2.1"}"#;
    let instance = format!("{{{node},\"Service\":{{\"ID\":\"w\",\"Service\":\"w\"}}}}");
    let first = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\n[{\"x\":\"\r\n";
    let more = Bytes::from(format!("4000\r\n{}\r\n", "x".repeat(0x4000)));
    for reply in [
        Reply::endless(&instance),
        Reply::Endless(Bytes::from_static(first), more),
    ] {
        let server = server(reply).await;
        let err = error(&client(server.url())).await;
        given_up_at_the_limit(&server, &err).await;
    }
    // A list that is read as a whole.
    let server = server(Reply::endless("\"192.0.2.1:8300\"")).await;
    let err = client(server.url()).status().peers().await.unwrap_err();
    given_up_at_the_limit(&server, &err).await;
}

async fn given_up_at_the_limit(server: &Hostile, err: &Error) {
    assert_eq!(err.kind(), ErrorKind::AnswerTooLarge, "{err}");
    assert!(!err.is_transient());
    assert!(err.to_string().contains("response_limit"), "{err}");
    // Buffers of the system on both sides take some more, but it does not go on.
    assert!(server.sent() < LIMIT + (32 << 20), "{}", server.sent());
    support::eventually(SLACK, async || server.open() == 0).await;
}

#[tokio::test]
async fn an_answer_that_never_ends_is_given_up_where_it_is_wrong() {
    let server = server(Reply::endless("\"not an instance\"")).await;
    let err = error(&client(server.url())).await;
    assert_eq!(err.kind(), ErrorKind::Decode, "{err}");
    assert!(!err.is_transient());
    assert!(
        err.to_string().contains("GET /v1/health/service/web"),
        "{err}"
    );
    support::eventually(SLACK, async || server.open() == 0).await;
}

#[tokio::test]
async fn an_answer_that_says_it_is_too_large_is_not_read() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551614\r\n\r\n[";
    let err = told(Reply::ThenSilence(Bytes::from_static(head.as_bytes()))).await;
    assert!(
        matches!(err.kind(), ErrorKind::AnswerTooLarge | ErrorKind::Transport),
        "{err}"
    );
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n[", LIMIT + 1);
    let err = told(Reply::ThenSilence(Bytes::from(head))).await;
    assert_eq!(err.kind(), ErrorKind::AnswerTooLarge, "{err}");
}

#[tokio::test]
async fn an_answer_of_exactly_the_limit_is_taken() {
    let body = |size: usize| format!("[\"{}\"]", "x".repeat(size - 4));
    let server = server(Reply::status(200, &body(LIMIT))).await;
    let client = client(server.url());
    assert_eq!(client.status().peers().await.unwrap().len(), 1);
    server.reply(Reply::status(200, &body(LIMIT + 1)));
    let err = client.status().peers().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::AnswerTooLarge);
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let server = server(Reply::endless_head()).await;
    let err = error(&client(server.url())).await;
    assert_eq!(err.kind(), ErrorKind::Transport, "{err}");
    assert!(server.sent() < 32 << 20, "{}", server.sent());

    let forever = "HTTP/1.1 100 Continue\r\n\r\n".repeat(100);
    server.reply(Reply::Endless(Bytes::new(), Bytes::from(forever)));
    let impatient = client(server.url()).with_timeout(DEADLINE);
    let err = error(&impatient).await;
    assert!(
        matches!(err.kind(), ErrorKind::Timeout | ErrorKind::Transport),
        "{err}"
    );
    support::eventually(SLACK, async || server.open() == 0).await;
}

#[tokio::test]
async fn a_server_that_stalls_is_given_up_at_the_deadline() {
    let head = Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[");
    for reply in [
        Reply::Hang,
        Reply::ThenSilence(Bytes::from_static(b"HTTP/1.1 200 O")),
        Reply::ThenSilence(head.clone()),
        Reply::Drip(head, Duration::from_millis(100)),
    ] {
        let server = server(reply.clone()).await;
        let client = client(server.url()).with_timeout(DEADLINE);
        let began = Instant::now();
        let err = error(&client).await;
        assert_eq!(err.kind(), ErrorKind::Timeout, "{reply:?}: {err}");
        assert!(err.is_timeout() && err.is_transient());
        assert!(err.to_string().contains("500ms"), "{err}");
        assert!(began.elapsed() >= DEADLINE);
        // The connection goes with the call.
        support::eventually(SLACK, async || server.open() == 0).await;
    }
}

#[tokio::test]
async fn a_call_may_have_a_deadline_of_its_own() {
    let server = server(Reply::Hang).await;
    let client = client(server.url());
    let err = client.kv().get("a").timeout(DEADLINE).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout);
    let err = client
        .kv()
        .put("a", "")
        .timeout(DEADLINE)
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout);
    let request = client.raw(Method::GET, "/v1/x").timeout(DEADLINE);
    assert_eq!(request.await.unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn a_redirect_is_told_and_never_followed() {
    let elsewhere = server(Reply::status(200, "true")).await;
    for code in [301, 302, 303, 307, 308] {
        let server = server(Reply::redirect(code, &elsewhere.url())).await;
        let client = client(server.url());
        let err = client.kv().put("a", "v").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Redirect, "{code}: {err}");
        assert_eq!(err.status().unwrap().as_u16(), code);
        assert_eq!(error(&client).await.kind(), ErrorKind::Redirect);
        assert_eq!(server.requests().len(), 2);
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn every_status_has_its_kind() {
    for (status, body, kind, transient) in [
        (400, "Invalid index", ErrorKind::Refused, false),
        (401, "", ErrorKind::PermissionDenied, false),
        (403, "Permission denied", ErrorKind::PermissionDenied, false),
        (403, "ACL not found", ErrorKind::UnknownToken, false),
        (404, "<html>not here</html>", ErrorKind::NotFound, false),
        (404, "404 page not found", ErrorKind::Unsupported, false),
        (
            405,
            "method DELETE not allowed",
            ErrorKind::Unsupported,
            false,
        ),
        (409, "{}", ErrorKind::Conflict, false),
        (
            413,
            "Request body too large",
            ErrorKind::RequestTooLarge,
            false,
        ),
        (418, "", ErrorKind::Refused, false),
        (429, "Too many", ErrorKind::RateLimited, true),
        (500, "No cluster leader", ErrorKind::NoLeader, true),
        (500, "rpc error making call: EOF", ErrorKind::NoLeader, true),
        (500, "something else", ErrorKind::Server, true),
        (501, "", ErrorKind::Unsupported, false),
        (502, "<html>bad gateway</html>", ErrorKind::NoLeader, true),
        (503, "", ErrorKind::NoLeader, true),
        (
            503,
            "rate limit exceeded, try again later",
            ErrorKind::RateLimited,
            true,
        ),
        (504, "", ErrorKind::NoLeader, true),
        (599, "", ErrorKind::Server, true),
        (999, "", ErrorKind::Refused, false),
    ] {
        let err = told(Reply::status(status, body)).await;
        assert_eq!(err.kind(), kind, "{status} {body:?}: {err}");
        assert_eq!(err.is_transient(), transient, "{status} {body:?}");
        assert_eq!(err.status().unwrap().as_u16(), status);
    }
}

#[tokio::test]
async fn a_success_with_anything_else_than_the_promised_json_is_a_decoding_error() {
    for body in [
        "",
        "<html>welcome to the hotel</html>",
        "[",
        "{\"a\":1}",
        "[1,2]",
        "[{\"Node\":null}]",
        "\"text\"",
    ] {
        let err = told(Reply::status(200, body)).await;
        assert_eq!(err.kind(), ErrorKind::Decode, "{body}: {err}");
        assert!(!err.is_transient());
    }
    let deep = "[".repeat(500_000);
    assert_eq!(
        told(Reply::status(200, &deep)).await.kind(),
        ErrorKind::Decode
    );
    // Nobody asked for a packed answer, so none is unpacked.
    let packed = Reply::with_headers(200, "content-encoding: gzip\r\n", "\x1f");
    assert_eq!(told(packed).await.kind(), ErrorKind::Decode);
    let none = Reply::Raw(Bytes::from_static(b"HTTP/1.1 204 No Content\r\n\r\n"));
    assert_eq!(told(none).await.kind(), ErrorKind::Decode);
    let not_text = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n[\"\xff\xfe"[..].to_vec();
    let err = told(Reply::Raw(Bytes::from(not_text))).await;
    assert_eq!(err.kind(), ErrorKind::Decode);
}

#[tokio::test]
async fn nonsense_in_headers_is_absence_and_no_error() {
    let headers = "x-consul-index: 99999999999999999999999\r\nx-consul-lastcontact: soon\r\n\
                   x-consul-knownleader: perhaps\r\nage: -1\r\nx-cache: \r\n";
    let server = server(Reply::with_headers(200, headers, "[]")).await;
    let answer = client(server.url()).health().service("web").await.unwrap();
    assert_eq!(answer.meta().index(), None);
    assert_eq!(answer.meta().last_contact(), None);
    assert_eq!(answer.meta().known_leader(), Some(false));
}

#[tokio::test]
async fn an_error_repeats_little_of_what_it_was_told_and_nothing_that_a_terminal_obeys() {
    let body = format!("first\r\nsecond\x1b[31m\0{}", "long ".repeat(100_000));
    let err = told(Reply::status(500, &body)).await;
    let text = err.to_string();
    assert!(text.len() < 1000, "{} bytes", text.len());
    assert!(
        text.contains("first") && !text.contains(char::is_control),
        "{text:?}"
    );
}

#[tokio::test]
async fn a_token_is_in_no_error_even_if_the_server_repeats_it() {
    let secret = "b1a8a0f7-secret-of-mine";
    let repeated = format!("{secret} {secret}: Permission denied for {secret}");
    let echoing = format!("x-consul-token: {secret}\r\nx-consul-index: {secret}\r\n");
    let json = format!("[{{\"Node\":{{\"Node\":\"n\"}},\"{secret}\":\"{secret}\"}}]");
    for reply in [
        Reply::status(403, &repeated),
        Reply::status(500, &format!("{}{secret}", "x".repeat(290))),
        Reply::with_headers(500, &echoing, secret),
        Reply::redirect(302, &format!("http://127.0.0.1:1/?token={secret}")),
        Reply::status(200, &json),
        Reply::status(200, secret),
        Reply::truncated(secret),
        Reply::Raw(Bytes::from(format!("{secret}\r\n\r\n"))),
        Reply::Hang,
    ] {
        let server = server(reply.clone()).await;
        let client = Client::builder().address(server.url()).token(secret);
        let client = client.basic_auth("user", "pass-of-mine").timeout(DEADLINE);
        let client = client.build().unwrap();
        let read = client.health().service("web");
        let shown = format!("{client:?} {read:?}");
        let err = read.await.unwrap_err();
        let shown = format!("{shown} {}", whole(&err));
        assert!(!shown.contains(secret), "{reply:?}: {shown}");
        assert!(!shown.contains("secret-of-mine"), "{reply:?}: {shown}");
        assert!(!shown.contains("pass-of-mine"), "{reply:?}: {shown}");
        let sent = server.requests().concat();
        assert!(sent.contains(secret), "the server did get it: {sent}");
    }
}

#[tokio::test]
async fn odd_names_never_leave_the_path_they_belong_to() {
    let server = server(Reply::status(200, "[]")).await;
    let client = client(server.url());
    for name in [
        "a b", "a?b=c", "a#b", "100%", "a&stale", "ü", "a\\b", "a;b", "http://x",
    ] {
        let refused = name.contains("//");
        let health = client.health();
        assert_eq!(health.service(name).await.is_err(), refused, "{name}");
    }
    for request in server.requests() {
        let target = request.split(' ').nth(1).unwrap().to_owned();
        assert!(target.starts_with("/v1/health/service/"), "{target}");
        assert!(!target.contains(['?', '#', '&', ';', '\\']), "{target}");
    }
    let before = server.requests().len();
    for name in [
        "",
        "/a",
        "a//b",
        "../agent/self",
        "a/./b",
        "a\r\nX-Evil: 1",
        "a\0",
    ] {
        for err in [
            client.health().service(name).await.unwrap_err(),
            client.kv().put(name, "").await.unwrap_err(),
            client.catalog().node(name).await.unwrap_err(),
            client.agent().deregister(name).await.unwrap_err(),
        ] {
            assert_eq!(err.kind(), ErrorKind::Invalid, "{name:?}: {err}");
            assert!(err.is_invalid() && !err.is_transient());
        }
    }
    assert_eq!(server.requests().len(), before);
}

#[tokio::test]
async fn a_client_works_again_as_soon_as_the_server_does() {
    let server = server(Reply::garbage()).await;
    let client = client(server.url()).with_timeout(DEADLINE);
    for reply in [
        Reply::garbage(),
        Reply::Reset,
        Reply::Hang,
        Reply::endless("{}"),
        Reply::truncated("[]"),
        Reply::status(500, ""),
    ] {
        server.reply(reply);
        error(&client).await;
        server.reply(Reply::status(200, "[]"));
        let again = client.with_timeout(SLACK);
        assert!(again.health().service("web").await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_told_as_such() {
    let unused = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    let client = client(unused.to_string());
    let began = Instant::now();
    let err = client.kv().put("a", "v").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Connect, "{err}");
    // Nothing was sent, so that even a write may be repeated.
    assert!(err.is_connect() && err.is_transient());
    assert!(err.source().is_some());
    assert!(began.elapsed() < SLACK);
}

mod consul {
    use std::time::Duration;

    use http::Method;
    use lictor::api::session::NewSession;
    use lictor::api::txn::{Failure, FailureReason, KvOp, NodeOp, OpResult, Outcome};
    use lictor::ident::Token;
    use lictor::{Client, ErrorKind};
    use support::consul::Agent;

    fn client(agent: &Agent) -> Client {
        Client::builder().address(agent.http_url()).build().unwrap()
    }

    #[tokio::test]
    async fn a_session_that_is_gone_and_a_transaction_that_failed_are_told() {
        let agent = Agent::shared().await;
        let client = client(agent);
        let path = "/v1/session/renew/00000000-0000-0000-0000-000000000000";
        let err = client.raw(Method::PUT, path).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownSession, "{err}");
        assert!(err.is_unknown_session() && err.is_not_found());

        let request = client.raw(Method::PUT, "/v1/kv/hostile-locked");
        let session = "00000000-0000-0000-0000-000000000000";
        let err = request.query("acquire", session).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownSession, "{err}");

        let check =
            serde_json::json!([{"KV": {"Verb": "check-index", "Key": "no-such", "Index": 9}}]);
        let request = client.raw(Method::PUT, "/v1/txn").json(&check);
        let err = request.clone().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Conflict, "{err}");
        let answer = request.send_for_any_status().await.unwrap();
        let body: serde_json::Value = answer.decode().unwrap();
        assert_eq!(body["Errors"][0]["OpIndex"], 0);
    }

    #[tokio::test]
    async fn a_token_without_rights_and_a_token_that_is_gone_are_told_apart() {
        let agent = Agent::options().acl().start().await;
        let token = agent
            .create_token("reader", r#"key_prefix "" { policy = "read" }"#)
            .await;
        let anonymous = client(&agent);
        let reader = anonymous.with_token(Token::new(token.secret.as_str()).unwrap());

        assert_eq!(*reader.kv().get("a").await.unwrap(), None);
        for client in [&reader, &anonymous] {
            let err = client.kv().put("a", "v").await.unwrap_err();
            assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
            assert!(err.is_permission_denied() && !err.is_transient());
        }
        // A read that shows nothing is not refused: it is empty.
        assert!(reader.catalog().nodes().await.unwrap().is_empty());
        assert!(reader.health().service("consul").await.unwrap().is_empty());

        agent.revoke_token(&token).await;
        let err = reader.kv().get("a").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownToken, "{err}");
        assert!(err.is_permission_denied());
        assert!(!format!("{err} {err:?}").contains(&token.secret));
    }

    #[tokio::test]
    async fn a_transaction_tells_what_is_denied_and_leaves_out_what_is_hidden() {
        let agent = Agent::options().acl().start().await;
        let rules = r#"key_prefix "r/" { policy = "read" } key_prefix "w/" { policy = "write" }"#;
        let token = agent.create_token("keys", rules).await;
        let anonymous = client(&agent);
        let all = anonymous.with_token(Token::new(agent.management_token()).unwrap());
        let some = anonymous.with_token(Token::new(token.secret.as_str()).unwrap());
        for key in ["hidden/1", "r/1", "w/1"] {
            assert!(all.kv().put(key, "v").await.unwrap());
        }

        let txn = some
            .txn()
            .kv(KvOp::set("r/1", "w"))
            .kv(KvOp::set("w/1", "w"))
            .kv(KvOp::check_index("hidden/1", 1))
            .kv(KvOp::get("hidden/1"))
            .node(NodeOp::delete("nobody"));
        let outcome = txn.await.unwrap();
        let Outcome::RolledBack(failures) = &outcome else {
            panic!("{outcome:?}");
        };
        let places: Vec<usize> = failures.iter().map(Failure::operation).collect();
        assert_eq!(places, [0, 2, 4]);
        for failure in failures {
            assert_eq!(*failure.reason(), FailureReason::PermissionDenied);
        }
        let err = outcome.into_result().unwrap_err();
        assert!(err.is_permission_denied() && !err.is_transient(), "{err}");

        // A read of what is hidden is no failure; its result is missing among the others.
        let txn = some
            .txn()
            .kv(KvOp::get("hidden/1"))
            .kv(KvOp::set("w/1", "w"))
            .kv(KvOp::get_tree("hidden/"))
            .kv(KvOp::get("r/1"))
            .kv(KvOp::get("hidden/1"));
        let results = txn.await.unwrap().into_result().unwrap();
        assert_eq!(results.get(0), Some(&OpResult::Nothing));
        assert_eq!(*results.kv(1).unwrap().key(), "w/1");
        assert_eq!(results.get(2), Some(&OpResult::Tree(Vec::new())));
        assert_eq!(results.kv(3).unwrap().value_str(), Some("v"));
        assert_eq!(results.get(4), Some(&OpResult::Nothing));

        agent.revoke_token(&token).await;
        let err = some.txn().kv(KvOp::get("r/1")).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownToken, "{err}");
    }

    #[tokio::test]
    async fn a_session_that_the_token_may_not_see_reads_as_gone_and_is_not_renewed() {
        let agent = Agent::options().acl().start().await;
        let anonymous = client(&agent);
        let all = anonymous.with_token(Token::new(agent.management_token()).unwrap());
        let new = NewSession::new().no_checks();
        let session = all.session().create(&new).await.unwrap();

        let sessions = anonymous.session();
        assert_eq!(*sessions.info(&session).await.unwrap(), None);
        assert!(sessions.list().await.unwrap().is_empty());
        for err in [
            sessions.create(&new).await.unwrap_err(),
            sessions.renew(&session).await.unwrap_err(),
            sessions.destroy(&session).await.unwrap_err(),
        ] {
            assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
        }
        assert!(all.session().renew(&session).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn an_agent_without_servers_is_told_as_without_leader() {
        let mut server = Agent::options().node_name("the-server").start().await;
        let agent = Agent::options().client_of(&server).start().await;
        let client = client(&agent).with_timeout(Duration::from_secs(30));
        assert!(client.kv().put("a", "v").await.unwrap());
        server.kill();
        let err = client.kv().get("a").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NoLeader, "{err}");
        assert!(err.is_no_leader() && err.is_transient());
        let err = client.health().service("web").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NoLeader, "{err}");
        // What the agent knows by itself it goes on telling.
        assert!(client.agent().services().await.unwrap().is_empty());
    }
}
