//! What cannot work is refused at once, with what would be right.

use std::time::Duration;

use http::StatusCode;
use lictor::coordination::Profile;
use lictor::embedded::{Agent, Fault};
use lictor::{Client, Error, ErrorKind};
use tokio::time::timeout;

/// More than a refusal takes, and much less than an outage is waited out.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What is refused at once, for this kind of reason, in words that have all of `says`.
async fn refused<T>(
    kind: ErrorKind,
    says: &[&str],
    call: impl Future<Output = lictor::Result<T>>,
) -> Error {
    let answer = timeout(AT_ONCE, call).await;
    let Err(err) = answer.unwrap_or_else(|_| panic!("{says:?}: it waits")) else {
        panic!("{says:?}: it is taken");
    };
    println!("{err}");
    assert_eq!(err.kind(), kind, "{err}");
    for word in says {
        assert!(err.to_string().contains(word), "{word:?} in {err}");
    }
    err
}

fn client(agent: &Agent) -> Client {
    Client::builder().transport(agent.clone()).build().unwrap()
}

/// Whatever takes a key takes it as a lock does.
#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_is_refused_before_anything_is_sent() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let long = "k".repeat(20_000);
    for (key, says) in [
        ("", "must not be empty"),
        ("/job", "must not begin with `/`"),
        ("jobs//mail", "`//`"),
        ("jobs/../mail", "`..`"),
        ("jobs\nmail", "control characters"),
        (long.as_str(), "longer than the 16384 bytes"),
    ] {
        let invalid = ErrorKind::Invalid;
        let lock = client.lock(key);
        refused(invalid, &["key", says], lock.acquire()).await;
        refused(invalid, &["key", says], lock.try_acquire()).await;
        refused(
            invalid,
            &["key", says],
            client.lock("job").and(key).acquire(),
        )
        .await;
        let election = client.election(key);
        refused(invalid, &["key", says], election.campaign()).await;
        let run = election.run(std::future::pending(), async |_| unreachable!());
        refused(invalid, &["key", says], run).await;
        refused(invalid, &["key", says], async { election.observe::<()>() }).await;
    }
    for (prefix, says) in [
        ("", "must not be empty"),
        ("/", "must not be empty"),
        ("/uploads", "must not begin with `/`"),
        ("uploads//all", "two slashes in a row"),
        ("uploads/..", "`..`"),
        (long.as_str(), "longer than the 16384 bytes"),
    ] {
        let semaphore = client.semaphore(prefix, 2);
        refused(ErrorKind::Invalid, &[says], semaphore.acquire()).await;
        refused(ErrorKind::Invalid, &[says], semaphore.set_limit(3)).await;
    }
    let twice = client.lock("job").and("mail").and("job");
    let says = ["\"job\" twice"];
    refused(ErrorKind::Invalid, &says, twice.acquire()).await;
    let many = (0..33).fold(client.lock("job"), |lock, n| lock.and(format!("job-{n}")));
    refused(
        ErrorKind::Invalid,
        &["34 keys", "at most 32"],
        many.acquire(),
    )
    .await;
    assert_eq!(agent.requests().total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_value_above_the_limit_is_refused_before_anything_is_sent() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    // A transaction may have 512 KiB in all, and values are sent in base64.
    let (large, fits) = ("v".repeat(393_000), "v".repeat(391_000));
    let says = ["value of 393000 bytes", "at most 39"];
    let invalid = ErrorKind::Invalid;
    let lock = client.lock("job").value(large.clone());
    refused(invalid, &says, lock.acquire()).await;
    let semaphore = client.semaphore("uploads", 2).value(large.clone());
    refused(invalid, &says, semaphore.acquire()).await;
    let json = "v".repeat(392_998);
    let election = client.election("leader").candidate(json.clone());
    refused(invalid, &says, election.campaign()).await;
    // Each of the keys has it.
    let both = client.lock("a").and("b").value("v".repeat(200_000));
    refused(invalid, &["200000 bytes", "at most 19"], both.acquire()).await;
    let kv = client.kv();
    let larger = "v".repeat(524_289);
    let put = async { kv.put("a", larger).await };
    refused(invalid, &["524289 bytes", "at most 524288"], put).await;
    assert_eq!(agent.requests().total(), 0);

    let guard = client.lock("job").value(fits.clone()).acquire().await;
    let guard = guard.unwrap();
    refused(invalid, &says, guard.set_value(large)).await;
    let fenced = kv.fenced(&guard);
    let says = ["transaction of 524", "base64", "at most 524288"];
    let larger = "v".repeat(393_200);
    refused(invalid, &says, fenced.put("data", larger)).await;
    guard.check().unwrap();
    guard.set_value(fits).await.unwrap();
    guard.release().await.unwrap();
    let leadership = client.election("leader").campaign().await.unwrap();
    refused(
        invalid,
        &["value of 393000 bytes"],
        leadership.publish(json),
    )
    .await;
    leadership.check().unwrap();
    leadership.resign().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_profile_that_consul_does_not_take_is_refused_before_anything_is_sent() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let ms = Duration::from_millis;
    let balanced = Profile::balanced;
    for (profile, says) in [
        (balanced().ttl(ms(9_999)), ["TTL 9.999s", "10s to 24 h"]),
        (balanced().ttl(Duration::ZERO), ["TTL 0ns", "10s to 24 h"]),
        (
            balanced().ttl(Duration::from_secs(86_401)),
            ["TTL 86401s", "10s to 24 h"],
        ),
        (
            balanced().lock_delay(Duration::from_secs(61)),
            ["lock-delay 61s", "at most 60 s"],
        ),
        (
            balanced().lock_delay(Duration::ZERO),
            ["lock-delay 0ns", "expiry_only"],
        ),
        (
            balanced().check_ttl(ms(999)),
            ["check TTL 999ms", "1 s to 1 h"],
        ),
        (balanced().belief(ms(1)), ["1ms", "250ms or more"]),
    ] {
        let invalid = ErrorKind::Invalid;
        let lease = async { client.lease().profile(profile.clone()).build() };
        refused(invalid, &says, lease).await;
        let lock = client.lock("job").profile(profile.clone());
        refused(invalid, &says, lock.acquire()).await;
        let semaphore = client.semaphore("uploads", 1).profile(profile.clone());
        refused(invalid, &says, semaphore.acquire()).await;
        let election = client.election("leader").profile(profile);
        refused(invalid, &says, election.campaign()).await;
    }
    assert_eq!(agent.requests().total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_cannot_be_is_refused() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let none = client.semaphore("uploads", 0);
    let invalid = ErrorKind::Invalid;
    refused(invalid, &["0 places", "one or more"], none.acquire()).await;
    refused(invalid, &["0 places", "one or more"], none.try_acquire()).await;
    let some = client.semaphore("uploads", 2);
    refused(invalid, &["0 places", "one or more"], some.set_limit(0)).await;
    assert_eq!(agent.requests().total(), 0);

    let permit = some.acquire().await.unwrap();
    let other = client.semaphore("uploads", 3);
    let says = ["uploads", "limit is 2", "3 was asked for", "`set_limit`"];
    refused(ErrorKind::Conflict, &says, other.acquire()).await;
    refused(ErrorKind::Conflict, &says, other.try_acquire()).await;
    // What is one's kind is not the other's.
    let lock = client.lock("uploads/.lock");
    let says = ["uploads/.lock", "semaphore", "another key"];
    refused(ErrorKind::Conflict, &says, lock.acquire()).await;
    let guard = client.lock("job/.lock").acquire().await.unwrap();
    let semaphore = client.semaphore("job", 2);
    refused(ErrorKind::Conflict, &["job"], semaphore.acquire()).await;
    permit.check().unwrap();
    guard.check().unwrap();
}

/// An agent that was started a moment ago: what is refused today works tomorrow.
#[tokio::test(start_paused = true)]
async fn an_agent_that_the_servers_do_not_know_yet_is_waited_for() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let unknown = Fault::answer(
        StatusCode::INTERNAL_SERVER_ERROR,
        "rpc error making call: Missing node registration",
    );
    agent.inject(unknown.under("/v1/session/create").times(4));
    let lock = client.lock("job");
    let says = ["lock job", "do not know the agent's node yet"];
    refused(ErrorKind::NoLeader, &says, lock.try_acquire()).await;
    let guard = lock.acquire().await.unwrap();
    guard.release().await.unwrap();
}

