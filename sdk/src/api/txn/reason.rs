//! What the text of a failure means.
//!
//! The texts are Consul's own, from 1.8.7 (measured) to 1.21 (its source). Names within them are
//! the caller's and may hold anything, so texts are told by how they begin and end.

use super::FailureReason;
use crate::ident::SessionId;

pub(super) fn of(text: &str) -> FailureReason {
    if text.starts_with("failed to lock key ") {
        return match text {
            _ if text.ends_with(" due to lock delay") => FailureReason::LockDelay,
            _ if text.ends_with(", lock is already held") => FailureReason::LockHeld,
            _ => FailureReason::Other,
        };
    }
    if text.starts_with("failed to unlock key ") {
        return FailureReason::NotHeld;
    }
    if text.starts_with("failed session check for key ") {
        return other_session(text);
    }
    if text.starts_with("failed index check for key ") {
        return other_index(text);
    }
    if text.ends_with(", index is stale") {
        // `failed to set key "…", index is stale`; nodes, services and checks alike.
        return FailureReason::OtherIndex { current: None };
    }
    if text.starts_with("invalid session ")
        || text.starts_with("failed session lookup: index error")
        || text == "missing session"
    {
        return FailureReason::UnknownSession;
    }
    // From 1.12 on it is followed by who lacks which right.
    if text.starts_with("Permission denied") {
        return FailureReason::PermissionDenied;
    }
    if text.starts_with("key ") && text.ends_with(" exists") {
        return FailureReason::Exists;
    }
    if text.ends_with(" doesn't exist")
        || text == "Missing node registration"
        || text == "Missing service registration"
    {
        return FailureReason::Missing;
    }
    if text.starts_with("unknown KV verb ")
        || text.starts_with("unknown Node verb ")
        || text.starts_with("unknown Service verb ")
        || text.starts_with("unknown Check verb ")
    {
        return FailureReason::Unsupported;
    }
    FailureReason::Other
}

/// `failed session check for key "k", current session "a" != "b"`.
fn other_session(text: &str) -> FailureReason {
    let quoted = |id: &str| {
        let id = id.strip_prefix('"')?.strip_suffix('"')?;
        // Consul writes an empty ID for none.
        SessionId::new(id).ok()
    };
    let Some((before, expected)) = text.rsplit_once(" != ") else {
        return FailureReason::OtherSession {
            current: None,
            expected: None,
        };
    };
    let current = before.rsplit_once(", current session ");
    FailureReason::OtherSession {
        current: current.and_then(|(_, current)| quoted(current)),
        expected: quoted(expected),
    }
}

/// `failed index check for key "k", current modify index 47 != 3`.
fn other_index(text: &str) -> FailureReason {
    let current = text
        .rsplit_once(" != ")
        .and_then(|(before, _)| before.rsplit_once(", current modify index "))
        .and_then(|(_, current)| current.parse().ok());
    FailureReason::OtherIndex { current }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_consul_has_its_reason() {
        let session = |id| SessionId::new(id).ok();
        for (text, reason) in [
            (
                r#"failed to lock key "k", lock is already held"#,
                FailureReason::LockHeld,
            ),
            (
                r#"failed to lock key "k" due to lock delay"#,
                FailureReason::LockDelay,
            ),
            (
                r#"invalid session "00000000-0000-0000-0000-000000000000""#,
                FailureReason::UnknownSession,
            ),
            (
                "failed session lookup: index error: UUID must be 36 characters",
                FailureReason::UnknownSession,
            ),
            ("missing session", FailureReason::UnknownSession),
            (
                r#"failed session check for key "k", current session "a" != "b""#,
                FailureReason::OtherSession {
                    current: session("a"),
                    expected: session("b"),
                },
            ),
            (
                r#"failed session check for key "k", current session "" != "b""#,
                FailureReason::OtherSession {
                    current: None,
                    expected: session("b"),
                },
            ),
            (
                r#"failed index check for key "k", current modify index 47 != 3"#,
                FailureReason::OtherIndex { current: Some(47) },
            ),
            (
                r#"failed to set key "k", index is stale"#,
                FailureReason::OtherIndex { current: None },
            ),
            (
                r#"failed to delete service "web" on node "n", index is stale"#,
                FailureReason::OtherIndex { current: None },
            ),
            (r#"key "k" exists"#, FailureReason::Exists),
            (r#"key "k" doesn't exist"#, FailureReason::Missing),
            (
                r#"failed to check session, key "k" doesn't exist"#,
                FailureReason::Missing,
            ),
            (
                r#"failed to check index, key "k" doesn't exist"#,
                FailureReason::Missing,
            ),
            (
                r#"check "c" on node "n" doesn't exist"#,
                FailureReason::Missing,
            ),
            ("Missing node registration", FailureReason::Missing),
            ("Missing service registration", FailureReason::Missing),
            (
                r#"failed to unlock key "k", lock isn't held, or is held by another session"#,
                FailureReason::NotHeld,
            ),
            ("Permission denied", FailureReason::PermissionDenied),
            (
                "Permission denied: token with AccessorID 'x' lacks permission 'key:write' on \"k\"",
                FailureReason::PermissionDenied,
            ),
            (
                r#"unknown KV verb "get-or-empty""#,
                FailureReason::Unsupported,
            ),
            ("Must provide key", FailureReason::Other),
            (
                "Bad node ID: uuid string is wrong length",
                FailureReason::Other,
            ),
        ] {
            assert_eq!(of(text), reason, "{text}");
        }
    }

    #[test]
    fn a_key_cannot_pass_for_a_reason() {
        let mean = r#"a\" due to lock delay"#;
        let text = format!("failed to lock key \"{mean}\", lock is already held");
        assert_eq!(of(&text), FailureReason::LockHeld);
        let mean = r#", current session \"x\" != \"y\""#;
        let text =
            format!("failed session check for key \"{mean}\", current session \"a\" != \"b\"");
        let FailureReason::OtherSession { current, expected } = of(&text) else {
            panic!("{text}");
        };
        assert_eq!(current.unwrap(), "a");
        assert_eq!(expected.unwrap(), "b");
        let text = "failed index check for key \", current modify index 1 != 2\", current modify \
                    index 47 != 3";
        assert_eq!(of(text), FailureReason::OtherIndex { current: Some(47) });
    }
}
