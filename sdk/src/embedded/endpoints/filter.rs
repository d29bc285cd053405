//! `?filter=`: the part of Consul's boolean expressions that people write.
//!
//! Known are `==`, `!=`, `in`, `not in`, `contains`, `not contains`, `is empty`, `is not empty`,
//! `and`, `or`, `not` and parentheses; not known are `matches` and `not matches`.
//! See <https://developer.hashicorp.com/consul/api-docs/features/filtering>.

use serde::Serialize;
use serde_json::{Map, Value};

use super::fields::{Field, Fields};

/// A parsed expression whose selectors exist.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Filter(Expression);

/// Why an expression is not understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Wrong {
    /// It is no expression.
    Syntax(String),
    /// It asks for a field that is not there, or for something that a field has not.
    Meaning(String),
    /// Consul has it and this agent has not.
    Unserved(&'static str),
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Expression {
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
    Match {
        path: Vec<String>,
        operator: Operator,
        value: String,
        /// What stands for a field that an answer leaves out because it is zero.
        absent: Option<Value>,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    In,
    NotIn,
    IsEmpty,
    IsNotEmpty,
}

impl Operator {
    fn name(self) -> &'static str {
        match self {
            Self::Equal => "Equal",
            Self::NotEqual => "Not Equal",
            Self::In => "In",
            Self::NotIn => "Not In",
            Self::IsEmpty => "Is Empty",
            Self::IsNotEmpty => "Is Not Empty",
        }
    }
}

impl Filter {
    /// Parses an expression over `fields`.
    pub(super) fn parse(text: &str, fields: Fields) -> Result<Self, Wrong> {
        let mut parser = Parser {
            text,
            tokens: tokens(text)?,
            at: 0,
            depth: 0,
        };
        let mut expression = parser.either()?;
        if parser.at < parser.tokens.len() {
            return Err(parser.wrong());
        }
        check(&mut expression, fields)?;
        Ok(Self(expression))
    }

    /// Whether an item of an answer is let through.
    pub(super) fn allows<T: Serialize>(&self, item: &T) -> bool {
        serde_json::to_value(item).is_ok_and(|item| holds(&self.0, &item))
    }
}

/// Refuses selectors that do not exist and operators that do not fit them.
fn check(expression: &mut Expression, fields: Fields) -> Result<(), Wrong> {
    match expression {
        Expression::And(one, other) | Expression::Or(one, other) => {
            check(one, fields)?;
            check(other, fields)
        }
        Expression::Not(inner) => check(inner, fields),
        Expression::Match {
            path,
            operator,
            value,
            absent,
        } => {
            let field = resolve(path, fields).map_err(|known| {
                let selector = path.get(..=known).unwrap_or(path).join(".");
                Wrong::Meaning(format!("Selector {selector:?} is not valid"))
            })?;
            let selector = path.join(".");
            *absent = zero(path, field, fields);
            let fits = match operator {
                Operator::Equal | Operator::NotEqual => {
                    matches!(field, Field::Text | Field::Integer | Field::Boolean)
                }
                Operator::In | Operator::NotIn => {
                    matches!(
                        field,
                        Field::Text | Field::Texts | Field::Pairs | Field::Structs(_)
                    )
                }
                Operator::IsEmpty | Operator::IsNotEmpty => matches!(
                    field,
                    Field::Texts | Field::Pairs | Field::Structs(_) | Field::List(_)
                ),
            };
            if !fits {
                return Err(Wrong::Meaning(format!(
                    "Invalid match operator {:?} for selector {selector:?}",
                    operator.name()
                )));
            }
            let unreadable = match field {
                Field::Integer if value.parse::<i64>().is_err() => "ParseInt",
                Field::Boolean if super::query::go_bool(value).is_none() => "ParseBool",
                _ => return Ok(()),
            };
            Err(Wrong::Meaning(format!(
                "Failed to coerce value {value:?} for selector {selector:?}: \
                 strconv.{unreadable}: parsing {value:?}: invalid syntax"
            )))
        }
    }
}

/// What a path leads to, or how many of its parts exist.
fn resolve(path: &[String], fields: Fields) -> Result<Field, usize> {
    let mut field = Field::Struct(fields);
    for (at, part) in path.iter().enumerate() {
        field = match field {
            Field::Struct(inner) | Field::List(inner) => {
                let found = inner.iter().find(|(name, _)| name == part);
                found.map(|(_, field)| *field).ok_or(at)?
            }
            Field::Structs(inner) => Field::Struct(inner),
            Field::Pairs => Field::Text,
            Field::Text | Field::Integer | Field::Boolean | Field::Texts => return Err(at),
        };
    }
    Ok(field)
}

fn holds(expression: &Expression, item: &Value) -> bool {
    match expression {
        Expression::And(one, other) => holds(one, item) && holds(other, item),
        Expression::Or(one, other) => holds(one, item) || holds(other, item),
        Expression::Not(inner) => !holds(inner, item),
        Expression::Match {
            path,
            operator,
            value,
            absent,
        } => {
            let judged = |item: &Value| judge(*operator, value, item);
            // A key that a map has not matches nothing, and so only what denies a match.
            let missing = || {
                let denies = matches!(operator, Operator::NotEqual | Operator::NotIn);
                absent.as_ref().map_or(denies, judged)
            };
            matches(path, item, &judged, &missing)
        }
    }
}

/// The value of a field that is not written when it is zero; a key of a map has none.
fn zero(path: &[String], field: Field, fields: Fields) -> Option<Value> {
    let parent = path.split_last().map(|(_, parent)| parent)?;
    if matches!(
        resolve(parent, fields),
        Ok(Field::Pairs | Field::Structs(_))
    ) {
        return None;
    }
    Some(match field {
        Field::Text => Value::String(String::new()),
        Field::Integer => Value::from(0),
        Field::Boolean => Value::Bool(false),
        Field::Texts | Field::List(_) => Value::Array(Vec::new()),
        Field::Pairs | Field::Struct(_) | Field::Structs(_) => Value::Object(Map::new()),
    })
}

fn matches(
    path: &[String],
    item: &Value,
    judged: &impl Fn(&Value) -> bool,
    missing: &impl Fn() -> bool,
) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return judged(item);
    };
    match item {
        Value::Array(items) => items
            .iter()
            .any(|item| matches(path, item, judged, missing)),
        Value::Object(map) => match map.get(first) {
            Some(item) => matches(rest, item, judged, missing),
            None => missing(),
        },
        _ => missing(),
    }
}

