//! What Consul's JSON is read into: texts, lists and maps that equal ones of an answer share.
//!
//! Reading is lenient, because one odd registration must not hide all others of an answer: `null`
//! is emptiness, and a number out of range is what its accessor says.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::error::{Error, ErrorKind, Result};
use crate::ident::text::{self, Texts};
use crate::proto::duration;

/// A text that is often empty, and then costs nothing.
#[derive(Clone, Default, Eq, PartialEq)]
pub(crate) struct Text(Option<Arc<str>>);

impl Text {
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    pub(crate) fn non_empty(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Where the text stands: the same for equal ones that are shared.
    pub(crate) fn place(&self) -> usize {
        self.0.as_ref().map_or(0, |text| Arc::as_ptr(text).addr())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Maybe;

        impl Visitor<'_> for Maybe {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text((!text.is_empty()).then(|| text::shared(text))))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(None))
            }
        }

        deserializer.deserialize_any(Maybe)
    }
}

/// A list of texts, such as the tags of a service, in Consul's order.
///
/// Cheap to clone.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct TextList(Option<Texts>);

impl TextList {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether one of them is `text`, letter for letter.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        self.iter().any(|item| item == text)
    }

    /// All of them, in order.
    #[must_use]
    pub fn iter(&self) -> <&Self as IntoIterator>::IntoIter {
        self.items().iter().map(|item| item)
    }

    fn items(&self) -> &[Arc<str>] {
        self.0.as_deref().unwrap_or_default()
    }

    /// The same texts in alphabetical order.
    pub(crate) fn sorted(self) -> Self {
        if self.items().is_sorted() {
            return self;
        }
        let mut items = self.items().to_vec();
        items.sort();
        Self(Some(items.into()))
    }
}

impl<'a> IntoIterator for &'a TextList {
    type Item = &'a str;
    type IntoIter = std::iter::Map<std::slice::Iter<'a, Arc<str>>, fn(&Arc<str>) -> &str>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for TextList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'de> Deserialize<'de> for TextList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = TextList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings, or null")
            }

            fn visit_unit<E>(self) -> Result<TextList, E> {
                Ok(TextList(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TextList, A::Error> {
                let list = text::shared_list(|items| {
                    while let Some(Shared(item)) = seq.next_element()? {
                        items.push(item);
                    }
                    Ok(())
                })?;
                Ok(TextList(list))
            }
        }

        deserializer.deserialize_any(List)
    }
}

/// Texts under names, such as the metadata of a service, sorted by name.
///
/// Cheap to clone.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct TextMap(Option<Texts>);

impl TextMap {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The text under this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let pairs = self.pairs();
        let at = pairs
            .binary_search_by(|[known, _]| (**known).cmp(name))
            .ok()?;
        pairs.get(at).map(|[_, text]| &**text)
    }

    /// All names and texts, sorted by name.
    #[must_use]
    pub fn iter(&self) -> <&Self as IntoIterator>::IntoIter {
        self.pairs().iter().map(|[name, text]| (name, text))
    }

    fn pairs(&self) -> &[[Arc<str>; 2]] {
        self.0.as_deref().unwrap_or_default().as_chunks().0
    }
}

impl<'a> IntoIterator for &'a TextMap {
    type Item = (&'a str, &'a str);
    type IntoIter =
        std::iter::Map<std::slice::Iter<'a, [Arc<str>; 2]>, fn(&[Arc<str>; 2]) -> (&str, &str)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for TextMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'de> Deserialize<'de> for TextMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = TextMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings, or null")
            }

            fn visit_unit<E>(self) -> Result<TextMap, E> {
                Ok(TextMap(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextMap, A::Error> {
                let list = text::shared_list(|items| {
                    while let Some((Shared(name), Shared(text))) = map.next_entry()? {
                        items.push(name);
                        items.push(text);
                    }
                    sort(items);
                    Ok(())
                })?;
                Ok(TextMap(list))
            }
        }

        deserializer.deserialize_any(Map)
    }
}

