//! Request bodies, read as Go's `encoding/json` reads them in Consul.
//!
//! Names match without regard to case, an unknown name is an error, `null` is the same as absent,
//! and what follows the first value is ignored.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::state::model::Pairs;
use crate::proto::duration;

/// Why a body is refused, in Go's words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Undecodable(pub(super) String);

type Decoded<T> = Result<T, Undecodable>;

/// The members of an object that are not read yet.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body that has to be an object; `null` is an empty one.
    pub(super) fn parse(body: &[u8]) -> Decoded<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        match Value::deserialize(&mut deserializer) {
            Ok(value) => Self::of(value, "Go value", "struct"),
            Err(error) if error.is_eof() => {
                Err(Undecodable(if body.iter().all(u8::is_ascii_whitespace) {
                    "EOF".to_owned()
                } else {
                    "unexpected EOF".to_owned()
                }))
            }
            Err(error) => Err(Undecodable(syntax_error(body, &error))),
        }
    }

    fn of(value: Value, what: &str, go_type: &str) -> Decoded<Self> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            Value::Null => Ok(Self(Map::new())),
            other => Err(mismatch(&other, what, go_type)),
        }
    }

    /// The value of a member under any of its names; `null` is absent.
    pub(super) fn take(&mut self, names: &[&str]) -> Option<Value> {
        let mut found = None;
        for name in names {
            while let Some(key) = self
                .0
                .keys()
                .find(|key| key.eq_ignore_ascii_case(name))
                .cloned()
            {
                // The last of several wins, as in Go.
                found = self.0.remove(&key).filter(|value| !value.is_null());
            }
        }
        found
    }

    pub(super) fn string(&mut self, names: &[&str]) -> Decoded<String> {
        match self.take(names) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(field_mismatch(&other, names, "string")),
        }
    }

    pub(super) fn boolean(&mut self, names: &[&str]) -> Decoded<bool> {
        match self.take(names) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(field_mismatch(&other, names, "bool")),
        }
    }

    pub(super) fn integer(&mut self, names: &[&str]) -> Decoded<i64> {
        match self.take(names) {
            None => Ok(0),
            Some(value) => value
                .as_i64()
                .ok_or_else(|| field_mismatch(&value, names, "int")),
        }
    }

    pub(super) fn strings(&mut self, names: &[&str]) -> Decoded<Vec<String>> {
        match self.take(names) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    Value::Null => Ok(String::new()),
                    other => Err(field_mismatch(&other, names, "string")),
                })
                .collect(),
            Some(other) => Err(field_mismatch(&other, names, "[]string")),
        }
    }

    pub(super) fn pairs(&mut self, names: &[&str]) -> Decoded<Option<Pairs>> {
        match self.take(names) {
            None => Ok(None),
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(key, value)| match value {
                    Value::String(text) => Ok((key, text)),
                    Value::Null => Ok((key, String::new())),
                    other => Err(field_mismatch(&other, names, "string")),
                })
                .collect::<Decoded<Pairs>>()
                .map(Some),
            Some(other) => Err(field_mismatch(&other, names, "map[string]string")),
        }
    }

    /// A duration string, or a number of nanoseconds. Consul takes any other type for absent.
    pub(super) fn duration(&mut self, names: &[&str]) -> Decoded<Duration> {
        match self.take(names) {
            Some(Value::String(text)) if text.is_empty() => Ok(Duration::ZERO),
            Some(Value::String(text)) => match duration::parse(&text) {
                Ok(duration) => Ok(duration),
                // Go reads it, and everything that asks whether a time is set finds it unset.
                Err(duration::Invalid::Negative(_)) => Ok(Duration::ZERO),
                Err(invalid) => Err(Undecodable(format!("time: {invalid}"))),
            },
            Some(Value::Number(nanos)) => {
                Ok(Duration::from_nanos(nanos.as_u64().unwrap_or_default()))
            }
            _ => Ok(Duration::ZERO),
        }
    }

    pub(super) fn object(&mut self, names: &[&str], go_type: &str) -> Decoded<Option<Self>> {
        self.take(names)
            .map(|value| Self::of(value, &field(names), go_type))
            .transpose()
    }

    pub(super) fn objects(&mut self, names: &[&str], go_type: &str) -> Decoded<Vec<Self>> {
        match self.take(names) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| Self::of(item, &field(names), go_type))
                .collect(),
            Some(other) => Err(field_mismatch(&other, names, &format!("[]{go_type}"))),
        }
    }

    /// All members with their names, for a map whose keys are data.
    pub(super) fn into_entries(self) -> impl Iterator<Item = (String, Value)> {
        self.0.into_iter()
    }

    /// Reads one entry of a map of objects.
    pub(super) fn entry(value: Value, names: &[&str], go_type: &str) -> Decoded<Self> {
        Self::of(value, &field(names), go_type)
    }

    /// Refuses what no field took.
    pub(super) fn finish(self) -> Decoded<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Undecodable(format!("json: unknown field \"{name}\""))),
        }
    }
}

fn field(names: &[&str]) -> String {
    format!("Go struct field .{}", names.first().unwrap_or(&""))
}

fn field_mismatch(value: &Value, names: &[&str], go_type: &str) -> Undecodable {
    mismatch(value, &field(names), go_type)
}

fn mismatch(value: &Value, what: &str, go_type: &str) -> Undecodable {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if go_type == "int" => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    Undecodable(format!(
        "json: cannot unmarshal {found} into {what} of type {go_type}"
    ))
}

/// Go's text for the character at which reading stopped.
fn syntax_error(body: &[u8], error: &serde_json::Error) -> String {
    let line = body
        .split(|byte| *byte == b'\n')
        .nth(error.line().saturating_sub(1));
    let text = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    match text.chars().nth(error.column().saturating_sub(1)) {
        Some(character) => {
            format!("invalid character '{character}' looking for beginning of value")
        }
        None => "invalid character ' ' looking for beginning of value".to_owned(),
    }
}
