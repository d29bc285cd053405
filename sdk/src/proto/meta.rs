//! What the `X-Consul-*` headers of an answer say.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

/// What Consul says about an answer, beside its content.
///
/// Error answers carry made-up values (`X-Consul-Index: 1`, measured on 1.8.7), so only good
/// answers and a missing key's 404 have one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Meta {
    index: Option<u64>,
    content_hash: Option<Arc<str>>,
    last_contact: Option<Duration>,
    known_leader: Option<bool>,
    cache: Option<CacheUse>,
    backend: Option<Backend>,
    consistency: Option<EffectiveConsistency>,
    addresses_translated: bool,
    filtered_by_acls: bool,
    default_acl_policy: Option<AclPolicy>,
}

/// How the agent's cache took part in an answer (`X-Cache`, `Age`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CacheUse {
    /// Whether the answer came from the cache.
    pub hit: bool,
    /// How long the entry has been in the cache, in whole seconds as the header tells it.
    pub age: Option<Duration>,
}

/// What computed an answer inside the agent (`X-Consul-Query-Backend`, Consul 1.10 and later).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Backend {
    /// A query to a server.
    BlockingQuery,
    /// The agent's materialised view of a stream; it reports no leader and no last contact.
    Streaming,
}

/// The consistency an answer really had (`X-Consul-Effective-Consistency`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum EffectiveConsistency {
    /// Answered by the leader under its lease.
    Leader,
    /// Answered by any server.
    Stale,
    /// Answered by the leader after it asked a quorum.
    Consistent,
}

/// What applies where no ACL rule does (`X-Consul-Default-ACL-Policy`, Consul 1.9 and later).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AclPolicy {
    /// What no rule forbids is allowed.
    Allow,
    /// What no rule allows is forbidden.
    Deny,
}

