//! How texts of an answer are taken over: shared, and each distinct one once per answer.
//!
//! An answer about a thousand instances repeats the same names, tags, addresses and check texts a
//! thousand times. While a [`Scope`] is open on this thread, equal texts, lists and values are one
//! allocation, as far as a small table remembers them; without one each is its own.
//!
//! The table has a fixed size and forgets: a text that comes once only displaces another, so an
//! answer full of distinct texts costs no growing table, and one made to collide costs nothing but
//! its own sharing.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// Texts that stand together: a list, or keys and values in turn. Never empty.
pub(crate) type Texts = Arc<[Arc<str>]>;

thread_local! {
    static SEEN: RefCell<Option<Box<Seen>>> = const { RefCell::new(None) };
}

/// What this answer has brought so far.
struct Seen {
    /// Pairs of neighbours: the one of a pair that was used last stands in front.
    texts: Box<[Option<Arc<str>>]>,
    lists: [Option<Texts>; LISTS],
    values: [Option<Arc<dyn Any + Send + Sync>>; VALUES],
    /// An empty buffer that lists are gathered in.
    buffer: Vec<Arc<str>>,
}

const LISTS: usize = 16;
const VALUES: usize = 32;

/// Below this many bytes an answer repeats too little for a table to pay.
const SMALL: usize = 1024;

/// While it lives, equal texts decoded on this thread are shared.
#[must_use = "texts are shared only while the scope lives"]
pub(crate) struct Scope {
    outer: Option<Box<Seen>>,
}

impl Scope {
    /// A scope for an answer of so many bytes.
    pub(crate) fn open(bytes: usize) -> Self {
        let seen = (bytes >= SMALL).then(|| Box::new(Seen::new(bytes)));
        Self {
            outer: SEEN.with_borrow_mut(|current| std::mem::replace(current, seen)),
        }
    }
}

/// What an answer that comes piece by piece has brought so far; its pieces may be decoded on
/// different threads.
#[derive(Default)]
pub(crate) struct Table(Option<Box<Seen>>);

impl Table {
    /// Decodes a piece of an answer of which so many bytes have come: what is equal to something
    /// of an earlier piece is shared with it.
    pub(crate) fn within<T>(&mut self, bytes: usize, decode: impl FnOnce() -> T) -> T {
        match &mut self.0 {
            Some(seen) => seen.grow(bytes),
            none => *none = Some(Box::new(Seen::new(bytes))),
        }
        let outer = SEEN.with_borrow_mut(|current| std::mem::replace(current, self.0.take()));
        let decoded = decode();
        self.0 = SEEN.with_borrow_mut(|current| std::mem::replace(current, outer));
        decoded
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let outer = self.outer.take();
        let seen = SEEN.with_borrow_mut(|current| std::mem::replace(current, outer));
        drop(seen);
    }
}

impl Seen {
    fn new(bytes: usize) -> Self {
        Self {
            texts: vec![None; places(bytes)].into_boxed_slice(),
            lists: [const { None }; LISTS],
            values: [const { None }; VALUES],
            buffer: Vec::new(),
        }
    }

    /// Makes room for an answer that turns out to be this long.
    fn grow(&mut self, bytes: usize) {
        let places = places(bytes);
        if places > self.texts.len() {
            let empty = vec![None; places].into_boxed_slice();
            let texts = std::mem::replace(&mut self.texts, empty);
            for text in texts.into_iter().flatten() {
                let place = place(hash(text.as_bytes()), places) & !1;
                self.texts.swap(place, place + 1);
                if let Some(place) = self.texts.get_mut(place) {
                    *place = Some(text);
                }
            }
        }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        let first = place(hash(text.as_bytes()), self.texts.len()) & !1;
        let second = first + 1;
        if let Some(Some(known)) = self.texts.get(first)
            && **known == *text
        {
            return Arc::clone(known);
        }
        self.texts.swap(first, second);
        if let Some(place) = self.texts.get_mut(first) {
            match place {
                Some(known) if **known == *text => return Arc::clone(known),
                _ => {
                    let new: Arc<str> = Arc::from(text);
                    *place = Some(Arc::clone(&new));
                    return new;
                }
            }
        }
        Arc::from(text)
    }