fn judge(operator: Operator, value: &str, item: &Value) -> bool {
    let equal = || match item {
        Value::String(text) => text == value,
        Value::Number(number) => number.as_i64() == value.parse().ok(),
        Value::Bool(known) => super::query::go_bool(value) == Some(*known),
        _ => false,
    };
    let contains = || match item {
        Value::String(text) => text.contains(value),
        Value::Array(items) => items.iter().any(|item| item.as_str() == Some(value)),
        Value::Object(map) => map.contains_key(value),
        _ => false,
    };
    let is_empty = || match item {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => true,
    };
    match operator {
        Operator::Equal => equal(),
        Operator::NotEqual => !equal(),
        Operator::In => contains(),
        Operator::NotIn => !contains(),
        Operator::IsEmpty => is_empty(),
        Operator::IsNotEmpty => !is_empty(),
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Token {
    /// A selector, a keyword or a bare value.
    Word(Vec<String>),
    Quoted(String),
    Number(String),
    Equal,
    NotEqual,
    Open,
    Close,
}

/// The tokens of an expression, each with the byte at which it begins.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Wrong> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            return Ok(found);
        };
        let (token, after) = match first {
            '(' => (Token::Open, rest.get(1..)),
            ')' => (Token::Close, rest.get(1..)),
            '=' if rest.starts_with("==") => (Token::Equal, rest.get(2..)),
            '!' if rest.starts_with("!=") => (Token::NotEqual, rest.get(2..)),
            '"' | '`' => {
                let (value, after) = quoted(rest, first).ok_or_else(|| {
                    let end = text.len();
                    wrong_at(text, end, "rule \"string\": Unterminated string literal")
                })?;
                (Token::Quoted(value), Some(after))
            }
            c if c.is_ascii_alphabetic() => {
                let (parts, after) = word(rest).ok_or_else(|| no_match(text, at))?;
                (Token::Word(parts), Some(after))
            }
            c if c.is_ascii_digit() || c == '-' => {
                let end = rest
                    .find(|c: char| !c.is_ascii_digit() && !matches!(c, '-' | '.'))
                    .unwrap_or(rest.len());
                let (number, after) = rest.split_at(end);
                if number.parse::<f64>().is_err() {
                    return Err(wrong_at(
                        text,
                        at,
                        "rule \"number\": Invalid number literal",
                    ));
                }
                (Token::Number(number.to_owned()), Some(after))
            }
            _ => return Err(no_match(text, at)),
        };
        found.push((at, token));
        rest = after.unwrap_or_default();
    }
}

fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        if c == quote {
            return Some((value, text.get(at + c.len_utf8()..)?));
        }
        if c == '\\' && quote == '"' {
            value.push(characters.next()?.1);
        } else {
            value.push(c);
        }
    }
    None
}

/// `a.b["c d"].e`
fn word(text: &str) -> Option<(Vec<String>, &str)> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = rest.find(|c| !in_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() {
            return None;
        }
        parts.push(name.to_owned());
        rest = after;
        while let Some(after) = rest.strip_prefix('[') {
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '`'))?;
            let (key, after) = quoted(after, quote)?;
            parts.push(key);
            rest = after.strip_prefix(']')?;
        }
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None => return Some((parts, rest)),
        }
    }
}

fn no_match(text: &str, at: usize) -> Wrong {
    wrong_at(text, at, "no match found")
}

fn wrong_at(text: &str, at: usize, reason: &str) -> Wrong {
    let column = text
        .get(..at)
        .map_or(at, |before| before.chars().count())
        .saturating_add(1);
    Wrong::Syntax(format!("1:{column} ({at}): {reason}"))
}

/// How deep parentheses and `not` may nest; a stack is not endless.
const MAX_DEPTH: usize = 64;

#[derive(Debug)]
struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn either(&mut self) -> Result<Expression, Wrong> {
        let mut expression = self.both()?;
        while self.keyword("or") {
            let other = self.both()?;
            expression = Expression::Or(Box::new(expression), Box::new(other));
        }
        Ok(expression)
    }

    fn both(&mut self) -> Result<Expression, Wrong> {
        let mut expression = self.negation()?;
        while self.keyword("and") {
            let other = self.negation()?;
            expression = Expression::And(Box::new(expression), Box::new(other));
        }
        Ok(expression)
    }

    fn negation(&mut self) -> Result<Expression, Wrong> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong());
        }
        let expression = if self.keyword("not") {
            Expression::Not(Box::new(self.negation()?))
        } else if self.takes(&Token::Open) {
            let inner = self.either()?;
            if !self.takes(&Token::Close) {
                return Err(self.wrong());
            }
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn comparison(&mut self) -> Result<Expression, Wrong> {
        let first = self.operand()?;
        for (text, operator) in [("in", Operator::In), ("not in", Operator::NotIn)] {
            if self.keywords(text) {
                let Token::Word(path) = self.operand()? else {
                    return Err(self.wrong());
                };
                return Ok(Expression::Match {
                    path,
                    operator,
                    value: text_of(first),
                    absent: None,
                });
            }
        }
        let Token::Word(path) = first else {
            return Err(self.wrong());
        };
        for (text, operator) in [
            ("is empty", Operator::IsEmpty),
            ("is not empty", Operator::IsNotEmpty),
        ] {
            if self.keywords(text) {
                return Ok(Expression::Match {
                    path,
                    operator,
                    value: String::new(),
                    absent: None,
                });
            }
        }
        let operator = if self.takes(&Token::Equal) {
            Operator::Equal
        } else if self.takes(&Token::NotEqual) {
            Operator::NotEqual
        } else if self.keyword("contains") {
            Operator::In
        } else if self.keywords("not contains") {
            Operator::NotIn
        } else if self.keyword("matches") || self.keywords("not matches") {
            return Err(Wrong::Unserved("matches"));
        } else {
            return Err(self.wrong());
        };
        let value = text_of(self.operand()?);
        Ok(Expression::Match {
            path,
            operator,
            value,
            absent: None,
        })
    }

    fn operand(&mut self) -> Result<Token, Wrong> {
        match self.tokens.get(self.at) {
            Some((_, token @ (Token::Word(_) | Token::Quoted(_) | Token::Number(_)))) => {
                let token = token.clone();
                self.at += 1;
                Ok(token)
            }
            _ => Err(self.wrong()),
        }
    }

    fn takes(&mut self, wanted: &Token) -> bool {
        let found = self
            .tokens
            .get(self.at)
            .is_some_and(|(_, token)| token == wanted);
        self.at += usize::from(found);
        found
    }

    fn keyword(&mut self, word: &str) -> bool {
        self.takes(&Token::Word(vec![word.to_owned()]))
    }

    fn keywords(&mut self, words: &str) -> bool {
        let start = self.at;
        if words.split(' ').all(|word| self.keyword(word)) {
            return true;
        }
        self.at = start;
        false
    }

    fn wrong(&self) -> Wrong {
        let at = self
            .tokens
            .get(self.at)
            .map_or(self.text.len(), |(at, _)| *at);
        no_match(self.text, at)
    }
}

