//! The elements of a JSON array, found without decoding them.
//!
//! A watched answer mostly repeats the one before it. Comparing bytes is two orders of magnitude
//! cheaper than decoding them, so an element that stands in the old answer, byte for byte, is
//! taken over, and only the others are decoded.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// Where an element of the new array comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    /// The old array had these very bytes, at this position.
    Old(usize),
    /// The old array did not have it.
    New,
}

/// An element of the new array: where its bytes stand, and where it comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Element {
    pub(crate) span: Range<usize>,
    pub(crate) origin: Origin,
}

/// An array that was split before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) spans: &'a [Range<usize>],
}

/// The text is not an array of objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct NotAnArray {
    /// Where it stops being one.
    pub(crate) at: usize,
}

impl fmt::Display for NotAnArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not an array of objects: it stops being one at byte {}",
            self.at
        )
    }
}

impl std::error::Error for NotAnArray {}

impl<'a> Known<'a> {
    fn element(&self, at: usize) -> Option<&'a [u8]> {
        self.body.get(self.spans.get(at)?.clone())
    }

    /// Whether `text` begins with the element at this position.
    fn begins(&self, at: usize, text: &[u8]) -> Option<usize> {
        let element = self.element(at)?;
        text.starts_with(element).then_some(element.len())
    }
}

/// Splits `body`, an array of objects or `null`, and tells which elements `known` had already.
///
/// Elements are objects, so that one that begins with a whole old element is that element. The
/// bytes of a new element are only looked at for their end: whoever decodes them finds what else
/// is wrong.
pub(crate) fn split(body: &[u8], known: Known<'_>) -> Result<Vec<Element>, NotAnArray> {
    let mut at = skip_space(body, 0);
    if body.get(at..at + 4) == Some(b"null") {
        at = skip_space(body, at + 4);
        return end(body, at).map(|()| Vec::new());
    }
    at = expect(body, at, b'[')?;
    let mut elements = Vec::with_capacity(known.spans.len());
    let mut index = None;
    // The position in the old array where this element is expected.
    let mut next = 0;
    at = skip_space(body, at);
    if body.get(at) == Some(&b']') {
        return end(body, at + 1).map(|()| elements);
    }
    loop {
        let rest = body.get(at..).unwrap_or_default();
        if rest.first() != Some(&b'{') {
            return Err(NotAnArray { at });
        }
        // The next old element as it was, or the one after it: the next one was removed.
        let taken = [next, next + 1]
            .into_iter()
            .find_map(|old| Some((old, known.begins(old, rest)?)));
        let (stop, origin) = match taken {
            Some((old, len)) => (at + len, Origin::Old(old)),
            None => {
                let stop = object_end(body, at)?;
                let text = body.get(at..stop).unwrap_or_default();
                (stop, origin(known, body, text, stop, next, &mut index))
            }
        };
        next = match origin {
            Origin::Old(old) => old + 1,
            Origin::New if follows(known, body, stop, next) => next,
            Origin::New => next + 1,
        };
        elements.push(Element {
            span: at..stop,
            origin,
        });
        at = skip_space(body, stop);
        match body.get(at) {
            Some(b',') => at = skip_space(body, at + 1),
            Some(b']') => return end(body, at + 1).map(|()| elements),
            _ => return Err(NotAnArray { at }),
        }
    }
}

/// Where an element that is not the expected one comes from.
fn origin<'a>(
    known: Known<'a>,
    body: &[u8],
    text: &[u8],
    stop: usize,
    next: usize,
    index: &mut Option<HashMap<u64, usize>>,
) -> Origin {
    // What follows is what would have followed: this one was changed in place, or put in.
    if follows(known, body, stop, next) || follows(known, body, stop, next + 1) {
        return Origin::New;
    }
    // Otherwise the order changed: look the element up by its bytes.
    let index = index.get_or_insert_with(|| {
        (0..known.spans.len())
            .filter_map(|old| Some((hash(known.element(old)?), old)))
            .collect()
    });
    match index.get(&hash(text)) {
        Some(&old) if known.element(old) == Some(text) => Origin::Old(old),
        _ => Origin::New,
    }
}

/// Whether the element behind `stop` is the old one at `old`.
fn follows(known: Known<'_>, body: &[u8], stop: usize, old: usize) -> bool {
    let mut at = skip_space(body, stop);
    if body.get(at) == Some(&b',') {
        at = skip_space(body, at + 1);
        known
            .begins(old, body.get(at..).unwrap_or_default())
            .is_some()
    } else {
        // The end of both arrays.
        old == known.spans.len()
    }
}

fn skip_space(body: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = body.get(at) {
        at += 1;
    }
    at
}

fn expect(body: &[u8], at: usize, byte: u8) -> Result<usize, NotAnArray> {
    if body.get(at) == Some(&byte) {
        Ok(at + 1)
    } else {
        Err(NotAnArray { at })
    }
}

fn end(body: &[u8], at: usize) -> Result<(), NotAnArray> {
    let at = skip_space(body, at);
    if at == body.len() {
        Ok(())
    } else {
        Err(NotAnArray { at })
    }
}

