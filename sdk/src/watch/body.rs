//! From one answer's body to the next, at the cost of what changed.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::kinds::{Shape, Watched};
use crate::ident::text;
use crate::proto::elements::{self, Known, Origin};
use crate::transport::BoxError;

/// The last body and what it meant.
pub(super) struct Decoded<T> {
    body: Bytes,
    /// Where the elements stand in the body; empty for a shape that is not an array.
    spans: Vec<Range<usize>>,
    items: Vec<Arc<T>>,
    /// Before the first body, nothing is known to be empty.
    known: bool,
}

impl<T: Watched> Decoded<T> {
    pub(super) fn new() -> Self {
        Self {
            body: Bytes::new(),
            spans: Vec::new(),
            items: Vec::new(),
            known: false,
        }
    }

    /// All elements of the last body.
    pub(super) fn items(&self) -> &[Arc<T>] {
        &self.items
    }

    /// The last body.
    pub(super) fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// Takes in a body and says whether it means something else than the last one.
    ///
    /// A body that cannot be read leaves what is known as it was.
    pub(super) fn update(&mut self, body: Bytes) -> Result<bool, BoxError> {
        if self.known && body == self.body {
            return Ok(false);
        }
        let (spans, items) = match T::SHAPE {
            Shape::Array(decode) => self.array(&body, decode)?,
            Shape::Whole(decode) => {
                let _shared = text::Scope::open(body.len());
                (Vec::new(), decode(&body)?)
            }
        };
        let changed = !self.known || !equal(&items, &self.items);
        if changed {
            self.items = items;
        }
        self.spans = spans;
        self.body = body;
        self.known = true;
        Ok(changed)
    }

    #[expect(clippy::type_complexity, reason = "both halves are stored as they are")]
    fn array(
        &self,
        body: &[u8],
        decode: fn(&[u8]) -> Result<T, BoxError>,
    ) -> Result<(Vec<Range<usize>>, Vec<Arc<T>>), BoxError> {
        let known = Known {
            body: &self.body,
            spans: &self.spans,
        };
        let found = elements::split(body, known)?;
        let new = found.iter().filter(|one| one.origin == Origin::New);
        let _shared = text::Scope::open(new.map(|one| one.span.len()).sum());
        let mut spans = Vec::with_capacity(found.len());
        let mut items = Vec::with_capacity(found.len());
        for element in found {
            let old = match element.origin {
                Origin::Old(at) => self.items.get(at),
                Origin::New => None,
            };
            let item = match old {
                Some(item) => Arc::clone(item),
                None => {
                    let text = body.get(element.span.clone()).unwrap_or_default();
                    Arc::new(decode(text)?)
                }
            };
            items.push(item);
            spans.push(element.span);
        }
        Ok((spans, items))
    }
}

/// Whether two lists hold the same: what is shared need not be compared.
pub(super) fn equal<T: PartialEq>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| Arc::ptr_eq(one, other) || one == other)
}