impl Meta {
    /// Reads the headers of a good answer, or of the 404 that a missing key has.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap) -> Self {
        if !(status.is_success() || status == StatusCode::NOT_FOUND) {
            return Self::default();
        }
        let mut meta = Self::default();
        let mut age = None;
        let mut last = None;
        // One walk over the few headers there are is cheaper than a look-up of each that may be.
        for (name, value) in headers {
            // Of a header that comes twice the first value counts; its values follow each other.
            if last.replace(name) == Some(name) {
                continue;
            }
            let Ok(text) = value.to_str() else { continue };
            match name.as_str() {
                "x-consul-index" => meta.index = text.parse().ok(),
                "x-consul-contenthash" => meta.content_hash = Some(Arc::from(text)),
                "x-consul-lastcontact" => {
                    meta.last_contact = text.parse().ok().map(Duration::from_millis);
                }
                "x-consul-knownleader" => meta.known_leader = Some(text == "true"),
                "x-cache" => {
                    meta.cache = Some(CacheUse {
                        hit: text.eq_ignore_ascii_case("hit"),
                        age: None,
                    });
                }
                "age" => age = text.parse().ok().map(Duration::from_secs),
                "x-consul-query-backend" => {
                    meta.backend = match text {
                        "streaming" => Some(Backend::Streaming),
                        "blocking-query" => Some(Backend::BlockingQuery),
                        _ => None,
                    };
                }
                "x-consul-effective-consistency" => {
                    meta.consistency = match text {
                        "leader" => Some(EffectiveConsistency::Leader),
                        "stale" => Some(EffectiveConsistency::Stale),
                        "consistent" => Some(EffectiveConsistency::Consistent),
                        _ => None,
                    };
                }
                "x-consul-translate-addresses" => meta.addresses_translated = text == "true",
                "x-consul-results-filtered-by-acls" => meta.filtered_by_acls = text == "true",
                "x-consul-default-acl-policy" => {
                    meta.default_acl_policy = match text {
                        "allow" => Some(AclPolicy::Allow),
                        "deny" => Some(AclPolicy::Deny),
                        _ => None,
                    };
                }
                _ => {}
            }
        }
        if let Some(cache) = &mut meta.cache {
            cache.age = age;
        }
        meta
    }

    /// The index to wait for changes from (`X-Consul-Index`).
    ///
    /// Absent on endpoints that cannot block. It may exceed an `i64`, and it may go backwards.
    #[must_use]
    pub fn index(&self) -> Option<u64> {
        self.index
    }

    /// The hash to wait for changes from, on the agent's own endpoints (`X-Consul-ContentHash`).
    #[must_use]
    pub fn content_hash(&self) -> Option<&str> {
        self.content_hash.as_deref()
    }

    /// How long ago the answering server last heard of the leader (`X-Consul-LastContact`).
    ///
    /// Absent where the answer has no such thing, and meaningless, hence absent too, for
    /// [`Backend::Streaming`], which always reports zero.
    #[must_use]
    pub fn last_contact(&self) -> Option<Duration> {
        match self.backend {
            Some(Backend::Streaming) => None,
            _ => self.last_contact,
        }
    }

    /// Whether the answering server knew a leader (`X-Consul-KnownLeader`).
    ///
    /// Absent for [`Backend::Streaming`], which always reports `false`.
    #[must_use]
    pub fn known_leader(&self) -> Option<bool> {
        match self.backend {
            Some(Backend::Streaming) => None,
            _ => self.known_leader,
        }
    }

    /// How the agent's cache took part, if it was asked to.
    #[must_use]
    pub fn cache(&self) -> Option<CacheUse> {
        self.cache
    }

    /// What computed the answer inside the agent; absent before Consul 1.10.
    #[must_use]
    pub fn backend(&self) -> Option<Backend> {
        self.backend
    }

    /// The consistency the answer really had.
    #[must_use]
    pub fn effective_consistency(&self) -> Option<EffectiveConsistency> {
        self.consistency
    }

    /// Whether addresses were already replaced by those for another datacenter.
    #[must_use]
    pub fn addresses_translated(&self) -> bool {
        self.addresses_translated
    }

    /// Whether ACLs hid a part of the result (Consul 1.11 and later, authenticated requests).
    #[must_use]
    pub fn filtered_by_acls(&self) -> bool {
        self.filtered_by_acls
    }

    /// What applies where no ACL rule does; absent before Consul 1.9.
    #[must_use]
    pub fn default_acl_policy(&self) -> Option<AclPolicy> {
        self.default_acl_policy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, headers: &[(&'static str, &'static str)]) -> Meta {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        Meta::read(StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn all_headers_of_a_cached_answer_are_read() {
        let meta = read(
            200,
            &[
                ("X-Consul-Index", "18446744073709551615"),
                ("X-Consul-LastContact", "12"),
                ("X-Consul-KnownLeader", "true"),
                ("X-Cache", "HIT"),
                ("Age", "3"),
                ("X-Consul-Query-Backend", "blocking-query"),
                ("X-Consul-Effective-Consistency", "stale"),
                ("X-Consul-Default-ACL-Policy", "deny"),
                ("X-Consul-Results-Filtered-By-ACLs", "true"),
                ("X-Consul-Translate-Addresses", "true"),
                ("X-Consul-ContentHash", "ab"),
            ],
        );
        assert_eq!(meta.index(), Some(u64::MAX));
        assert_eq!(meta.last_contact(), Some(Duration::from_millis(12)));
        assert_eq!(meta.known_leader(), Some(true));
        let cache = meta.cache().unwrap();
        assert!(cache.hit);
        assert_eq!(cache.age, Some(Duration::from_secs(3)));
        assert_eq!(meta.backend(), Some(Backend::BlockingQuery));
        assert_eq!(
            meta.effective_consistency(),
            Some(EffectiveConsistency::Stale)
        );
        assert_eq!(meta.default_acl_policy(), Some(AclPolicy::Deny));
        assert!(meta.filtered_by_acls() && meta.addresses_translated());
        assert_eq!(meta.content_hash(), Some("ab"));
    }

    #[test]
    fn the_made_up_headers_of_an_error_are_not_read() {
        let meta = read(
            500,
            &[("X-Consul-Index", "1"), ("X-Consul-KnownLeader", "false")],
        );
        assert_eq!(meta, Meta::default());
    }

    #[test]
    fn a_stream_does_not_know_about_leaders() {
        let meta = read(
            200,
            &[
                ("X-Consul-KnownLeader", "false"),
                ("X-Consul-LastContact", "0"),
                ("X-Consul-Query-Backend", "streaming"),
            ],
        );
        assert_eq!(meta.known_leader(), None);
        assert_eq!(meta.last_contact(), None);
    }

    #[test]
    fn the_first_of_two_equal_headers_counts() {
        let headers = [
            ("X-Consul-Index", "7"),
            ("X-Cache", "MISS"),
            ("X-Consul-Index", "8"),
        ];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().unwrap());
        }
        assert_eq!(Meta::read(StatusCode::OK, &map).index(), Some(7));
    }

    #[test]
    fn nonsense_in_a_header_is_absence() {
        let meta = read(
            200,
            &[("X-Consul-Index", "-1"), ("X-Consul-LastContact", "x")],
        );
        assert_eq!(meta, Meta::default());
    }
}
