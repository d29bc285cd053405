//! Texts of a prepared query's template, with parts of the name that was asked for in them.
//!
//! Consul reads them as HIL, HashiCorp's language of interpolations. Here is what names need of it:
//! `${name.full}`, `${name.prefix}`, `${name.suffix}`, `${agent.segment}`, texts in quotes,
//! `${match(N)}` without a regular expression to match, and `$${` for `${`.

use std::fmt;

/// The name that was asked for, and its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    pub(super) full: &'a str,
    pub(super) prefix: &'a str,
    pub(super) suffix: &'a str,
}

/// Why a text cannot be filled in, in Consul's words for a text at some place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Wrong {
    /// It is no HIL.
    Format { text: String, at: String },
    /// It names what is not there.
    Unknown {
        text: String,
        at: String,
        why: String,
    },
    /// It may be HIL, of which more is needed than is here.
    Unserved(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format { text, at } => {
                write!(f, "Bad format '{text}' in {at}: parse error: syntax error")
            }
            Self::Unknown { text, at, why } => {
                write!(f, "Bad evaluation for '{text}' in {at}: {why}")
            }
            Self::Unserved(text) => write!(f, "with the expression {text}"),
        }
    }
}

/// A text with its interpolations filled in; `at` is where it stands.
pub(super) fn fill(text: &str, at: &str, name: Name<'_>) -> Result<String, Wrong> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find("${") {
        let (before, opened) = rest.split_at(dollar);
        let inner = opened.strip_prefix("${").unwrap_or_default();
        if let Some(literal) = before.strip_suffix('$') {
            filled.push_str(literal);
            filled.push_str("${");
            rest = inner;
            continue;
        }
        filled.push_str(before);
        let format = || Wrong::Format {
            text: text.to_owned(),
            at: at.to_owned(),
        };
        let end = end(inner).ok_or_else(format)?;
        let (expression, after) = inner.split_at(end);
        let expression = expression.trim();
        if expression.is_empty() {
            return Err(format());
        }
        let unknown = |why: String| {
            let until = text.len() - inner.len();
            let lines: Vec<&str> = text.get(..until).unwrap_or_default().split('\n').collect();
            // HIL counts a line's end as the first column of the next.
            let column = lines.last().map_or(0, |line| line.chars().count())
                + if lines.len() > 1 { 2 } else { 1 };
            Wrong::Unknown {
                text: text.to_owned(),
                at: at.to_owned(),
                why: format!("{}:{column}: {why}", lines.len()),
            }
        };
        filled.push_str(&value(expression, name, unknown)?);
        rest = after.strip_prefix('}').unwrap_or_default();
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Where the bracket is that closes an expression; not one within quotes.
fn end(expression: &str) -> Option<usize> {
    let mut quoted = false;
    expression
        .char_indices()
        .find(|(_, c)| {
            quoted ^= *c == '"';
            *c == '}' && !quoted
        })
        .map(|(at, _)| at)
}

fn value(
    expression: &str,
    name: Name<'_>,
    unknown: impl Fn(String) -> Wrong,
) -> Result<String, Wrong> {
    let unserved = || Wrong::Unserved(format!("${{{expression}}}"));
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(quoted) = expression.strip_prefix('"') {
        let plain = |it: &&str| !it.contains(['"', '\\', '$']);
        let literal = quoted.strip_suffix('"').filter(plain);
        return literal.map(str::to_owned).ok_or_else(unserved);
    }
    if let Some((function, arguments)) = expression.split_once('(') {
        let number = arguments.strip_suffix(')').map(str::trim);
        let is_number = number.is_some_and(|it| it.parse::<u32>().is_ok());
        return match function.trim() {
            // Nothing was matched, so that there is no such group.
            "match" if is_number => Ok(String::new()),
            "match" => Err(unserved()),
            other if other.chars().all(is_word) => {
                Err(unknown(format!("unknown function called: {other}")))
            }
            _ => Err(unserved()),
        };
    }
    match expression {
        "name.full" => Ok(name.full.to_owned()),
        "name.prefix" => Ok(name.prefix.to_owned()),
        "name.suffix" => Ok(name.suffix.to_owned()),
        // Segments are a feature of Consul Enterprise.
        "agent.segment" => Ok(String::new()),
        other
            if other.starts_with(|c: char| c.is_ascii_alphabetic())
                && other.chars().all(is_word) =>
        {
            Err(unknown(format!("unknown variable accessed: {other}")))
        }
        _ => Err(unserved()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_name_are_filled_in() {
        let name = Name {
            full: "geo-db",
            prefix: "geo-",
            suffix: "db",
        };
        for (text, filled) in [
            ("plain", "plain"),
            ("${name.suffix}", "db"),
            ("a-${ name.full }-${name.prefix}z", "a-geo-db-geo-z"),
            ("$${name.full}${name.suffix}", "${name.full}db"),
            ("a}b{c $name", "a}b{c $name"),
            ("x${match(1)}y${agent.segment}z", "xyz"),
            (r#"${"}"}${name.suffix}"#, "}db"),
        ] {
            assert_eq!(
                fill(text, "Service.Service", name).unwrap(),
                filled,
                "{text}"
            );
        }
        let wrong = |text: &str| fill(text, "Service.Near", name).unwrap_err().to_string();
        let format = "parse error: syntax error";
        for (text, why) in [
            ("${name.full", format),
            ("${}", format),
            ("${foo}", "1:3: unknown variable accessed: foo"),
            ("é${ foo }", "1:4: unknown variable accessed: foo"),
            (
                "${name.full}\n${foo}",
                "2:4: unknown variable accessed: foo",
            ),
            ("${upper(name.full)}", "1:3: unknown function called: upper"),
        ] {
            let told = wrong(text);
            assert!(
                told.contains(&format!("'{text}' in Service.Near: ")),
                "{told}"
            );
            assert!(told.ends_with(why), "{told}");
        }
        assert_eq!(wrong("${1 + 1}"), "with the expression ${1 + 1}");
    }
}
