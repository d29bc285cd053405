//! The examples of Registrator's documentation, and what it leaves open.

use serde_json::{Value, json};

use super::*;

/// What a program on a host that publishes its ports is told.
fn on_host<const N: usize>(vars: [(&'static str, &'static str); N]) -> Environment {
    let vars = vars.into_iter().chain([("SERVICE_IP", "192.168.1.102")]);
    Environment::of(vars).host("hostname")
}

#[track_caller]
fn services(environment: &Environment) -> Vec<Value> {
    let services = environment.services().unwrap();
    let sent = services.iter().map(serde_json::to_value);
    sent.map(Result::unwrap).collect()
}

#[track_caller]
fn error(environment: &Environment) -> String {
    let error = environment.services().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Config | ErrorKind::Invalid),
        "{error:?}"
    );
    error.to_string()
}

/// The check of one service on port 80 with these variables.
#[track_caller]
fn check<const N: usize>(vars: [(&'static str, &'static str); N]) -> Value {
    let environment = on_host(vars).name("web").port(80);
    services(&environment)[0]["Checks"][0].clone()
}

#[test]
fn golden_single_service_with_defaults() {
    let environment = on_host([("SERVICE_PORT", "10000")])
        .name("redis")
        .container("redis.0")
        .port(6379);
    assert_eq!(
        services(&environment),
        [json!({
            "ID": "hostname:redis.0:6379", "Name": "redis", "Port": 10000,
            "Address": "192.168.1.102",
        })]
    );
}

#[test]
fn golden_single_service_with_metadata() {
    let environment = on_host([
        ("SERVICE_NAME", "db"),
        ("SERVICE_TAGS", "master,backups"),
        ("SERVICE_REGION", "us2"),
        ("SERVICE_PORT", "10000"),
    ])
    .name("redis")
    .container("redis.0")
    .port(6379);
    assert_eq!(
        services(&environment),
        [json!({
            "ID": "hostname:redis.0:6379", "Name": "db", "Port": 10000,
            "Address": "192.168.1.102",
            "Tags": ["master", "backups"], "Meta": {"region": "us2"},
        })]
    );
}

#[test]
fn golden_an_escaped_comma() {
    let environment = on_host([("SERVICE_NAME", "db"), ("SERVICE_TAGS", r"/(;\,:-_)/")]);
    let told = services(&environment.port(6379));
    assert_eq!(told[0]["Tags"], json!(["/(;,:-_)/"]));
}

#[test]
fn golden_multiple_services_with_defaults() {
    let environment = on_host([("SERVICE_443_PORT", "4443"), ("SERVICE_80_PORT", "8000")])
        .name("nginx")
        .container("nginx.0");
    assert_eq!(
        services(&environment),
        [
            json!({
                "ID": "hostname:nginx.0:80", "Name": "nginx-80", "Port": 8000,
                "Address": "192.168.1.102",
            }),
            json!({
                "ID": "hostname:nginx.0:443", "Name": "nginx-443", "Port": 4443,
                "Address": "192.168.1.102",
            }),
        ]
    );
}

#[test]
fn golden_multiple_services_with_metadata() {
    let environment = on_host([
        ("SERVICE_443_NAME", "https"),
        ("SERVICE_443_ID", "https.12345"),
        ("SERVICE_443_SNI", "enabled"),
        ("SERVICE_80_NAME", "http"),
        ("SERVICE_TAGS", "www"),
        ("SERVICE_443_PORT", "4443"),
        ("SERVICE_80_PORT", "8000"),
    ])
    .container("nginx.0");
    assert_eq!(
        services(&environment),
        [
            json!({
                "ID": "hostname:nginx.0:80", "Name": "http", "Port": 8000,
                "Address": "192.168.1.102", "Tags": ["www"],
            }),
            json!({
                "ID": "https.12345", "Name": "https", "Port": 4443,
                "Address": "192.168.1.102", "Tags": ["www"], "Meta": {"sni": "enabled"},
            }),
        ]
    );
}