/// The address is told, and what went wrong there; nobody is said to hold what nobody saw held.
#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_without_an_answer_tells_why() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    agent.inject(Fault::hang());
    for (deadline, says) in [(2, "has not answered"), (60, "not taken within 60s")] {
        let deadline = Duration::from_secs(deadline);
        let lock = client.lock("job").deadline(deadline);
        let err = lock.acquire().await.map(drop).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Timeout);
        assert!(err.to_string().contains(says), "{err}");
        let semaphore = client.semaphore("uploads", 2).deadline(deadline);
        let err = semaphore.acquire().await.map(drop).unwrap_err();
        assert!(!err.to_string().contains("free"), "{err}");
        let cause = std::error::Error::source(&err).map(ToString::to_string);
        assert_eq!(
            cause.is_some(),
            deadline > Duration::from_secs(30),
            "{cause:?}"
        );
    }
}

mod consul {
    use super::*;
    use lictor::ident::{Datacenter, Token};
    use serde_json::json;
    use support::consul::Agent;
    use support::eventually;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// The goodbye of who was refused goes on in the background.
    async fn nothing_is_left(agent: &Agent) {
        eventually(PATIENCE, async || {
            let sessions = agent.api("GET", "/v1/session/list", "").await.unwrap();
            let services = agent.api("GET", "/v1/agent/services", "").await.unwrap();
            sessions.text().trim() == "[]" && services.text().trim() == "{}"
        })
        .await;
    }

