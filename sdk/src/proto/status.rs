//! What an error answer means: status and text together.
//!
//! Consul up to 1.11 answers 500 for most things that later versions answer with 404, and tells
//! them apart by text only. The texts are Consul's own, from 1.8.7 (measured) to 1.21 (its source).

use http::StatusCode;

use crate::error::ErrorKind;

/// The kind of failure that a status other than success tells.
pub(crate) fn kind(status: StatusCode, body: &str) -> ErrorKind {
    match status.as_u16() {
        300..=399 => ErrorKind::Redirect,
        401 => ErrorKind::PermissionDenied,
        403 => denied(body),
        404 => missing(body),
        405 | 501 => ErrorKind::Unsupported,
        409 => ErrorKind::Conflict,
        413 => ErrorKind::RequestTooLarge,
        429 => ErrorKind::RateLimited,
        503 if has(body, &["rate limit", "try again later"]) => ErrorKind::RateLimited,
        502..=504 => ErrorKind::NoLeader,
        500..=599 => server(body),
        _ => ErrorKind::Refused,
    }
}

fn denied(body: &str) -> ErrorKind {
    if has(body, &["ACL not found", "token does not exist"]) {
        ErrorKind::UnknownToken
    } else {
        ErrorKind::PermissionDenied
    }
}

fn missing(body: &str) -> ErrorKind {
    // `Unknown check ID "x". Ensure that the check ID is passed, not the check name.` (1.12)
    if has(body, &["Unknown check"]) {
        ErrorKind::UnknownCheck
    } else if has(
        body,
        &[
            "Unknown service",
            "unknown service ID",
            "No service registered with ID",
        ],
    ) {
        ErrorKind::UnknownService
    } else if body.starts_with("Session id ") {
        // `Session id '…' not found` (session renewal)
        ErrorKind::UnknownSession
    } else if has(
        body,
        &[
            "Invalid URL path: not a recognized HTTP API endpoint",
            "404 page not found",
        ],
    ) {
        // 1.11 and Go's own text.
        ErrorKind::Unsupported
    } else {
        ErrorKind::NotFound
    }
}

fn server(body: &str) -> ErrorKind {
    if has(body, &["does not have associated TTL", "Unknown check"]) {
        ErrorKind::UnknownCheck
    } else if has(body, &["Unknown service"]) {
        ErrorKind::UnknownService
    } else if has(
        body,
        &[
            "invalid session",
            "missing session",
            "Invalid session",
            "failed session lookup: index error", // an ID that is no UUID
        ],
    ) {
        ErrorKind::UnknownSession
    } else if has(
        body,
        &[
            "Cannot modify non-existent prepared query",
            "failed prepared query lookup: index error", // an ID that is no UUID
        ],
    ) {
        ErrorKind::NotFound
    } else if has(
        body,
        &[
            "aliases an existing query", // `… name` or `… ID`
            "a query template with an empty name already exists",
        ],
    ) {
        ErrorKind::Conflict
    } else if has(body, &["user event exceeds "]) {
        // `… configured limit of 512 bytes before encoding`, and the same after encoding
        ErrorKind::RequestTooLarge
    } else if has(body, &["ACL not found"]) {
        ErrorKind::UnknownToken
    } else if has(body, &["Permission denied"]) {
        ErrorKind::PermissionDenied
    } else if has(body, &["No path to datacenter"]) {
        ErrorKind::UnknownDatacenter
    } else if has(
        body,
        &[
            "No cluster leader",
            "No known Consul servers",
            "Not ready to serve consistent reads",
            "Raft leader not found",
            "leadership lost",
            "node is not the leader",
            "rpc error making call",
            "rpc error getting client",
            "context canceled",
            "context deadline exceeded",
        ],
    ) {
        // A server that cannot forward a call wraps the cause: what is permanent was told apart above.
        if refused(body) {
            ErrorKind::Refused
        } else {
            ErrorKind::NoLeader
        }
    } else if refused(body) {
        ErrorKind::Refused
    } else if has(body, &["rate limit"]) {
        ErrorKind::RateLimited
    } else {
        ErrorKind::Server
    }
}

/// Whether a 500 says that the request itself is wrong, so that repeating it is of no use.
fn refused(body: &str) -> bool {
    has(
        body,
        &[
            "Failed to create boolean expression evaluator", // filter (go-bexpr) of 1.5 and later
            "no match found, expected",                      // filter that does not parse
            "is not selectable",
            "Selector ",
            "strconv.",
            "Invalid Session TTL",
            "Invalid Behavior",
            "Bad node ID",
            "Missing node registration",
            "registration", // `Missing check 'x' registration`
            "is in critical state",
            "Must provide",
            "Invalid service",
            "Invalid check",
            "Scripts are disabled",
            "is not allowed",
            "Value must be",
            "Invalid prepared query",
            "failed compiling template", // of a prepared query
            "prepared query templates can only be resolved",
            "ID must be empty when creating",
            "tag filter without service filter", // of an event
            "Invalid node filter",
            "Invalid tag filter",
        ],
    )
}

