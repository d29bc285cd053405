//! Settings before they are a type: values by name, nested.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::api::kv::Pair;
use crate::codec::BoxError;
use crate::ident::shortened;

/// What a key's value is read into before the layers are put together.
///
/// It takes in whatever a format of serde's describes by itself, as JSON, YAML and TOML do: a
/// [`Decode`](crate::codec::Decode) that is made for every `T: DeserializeOwned` is made for this.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree(pub(super) Node);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Value(Scalar, Option<Arc<str>>),
    List(Vec<Self>),
    Map(BTreeMap<String, Self>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    /// The text of a key below a prefix, which is read as what is wanted in its place.
    Bare(String),
}

/// How deep keys may be nested: deeper than anybody reads, and no danger to a stack.
const DEEPEST: usize = 64;

impl Node {
    pub(super) fn empty() -> Self {
        Self::Map(BTreeMap::new())
    }

    /// Notes by which key the values came.
    pub(super) fn came_by(&mut self, key: &Arc<str>) {
        match self {
            Self::Value(_, from) => *from = Some(Arc::clone(key)),
            Self::List(nodes) => nodes.iter_mut().for_each(|node| node.came_by(key)),
            Self::Map(nodes) => nodes.values_mut().for_each(|node| node.came_by(key)),
        }
    }

    /// The keys below a prefix that ends with `/`, nested by `/`.
    pub(super) fn of_pairs<'a>(
        prefix: &str,
        pairs: impl IntoIterator<Item = &'a Pair>,
    ) -> Result<Self, BoxError> {
        let mut root = BTreeMap::new();
        for pair in pairs {
            let key = pair.key();
            let wrong =
                |what: &str| -> BoxError { format!("key {:?}: {what}", shortened(key)).into() };
            let Some(below) = key.strip_prefix(prefix) else {
                continue;
            };
            let is_folder = below.is_empty() || below.ends_with('/');
            if is_folder && !pair.value().is_empty() {
                return Err(wrong(
                    "a folder has a value; delete it, or move it to a name",
                ));
            }
            let mut names: Vec<&str> = below.split('/').filter(|name| !name.is_empty()).collect();
            if names.len() > DEEPEST {
                return Err(wrong(&format!("nested deeper than {DEEPEST} folders")));
            }
            let last = if is_folder { None } else { names.pop() };
            let mut place = &mut root;
            for name in names {
                let next = place.entry(name.to_owned()).or_insert_with(Self::empty);
                let Self::Map(nodes) = next else {
                    return Err(wrong("stands below a key that has a value of its own"));
                };
                place = nodes;
            }
            let Some(last) = last else { continue };
            let Some(text) = pair.value_str() else {
                return Err(wrong("the value is no text in UTF-8"));
            };
            let from = Some(Arc::from(key.as_str()));
            let value = Self::Value(Scalar::Bare(text.to_owned()), from);
            if place.insert(last.to_owned(), value).is_some() {
                return Err(wrong("has a value and stands above other keys"));
            }
        }
        Ok(Self::Map(root))
    }

    /// Lays another one over this one: maps are put together, everything else is replaced.
    pub(super) fn overlaid_by(self, upper: Self) -> Self {
        match (self, upper) {
            (Self::Map(mut below), Self::Map(above)) => {
                for (name, node) in above {
                    let node = match below.remove(&name) {
                        Some(former) => former.overlaid_by(node),
                        None => node,
                    };
                    below.insert(name, node);
                }
                Self::Map(below)
            }
            (_, upper) => upper,
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything).map(Self)
    }
}

struct Anything;

fn value<E>(scalar: Scalar) -> Result<Node, E> {
    Ok(Node::Value(scalar, None))
}

impl<'de> Visitor<'de> for Anything {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        value(Scalar::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        value(Scalar::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_bool<E>(self, is: bool) -> Result<Node, E> {
        value(Scalar::Bool(is))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        value(Scalar::Signed(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        value(Scalar::Unsigned(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        value(Scalar::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        value(Scalar::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Node, E> {
        value(Scalar::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(Tree(node)) = items.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut nodes = BTreeMap::new();
        while let Some((name, Tree(node))) = entries.next_entry::<String, Tree>()? {
            if nodes.contains_key(&name) {
                return Err(de::Error::custom(format!("`{name}` is there twice")));
            }
            nodes.insert(name, node);
        }
        Ok(Node::Map(nodes))
    }
}
