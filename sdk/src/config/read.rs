//! From settings to the type that the caller wants.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::sync::Arc;
use std::vec;

use serde::de::value::MapAccessDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::{Node, Scalar, Tree};
use crate::ident::shortened;

/// The type that these settings stand for.
pub(super) fn read<T: DeserializeOwned>(node: Node) -> Result<T, Wrong> {
    T::deserialize(Reader(node))
}

/// Why settings do not fit, and which.
#[derive(Debug)]
pub(super) struct Wrong {
    /// The names that lead there, the innermost first.
    path: Vec<String>,
    /// The key that the value came by.
    from: Option<Arc<str>>,
    /// Where all of the settings come from, if they did not come by one key.
    within: Option<String>,
    text: String,
}

impl Wrong {
    fn below(mut self, name: &str) -> Self {
        self.path.push(name.to_owned());
        self
    }

    /// Says where to look for what came by no key: for a name that is missing.
    pub(super) fn within(mut self, place: &str) -> Self {
        self.within = Some(place.to_owned());
        self
    }

    fn by(mut self, from: Option<Arc<str>>) -> Self {
        self.from = self.from.or(from);
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        let path = path.join(".");
        let key = self
            .from
            .as_deref()
            .map(|key| format!("key {:?}", shortened(key)));
        match (&*path, key.as_ref().or(self.within.as_ref())) {
            ("", None) => {}
            ("", Some(place)) => write!(f, "{place}: ")?,
            (path, None) => write!(f, "`{}`: ", shortened(path))?,
            (path, Some(place)) => write!(f, "`{}` of {place}: ", shortened(path))?,
        }
        f.write_str(&self.text)
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self {
            path: Vec::new(),
            from: None,
            within: None,
            text: text.to_string(),
        }
    }
}

struct Reader(Node);

impl Reader {
    /// A bare text where a list, a map or anything is wanted: it is JSON then.
    fn unfolded(self) -> Result<Node, Wrong> {
        let Node::Value(Scalar::Bare(text), from) = self.0 else {
            return Ok(self.0);
        };
        match serde_json::from_str(&text) {
            Ok(Tree(mut node)) => {
                if let Some(from) = from {
                    node.came_by(&from);
                }
                Ok(node)
            }
            Err(err) => {
                let what = format!("a list or a map is wanted here, and this is no JSON: {err}");
                Err(<Wrong as de::Error>::custom(what).by(from))
            }
        }
    }
}

/// Values that a bare text is parsed for.
macro_rules! parsed {
    ($($method:ident $visit:ident $type:ty, $what:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            let Node::Value(Scalar::Bare(text), from) = self.0 else {
                return self.deserialize_any(visitor);
            };
            match text.trim().parse::<$type>() {
                Ok(value) => visitor.$visit(value).map_err(|wrong: Wrong| wrong.by(from)),
                Err(err) => {
                    let text = shortened(&text);
                    let what = format!(concat!("{:?} is not ", $what, ": {}"), text, err);
                    Err(<Wrong as de::Error>::custom(what).by(from))
                }
            }
        }
    )*};
}