fn has(body: &str, texts: &[&str]) -> bool {
    texts.iter().any(|text| body.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_consul_mean_the_same() {
        for (status, body, expected) in [
            (
                500,
                r#"CheckID "x" does not have associated TTL"#,
                ErrorKind::UnknownCheck,
            ),
            (500, r#"Unknown check "x""#, ErrorKind::UnknownCheck),
            (
                404,
                r#"Unknown check ID "x". Ensure that the check ID is passed, not the check name."#,
                ErrorKind::UnknownCheck,
            ),
            (
                500,
                r#"Unknown service {"x" {}}"#,
                ErrorKind::UnknownService,
            ),
            (404, r#"Unknown service ID "x"."#, ErrorKind::UnknownService),
            (404, "unknown service ID: x", ErrorKind::UnknownService),
            (404, "Session id 'a-b' not found", ErrorKind::UnknownSession),
            (500, r#"invalid session "a""#, ErrorKind::UnknownSession),
            (
                500,
                "rpc error making call: invalid session \"a\"",
                ErrorKind::UnknownSession,
            ),
            (
                500,
                "failed session lookup: index error: UUID must be 36 characters",
                ErrorKind::UnknownSession,
            ),
            (
                500,
                "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]",
                ErrorKind::Refused,
            ),
            (
                500,
                "Missing check 'serfHealth' registration",
                ErrorKind::Refused,
            ),
            (500, "No cluster leader", ErrorKind::NoLeader),
            (
                500,
                "rpc error making call: No cluster leader",
                ErrorKind::NoLeader,
            ),
            (500, "rpc error making call: EOF", ErrorKind::NoLeader),
            (500, "No known Consul servers", ErrorKind::NoLeader),
            (403, "Permission denied", ErrorKind::PermissionDenied),
            (
                403,
                "rpc error making call: ACL not found",
                ErrorKind::UnknownToken,
            ),
            (
                500,
                "rpc error making call: Permission denied",
                ErrorKind::PermissionDenied,
            ),
            (
                429,
                "Your IP is issuing too many concurrent connections",
                ErrorKind::RateLimited,
            ),
            (
                503,
                "rate limit exceeded for operation that can only be performed by the leader, try again later",
                ErrorKind::RateLimited,
            ),
            (500, "No path to datacenter", ErrorKind::UnknownDatacenter),
            (
                500,
                "name 'web' aliases an existing query name",
                ErrorKind::Conflict,
            ),
            (
                500,
                "rpc error making call: name 'web' aliases an existing query ID",
                ErrorKind::Conflict,
            ),
            (
                500,
                "a query template with an empty name already exists",
                ErrorKind::Conflict,
            ),
            (
                500,
                "rpc error making call: Cannot modify non-existent prepared query: 'a-b'",
                ErrorKind::NotFound,
            ),
            (
                500,
                "Prepared Query lookup failed: failed prepared query lookup: index error: UUID must be 36 characters",
                ErrorKind::NotFound,
            ),
            (
                500,
                "Invalid prepared query: Must be bound to a session",
                ErrorKind::Refused,
            ),
            (
                500,
                "rpc error making call: Invalid prepared query: Bad NearestN '-1', must be >= 0",
                ErrorKind::Refused,
            ),
            (
                500,
                "Invalid prepared query: Couldn't load metadata pair ('', 'x'): Key cannot be blank",
                ErrorKind::Refused,
            ),
            (
                500,
                "failed compiling template: Bad Regexp: error parsing regexp: missing closing ): `(`",
                ErrorKind::Refused,
            ),
            (
                500,
                "prepared query templates can only be resolved up by name, not by ID",
                ErrorKind::Refused,
            ),
            (
                500,
                "ID must be empty when creating a new prepared query",
                ErrorKind::Refused,
            ),
            (
                500,
                "Cannot provide tag filter without service filter",
                ErrorKind::Refused,
            ),
            (
                500,
                "Invalid node filter: error parsing regexp: missing closing ): `(`",
                ErrorKind::Refused,
            ),
            (
                500,
                "Invalid service filter: error parsing regexp: missing closing ): `(`",
                ErrorKind::Refused,
            ),
            (
                500,
                "Invalid tag filter: error parsing regexp: missing closing ): `(`",
                ErrorKind::Refused,
            ),
            (
                500,
                "1 error occurred:\n\t* error broadcasting event to segment \"\": user event exceeds configured limit of 512 bytes before encoding\n\n",
                ErrorKind::RequestTooLarge,
            ),
            (
                500,
                "1 error occurred:\n\t* error broadcasting event to segment \"\": encoded user event exceeds configured limit of 512 bytes after encoding\n\n",
                ErrorKind::RequestTooLarge,
            ),
            (
                500,
                "Failed to create boolean expression evaluator: 1:1 (0): no match found",
                ErrorKind::Refused,
            ),
            (400, "Invalid index", ErrorKind::Refused),
            (405, "method POST not allowed", ErrorKind::Unsupported),
            (413, "Request body too large", ErrorKind::RequestTooLarge),
            (404, "", ErrorKind::NotFound),
            (301, "", ErrorKind::Redirect),
            (500, "something new", ErrorKind::Server),
            (502, "<html>bad gateway</html>", ErrorKind::NoLeader),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(kind(status, body), expected, "{status} {body}");
        }
    }
}