#[test]
fn golden_every_form_of_a_check() {
    assert_eq!(
        check([
            ("SERVICE_80_CHECK_HTTP", "/health/endpoint/path"),
            ("SERVICE_80_CHECK_INTERVAL", "15s"),
            ("SERVICE_80_CHECK_TIMEOUT", "1s"),
            ("SERVICE_80_CHECK_HTTP_METHOD", "HEAD"),
        ]),
        json!({
            "HTTP": "http://192.168.1.102:80/health/endpoint/path",
            "Interval": "15s", "Timeout": "1s", "Method": "HEAD",
        })
    );
    assert_eq!(
        check([
            ("SERVICE_CHECK_HTTPS", "/health"),
            ("SERVICE_CHECK_HTTPS_METHOD", "HEAD"),
        ]),
        json!({
            "HTTP": "https://192.168.1.102:80/health", "Interval": "10s", "Method": "HEAD",
        })
    );
    assert_eq!(
        check([
            ("SERVICE_80_CHECK_TCP", "true"),
            ("SERVICE_80_CHECK_TIMEOUT", "3s"),
        ]),
        json!({"TCP": "192.168.1.102:80", "Interval": "10s", "Timeout": "3s"})
    );
    assert_eq!(
        check([(
            "SERVICE_CHECK_SCRIPT",
            "nc $SERVICE_IP $SERVICE_PORT | grep OK"
        )]),
        json!({
            "ScriptArgs": ["/bin/sh", "-c", "nc 192.168.1.102 80 | grep OK"],
            "Interval": "10s",
        })
    );
    assert_eq!(
        check([
            ("SERVICE_CHECK_TTL", "30s"),
            ("SERVICE_CHECK_INTERVAL", "5s")
        ]),
        json!({"TTL": "30s"})
    );
    assert_eq!(
        check([
            ("SERVICE_CHECK_GRPC", "true"),
            ("SERVICE_CHECK_INTERVAL", "5s"),
            ("SERVICE_CHECK_TIMEOUT", "3s"),
            ("SERVICE_CHECK_GRPC_USE_TLS", "true"),
            ("SERVICE_CHECK_TLS_SKIP_VERIFY", "true"),
        ]),
        json!({
            "GRPC": "192.168.1.102:80", "Interval": "5s", "Timeout": "3s",
            "GRPCUseTLS": true, "TLSSkipVerify": true,
        })
    );
    assert_eq!(
        check([
            ("SERVICE_CHECK_TCP", "true"),
            ("SERVICE_CHECK_INITIAL_STATUS", "passing"),
            ("SERVICE_CHECK_DEREGISTER_AFTER", "10m"),
        ]),
        json!({
            "TCP": "192.168.1.102:80", "Interval": "10s", "Status": "passing",
            "DeregisterCriticalServiceAfter": "10m0s",
        })
    );
    let command = on_host([("SERVICE_CHECK_CMD", "/check.sh")])
        .host("0123456789ab")
        .name("web")
        .port(80);
    assert_eq!(
        services(&command)[0]["Checks"][0],
        json!({
            "ScriptArgs": ["check-cmd", "0123456789ab", "80", "/check.sh"], "Interval": "10s",
        })
    );
}

#[test]
fn the_first_form_of_a_check_counts() {
    let told = check([
        ("SERVICE_CHECK_TTL", "30s"),
        ("SERVICE_CHECK_TCP", "true"),
        ("SERVICE_CHECK_HTTP", "/"),
    ]);
    assert_eq!(told["HTTP"], "http://192.168.1.102:80/");
    let told = check([("SERVICE_CHECK_TTL", "30s"), ("SERVICE_CHECK_TCP", "true")]);
    assert_eq!(told, json!({"TTL": "30s"}));
    assert_eq!(check([("SERVICE_CHECK_INTERVAL", "5s")]), Value::Null);
}

#[test]
fn a_word_for_one_port_goes_before_one_for_all_and_holds_for_no_other() {
    let environment = on_host([
        ("SERVICE_NAME", "web"),
        ("SERVICE_ZONE", "a"),
        ("SERVICE_81_ZONE", "b"),
        ("SERVICE_081_RACK", "7"),
        ("SERVICE_99_ZONE", "c"),
    ])
    .port(80)
    .port(81);
    let told = services(&environment);
    assert_eq!(told[0]["Meta"], json!({"zone": "a"}));
    assert_eq!(told[1]["Meta"], json!({"zone": "b", "rack": "7"}));
    assert_eq!(told.len(), 2);
}

