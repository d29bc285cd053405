use std::sync::Arc;

use super::*;
use crate::error::ErrorKind;

const TEN: Duration = Duration::from_secs(10);

fn web() -> ServiceDefinition {
    ServiceDefinition::new("web")
}

fn ttl() -> CheckDefinition {
    CheckDefinition::ttl(TEN)
}

fn with(check: CheckDefinition) -> ServiceDefinition {
    web().check(check)
}

fn pairs(count: usize) -> ServiceDefinition {
    web().metas((0..count).map(|n| (format!("k{n}"), "v")))
}

#[test]
fn nonsense_is_refused_with_what_would_be_right() {
    let long: Arc<str> = "x".repeat(513).into();
    let none: [&str; 0] = [];
    for (service, why) in [
        (ServiceDefinition::new(""), "must not be empty"),
        (ServiceDefinition::new("a//b"), "`//`"),
        (web().id(""), "must not be empty"),
        (web().id("a/../b"), "`..`"),
        (web().id("50%"), "must not contain `%`"),
        (web().port(0), "port 0: must be from 1 to 65535"),
        (web().port(70_000), "port 70000: must be from 1 to 65535"),
        (web().port(-1), "port -1: must be"),
        (web().listener(([127, 0, 0, 1], 0).into()), "port 0"),
        (web().address(""), "leave it out"),
        (web().address("0.0.0.0"), "nobody can connect"),
        (web().address("::"), "nobody can connect"),
        (web().address("[::]"), "nobody can connect"),
        (web().address("10.0.0.1:80"), "must not contain the port"),
        (web().address("[::1]:80"), "must not contain the port"),
        (web().address("http://a"), "an IP address or a name"),
        (web().address("a b"), "an IP address or a name"),
        (
            web().tagged_address("", "10.0.0.1", 80),
            "name must not be empty",
        ),
        (
            web().tagged_address("lan", "0.0.0.0", 80),
            "nobody can connect",
        ),
        (
            web().tagged_address("lan", "10.0.0.1", 0),
            "tagged address \"lan\": port 0",
        ),
        (web().meta("", "v"), "must not be empty"),
        (web().meta("a.b", "v"), "letters, digits"),
        (web().meta("consul-x", "v"), "Consul's own"),
        (web().meta("k".repeat(129), "v"), "longer than 128"),
        (web().meta("k", long), "longer than 512"),
        (pairs(65), "at most 64"),
        (web().weights(0, 1), "from 1 to 65535"),
        (web().weights(65_536, 1), "from 1 to 65535"),
        (web().weights(1, 65_536), "from 0 to 65535"),
        (
            with(CheckDefinition::ttl(Duration::ZERO)),
            "at least 100 ms",
        ),
        (
            with(CheckDefinition::ttl(Duration::from_millis(99))),
            "at least 100 ms",
        ),
        (
            with(CheckDefinition::http("http://a/", Duration::ZERO)),
            "at least 1 s",
        ),
        (with(CheckDefinition::http("/health", TEN)), "must be whole"),
        (
            with(CheckDefinition::http("ftp://a/", TEN)),
            "must be whole",
        ),
        (with(CheckDefinition::tcp("a", TEN)), "host and port"),
        (with(CheckDefinition::udp("a:0", TEN)), "host and port"),
        (with(CheckDefinition::grpc(":80/web", TEN)), "host and port"),
        (
            with(CheckDefinition::h2ping("a:99999", TEN)),
            "host and port",
        ),
        (
            with(CheckDefinition::script(none, TEN)),
            "without a program",
        ),
        (
            with(CheckDefinition::docker("", ["true"], TEN)),
            "must have a container",
        ),
        (
            with(CheckDefinition::docker("c", none, TEN)),
            "must have a container",
        ),
        (with(CheckDefinition::os_service("", TEN)), "without a name"),
        (
            with(CheckDefinition::alias_service("")),
            "must not be empty",
        ),
        (with(CheckDefinition::alias_node("")), "must not be empty"),
        (with(ttl().id("")), "must not be empty"),
        (with(ttl().id("50%")), "must not contain `%`"),
        (
            with(ttl().status(Status::Maintenance)),
            "passing, warning or critical",
        ),
        (with(ttl().timeout(TEN)), "only one with an interval has"),
        (with(ttl().header("A", "b")), "only an HTTP one has"),
        (
            with(CheckDefinition::tcp("a:1", TEN).shell("sh")),
            "only a Docker one has",
        ),
        (
            with(CheckDefinition::http("http://a", TEN).use_tls(true)),
            "TLS",
        ),
        (
            with(CheckDefinition::http("http://a", TEN).timeout(Duration::ZERO)),
            "above zero",
        ),
        (with(ttl().output_max_size(0)), "above zero"),
        (
            with(ttl().deregister_critical_service_after(Duration::from_secs(59))),
            "at least 1 min",
        ),
        (
            with(
                CheckDefinition::tcp("a:1", TEN)
                    .failures_before_warning(3)
                    .failures_before_critical(2),
            ),
            "must not be more",
        ),
        (
            web().check(ttl().id("x")).check(ttl().id("x")),
            "give each its own",
        ),
        (
            web().check(ttl()).check(ttl().id("service:web:1")),
            "give each its own",
        ),
    ] {
        let err = service.validate().unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
        assert!(err.to_string().contains(why), "{why:?}: {err}");
    }
}

#[test]
fn what_consul_takes_is_taken() {
    for service in [
        web(),
        ServiceDefinition::new("a b/c?"),
        web().address("10.0.0.1").port(80u16),
        web().address("2001:db8::1").port(65_535_u32),
        web().address("Foo.Example.com").port(1),
        web().listener(([0, 0, 0, 0], 80).into()),
        pairs(64),
        web().weights(65_535, 0),
        web()
            .check(ttl())
            .check(ttl())
            .check(CheckDefinition::alias_service("db-1")),
        with(CheckDefinition::ttl(Duration::from_millis(100))),
        with(CheckDefinition::http("https://[::1]:8080/health?x=1", TEN).danger_skip_tls_verify()),
        with(CheckDefinition::grpc("127.0.0.1:80/web", TEN).use_tls(true)),
        with(CheckDefinition::h2ping("127.0.0.1:80", TEN).use_tls(false)),
        with(CheckDefinition::tcp("[::1]:80", TEN).timeout(TEN)),
    ] {
        service.validate().unwrap();
    }
}

#[test]
fn a_listener_on_all_addresses_leaves_the_address_to_the_agent() {
    let address = |bound: SocketAddr| web().listener(bound).address;
    assert_eq!(address(([0, 0, 0, 0], 80).into()), None);
    assert_eq!(address("[::]:80".parse().unwrap()), None);
    assert_eq!(address("[::ffff:0.0.0.0]:80".parse().unwrap()), None);
    assert_eq!(address("[::1]:80".parse().unwrap()).as_deref(), Some("::1"));
    assert_eq!(
        address("[::ffff:10.0.0.9]:80".parse().unwrap()).as_deref(),
        Some("10.0.0.9")
    );
}

#[test]
fn a_lone_check_needs_a_name() {
    assert!(lone_check(None, &ttl()).is_err());
    lone_check(None, &ttl().name("disk")).unwrap();
}
