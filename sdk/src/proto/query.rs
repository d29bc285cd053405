//! Paths and query strings: the one place where text becomes part of a URL.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands unescaped in a path segment or a query value: RFC 3986 "unreserved".
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same, but `/` stays: Consul treats `%2F` and `/` alike, and `/` is what people read in logs.
const ESCAPED_IN_KEY: &AsciiSet = &ESCAPED.remove(b'/');

/// A path below the agent's root with its query string, both escaped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    text: String,
    has_query: bool,
}

impl Target {
    /// A fixed path, as Consul's documentation writes it.
    pub(crate) fn new(path: &'static str) -> Self {
        let mut text = String::with_capacity(path.len() + 64);
        text.push_str(path);
        Self {
            text,
            has_query: false,
        }
    }

    /// A fixed path and one name from the caller, which may hold `/`.
    pub(crate) fn of(path: &'static str, name: &str) -> Self {
        let mut target = Self::new(path);
        target
            .text
            .extend(utf8_percent_encode(name, ESCAPED_IN_KEY));
        target
    }

    /// Appends `name=value`.
    pub(crate) fn push(&mut self, name: &str, value: &str) {
        self.separator();
        self.text.push_str(name);
        self.text.push('=');
        self.text.extend(utf8_percent_encode(value, ESCAPED));
    }

    /// Appends `name=number`.
    pub(crate) fn push_number(&mut self, name: &str, value: u64) {
        self.separator();
        // Writing to a String cannot fail.
        let _ = write!(self.text, "{name}={value}");
    }

    /// Appends `name` alone, as in `?stale`.
    pub(crate) fn flag(&mut self, name: &str) {
        self.separator();
        self.text.push_str(name);
    }

    /// Whether `name` was appended alone.
    pub(crate) fn has_flag(&self, name: &str) -> bool {
        let query = self.text.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|parameter| parameter == name)
    }

    /// Whether `name` was appended with a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        let query = self.text.split_once('?').map_or("", |(_, query)| query);
        let mut names = query.split('&').filter_map(|one| one.split_once('='));
        names.any(|(known, _)| known == name)
    }

    /// Path and query.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The path alone, for error texts.
    pub(crate) fn path(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }

    fn separator(&mut self) {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_character_of_a_key_is_escaped_and_slashes_stay() {
        let target = Target::of("/v1/kv/", "a b?c#d%e&f+g/ü");
        assert_eq!(target.as_str(), "/v1/kv/a%20b%3Fc%23d%25e%26f%2Bg/%C3%BC");
    }

    #[test]
    fn query_values_cannot_smuggle_parameters() {
        let mut target = Target::new("/v1/x");
        target.push("dc", "a&stale=b#c");
        target.flag("passing");
        target.push_number("index", u64::MAX);
        assert_eq!(
            target.as_str(),
            "/v1/x?dc=a%26stale%3Db%23c&passing&index=18446744073709551615"
        );
        assert_eq!(target.path(), "/v1/x");
    }
}