#[test]
fn what_is_ignored_is_not_registered() {
    let named = [("SERVICE_NAME", "web"), ("SERVICE_81_IGNORE", "true")];
    let told = services(&on_host(named).port(80).port(81));
    assert_eq!(told.len(), 1);
    // As in Registrator, it still counts as one of several.
    assert_eq!(told[0]["Name"], "web-80");
    assert!(services(&on_host([("SERVICE_IGNORE", "yes")])).is_empty());
    // Empty is unset.
    let unset = on_host([("SERVICE_IGNORE", ""), ("SERVICE_NAME", "web")]);
    assert_eq!(services(&unset.port(80)).len(), 1);
}

#[test]
fn explicit_takes_only_what_is_named() {
    let environment = on_host([("SERVICE_81_NAME", "admin")]).name("web");
    let both = services(&environment.clone().port(80).port(81));
    assert_eq!(both.len(), 2);
    let told = services(&environment.port(80).port(81).explicit());
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["Name"], "admin");
}

#[test]
fn udp_is_told_by_a_tag_and_by_the_id() {
    let told = services(&on_host([("SERVICE_NAME", "dns")]).port(53).udp_port(53));
    assert_eq!(told[0]["ID"], "hostname:dns-53:53");
    assert_eq!(told[1]["ID"], "hostname:dns-53:53:udp");
    assert_eq!(told[1]["Tags"], json!(["udp"]));
}

