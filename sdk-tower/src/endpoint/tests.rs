use super::*;

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn endpoint(text: &str) -> Endpoint {
    Endpoint::new(target(text))
}

fn refusal(text: &str) -> String {
    let refused = text.parse::<Target>().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{text}");
    refused.to_string()
}

#[test]
fn a_target_is_written_as_it_is_read() {
    for text in [
        "1.2.3.4:80",
        "[::1]:80",
        "[2001:db8::7]:65535",
        "name:1",
        "web-1.example.com:8080",
        "my_node.node.dc1.consul:80",
        "xn--bcher-kva.example:443",
    ] {
        assert_eq!(target(text).to_string(), text);
    }
}

#[test]
fn different_spellings_of_one_host_are_one_target() {
    assert_eq!(target("WEB.Example.COM.:80"), target("web.example.com:80"));
    assert_eq!(target("[::ffff:10.0.0.1]:80"), target("10.0.0.1:80"));
    assert_eq!(target("[2001:DB8:0:0::1]:80"), target("[2001:db8::1]:80"));
    let by_name = Target::new(Host::Name("10.0.0.1".into()), 80).unwrap();
    assert_eq!(by_name, target("10.0.0.1:80"));
    let by_name = Target::new(Host::Name("::1".into()), 80).unwrap();
    assert_eq!(by_name, target("[::1]:80"));
    let by_socket = Target::try_from(SocketAddr::from(([10, 0, 0, 1], 80))).unwrap();
    assert_eq!(by_socket, target("10.0.0.1:80"));
}

#[test]
fn nonsense_is_refused_with_what_would_be_right() {
    for (text, says) in [
        ("", "write 10.0.0.1:80"),
        ("web", "write 10.0.0.1:80"),
        (":80", "empty"),
        (".:80", "empty"),
        ("web:", "write 10.0.0.1:80"),
        ("web:http", "write 10.0.0.1:80"),
        ("web:+80", "write 10.0.0.1:80"),
        ("web:-1", "write 10.0.0.1:80"),
        ("web:80 ", "write 10.0.0.1:80"),
        ("web:65536", "above 65535"),
        ("web:99999999999999999999", "above 65535"),
        ("web:0", "use 1 to 65535"),
        ("10.0.0.1:0", "use 1 to 65535"),
        ("0.0.0.0:80", "address of one host"),
        ("[::]:80", "address of one host"),
        ("[::ffff:0.0.0.0]:80", "address of one host"),
        ("224.0.0.1:80", "many hosts"),
        ("[ff02::1]:80", "many hosts"),
        ("255.255.255.255:80", "many hosts"),
        ("::1:80", "write 10.0.0.1:80"),
        ("[::1]", "write 10.0.0.1:80"),
        ("[::1:80", "write 10.0.0.1:80"),
        ("[1.2.3.4]:80", "write 10.0.0.1:80"),
        ("[fe80::1%eth0]:80", "write 10.0.0.1:80"),
        ("my host:80", "letters, digits"),
        ("host/path:80", "letters, digits"),
        ("user@host:80", "letters, digits"),
        ("a\r\nb:80", "letters, digits"),
        ("a\0b:80", "letters, digits"),
        ("bücher.example:80", "Punycode"),
        ("a..b:80", "empty label"),
        (".a:80", "empty label"),
        ("a..:80", "empty label"),
        ("-a.example:80", "hyphen"),
        ("a-.example:80", "hyphen"),
        ("1.2.3:80", "last label is a number"),
        ("1.2.3.256:80", "last label is a number"),
        ("1.2.3.4.5:80", "last label is a number"),
        ("host.1:80", "last label is a number"),
    ] {
        let refusal = refusal(text);
        assert!(refusal.contains(says), "{text:?}: {refusal}");
    }
}

#[test]
fn a_name_is_refused_above_the_limits_of_dns_and_taken_at_them() {
    let label = "a".repeat(63);
    assert!(format!("{label}.example:80").parse::<Target>().is_ok());
    assert!(refusal(&format!("{label}a.example:80")).contains("63"));
    let name = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    assert_eq!(name.len(), 253);
    assert!(format!("{name}:80").parse::<Target>().is_ok());
    assert!(refusal(&format!("{name}b:80")).contains("253"));
}

#[test]
fn a_set_is_ordered_by_target_and_compares_by_content() {
    let texts = [
        "web:80",
        "10.0.0.2:80",
        "10.0.0.1:81",
        "10.0.0.1:80",
        "[::1]:80",
    ];
    let set: EndpointSet = texts.map(endpoint).into_iter().collect();
    let turned: EndpointSet = texts.map(endpoint).into_iter().rev().collect();
    assert_eq!(set, turned);
    let order: Vec<_> = set.iter().map(|e| e.target().to_string()).collect();
    let wanted = [
        "10.0.0.1:80",
        "10.0.0.1:81",
        "10.0.0.2:80",
        "[::1]:80",
        "web:80",
    ];
    assert_eq!(order, wanted);
    assert_eq!(set.get(&target("10.0.0.1:81")).unwrap().weight(), 1);
    assert_eq!(set.get(&target("10.0.0.3:80")), None);
    let heavier: EndpointSet = texts
        .map(|text| endpoint(text).with_weight(2))
        .into_iter()
        .collect();
    assert_ne!(set, heavier);
}

#[test]
fn a_target_listed_twice_is_once_with_the_larger_weight_and_the_preferred_priority() {
    let set: EndpointSet = [
        endpoint("10.0.0.1:80").with_weight(3).with_priority(5),
        endpoint("10.0.0.2:80"),
        endpoint("10.0.0.1:80").with_weight(9).with_priority(7),
        endpoint("10.0.0.1:80").with_weight(1).with_priority(2),
    ]
    .into_iter()
    .collect();
    assert_eq!(set.len(), 2);
    let merged = set.get(&target("10.0.0.1:80")).unwrap();
    assert_eq!((merged.weight(), merged.priority()), (9, 2));
}

#[test]
fn equal_endpoints_are_shared_and_not_made_anew() {
    let one = Arc::new(endpoint("10.0.0.1:80"));
    let set: EndpointSet = [Arc::clone(&one), Arc::clone(&one)].into_iter().collect();
    assert!(Arc::ptr_eq(set.get(one.target()).unwrap(), &one));
    assert!(set.is_same(&set.clone()));
}

#[test]
fn an_empty_set_is_a_value() {
    let set = EndpointSet::empty();
    assert!(set.is_empty());
    assert_eq!(set, EndpointSet::default());
    assert_eq!(set, std::iter::empty::<Endpoint>().collect());
    assert_eq!(set.to_string(), "0 endpoints");
}

#[test]
fn a_large_set_prints_short() {
    let set: EndpointSet = (1..=200)
        .map(|port| {
            Endpoint::new(Target::try_from(SocketAddr::from(([10, 0, 0, 1], port))).unwrap())
        })
        .collect();
    let printed = format!("{set:?}");
    assert_eq!(
        printed,
        "EndpointSet(200 endpoints (10.0.0.1:1, 10.0.0.1:2, 10.0.0.1:3, …))"
    );
    let one: EndpointSet = [endpoint("web:80")].into_iter().collect();
    assert_eq!(one.to_string(), "1 endpoint (web:80)");
}