fn text_of(token: Token) -> String {
    match token {
        Token::Word(parts) => parts.join("."),
        Token::Quoted(text) | Token::Number(text) => text,
        Token::Equal | Token::NotEqual | Token::Open | Token::Close => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Filter, Wrong};
    use crate::embedded::endpoints::fields::SERVICE;

    fn allows(text: &str) -> bool {
        let item = json!({
            "ID": "w1", "Service": "web", "Tags": ["a", "b"], "Meta": {"x": "y", "a-b": "c"},
            "Port": 80, "EnableTagOverride": false, "Weights": {"Passing": 1, "Warning": 2},
            "TaggedAddresses": {"lan": {"Address": "1.1.1.1", "Port": 5}}, "Address": "",
            "Connect": {},
        });
        Filter::parse(text, SERVICE).unwrap().allows(&item)
    }

    #[test]
    fn what_people_write_is_understood() {
        for text in [
            "ID == w1",
            "ID==\"w1\"",
            "Port == 80 and Tags contains a",
            "Port == 81 or `a` in Tags",
            "not (Port == 81 or Port == 82)",
            "c not in Tags",
            "Tags is not empty",
            "Kind == \"\"",
            "Connect.Native == false",
            "Meta.x == y and Meta[\"a-b\"] != d",
            "x in Meta",
            "Weights.Warning == 2",
            "TaggedAddresses.lan.Port == 5",
            "Service contains eb",
            "EnableTagOverride == false",
            "Meta.zz != y",
            "not Meta.zz == y",
        ] {
            assert!(allows(text), "{text}");
        }
        for text in ["ID != w1", "Port != 80", "Tags is empty", "Meta.zz == y"] {
            assert!(!allows(text), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_reason() {
        for (text, wrong) in [
            ("foo", Wrong::Syntax("1:4 (3): no match found".to_owned())),
            (
                "Port == 80 )",
                Wrong::Syntax("1:12 (11): no match found".to_owned()),
            ),
            (
                "Foo == 1",
                Wrong::Meaning("Selector \"Foo\" is not valid".to_owned()),
            ),
            (
                "Foo.Bar == 1",
                Wrong::Meaning("Selector \"Foo\" is not valid".to_owned()),
            ),
            (
                "Tags == a",
                Wrong::Meaning("Invalid match operator \"Equal\" for selector \"Tags\"".to_owned()),
            ),
            (
                "ID is empty",
                Wrong::Meaning(
                    "Invalid match operator \"Is Empty\" for selector \"ID\"".to_owned(),
                ),
            ),
            (
                "Port == x",
                Wrong::Meaning(
                    "Failed to coerce value \"x\" for selector \"Port\": strconv.ParseInt: \
                     parsing \"x\": invalid syntax"
                        .to_owned(),
                ),
            ),
            ("ID matches w", Wrong::Unserved("matches")),
        ] {
            assert_eq!(Filter::parse(text, SERVICE), Err(wrong), "{text}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let text = format!("{}Port == 80{}", "(".repeat(10_000), ")".repeat(10_000));
        assert!(Filter::parse(&text, SERVICE).is_err());
    }
}