#[test]
fn tags_keep_their_order_and_empty_ones_are_left_out() {
    let cases = [
        ("a,b,c", vec!["a", "b", "c"]),
        (",a,,b,", vec!["a", "b"]),
        (r"a\,b,c\d,\,", vec!["a,b", r"c\d", ","]),
        (r"back\", vec![r"back\"]),
        ("ä,漢", vec!["ä", "漢"]),
        (",", vec![]),
    ];
    for (list, wanted) in cases {
        assert_eq!(registrator::tags(list), wanted, "{list}");
    }
}

#[test]
fn the_address_is_the_nearest_that_is_known() {
    let bound = "10.0.0.9:80".parse().unwrap();
    let address = |environment: Environment| {
        let told = services(&environment.name("web").listener(bound));
        told[0]["Address"].as_str().map(str::to_owned)
    };
    let of = |vars: &[(&'static str, &'static str)]| Environment::of(vars.iter().copied());
    assert_eq!(address(of(&[])).unwrap(), "10.0.0.9");
    let pod = [
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("POD_IP", "10.1.2.3"),
    ];
    assert_eq!(address(of(&pod)).unwrap(), "10.1.2.3");
    assert_eq!(address(of(&pod).advertise("10.5.5.5")).unwrap(), "10.5.5.5");
    let said = [("SERVICE_IP", "10.7.7.7"), ("POD_IP", "10.1.2.3")];
    assert_eq!(
        address(of(&said).advertise("10.5.5.5")).unwrap(),
        "10.7.7.7"
    );
    let said = [("SERVICE_IP", "10.7.7.7"), ("SERVICE_80_IP", "10.8.8.8")];
    assert_eq!(address(of(&said)).unwrap(), "10.8.8.8");

    let everywhere = Environment::of([("SERVICE_CHECK_TCP", "1")]);
    let told = services(
        &everywhere
            .name("web")
            .listener("0.0.0.0:80".parse().unwrap()),
    );
    assert!(told[0].get("Address").is_none());
    // The agent is on the node whose address it is.
    assert_eq!(told[0]["Checks"][0]["TCP"], "127.0.0.1:80");

    let six = Environment::of([("SERVICE_CHECK_TCP", "1")]);
    let told = services(
        &six.name("web")
            .listener("[2001:db8::1]:80".parse().unwrap()),
    );
    assert_eq!(told[0]["Address"], "2001:db8::1");
    assert_eq!(told[0]["Checks"][0]["TCP"], "[2001:db8::1]:80");
}

#[test]
fn nomad_tells_ports_by_their_labels() {
    let environment = Environment::of([
        ("NOMAD_ALLOC_ID", "9f2c"),
        ("NOMAD_PORT_http", "8080"),
        ("NOMAD_HOST_PORT_http", "23456"),
        ("NOMAD_HOST_IP_http", "10.0.0.4"),
        ("NOMAD_PORT_admin", "9000"),
        ("NOMAD_IP_admin", "10.0.0.5"),
        ("SERVICE_NAME", "web"),
        ("SERVICE_9000_NAME", "web-admin"),
    ]);
    let told = services(&environment.clone().port(8080).port(9000));
    assert_eq!(
        told,
        [
            json!({
                "ID": "9f2c:web-8080:8080", "Name": "web-8080", "Port": 23456,
                "Address": "10.0.0.4",
            }),
            json!({
                "ID": "9f2c:web-admin:9000", "Name": "web-admin", "Port": 9000,
                "Address": "10.0.0.5",
            }),
        ]
    );
    // Ports that variables of the service name go before those of the platform.
    assert_eq!(services(&environment)[0]["Port"], 9000);
}

#[test]
fn marathon_tells_how_ports_are_published() {
    let bridged = Environment::of([
        ("MESOS_TASK_ID", "web.1"),
        ("HOST", "agent-3.example"),
        ("PORT", "31500"),
        ("PORT0", "31500"),
        ("PORT_8080", "31500"),
        ("SERVICE_NAME", "web"),
    ]);
    assert_eq!(
        services(&bridged),
        [json!({
            "ID": "web.1:web:8080", "Name": "web", "Port": 31500,
            "Address": "agent-3.example",
        })]
    );
    let own = Environment::of([
        ("MARATHON_APP_ID", "/web"),
        ("HOST", "10.0.0.3"),
        ("PORT0", "31500"),
        ("PORT1", "31501"),
    ]);
    let told = services(&own.name("web").host("h"));
    assert_eq!(
        (&told[0]["Port"], &told[1]["Port"]),
        (&json!(31500), &json!(31501))
    );
    // Elsewhere these variables are somebody else's.
    let elsewhere = Environment::of([("HOST", "10.0.0.3"), ("PORT0", "31500")]);
    assert!(error(&elsewhere.name("web")).contains("no port"));
}

#[test]
fn kubernetes_tells_the_pod() {
    let environment = Environment::of([
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("POD_IP", "10.1.2.3"),
        ("POD_NAME", "web-7d4b9-x2x1z"),
        ("HOSTNAME", "web-7d4b9-x2x1z"),
    ]);
    assert_eq!(
        services(&environment.name("web").port(8080)),
        [json!({
            "ID": "web-7d4b9-x2x1z:web:8080", "Name": "web", "Port": 8080,
            "Address": "10.1.2.3",
        })]
    );
}

#[test]
fn bad_variables_are_named_with_what_would_be_right() {
    let web = |key, value| on_host([(key, value)]).name("web").port(80);
    let cases = [
        (
            web("SERVICE_CHECK_TTL", "30"),
            "SERVICE_CHECK_TTL: missing unit",
        ),
        (
            web("SERVICE_80_CHECK_TTL", "soon"),
            "SERVICE_80_CHECK_TTL: invalid duration",
        ),
        (web("SERVICE_CHECK_TTL", "-5s"), "negative duration"),
        (web("SERVICE_CHECK_TTL", "1ms"), "at least 100 ms"),
        (
            web("SERVICE_CHECK_INTERVALL", "1s"),
            "SERVICE_CHECK_INTERVALL \"1s\": no such setting of a check; there are CHECK_HTTP",
        ),
        (web("SERVICE_CHECK_TCP", "false"), "any value means yes"),
        (web("SERVICE_IGNORE", "No"), "any value means yes"),
        (
            web("SERVICE_70000_NAME", "x"),
            "SERVICE_70000_NAME: port \"70000\"",
        ),
        (web("SERVICE_0_NAME", "x"), "from 1 to 65535"),
        (
            web("SERVICE_PORT", "tcp://10.0.0.1:80"),
            "SERVICE_PORT: port \"tcp://10.0.0.1:80\"",
        ),
        (
            web("SERVICE_CHECK_CMD", "/check.sh"),
            "SERVICE_CHECK_CMD \"/check.sh\": needs the ID of the container, and the host name \
             \"hostname\" is not one",
        ),
        (web("SERVICE_Ü", "x"), "SERVICE_Ü: metadata"),
        (
            web("SERVICE_80_CONSUL-X", "x"),
            "SERVICE_80_CONSUL-X: metadata \"consul-x\": keys that begin with",
        ),
        (
            web("SERVICE_NAME", "a//b"),
            "SERVICE_NAME: service name \"a//b\": must not contain `//`",
        ),
        (
            web("SERVICE_80_NAME", "/a"),
            "SERVICE_80_NAME: service name \"/a\": must not begin with `/`",
        ),
        (
            web("SERVICE_ID", "50%"),
            "SERVICE_ID: ID \"50%\": must not contain `%`",
        ),
        (
            web("SERVICE_80_ID", "../x"),
            "SERVICE_80_ID: service ID \"../x\": must not have",
        ),
        (
            web("SERVICE_80_IP", "10.0.0.1:80"),
            "SERVICE_80_IP \"10.0.0.1:80\": must not contain the port",
        ),
        (
            web("SERVICE_80_IP", "0.0.0.0"),
            "SERVICE_80_IP \"0.0.0.0\": nobody can connect to it; leave it out",
        ),
        (
            web("SERVICE_80_IP", "http://a"),
            "SERVICE_80_IP \"http://a\": must be an IP address or a name",
        ),
        (
            Environment::of([("MESOS_TASK_ID", "a"), ("HOST", "a b"), ("PORT0", "80")]).name("web"),
            "HOST \"a b\": must be an IP address or a name",
        ),
        (on_host([]).port(80), "SERVICE_80_NAME"),
        (on_host([]).name("web"), "no port"),
        (on_host([]).name("web").port(0), "port 0"),
        (
            on_host([("SERVICE_PORT", "1")])
                .name("web")
                .port(80)
                .port(81),
            "SERVICE_80_PORT",
        ),
    ];
    for (environment, wanted) in cases {
        let told = error(&environment);
        assert!(told.contains(wanted), "{wanted}: {told}");
        assert!(
            told.starts_with("invalid configuration: ") || wanted == "port 0",
            "{told}"
        );
    }
    let status = on_host([
        ("SERVICE_CHECK_INITIAL_STATUS", "good"),
        ("SERVICE_CHECK_TCP", "1"),
    ]);
    let told = error(&status.name("web").port(80));
    assert!(told.contains("passing, warning or critical"), "{told}");
}

#[test]
fn a_check_that_could_never_pass_is_refused_by_its_variable() {
    for (check, value, wanted) in [
        ("SERVICE_CHECK_HTTP", "health", "must begin with `/`"),
        (
            "SERVICE_CHECK_HTTP",
            "http://x/health",
            "must begin with `/`",
        ),
        ("SERVICE_80_CHECK_HTTPS", "health", "must begin with `/`"),
        ("SERVICE_CHECK_HTTP", "/a b", "escaped as in a URL"),
        ("SERVICE_CHECK_HTTP_METHOD", "GET IT", "no HTTP method"),
        ("SERVICE_CHECK_INTERVAL", "0s", "at least 1 s"),
        ("SERVICE_CHECK_INTERVAL", "999ms", "at least 1 s"),
        ("SERVICE_80_CHECK_TIMEOUT", "0s", "above zero"),
        ("SERVICE_CHECK_DEREGISTER_AFTER", "59s", "at least 1 min"),
        ("SERVICE_CHECK_DEREGISTER_AFTER", "soon", "such as `15s`"),
    ] {
        let other = match check {
            "SERVICE_CHECK_HTTP" | "SERVICE_80_CHECK_HTTPS" => ("SERVICE_CHECK_TIMEOUT", "1s"),
            _ => ("SERVICE_CHECK_HTTP", "/health"),
        };
        let environment = on_host([("SERVICE_NAME", "web"), (check, value), other]);
        let told = error(&environment.port(80));
        assert!(told.contains(check) && told.contains(wanted), "{told}");
        assert!(told.contains(&format!("{value:?}")), "{told}");
        assert!(told.starts_with("invalid configuration: "), "{told}");
    }
}

/// Which variables are told to have no effect, with why.
fn unused<const N: usize>(vars: [(&'static str, &'static str); N], ports: &[u16]) -> Vec<String> {
    let ports: BTreeSet<u16> = ports.iter().copied().collect();
    let words = Environment::of(vars).words;
    let unused = words.unused(&ports, &ports);
    unused.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_known_and_has_no_effect_is_told_once_with_the_reason() {
    assert_eq!(
        unused(
            [
                ("SERVICE_NAME", "web"),
                ("SERVICE_99_NAME", "admin"),
                ("SERVICE_99_CHECK_INTERVALL", "1s"),
            ],
            &[80, 81],
        ),
        [
            "SERVICE_99_CHECK_INTERVALL has no effect: no service is on port 99, only on 80, 81",
            "SERVICE_99_NAME has no effect: no service is on port 99, only on 80, 81",
        ]
    );
    assert_eq!(
        unused([("SERVICE_CHECK_INTERVAL", "5s")], &[80, 81]),
        [
            "SERVICE_CHECK_INTERVAL has no effect: the service on port 80 has no check: ask for \
             one, such as by SERVICE_CHECK_HTTP"
        ]
    );
    assert_eq!(
        unused(
            [
                ("SERVICE_CHECK_TTL", "5s"),
                ("SERVICE_CHECK_TCP", "yes"),
                ("SERVICE_CHECK_TIMEOUT", "5s"),
                ("SERVICE_CHECK_DEREGISTER_AFTER", "5m"),
            ],
            &[80],
        ),
        ["TCP", "TIMEOUT"].map(|word| format!(
            "SERVICE_CHECK_{word} has no effect: the check of the service on port 80 is a TTL one, \
             which has no use for it"
        ))
    );
    let skips = unused(
        [
            ("SERVICE_CHECK_GRPC", "yes"),
            ("SERVICE_CHECK_TLS_SKIP_VERIFY", "yes"),
            ("SERVICE_CHECK_HTTP_METHOD", "HEAD"),
        ],
        &[80],
    );
    assert_eq!(skips.len(), 2, "{skips:?}");
}

#[test]
fn what_has_an_effect_on_one_service_is_not_told() {
    let vars = [
        ("SERVICE_NAME", "web"),
        ("SERVICE_80_NAME", "admin"),
        ("SERVICE_REGION", "us2"),
        ("SERVICE_CHECK_HTTP", "/health"),
        ("SERVICE_CHECK_TIMEOUT", "5s"),
        // A TTL check has no use for the general timeout, but the others have.
        ("SERVICE_80_CHECK_TTL", "15s"),
        ("SERVICE_81_CHECK_GRPC", "yes"),
        ("SERVICE_81_CHECK_GRPC_USE_TLS", "yes"),
        ("SERVICE_81_CHECK_TLS_SKIP_VERIFY", "yes"),
    ];
    let told = unused(vars, &[80, 81, 82]);
    // HTTP counts first, on all three.
    assert_eq!(told.len(), 4, "{told:?}");
    let vars = vars
        .into_iter()
        .filter(|(name, _)| !name.ends_with("_HTTP"));
    let vars: Vec<_> = vars.chain([("SERVICE_82_CHECK_HTTP", "/health")]).collect();
    let vars: [_; 9] = vars.try_into().unwrap();
    assert!(unused(vars, &[80, 81, 82]).is_empty());
    // What is not registered has no say.
    let ports = BTreeSet::from([80, 81]);
    let words = Environment::of([("SERVICE_81_CHECK_INTERVAL", "5s")]).words;
    assert!(words.unused(&ports, &BTreeSet::from([80])).is_empty());
    assert_eq!(words.unused(&ports, &ports).len(), 1);
}

#[test]
fn two_services_of_one_id_are_refused() {
    let environment = on_host([("SERVICE_NAME", "web"), ("SERVICE_ID", "one")]);
    let told = error(&environment.port(80).port(81));
    assert!(
        told.contains("ports 80 and 81") && told.contains("SERVICE_<port>_ID"),
        "{told}"
    );
}

#[test]
fn only_variables_that_mean_something_are_read() {
    let odd = OsString::from("x");
    let all = [
        ("PATH", "/bin"),
        ("SERVICE_NAME", "web"),
        ("PORTAL", "x"),
        ("PORT0", "1"),
    ];
    let all = all.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let environment = Environment::from_vars(all.into_iter().chain([(odd.clone(), odd)])).unwrap();
    let told = services(&environment.host("h").port(80));
    assert_eq!(told, [json!({"ID": "h:web:80", "Name": "web", "Port": 80})]);
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_refused_by_its_name() {
    use std::os::unix::ffi::OsStringExt;

    let vars = [("SERVICE_NAME".into(), OsString::from_vec(vec![0xff]))];
    let error = Environment::from_vars(vars.into_iter()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("SERVICE_NAME"), "{error}");
}