    fn list(&mut self, items: &mut Vec<Arc<str>>) -> Option<Texts> {
        if items.is_empty() {
            return None;
        }
        // Equal texts of one answer mostly are one allocation, so their addresses tell the list.
        let mut mixed = 0;
        for item in items.iter() {
            mixed = mix(mixed, Arc::as_ptr(item).addr() as u64);
        }
        let place = self.lists.get_mut(place(mixed, LISTS))?;
        if let Some(known) = place
            && known.len() == items.len()
            && known
                .iter()
                .zip(items.iter())
                .all(|(a, b)| Arc::ptr_eq(a, b))
        {
            items.clear();
            return Some(Arc::clone(known));
        }
        let new: Texts = items.drain(..).collect();
        *place = Some(Arc::clone(&new));
        Some(new)
    }

    fn value<T: PartialEq + Send + Sync + 'static>(&mut self, hint: usize, value: T) -> Arc<T> {
        // Odd and even hints, two kinds of values, never take each other's place.
        let pair = place(mix(0, (hint | 1) as u64), VALUES) & !1;
        let Some(place) = self.values.get_mut(pair | (hint & 1)) else {
            return Arc::new(value);
        };
        if let Some(known) = place
            && known.downcast_ref::<T>() == Some(&value)
            && let Ok(known) = Arc::downcast(Arc::clone(known))
        {
            return known;
        }
        let new = Arc::new(value);
        *place = Some(Arc::clone(&new) as _);
        new
    }
}

/// How many texts are remembered of an answer of so many bytes: all of a short one, and of a long
/// one what is repeated every now and then. A text that is repeated all the time hardly needs room.
fn places(bytes: usize) -> usize {
    (bytes / 256).next_power_of_two().clamp(128, 2048)
}

/// Mixes a word into a hash; the multiplication carries bits upwards only.
fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(ODD)
}

/// The golden ratio in 64 bits, as it is commonly used to scatter numbers.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Tells texts apart well enough; of long ones only the ends and the length count.
fn hash(text: &[u8]) -> u64 {
    let mut hash = mix(0, text.len() as u64);
    if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        let inner = if text.len() > 80 {
            text.get(text.len() - 40..)
        } else {
            text.get(8..)
        };
        hash = mix(hash, u64::from_le_bytes(*first));
        for word in inner.unwrap_or_default().as_chunks::<8>().0 {
            hash = mix(hash, u64::from_le_bytes(*word));
        }
        mix(hash, u64::from_le_bytes(*last))
    } else {
        let mut word = 0;
        for byte in text {
            word = word << 8 | u64::from(*byte);
        }
        mix(hash, word)
    }
}

/// Where a hash belongs in a table whose size is a power of two.
fn place(hash: u64, places: usize) -> usize {
    // What differs in the last letters of a text stands in the highest bits by now.
    let scattered = (hash ^ (hash >> 32)).wrapping_mul(ODD) >> 32;
    // What remains is below `places`, which is a `usize`.
    usize::try_from(scattered & (places as u64 - 1)).unwrap_or(0)
}

/// The shared form of `text`.
pub(crate) fn shared(text: &str) -> Arc<str> {
    SEEN.with_borrow_mut(|seen| match seen {
        None => Arc::from(text),
        Some(seen) => seen.text(text),
    })
}

/// The shared form of `value`, if an equal one of this answer is still remembered.
///
/// Equal values should come with the same hint. Of two kinds that stand in one answer, one should
/// have even hints and the other odd ones.
pub(crate) fn shared_value<T: PartialEq + Send + Sync + 'static>(hint: usize, value: T) -> Arc<T> {
    SEEN.with_borrow_mut(|seen| match seen {
        None => Arc::new(value),
        Some(seen) => seen.value(hint, value),
    })
}

