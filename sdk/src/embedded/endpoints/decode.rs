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
#[derive(Debug, Default)]
pub(super) struct Fields {
    left: Map<String, Value>,
    /// The name of Go's type, which some errors tell; mostly it has none.
    of: &'static str,
}

/// A time as Go reads it: in nanoseconds, and below zero too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct GoTime(i64);

impl GoTime {
    pub(super) fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub(super) fn nanos(self) -> i64 {
        self.0
    }

    /// The time if it is above zero, else zero.
    pub(super) fn positive(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }

    pub(super) fn parse(text: &str) -> Result<Self, duration::Invalid> {
        match duration::parse(text) {
            Err(duration::Invalid::Negative(_)) => {
                let below = duration::parse(text.trim_start_matches('-'))?;
                Ok(Self(-nanos(below)))
            }
            parsed => parsed.map(|above| Self(nanos(above))),
        }
    }
}

/// A member that need not be there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Given<T> {
    Absent,
    Null,
    Value(T),
}

/// The first value of a body.
pub(super) fn value(body: &[u8]) -> Decoded<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    Value::deserialize(&mut deserializer).map_err(|error| {
        Undecodable(if !error.is_eof() {
            syntax_error(body, &error)
        } else if body.iter().all(u8::is_ascii_whitespace) {
            "EOF".to_owned()
        } else {
            "unexpected EOF".to_owned()
        })
    })
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl Undecodable {
    /// A body that is no value of a type at all.
    pub(super) fn value(found: &Value, go_type: &str) -> Self {
        mismatch(found, "Go value", go_type)
    }
}

impl Fields {
    /// Reads a body that has to be an object; `null` is an empty one.
    pub(super) fn parse(body: &[u8]) -> Decoded<Self> {
        Self::parse_as("", body)
    }

    /// As [`parse`](Self::parse), for a Go type whose name some errors tell.
    pub(super) fn parse_as(of: &'static str, body: &[u8]) -> Decoded<Self> {
        let go_type = if of.is_empty() {
            "struct".to_owned()
        } else {
            format!("agent.{of}")
        };
        Ok(Self {
            of,
            ..Self::of(value(body)?, "Go value", &go_type)?
        })
    }

    /// As [`parse`](Self::parse), for a Go type without a name.
    pub(super) fn parse_unnamed(go_type: &str, body: &[u8]) -> Decoded<Self> {
        Self::of(value(body)?, "Go value", go_type)
    }

    /// Reads a value that stands in no field.
    pub(super) fn of_value(value: Value, go_type: &str, of: &'static str) -> Decoded<Self> {
        Ok(Self {
            of,
            ..Self::of(value, "Go value", go_type)?
        })
    }

    fn of(value: Value, what: &str, go_type: &str) -> Decoded<Self> {
        match value {
            Value::Object(left) => Ok(Self { left, of: "" }),
            Value::Null => Ok(Self {
                left: Map::new(),
                of: "",
            }),
            other => Err(mismatch(&other, what, go_type)),
        }
    }

    /// The value of a member under any of its names; `null` is absent.
    pub(super) fn take(&mut self, names: &[&str]) -> Option<Value> {
        let mut found = None;
        for name in names {
            while let Some(key) = self
                .left
                .keys()
                .find(|key| key.eq_ignore_ascii_case(name))
                .cloned()
            {
                // The last of several wins, as in Go.
                found = self.left.remove(&key).filter(|value| !value.is_null());
            }
        }
        found
    }

    pub(super) fn string(&mut self, names: &[&str]) -> Decoded<String> {
        self.optional_string(names).map(Option::unwrap_or_default)
    }

