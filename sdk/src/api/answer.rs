//! What a read returns.

use std::ops::Deref;

use super::Meta;

/// What Consul answered, and what it said about the answer.
///
/// Dereferences to the content.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<T> {
    value: T,
    meta: Meta,
}

impl<T> Answer<T> {
    pub(crate) fn new(value: T, meta: Meta) -> Self {
        Self { value, meta }
    }

    /// Index, last contact, leader, cache and backend.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The content.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The content, owned.
    pub fn into_value(self) -> T {
        self.value
    }

    /// The content and what was said about it, owned.
    pub fn into_parts(self) -> (T, Meta) {
        (self.value, self.meta)
    }
}

impl<T> Deref for Answer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