/// The shared form of the texts that `gather` collects; `None` if there are none.
pub(crate) fn shared_list<E>(
    gather: impl FnOnce(&mut Vec<Arc<str>>) -> Result<(), E>,
) -> Result<Option<Texts>, E> {
    // Gathering asks for texts, so the table must not be borrowed meanwhile.
    let mut items = SEEN.with_borrow_mut(|seen| match seen {
        None => Vec::new(),
        Some(seen) => std::mem::take(&mut seen.buffer),
    });
    let gathered = gather(&mut items);
    SEEN.with_borrow_mut(|seen| match seen {
        None => gathered.map(|()| (!items.is_empty()).then(|| items.drain(..).collect())),
        Some(seen) => {
            let list = gathered.map(|()| seen.list(&mut items));
            items.clear();
            seen.buffer = items;
            list
        }
    })
}

struct Text;

impl Visitor<'_> for Text {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Arc<str>, E> {
        Ok(shared(text))
    }

    // Consul writes null where it means an empty text or list.
    fn visit_unit<E: Error>(self) -> Result<Arc<str>, E> {
        Ok(shared(""))
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<str>, D::Error> {
    deserializer.deserialize_any(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Option<Texts> {
        shared_list(|items| {
            items.extend(texts.iter().map(|text| shared(text)));
            Ok::<(), ()>(())
        })
        .unwrap()
    }

    #[test]
    fn equal_texts_lists_and_values_are_one_allocation_while_a_scope_is_open() {
        let _scope = Scope::open(SMALL);
        for text in ["", "a", "passing", "12345678", "a text of more than a word"] {
            assert!(Arc::ptr_eq(&shared(text), &shared(text)), "{text}");
            assert_eq!(&*shared(text), text);
        }
        let (one, two) = (list(&["a", "b"]).unwrap(), list(&["a", "b"]).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        assert_ne!(list(&["b", "a"]).unwrap(), one);
        assert_eq!(list(&[]), None);
        assert!(Arc::ptr_eq(
            &shared_value(1, 7_u32),
            &shared_value(1, 7_u32)
        ));
        assert_eq!(*shared_value(1, 7_u64), 7);
    }

    #[test]
    fn many_distinct_texts_stay_what_they_are() {
        let _scope = Scope::open(usize::MAX / 2);
        let all: Vec<String> = (0..10_000).map(|n| format!("node-{n}-{}", n % 7)).collect();
        let shared: Vec<Arc<str>> = all.iter().map(|text| shared(text)).collect();
        for (text, shared) in all.iter().zip(&shared) {
            assert_eq!(**shared, **text);
        }
    }

    #[test]
    fn long_texts_that_differ_in_the_middle_only_are_told_apart() {
        let _scope = Scope::open(SMALL);
        let text = |middle: &str| format!("{}{middle}{}", "a".repeat(100), "b".repeat(100));
        let (one, two) = (shared(&text("x")), shared(&text("y")));
        assert_eq!((&*one, &*two), (&*text("x"), &*text("y")));
    }

    #[test]
    fn texts_of_one_answer_are_forgotten_with_its_scope() {
        let scope = Scope::open(SMALL);
        let text = shared("gone");
        drop(scope);
        assert_eq!(Arc::strong_count(&text), 1);
    }

    #[test]
    fn pieces_of_one_answer_share_their_texts() {
        let mut table = Table::default();
        let one = table.within(SMALL, || shared("a"));
        assert!(!Arc::ptr_eq(&one, &shared("a")));
        let (mut table, two) = std::thread::spawn(move || {
            let two = table.within(2 * SMALL, || shared("a"));
            (table, two)
        })
        .join()
        .unwrap();
        assert!(Arc::ptr_eq(&one, &two));
        assert!(Arc::ptr_eq(&one, &table.within(SMALL, || shared("a"))));
    }

    #[test]
    fn texts_are_shared_across_the_growth_of_an_answer() {
        let mut table = Table::default();
        let mut share = |bytes| table.within(bytes, || shared("passing"));
        let one = share(SMALL);
        for doubled in 10..24 {
            assert!(Arc::ptr_eq(&one, &share(1 << doubled)), "2^{doubled} bytes");
        }
    }

    #[test]
    fn a_small_answer_inside_another_does_not_see_its_texts() {
        let _outer = Scope::open(SMALL);
        let one = shared("a");
        let inner = Scope::open(0);
        assert!(!Arc::ptr_eq(&one, &shared("a")));
        drop(inner);
        assert!(Arc::ptr_eq(&one, &shared("a")));
    }
}
