//! Answers, and how they are written.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, VARY};
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::ser::PrettyFormatter;

/// An answer with its whole body.
pub(super) type Reply = Response<Bytes>;

/// A refusal on the way to an answer.
///
/// Boxed because it is rare and an answer is large.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Box<Reply>);

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(Box::new(text_reply(status, text)))
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn internal(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

/// Whether JSON is written for people.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Layout {
    Compact,
    Pretty,
}

pub(super) fn text_reply(status: StatusCode, text: impl Into<String>) -> Reply {
    let mut reply = empty(status);
    *reply.body_mut() = Bytes::from(text.into());
    reply.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    reply
}

pub(super) fn empty(status: StatusCode) -> Reply {
    let mut reply = bare(status);
    reply
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    reply
}

/// Without the `Vary` that every known endpoint sends.
pub(super) fn bare(status: StatusCode) -> Reply {
    let mut reply = Response::new(Bytes::new());
    *reply.status_mut() = status;
    reply
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T, layout: Layout) -> Reply {
    let written = match layout {
        Layout::Compact => serde_json::to_vec(value),
        Layout::Pretty => pretty(value),
    };
    match written {
        Ok(body) => {
            let mut reply = empty(StatusCode::OK);
            *reply.body_mut() = Bytes::from(body);
            reply
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            reply
        }
        Err(error) => text_reply(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn pretty<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut body, formatter,
    ))?;
    body.push(b'\n');
    Ok(body)
}

pub(super) fn redirect(to: &str, with_body: bool) -> Reply {
    let mut reply = bare(StatusCode::MOVED_PERMANENTLY);
    if let Ok(location) = HeaderValue::from_str(to) {
        reply.headers_mut().insert(LOCATION, location);
    }
    if with_body {
        let shown = to
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&#34;");
        *reply.body_mut() = Bytes::from(format!("<a href=\"{shown}\">Moved Permanently</a>.\n\n"));
        reply.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
    }
    reply
}

pub(super) fn allow(mut reply: Reply, methods: &str) -> Reply {
    if let Ok(methods) = HeaderValue::from_str(methods) {
        reply.headers_mut().insert(ALLOW, methods);
    }
    reply
}

/// Sets a header whose value may hold what a header cannot; such a value is left out.
pub(super) fn set(reply: &mut Reply, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
}