/// Sorts names and texts in turn by name; of equal names the last one stays.
fn sort(items: &mut Vec<Arc<str>>) {
    let pairs: &[[Arc<str>; 2]] = items.as_chunks().0;
    // Go writes maps sorted.
    if pairs.is_sorted_by(|[one, _], [other, _]| one < other) {
        return;
    }
    let mut pairs = pairs.to_vec();
    pairs.reverse();
    pairs.sort_by(|[one, _], [other, _]| one.cmp(other));
    pairs.dedup_by(|[later, _], [earlier, _]| later == earlier);
    items.clear();
    items.extend(pairs.into_iter().flatten());
}

/// A text as others of the answer may have it, too.
pub(crate) struct Shared(pub(crate) Arc<str>);

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer).map(Self)
    }
}

/// A piece of JSON whose form Consul leaves to others, such as a proxy's configuration.
///
/// Cheap to clone.
#[derive(Clone, Eq, PartialEq)]
pub struct Json(Arc<str>);

impl Json {
    /// The JSON as Consul wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The JSON read into a type.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if it is not what the type wants.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.0)
            .map_err(|err| Error::new(ErrorKind::Decode).context("JSON").caused_by(err))
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(text::shared(raw.get())))
    }
}

/// An absent object and an empty one are the same: nothing.
pub(crate) fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    let json = Option::<Json>::deserialize(deserializer)?;
    let empty = |json: &Json| {
        let inner = json
            .0
            .strip_prefix('{')
            .and_then(|json| json.strip_suffix('}'));
        inner.is_some_and(|inner| inner.trim().is_empty())
    };
    Ok(json.filter(|json| !empty(json)))
}

/// What a whole text of JSON says.
///
/// All texts are read as `str`, so that a program holds each type's reader once; one look at the
/// whole is cheaper than one at each of its texts, too.
pub(crate) fn read<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let text = std::str::from_utf8(text).map_err(serde::de::Error::custom)?;
    serde_json::from_str(text)
}

/// The default where `null` stands.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A boxed value, unless it is the default one.
pub(crate) fn unless_default<'de, D, T>(deserializer: D) -> Result<Option<Box<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    let value = Option::<T>::deserialize(deserializer)?;
    Ok(value.filter(|value| *value != T::default()).map(Box::new))
}

/// A number that may be missing, `null`, negative or too large: what does not fit is zero.
///
/// Consul 1.8 stores any port it is given, 70000 and -1 too (measured).
pub(crate) fn number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64> + Default,
{
    struct Number;

    impl<'de> Visitor<'de> for Number {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number")
        }

        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_i64<E>(self, number: i64) -> Result<u64, E> {
            Ok(u64::try_from(number).unwrap_or_default())
        }

        fn visit_f64<E>(self, _: f64) -> Result<u64, E> {
            Ok(0)
        }

        fn visit_unit<E>(self) -> Result<u64, E> {
            Ok(0)
        }
    }

    let number = deserializer.deserialize_any(Number)?;
    Ok(T::try_from(number).unwrap_or_default())
}

/// A list of things, `null` being the empty one.
pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Box<[T]>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Box<[T]>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list, or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Box::default())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            Ok(few(&mut || seq.next_element())?.unwrap_or_default())
        }
    }

    deserializer.deserialize_any(List(PhantomData))
}

/// Collects what is mostly little; `None` if there is nothing.
///
/// Little takes the memory it needs and no buffer before it: ten thousand buffers, each given back
/// between two things that stay, leave holes that an allocator keeps for long.
pub(crate) fn few<T, E, C: FromIterator<T>>(
    next: &mut dyn FnMut() -> Result<Option<T>, E>,
) -> Result<Option<C>, E> {
    let Some(one) = next()? else {
        return Ok(None);
    };
    let Some(two) = next()? else {
        return Ok(Some(C::from_iter([one])));
    };
    let Some(three) = next()? else {
        return Ok(Some(C::from_iter([one, two])));
    };
    let mut all = vec![one, two, three];
    while let Some(more) = next()? {
        all.push(more);
    }
    Ok(Some(all.into_iter().collect()))
}