    pub(super) fn optional_string(&mut self, names: &[&str]) -> Decoded<Option<String>> {
        match self.take(names) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mismatch(&other, names, "string")),
        }
    }

    /// A text that has a name of its own among Go's types.
    pub(super) fn string_as(&mut self, names: &[&str], go_type: &str) -> Decoded<String> {
        match self.take(names) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.mismatch(&other, names, go_type)),
        }
    }

    pub(super) fn unsigned(&mut self, names: &[&str]) -> Decoded<u64> {
        match self.take(names) {
            None => Ok(0),
            Some(value) => value
                .as_u64()
                .ok_or_else(|| self.mismatch(&value, names, "uint64")),
        }
    }

    pub(super) fn boolean(&mut self, names: &[&str]) -> Decoded<bool> {
        match self.take(names) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(self.mismatch(&other, names, "bool")),
        }
    }

    pub(super) fn integer(&mut self, names: &[&str]) -> Decoded<i64> {
        match self.take(names) {
            None => Ok(0),
            Some(value) => value
                .as_i64()
                .ok_or_else(|| self.mismatch(&value, names, "int")),
        }
    }

    /// A list of which Consul tells apart whether it is absent, `null` or empty.
    pub(super) fn list(&mut self, names: &[&str], of: &str) -> Decoded<Given<Vec<String>>> {
        let is_null = |(key, value): (&String, &Value)| {
            value.is_null() && names.iter().any(|name| key.eq_ignore_ascii_case(name))
        };
        if self.left.iter().any(is_null) {
            self.take(names);
            return Ok(Given::Null);
        }
        if !self.has(names) {
            return Ok(Given::Absent);
        }
        self.strings_as(names, of).map(Given::Value)
    }

    pub(super) fn has(&self, names: &[&str]) -> bool {
        self.left
            .keys()
            .any(|key| names.iter().any(|name| key.eq_ignore_ascii_case(name)))
    }

    pub(super) fn strings(&mut self, names: &[&str]) -> Decoded<Vec<String>> {
        self.strings_as(names, "string")
    }

    fn strings_as(&mut self, names: &[&str], of: &str) -> Decoded<Vec<String>> {
        match self.take(names) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    Value::Null => Ok(String::new()),
                    other => Err(self.mismatch(&other, names, of)),
                })
                .collect(),
            Some(other) => Err(self.mismatch(&other, names, &format!("[]{of}"))),
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
                    other => Err(self.mismatch(&other, names, "string")),
                })
                .collect::<Decoded<Pairs>>()
                .map(Some),
            Some(other) => Err(self.mismatch(&other, names, "map[string]string")),
        }
    }

    /// A duration string, or a number of nanoseconds. Consul takes any other type for absent.
    pub(super) fn time(&mut self, names: &[&str]) -> Decoded<GoTime> {
        match self.take(names) {
            Some(Value::String(text)) => {
                GoTime::parse(&text).map_err(|invalid| Undecodable(format!("time: {invalid}")))
            }
            Some(Value::Number(nanos)) => Ok(GoTime(nanos.as_i64().unwrap_or_default())),
            _ => Ok(GoTime::default()),
        }
    }

    pub(super) fn object(&mut self, names: &[&str], go_type: &str) -> Decoded<Option<Self>> {
        self.take(names)
            .map(|value| Self::of(value, &self.field(names), go_type))
            .transpose()
    }

    /// As [`object`](Self::object), for an object whose members' errors tell where they are.
    pub(super) fn object_as(
        &mut self,
        names: &[&str],
        go_type: &str,
        of: &'static str,
    ) -> Decoded<Option<Self>> {
        let object = self.object(names, go_type)?;
        Ok(object.map(|object| Self { of, ..object }))
    }

    pub(super) fn objects(&mut self, names: &[&str], go_type: &str) -> Decoded<Vec<Self>> {
        match self.take(names) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| Self::of(item, &self.field(names), go_type))
                .collect(),
            Some(other) => Err(self.mismatch(&other, names, &format!("{go_type}s"))),
        }
    }

    /// All members with their names, for a map whose keys are data.
    pub(super) fn into_entries(self) -> impl Iterator<Item = (String, Value)> {
        self.left.into_iter()
    }

    /// Reads one entry of a map of objects.
    pub(super) fn entry(value: Value, names: &[&str], go_type: &str) -> Decoded<Self> {
        Self::of(value, &field("", names), go_type)
    }

    fn field(&self, names: &[&str]) -> String {
        field(self.of, names)
    }

    pub(super) fn mismatch(&self, value: &Value, names: &[&str], go_type: &str) -> Undecodable {
        mismatch(value, &self.field(names), go_type)
    }

    /// Refuses what no field took.
    pub(super) fn finish(self) -> Decoded<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(Undecodable(format!("json: unknown field \"{name}\""))),
        }
    }
}

fn field(of: &str, names: &[&str]) -> String {
    format!("Go struct field {of}.{}", names.first().unwrap_or(&""))
}

fn mismatch(value: &Value, what: &str, go_type: &str) -> Undecodable {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if matches!(go_type, "int" | "uint64") => {
            format!("number {number}")
        }
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