/// Behind the closing brace of the object that begins at `start`.
fn object_end(body: &[u8], start: usize) -> Result<usize, NotAnArray> {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut bytes = body.iter().enumerate().skip(start);
    while let Some((at, byte)) = bytes.next() {
        match (byte, in_string) {
            (b'\\', true) => {
                bytes.next();
            }
            (b'"', _) => in_string = !in_string,
            (b'{', false) => depth += 1,
            (b'}', false) => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
    }
    Err(NotAnArray { at: body.len() })
}

/// A fast hash that only has to spread: equal hashes are compared byte by byte.
fn hash(text: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut words = text.chunks_exact(8);
    let mut hash = text.len() as u64;
    let mut mix = |word: u64| hash = (hash.rotate_left(5) ^ word).wrapping_mul(MULTIPLIER);
    for word in &mut words {
        mix(word.try_into().map_or(0, u64::from_le_bytes));
    }
    for &byte in words.remainder() {
        mix(u64::from(byte));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(body: &str) -> Vec<Range<usize>> {
        split(body.as_bytes(), Known::default())
            .unwrap()
            .into_iter()
            .map(|element| element.span)
            .collect()
    }

    /// The texts of the new elements, and the old positions of the others.
    fn compare(old: &str, new: &str) -> Vec<String> {
        let spans = spans(old);
        let known = Known {
            body: old.as_bytes(),
            spans: &spans,
        };
        split(new.as_bytes(), known)
            .unwrap()
            .into_iter()
            .map(|element| match element.origin {
                Origin::Old(at) => {
                    assert_eq!(new.get(element.span), old.get(spans[at].clone()));
                    format!("={at}")
                }
                Origin::New => new.get(element.span).unwrap().to_owned(),
            })
            .collect()
    }

    #[test]
    fn elements_are_found_with_any_space_and_any_text_inside() {
        let body = " [ {\"a\":\"}]\\\"{\"} ,\n{\"b\":{\"c\":[1,{}]}}\t] ";
        let texts: Vec<_> = spans(body)
            .into_iter()
            .map(|span| body.get(span).unwrap())
            .collect();
        assert_eq!(texts, [r#"{"a":"}]\"{"}"#, r#"{"b":{"c":[1,{}]}}"#]);
    }

    #[test]
    fn nothing_and_null_have_no_elements() {
        for body in ["[]", " [ ] ", "null", " null\n"] {
            assert_eq!(spans(body), [], "{body}");
        }
    }

    #[test]
    fn what_is_not_an_array_of_objects_is_refused() {
        for body in [
            "", "{}", "[", "[{}", "[{},", "[{},]", "[{}{}]", "[1]", "[{}]]", "[{\"a]", "nul",
            "[{]", "[{}] x",
        ] {
            assert!(split(body.as_bytes(), Known::default()).is_err(), "{body}");
        }
    }

    #[test]
    fn only_the_changed_element_is_new() {
        assert_eq!(
            compare(
                r#"[{"a":1},{"b":1},{"c":1}]"#,
                r#"[{"a":1},{"b":22},{"c":1}]"#
            ),
            ["=0", r#"{"b":22}"#, "=2"]
        );
    }

    #[test]
    fn elements_before_and_behind_an_added_or_removed_one_are_taken_over() {
        let three = r#"[{"a":1},{"b":1},{"c":1}]"#;
        let two = r#"[{"a":1},{"c":1}]"#;
        assert_eq!(compare(three, two), ["=0", "=2"]);
        assert_eq!(compare(two, three), ["=0", r#"{"b":1}"#, "=1"]);
        assert_eq!(compare(two, r#"[{"c":1}]"#), ["=1"]);
        assert_eq!(
            compare(two, r#"[{"z":1},{"a":1},{"c":1}]"#),
            [r#"{"z":1}"#, "=0", "=1"]
        );
        assert_eq!(
            compare(two, r#"[{"a":1},{"c":1},{"z":1}]"#),
            ["=0", "=1", r#"{"z":1}"#]
        );
    }

    #[test]
    fn elements_in_another_order_are_found() {
        assert_eq!(
            compare(
                r#"[{"a":1},{"b":1},{"c":1},{"d":1}]"#,
                r#"[{"d":1},{"c":1},{"b":1},{"a":1}]"#
            ),
            ["=3", "=2", "=1", "=0"]
        );
    }

    #[test]
    fn changes_far_apart_do_not_make_what_stands_between_them_new() {
        let element = |n: u32, value: u32| format!(r#"{{"n":{n},"value":{value}}}"#);
        let body = |changed: &[u32]| {
            let all: Vec<_> = (0..1000)
                .map(|n| element(n, u32::from(changed.contains(&n))))
                .collect();
            format!("[{}]", all.join(","))
        };
        let compared = compare(&body(&[]), &body(&[0, 1, 500, 999]));
        let new: Vec<_> = compared
            .iter()
            .filter(|one| !one.starts_with('='))
            .collect();
        assert_eq!(
            new,
            [
                &element(0, 1),
                &element(1, 1),
                &element(500, 1),
                &element(999, 1)
            ]
        );
    }

    #[test]
    fn any_cut_of_a_body_is_refused_and_never_panics() {
        let body = r#"[{"a":"\"\\"},{"b":[{}]}]"#;
        let spans = spans(body);
        let known = Known {
            body: body.as_bytes(),
            spans: &spans,
        };
        for cut in 0..body.len() {
            assert!(split(&body.as_bytes()[..cut], known).is_err(), "{cut}");
        }
    }
}
