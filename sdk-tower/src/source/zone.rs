//! Names that Consul's DNS makes up, told apart from names of the world outside.
//!
//! Consul answers an SRV query with one of three kinds of target (`serviceSRVRecords` in its
//! `dns.go`): `<hex>.addr.<dc>.<domain>` for an instance with an IP address of its own,
//! `<node>.node.<dc>.<domain>` for one that listens on its node's IP address, and a foreign name
//! for one whose address is a name. The first two stand for IP addresses, which is what Consul's
//! HTTP API gives for the same instances.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The DNS domain in which a query was asked, such as `consul` or `dc1.consul`.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    labels: Vec<Box<[u8]>>,
}

/// What kind of name an SRV target is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// The name spells this address.
    Address(IpAddr),
    /// The name is that of a Consul node; its address is what is meant.
    Node,
    /// A name that is meant as a name.
    Elsewhere,
}

/// The labels that stand right before `[<dc>.]<domain>` in the name of a service.
const KINDS: [&[u8]; 5] = [b"service", b"query", b"connect", b"ingress", b"virtual"];

impl Zone {
    /// The zone of a query name such as `web.service.dc1.consul` or `_web._tcp.example.com`.
    pub(super) fn of(query: &str) -> Self {
        let labels: Vec<&[u8]> = query.split('.').map(str::as_bytes).collect();
        let kind = labels
            .iter()
            .rposition(|label| KINDS.iter().any(|kind| label.eq_ignore_ascii_case(kind)))
            // Consul also serves `_web._tcp.consul`; other zones have no such label at all.
            .or_else(|| labels.iter().rposition(|label| label.starts_with(b"_")))
            .unwrap_or(0);
        Self {
            labels: labels.into_iter().skip(kind + 1).map(Box::from).collect(),
        }
    }

    /// Says what the target with these labels is, seen from this zone.
    pub(super) fn place(&self, target: &[&[u8]]) -> Place {
        let Some(kind) = target.iter().rposition(|label| {
            label.eq_ignore_ascii_case(b"addr") || label.eq_ignore_ascii_case(b"node")
        }) else {
            return Place::Elsewhere;
        };
        let (name, rest) = target.split_at(kind);
        let Some((kind, domain)) = rest.split_first() else {
            return Place::Elsewhere;
        };
        if !self.is_home(domain) {
            return Place::Elsewhere;
        }
        match (name, kind.eq_ignore_ascii_case(b"node")) {
            ([], _) => Place::Elsewhere,
            (_, true) => Place::Node,
            ([hex], false) => address(hex).map_or(Place::Elsewhere, Place::Address),
            _ => Place::Elsewhere,
        }
    }

    /// Whether `[<dc>.]<domain>` is in the Consul that was asked.
    ///
    /// A query may leave its datacenter out and a target may lie in another one (a prepared query
    /// with failover), so what is compared is the domain without the datacenter.
    fn is_home(&self, domain: &[&[u8]]) -> bool {
        let own: Vec<&[u8]> = self.labels.iter().map(AsRef::as_ref).collect();
        let own_parent = own.get(1..).unwrap_or_default();
        let parent = domain.get(1..).unwrap_or_default();
        let same = |a: &[&[u8]], b: &[&[u8]]| {
            !a.is_empty()
                && a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| a.eq_ignore_ascii_case(b))
        };
        same(&own, domain)
            || same(&own, parent)
            || same(own_parent, domain)
            || same(own_parent, parent)
    }
}

/// Reads the address that a label spells in 8 or 32 hexadecimal digits.
fn address(hex: &[u8]) -> Option<IpAddr> {
    // `from_str_radix` takes a sign.
    if !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let hex = std::str::from_utf8(hex).ok()?;
    match hex.len() {
        8 => u32::from_str_radix(hex, 16)
            .ok()
            .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        32 => u128::from_str_radix(hex, 16)
            .ok()
            .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(query: &str, target: &str) -> Place {
        let labels: Vec<&[u8]> = target.split('.').map(str::as_bytes).collect();
        Zone::of(query).place(&labels)
    }

    fn ip(text: &str) -> Place {
        Place::Address(text.parse().unwrap())
    }

    #[test]
    fn a_target_that_spells_an_address_is_that_address() {
        let query = "web.service.consul";
        assert_eq!(place(query, "0a000001.addr.dc1.consul"), ip("10.0.0.1"));
        assert_eq!(
            place(query, "FFFFFFFF.ADDR.DC1.CONSUL"),
            ip("255.255.255.255")
        );
        let v6 = "20010db8000000000000000000000001.addr.dc1.consul";
        assert_eq!(place(query, v6), ip("2001:db8::1"));
    }

    #[test]
    fn a_label_that_is_no_address_is_a_name() {
        for hex in [
            "",
            "0a00001",
            "0a0000001",
            "+a000001",
            "0a00000g",
            "-0000001",
            "0x000001",
        ] {
            let target = format!("{hex}.addr.dc1.consul");
            assert_eq!(
                place("web.service.consul", &target),
                Place::Elsewhere,
                "{hex}"
            );
        }
        let two = "x.0a000001.addr.dc1.consul";
        assert_eq!(place("web.service.consul", two), Place::Elsewhere);
        assert_eq!(
            place("web.service.consul", "addr.dc1.consul"),
            Place::Elsewhere
        );
        assert_eq!(place("web.service.consul", "node"), Place::Elsewhere);
    }

    #[test]
    fn a_node_is_known_by_its_label_whatever_the_node_is_called() {
        for target in [
            "n1.node.dc1.consul",
            "a.b.node.dc1.consul",
            "node.node.dc1.consul",
        ] {
            assert_eq!(place("web.service.consul", target), Place::Node, "{target}");
        }
        assert_eq!(place("web.service.consul", "n1.node.consul"), Place::Node);
    }

    #[test]
    fn the_datacenter_may_be_left_out_or_differ() {
        let target = "0a000001.addr.dc2.consul";
        for query in [
            "web.service.consul",
            "web.service.dc2.consul",
            "v1.web.service.dc1.consul",
            "_web._tcp.service.consul",
            "_web._v1.service.dc2.consul",
            "_web._tcp.consul",
            "_web._tcp.dc2.consul",
            "web.query.dc1.consul",
            "WEB.SERVICE.CONSUL",
            "service.service.consul",
        ] {
            assert_eq!(place(query, target), ip("10.0.0.1"), "{query}");
        }
        let long = "0a000001.addr.dc1.consul.example.com";
        assert_eq!(
            place("web.service.consul.example.com", long),
            ip("10.0.0.1")
        );
        assert_eq!(
            place("web.service.dc1.consul.example.com", long),
            ip("10.0.0.1")
        );
    }

    #[test]
    fn a_name_of_another_zone_is_a_name() {
        for (query, target) in [
            ("web.service.consul", "web-1.example.com"),
            ("web.service.consul", "0a000001.addr.dc1.example.com"),
            ("web.service.consul", "n1.node.dc1.example.com"),
            ("_web._tcp.example.com", "n1.node.dc1.consul"),
            ("_web._tcp.example.com", "web-1.example.com"),
            ("web.service.consul", ""),
            ("consul", "0a000001.addr.dc1.consul"),
        ] {
            assert_eq!(place(query, target), Place::Elsewhere, "{query} {target}");
        }
    }
}
