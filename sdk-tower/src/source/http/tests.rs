use super::*;

const PLAIN: Instance<'_> = Instance {
    address: "10.0.0.1",
    port: 80,
    health: Health::Passing,
    weight: 7,
};

fn shown(instance: &Instance<'_>) -> String {
    let endpoint = instance.endpoint().unwrap().unwrap();
    assert_eq!(endpoint.priority(), 1);
    format!("{} {}", endpoint.target(), endpoint.weight())
}

#[test]
fn an_instance_is_called_at_its_address_with_the_weight_of_its_state() {
    for (address, wanted) in [
        ("10.0.0.1", "10.0.0.1:80 7"),
        ("2001:db8::1", "[2001:db8::1]:80 7"),
        ("::ffff:10.0.0.9", "10.0.0.9:80 7"),
        ("Web-1.Example.com", "web-1.example.com:80 7"),
    ] {
        assert_eq!(shown(&Instance { address, ..PLAIN }), wanted);
    }
    let warning = Instance {
        health: Health::Warning,
        weight: 0,
        ..PLAIN
    };
    assert_eq!(shown(&warning), "10.0.0.1:80 0");
}

#[test]
fn an_instance_that_is_out_is_nobody_even_if_its_address_is_nonsense() {
    for health in [Health::Critical, Health::Maintenance, Health::Unknown] {
        let out = Instance {
            health,
            port: 0,
            ..PLAIN
        };
        assert_eq!(out.endpoint(), Ok(None), "{health:?}");
    }
}

#[test]
fn nonsense_is_nobody_and_says_why() {
    for (address, port, says) in [
        ("10.0.0.1", 0, "port 0"),
        ("0.0.0.0", 80, "one host"),
        ("::", 80, "one host"),
        ("224.0.0.1", 80, "many hosts"),
        ("http://10.0.0.1", 80, "not a DNS name"),
        ("10.0.0.1:80", 80, "not a DNS name"),
        ("[::1]", 80, "not a DNS name"),
        ("my host", 80, "not a DNS name"),
        ("10.0.0", 80, "number"),
        (" ", 80, "not a DNS name"),
        ("", 80, "empty"),
    ] {
        let instance = Instance {
            address,
            port,
            ..PLAIN
        };
        let why = instance.endpoint().unwrap_err();
        assert!(why.contains(says), "{address:?}:{port}: {why}");
    }
}

#[test]
fn critical_instances_are_told_where_too_few_are_well_but_not_where_nobody_is() {
    assert!(are_needed(1, 9, 0.5));
    assert!(are_needed(4, 6, 0.5));
    assert!(!are_needed(5, 5, 0.5));
    assert!(!are_needed(0, 10, 0.5));
    assert!(!are_needed(1, 9, 0.0));
    assert!(!are_needed(10, 0, 1.0));
    assert!(!are_needed(0, 0, 1.0));
}

#[test]
fn a_critical_instance_is_a_last_resort_and_one_in_maintenance_is_none() {
    let with = |health, port| {
        let instance = Instance {
            health,
            port,
            ..PLAIN
        };
        instance.last_resort().map(|endpoint| endpoint.priority())
    };
    assert_eq!(with(Health::Critical, 80), Some(u16::MAX));
    assert_eq!(with(Health::Critical, 0), None);
    assert_eq!(with(Health::Maintenance, 80), None);
    assert_eq!(with(Health::Unknown, 80), None);
}