/// A Go duration; zero, emptiness and what is no duration are absence.
pub(crate) fn span<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    struct Span;

    impl Visitor<'_> for Span {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"10s\"")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(duration::parse(text).ok())
        }

        // Go writes a bare `time.Duration` as its nanoseconds.
        fn visit_u64<E>(self, nanos: u64) -> Result<Self::Value, E> {
            Ok(Some(Duration::from_nanos(nanos)))
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }

    let span = deserializer.deserialize_any(Span)?;
    Ok(span.filter(|span| !span.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: DeserializeOwned>(json: &str) -> T {
        super::read(json.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_not_text_is_refused() {
        assert!(super::read::<Text>(b"\"\xff\"").is_err());
    }

    #[test]
    fn null_and_empty_are_one() {
        assert_eq!(read::<Text>("null"), read(r#""""#));
        assert_eq!(read::<TextList>("null"), read("[]"));
        assert_eq!(read::<TextMap>("null"), read("{}"));
        assert!(read::<TextMap>("null").iter().next().is_none());
    }

    #[test]
    fn a_map_is_sorted_and_of_equal_names_the_last_stays() {
        let map: TextMap = read(r#"{"b":"1","a":"2","b":"3","c":null}"#);
        let all: Vec<_> = map.iter().collect();
        assert_eq!(all, [("a", "2"), ("b", "3"), ("c", "")]);
        assert_eq!(map.get("b"), Some("3"));
        assert_eq!(map.get("x"), None);
        assert_eq!(map.len(), 3);
    }

    #[test]
    fn lists_keep_their_order() {
        let list: TextList = read(r#"["b","a",null]"#);
        assert_eq!(list.iter().collect::<Vec<_>>(), ["b", "a", ""]);
        assert!(list.contains("a") && !list.contains("A"));
        assert_eq!(format!("{list:?}"), r#"["b", "a", ""]"#);
    }

    #[test]
    fn a_list_of_any_length_is_read_whole() {
        #[derive(Deserialize)]
        struct List(#[serde(deserialize_with = "list")] Box<[u8]>);
        assert!(read::<List>("null").0.is_empty());
        for length in 0..6 {
            let all: Vec<u8> = (0..length).collect();
            assert_eq!(*read::<List>(&format!("{all:?}")).0, *all);
        }
        assert!(serde_json::from_str::<List>("[1,2,true]").is_err());
    }

    #[test]
    fn a_number_out_of_range_is_zero() {
        #[derive(Deserialize)]
        struct Port(#[serde(deserialize_with = "number")] u16);
        for (json, port) in [
            ("8080", 8080),
            ("65535", 65535),
            ("65536", 0),
            ("-1", 0),
            ("1.5", 0),
            ("null", 0),
        ] {
            assert_eq!(read::<Port>(json).0, port, "{json}");
        }
        assert!(serde_json::from_str::<Port>(r#""80""#).is_err());
    }

    #[test]
    fn a_duration_is_read_in_any_of_its_forms() {
        #[derive(Deserialize)]
        struct Every(#[serde(deserialize_with = "span")] Option<Duration>);
        let second = Some(Duration::from_secs(1));
        for (json, span) in [
            (r#""1s""#, second),
            ("1000000000", second),
            (r#""0s""#, None),
            ("0", None),
            (r#""""#, None),
            (r#""soon""#, None),
            ("-1", None),
            ("null", None),
        ] {
            assert_eq!(read::<Every>(json).0, span, "{json}");
        }
    }

    #[test]
    fn foreign_json_stays_as_it_is() {
        #[derive(Deserialize)]
        struct Config(#[serde(deserialize_with = "object")] Option<Json>);
        assert!(read::<Config>("null").0.is_none());
        assert!(read::<Config>("{ }").0.is_none());
        let config = read::<Config>(r#"{"a":{"b":[1,2]}}"#).0.unwrap();
        assert_eq!(config.as_str(), r#"{"a":{"b":[1,2]}}"#);
        assert_eq!(
            config.decode::<serde_json::Value>().unwrap()["a"]["b"][1],
            2
        );
        let err = config.decode::<Vec<u8>>().unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Decode);
        // Read through a value, too, as users' tests may do.
        let value = serde_json::from_str::<serde_json::Value>(r#"{"a":1}"#).unwrap();
        assert_eq!(
            serde_json::from_value::<Json>(value).unwrap().as_str(),
            r#"{"a":1}"#
        );
    }
}