/// Values that a bare text is as it stands.
macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            match self.0 {
                Node::Value(Scalar::Bare(text), from) => {
                    visitor.visit_string(text).map_err(|wrong: Wrong| wrong.by(from))
                }
                node => Self(node).deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let (scalar, from) = match self.0 {
            Node::Value(scalar, from) => (scalar, from),
            Node::List(nodes) => return visitor.visit_seq(Items::new(nodes)),
            Node::Map(nodes) => return visitor.visit_map(Entries::new(nodes)),
        };
        let visited = match scalar {
            Scalar::Null => visitor.visit_unit(),
            Scalar::Bool(is) => visitor.visit_bool(is),
            Scalar::Signed(number) => visitor.visit_i64(number),
            Scalar::Unsigned(number) => visitor.visit_u64(number),
            Scalar::Float(number) => visitor.visit_f64(number),
            Scalar::Text(text) => visitor.visit_string(text),
            // Nobody says what is wanted: JSON if it is that, and else the text.
            Scalar::Bare(text) => match serde_json::from_str(&text) {
                Ok(Tree(node)) => Self(node).deserialize_any(visitor),
                Err(_) => visitor.visit_string(text),
            },
        };
        visited.map_err(|wrong: Wrong| wrong.by(from))
    }

    parsed! {
        deserialize_bool visit_bool bool, "`true` or `false`";
        deserialize_i8 visit_i8 i8, "a whole number from -128 to 127";
        deserialize_i16 visit_i16 i16, "a whole number from -32768 to 32767";
        deserialize_i32 visit_i32 i32, "a whole number of 32 bits";
        deserialize_i64 visit_i64 i64, "a whole number of 64 bits";
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number of 32 bits from 0 on";
        deserialize_u64 visit_u64 u64, "a whole number of 64 bits from 0 on";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
        deserialize_char visit_char char, "one character";
    }

    texts! {
        deserialize_str
        deserialize_string
        deserialize_bytes
        deserialize_byte_buf
        deserialize_identifier
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Node::Value(Scalar::Null, _) => visitor.visit_none(),
            node => visitor.visit_some(Self(node)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.unfolded()? {
            // A folder whose keys are numbers is a list, too.
            Node::Map(nodes) => visitor.visit_seq(Items::new(counted(nodes)?)),
            node => Self(node).deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        Self(self.unfolded()?).deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self.0 {
            Node::Value(Scalar::Bare(text), from) => {
                let known = variants.contains(&text.trim());
                if known || !text.trim_start().starts_with('{') {
                    let variant = text.trim().to_owned().into_deserializer();
                    return visitor
                        .visit_enum(variant)
                        .map_err(|wrong: Wrong| wrong.by(from));
                }
                let unfolded = Self(Node::Value(Scalar::Bare(text), from)).unfolded()?;
                Self(unfolded).deserialize_enum(name, variants, visitor)
            }
            Node::Value(Scalar::Text(text), from) => visitor
                .visit_enum(text.into_deserializer())
                .map_err(|wrong: Wrong| wrong.by(from)),
            Node::Map(nodes) => visitor.visit_enum(MapAccessDeserializer::new(Entries::new(nodes))),
            node => Self(node).deserialize_any(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { i128 u128 unit unit_struct }
}

/// A folder as a list: its keys count from 0 on, each number once.
///
/// With a gap nobody knows whether an element was deleted, is not written yet, or has a name that
/// was not meant: it is told, so that no list comes into force that nobody wrote.
fn counted(nodes: BTreeMap<String, Node>) -> Result<Vec<Node>, Wrong> {
    let wrong = |what: String| <Wrong as de::Error>::custom(what);
    let mut numbered = BTreeMap::new();
    for (name, node) in nodes {
        // Not `+1`, which Rust would take for a number.
        let is_number = name.bytes().all(|digit| digit.is_ascii_digit());
        let Some(number) = name.parse::<u32>().ok().filter(|_| is_number) else {
            let what = format!("a list is wanted here: {COUNT}");
            return Err(wrong(what).below(&name));
        };
        if let Some((other, _)) = numbered.insert(number, (name.clone(), node)) {
            let what = format!(
                "the same element of a list as `{}`: {COUNT}",
                shortened(&other)
            );
            return Err(wrong(what).below(&name));
        }
    }
    let missing = (0..).zip(numbered.keys()).find(|(at, is)| at != *is);
    if let Some((missing, next)) = missing {
        return Err(wrong(format!(
            "a list is wanted here, and it has `{next}` but no `{missing}`: {COUNT}, without a gap"
        )));
    }
    Ok(numbered.into_values().map(|(_, node)| node).collect())
}

const COUNT: &str = "name the keys `0`, `1`, `2`, …";

struct Items {
    nodes: vec::IntoIter<Node>,
    at: usize,
}

impl Items {
    fn new(nodes: Vec<Node>) -> Self {
        Self {
            nodes: nodes.into_iter(),
            at: 0,
        }
    }
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Wrong;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Wrong> {
        let Some(node) = self.nodes.next() else {
            return Ok(None);
        };
        let at = self.at;
        self.at += 1;
        let read = seed.deserialize(Reader(node));
        read.map(Some).map_err(|wrong| wrong.below(&at.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len())
    }
}

struct Entries {
    nodes: btree_map::IntoIter<String, Node>,
    next: Option<(String, Node)>,
}

impl Entries {
    fn new(nodes: BTreeMap<String, Node>) -> Self {
        Self {
            nodes: nodes.into_iter(),
            next: None,
        }
    }
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Wrong;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Wrong> {
        let Some((name, node)) = self.nodes.next() else {
            return Ok(None);
        };
        // A name may be wanted as a number, as the text of a key may.
        let key = Node::Value(Scalar::Bare(name.clone()), None);
        let read = seed.deserialize(Reader(key));
        let read = read.map_err(|wrong| wrong.below(&name))?;
        self.next = Some((name, node));
        Ok(Some(read))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Wrong> {
        let Some((name, node)) = self.next.take() else {
            return Err(de::Error::custom("a value was asked for before its name"));
        };
        let read = seed.deserialize(Reader(node));
        read.map_err(|wrong| wrong.below(&name))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Settings {
        port: u16,
        name: String,
        debug: bool,
        ratio: f64,
        mode: Mode,
        peers: Vec<String>,
        limits: Limits,
        weights: BTreeMap<u8, f32>,
        proxy: Option<Limits>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Slow,
        Fast,
        Custom {
            step: u32,
        },
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    struct Limits {
        requests: u32,
    }

    /// What `consul kv put` of each pair would give.
    fn of(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        use base64::Engine;
        let pairs: Vec<crate::api::kv::Pair> = pairs
            .iter()
            .map(|(key, value)| {
                let value = base64::engine::general_purpose::STANDARD.encode(value);
                let pair = serde_json::json!({"Key": format!("app/{key}"), "Value": value});
                serde_json::from_value(pair).unwrap()
            })
            .collect();
        let node = Node::of_pairs("app/", &pairs).map_err(|err| err.to_string())?;
        read(node).map_err(|err| err.to_string())
    }

    #[test]
    fn keys_are_nested_by_slashes_and_read_as_what_is_wanted() {
        let settings = of(&[
            ("", ""),
            ("port", " 8080\n"),
            ("name", "8080"),
            ("debug", "true"),
            ("ratio", "0.5"),
            ("mode", "fast"),
            ("peers/10", "k"),
            ("peers/2", "c"),
            ("peers/0", "a"),
            ("peers/1", "b"),
            ("peers/3", "d"),
            ("peers/4", "e"),
            ("peers/5", "f"),
            ("peers/6", "g"),
            ("peers/7", "h"),
            ("peers/8", "i"),
            ("peers/09", "j"),
            ("limits/", ""),
            ("limits/requests", "7"),
            ("weights/1", "0.5"),
            ("proxy", r#"{"requests": 3}"#),
            ("unknown/deep/er", "left alone"),
        ]);
        let expected = Settings {
            port: 8080,
            name: "8080".to_owned(),
            debug: true,
            ratio: 0.5,
            mode: Mode::Fast,
            peers: ('a'..='k').map(String::from).collect(),
            limits: Limits { requests: 7 },
            weights: BTreeMap::from([(1, 0.5)]),
            proxy: Some(Limits { requests: 3 }),
        };
        assert_eq!(settings.unwrap(), expected);
        let json = of(&[("mode", r#"{"custom":{"step":3}}"#), ("peers", r#"["x"]"#)]).unwrap();
        assert_eq!(json.mode, Mode::Custom { step: 3 });
        assert_eq!(json.peers, ["x"]);
        let folders = of(&[("mode/custom/step", "4")]).unwrap();
        assert_eq!(folders.mode, Mode::Custom { step: 4 });
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_path_and_its_key() {
        for (pairs, told) in [
            (
                &[("port", "80000")][..],
                r#"`port` of key "app/port": "80000" is not a whole number from 0 to 65535"#,
            ),
            (
                &[("limits/requests", "many")],
                r#"`limits.requests` of key "app/limits/requests": "many" is not"#,
            ),
            (
                &[("limits/other", "1")],
                "`limits`: missing field `requests`",
            ),
            (&[("peers/x", "1")], "`peers.x`: a list is wanted here"),
            (&[("peers/+1", "1")], "`peers.+1`: a list is wanted here"),
            (
                &[("peers/0", "a"), ("peers/2", "c")],
                "`peers`: a list is wanted here, and it has `2` but no `1`: name the keys `0`",
            ),
            (
                &[("peers/1", "b")],
                "`peers`: a list is wanted here, and it has `1` but no `0`",
            ),
            (
                &[("peers/1", "b"), ("peers/01", "c"), ("peers/0", "a")],
                "`peers.1`: the same element of a list as `01`",
            ),
            (
                &[("mode", "quick")],
                r#"`mode` of key "app/mode": unknown variant"#,
            ),
            (
                &[("proxy", "{")],
                r#"`proxy` of key "app/proxy": a list or a map"#,
            ),
            (
                &[("a", "1"), ("a/b", "2")],
                r#"key "app/a/b": stands below a key that has a value"#,
            ),
            (
                &[("a/b", "2"), ("a", "1")],
                r#"key "app/a": has a value and stands above"#,
            ),
            (&[("a/", "1")], r#"key "app/a/": a folder has a value"#),
        ] {
            let err = of(pairs).unwrap_err();
            assert!(err.contains(told), "{err}");
        }
    }

    #[test]
    fn keys_nested_without_end_are_refused() {
        let deep = "a/".repeat(5000) + "b";
        let err = of(&[(&deep, "1")]).unwrap_err();
        assert!(err.contains("nested deeper than 64"), "{err}");
        assert!(err.len() < 300, "{err}");
    }

    #[test]
    fn an_upper_layer_replaces_values_and_lists_and_completes_maps() {
        let tree = |text: &str| serde_json::from_str::<Tree>(text).unwrap().0;
        let below = tree(r#"{"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": {"f": 1}}"#);
        let above = tree(r#"{"b": {"d": [3]}, "e": 5, "g": null}"#);
        let merged = tree(r#"{"a": 1, "b": {"c": 2, "d": [3]}, "e": 5, "g": null}"#);
        assert_eq!(below.overlaid_by(above), merged);
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused() {
        let twice = serde_json::from_str::<Tree>(r#"{"a": 1, "a": 2}"#);
        assert!(
            twice
                .unwrap_err()
                .to_string()
                .contains("`a` is there twice")
        );
    }
}
