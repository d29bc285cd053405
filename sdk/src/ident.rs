//! Identifiers: a type for each, so that one is never taken for another.
//!
//! All of them are cheap to clone (a shared string) and compare like strings. Those that a caller
//! makes are checked when they are made; those that Consul answers with are taken as they are.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("A ", $what, " from text.")]
            ///
            /// # Errors
            ///
            /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if Consul could not be asked for it; the text says why.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self> {
                let text = text.into();
                match $check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(reason) => Err(Error::invalid(format!(
                        concat!($what, " {:?}: {}"), shortened(&text), reason
                    ))),
                }
            }

            /// As Consul writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                text::deserialize(deserializer).map(Self)
            }
        }
    };
}

identifier!(
    /// The name of a service, as clients look it up.
    ServiceName, "service name", path_like
);
identifier!(
    /// The ID of one instance of a service, unique on its agent.
    ServiceId, "service ID", path_like
);
identifier!(
    /// The ID of a check, unique on its agent.
    CheckId, "check ID", path_like
);
identifier!(
    /// The name of a node.
    NodeName, "node name", path_like
);
identifier!(
    /// The name of a datacenter.
    ///
    /// Consul takes lower-case letters, digits, `-` and `_`.
    Datacenter, "datacenter", datacenter
);
identifier!(
    /// The ID of a session.
    SessionId, "session ID", path_like
);
identifier!(
    /// The name of a user event.
    EventName, "event name", path_like
);
identifier!(
    /// The ID of a prepared query.
    QueryId, "query ID", path_like
);
identifier!(
    /// The name of a prepared query, as clients ask for it.
    QueryName, "query name", path_like
);
identifier!(
    /// A key of the KV store; `/` only separates by convention.
    ///
    /// Any UTF-8 text, except what Consul's HTTP server would answer with a redirect or refuse: a
    /// leading `/`, `//`, a `.` or `..` between slashes, and control characters.
    Key, "key", path_like
);

/// Text that stands in a URL path of Consul's.
///
/// Consul's HTTP server cleans paths before it looks at them: `//`, `/./` and `/../` are answered
/// with a redirect (measured on 1.8.7), which would turn a write into a read.
fn path_like(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("must not be empty");
    }
    if text.starts_with('/') {
        return Err("must not begin with `/`");
    }
    prefix_like(text)
}

/// Like [`path_like`], for a prefix: it may be empty and end with `/`.
pub(crate) fn prefix_like(text: &str) -> Result<(), &'static str> {
    if text.starts_with('/') {
        return Err("must not begin with `/`");
    }
    if text.contains("//") {
        return Err("must not contain `//`, which Consul answers with a redirect");
    }
    if text.split('/').any(|part| part == "." || part == "..") {
        return Err(
            "must not have `.` or `..` between slashes, which Consul answers with a redirect",
        );
    }
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters, which Consul refuses");
    }
    if text.len() > MAX_PATH {
        return Err("is longer than the 16384 bytes that fit into a request line");
    }
    Ok(())
}

/// What fits into a URL (65534 bytes in the `http` crate) with every byte escaped as three.
const MAX_PATH: usize = 16_384;

fn datacenter(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("must not be empty");
    }
    // The server refuses to start with any other name: `^[A-Za-z0-9_-]+$` (agent/config/builder.go).
    if text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    {
        Ok(())
    } else {
        Err("may hold only letters, digits, `-` and `_`")
    }
}

/// Enough of a refused text to recognise it, and not more.
pub(crate) fn shortened(text: &str) -> &str {
    match text.char_indices().nth(80) {
        Some((end, _)) => text.get(..end).unwrap_or(text),
        None => text,
    }
}

/// An ACL token's secret.
///
/// Its `Debug` prints `Token(..)`: the secret reaches Consul and nothing else.
#[derive(Clone, Eq, PartialEq)]
pub struct Token(Arc<str>);

impl Token {
    /// A token from its secret ID.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if it is empty or cannot stand in an HTTP header; the text does not
    /// repeat it.
    pub fn new(secret: impl Into<Arc<str>>) -> Result<Self> {
        let secret = secret.into();
        match Self::check(&secret) {
            Ok(()) => Ok(Self(secret)),
            Err(reason) => Err(Error::invalid(format!("token: {reason}"))),
        }
    }

    /// Whether a text can be a token; the reason does not repeat it.
    pub(crate) fn check(secret: &str) -> Result<(), &'static str> {
        if secret.is_empty() {
            Err("must not be empty")
        } else if secret.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(())
        } else {
            Err("may hold only visible ASCII characters, without spaces")
        }
    }

    /// The secret itself; take care where it goes.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(secret: &str) -> Result<Self> {
        Self::new(secret)
    }
}

pub(crate) mod text;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_consul_would_redirect_is_refused() {
        for (text, why) in [
            ("", "must not be empty"),
            ("/a", "must not begin with `/`"),
            ("a//b", "`//`"),
            ("a/../b", "`..`"),
            ("..", "`..`"),
            ("a/.", "`.`"),
            ("a\nb", "control"),
        ] {
            let err = Key::new(text).unwrap_err();
            assert!(err.to_string().contains(why), "{text:?}: {err}");
        }
    }

    #[test]
    fn a_key_may_hold_any_other_text() {
        for text in ["a b", "a?b", "a#b", "100%", "ü/日本", "a/b/", "...", "a/.b"] {
            assert_eq!(Key::new(text).unwrap(), text);
        }
    }

    #[test]
    fn a_refused_text_is_quoted_but_shortened() {
        let err = Key::new("/".to_owned() + &"é".repeat(1000)).unwrap_err();
        assert!(err.to_string().chars().count() < 150, "{err}");
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::new("s3cr3t").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        let err = Token::new("s3cr3t\n").unwrap_err();
        assert!(!format!("{err:?}{err}").contains("s3cr3t"));
    }

    #[test]
    fn equal_texts_of_one_answer_are_one_allocation() {
        let read = || serde_json::from_str::<Vec<NodeName>>(r#"["a","b","a",null]"#).unwrap();
        let apart = read();
        assert!(!Arc::ptr_eq(&apart[0].0, &apart[2].0));
        let scope = text::Scope::open(4096);
        let shared = read();
        drop(scope);
        assert!(Arc::ptr_eq(&shared[0].0, &shared[2].0));
        assert_eq!(shared[3], "");
    }
}