    /// All ways to hold something, each of which must be refused.
    async fn nobody_holds(client: &Client, kind: ErrorKind, says: &[&str]) {
        let names = |name: &'static str| [&[name], says].concat();
        for profile in [Profile::balanced(), Profile::fast()] {
            let lock = client.lock("job").profile(profile.clone());
            refused(kind, &names("lock job"), lock.acquire()).await;
            refused(kind, &names("lock job"), lock.try_acquire()).await;
            let semaphore = client.semaphore("uploads", 2).profile(profile.clone());
            refused(kind, &names("semaphore uploads"), semaphore.acquire()).await;
            let election = client.election("leader").profile(profile);
            refused(kind, &names("lock leader"), election.campaign()).await;
            let run = election.run(std::future::pending(), async |_| unreachable!());
            refused(kind, &names("lock leader"), run).await;
        }
    }

    #[tokio::test]
    async fn a_token_that_lacks_a_right_is_refused_at_once_and_leaves_nothing() {
        const SERVICE: &str = r#"service_prefix "" { policy = "write" } "#;
        const SESSION: &str = r#"session_prefix "" { policy = "write" } "#;
        const READ: &str = r#"key_prefix "" { policy = "read" } "#;
        const WRITE: &str = r#"key_prefix "" { policy = "write" } "#;
        let agent = Agent::options().acl().start().await;
        let denied = ErrorKind::PermissionDenied;
        for (name, rules, says) in [
            (
                "no-session",
                [SERVICE, WRITE].concat(),
                "/v1/session/create",
            ),
            ("no-key", [SERVICE, SESSION].concat(), ""),
            (
                "only-reads",
                [SERVICE, SESSION, READ].concat(),
                "needs `write` for the key",
            ),
        ] {
            let token = agent.create_token(name, &rules).await;
            let client = Client::builder().address(agent.http_url());
            let client = client.build().unwrap();
            let client = client.with_token(Token::new(token.secret).unwrap());
            nobody_holds(&client, denied, &["ermission denied", says]).await;
            nothing_is_left(&agent).await;
        }
        let client = Client::builder().address(agent.http_url()).build().unwrap();
        let nobody = Token::new("0e6c9c5c-4b8e-4e57-8f0b-1d6ad6a3c0de").unwrap();
        let client = client.with_token(nobody);
        nobody_holds(&client, ErrorKind::UnknownToken, &["ACL not found"]).await;
        nothing_is_left(&agent).await;
    }

    #[tokio::test]
    async fn a_datacenter_that_is_not_the_agents_own_is_refused_at_once() {
        let agent = Agent::start().await;
        let client = Client::builder().address(agent.http_url()).build().unwrap();
        // Nobody knows it.
        let elsewhere = client.with_datacenter(Datacenter::new("elsewhere").unwrap());
        let says = ["session", "elsewhere", "No path to datacenter"];
        nobody_holds(&elsewhere, ErrorKind::UnknownDatacenter, &says).await;
        nothing_is_left(&agent).await;
        // The servers know it, but the agent's node is not of it.
        let wan = agent.wan_addr();
        let other = Agent::options()
            .node_name("far")
            .config("datacenter", "dc2".into())
            .config("retry_join_wan", vec![wan].into())
            .start()
            .await;
        let far = client.with_datacenter(Datacenter::new("dc2").unwrap());
        eventually(PATIENCE, async || far.kv().get("job").await.is_ok()).await;
        let says = ["session", "dc2", "agent of that datacenter"];
        nobody_holds(&far, ErrorKind::Refused, &says).await;
        nothing_is_left(&agent).await;
        nothing_is_left(&other).await;
        // By its own name, it is like any other.
        let own = client.with_datacenter(Datacenter::new("dc1").unwrap());
        let guard = own.lock("job").acquire().await.unwrap();
        guard.release().await.unwrap();
    }

    /// By Consul itself, where lictor takes it for right.
    #[tokio::test]
    async fn limits_are_consuls_own() {
        let agent = Agent::start().await;
        let client = Client::builder().address(agent.http_url()).build().unwrap();
        let value = "v".repeat(391_000);
        let lock = client.lock("job").value(value.clone());
        lock.acquire().await.unwrap().release().await.unwrap();
        let long = "k".repeat(16_384);
        let guard = client.lock(long).acquire().await.unwrap();
        guard.release().await.unwrap();
        let limits = json!({ "kv_max_value_size": 1000, "txn_max_req_len": 1000 });
        let small = Agent::options().config("limits", limits);
        let small = small.start().await;
        let client = Client::builder().address(small.http_url()).build().unwrap();
        // A server may take less than others.
        let lock = client.lock("job").value(value);
        let says = ["lock job", "too large"];
        refused(ErrorKind::RequestTooLarge, &says, lock.acquire()).await;
        nothing_is_left(&small).await;
    }
}
