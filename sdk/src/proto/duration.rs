//! Consul durations: Go duration strings and `Duration`.
//!
//! Consul is written in Go and reads and writes times as `time.Duration` strings, such as
//! `1h2m3.5s`, `300ms` or `1µs` (<https://pkg.go.dev/time#ParseDuration>).

use std::fmt::{self, Write as _};
use std::time::Duration;

/// Go keeps a duration in a signed 64-bit count of nanoseconds.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Why a text is not a duration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Invalid {
    /// Not of Go's form at all.
    Syntax(String),
    /// A number without `ns`, `us`, `ms`, `s`, `m` or `h`.
    MissingUnit(String),
    /// A number with a unit that Go does not know.
    UnknownUnit { unit: String, text: String },
    /// Below zero: no time in Consul's API may be.
    Negative(String),
    /// More than Go's 2^63 - 1 nanoseconds, about 292 years.
    TooLong(String),
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(text) => write!(f, "invalid duration \"{text}\""),
            Self::MissingUnit(text) => write!(f, "missing unit in duration \"{text}\""),
            Self::UnknownUnit { unit, text } => {
                write!(f, "unknown unit \"{unit}\" in duration \"{text}\"")
            }
            Self::Negative(text) => write!(f, "negative duration \"{text}\""),
            Self::TooLong(text) => write!(f, "duration \"{text}\" is above 2^63 - 1 ns"),
        }
    }
}

impl std::error::Error for Invalid {}

/// Reads a Go duration string.
///
/// # Errors
///
/// [`Invalid`] says what is wrong; its text is Go's own where Go refuses the same text.
pub(crate) fn parse(text: &str) -> Result<Duration, Invalid> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    let nanos = magnitude(text, unsigned)?;
    if negative && nanos > 0 {
        return Err(Invalid::Negative(text.to_owned()));
    }
    let seconds = u64::try_from(nanos / 1_000_000_000);
    let rest = u32::try_from(nanos % 1_000_000_000);
    match (seconds, rest) {
        (Ok(seconds), Ok(rest)) => Ok(Duration::new(seconds, rest)),
        _ => Err(Invalid::TooLong(text.to_owned())),
    }
}

/// The sum of all `number unit` pairs in nanoseconds.
fn magnitude(text: &str, unsigned: &str) -> Result<u128, Invalid> {
    if unsigned.is_empty() {
        return Err(Invalid::Syntax(text.to_owned()));
    }
    let mut rest = unsigned;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(Invalid::Syntax(text.to_owned()));
        }
        let end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale: u128 = match unit {
            "" => return Err(Invalid::MissingUnit(text.to_owned())),
            "ns" => 1,
            // Go accepts the micro sign (U+00B5) and the Greek letter mu (U+03BC).
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(Invalid::UnknownUnit {
                    unit: unit.to_owned(),
                    text: text.to_owned(),
                });
            }
        };
        let part =
            scaled(whole, fraction, scale).ok_or_else(|| Invalid::TooLong(text.to_owned()))?;
        total += part;
        if total > MAX_NANOS {
            return Err(Invalid::TooLong(text.to_owned()));
        }
        rest = after;
    }
    Ok(total)
}

/// `whole.fraction * scale`, cut to whole nanoseconds; `None` when beyond Go's range.
fn scaled(whole: &str, fraction: &str, scale: u128) -> Option<u128> {
    let mut value: u128 = 0;
    for digit in whole.bytes() {
        value = value * 10 + u128::from(digit - b'0');
        if value > MAX_NANOS {
            return None;
        }
    }
    value *= scale;
    let mut weight = scale;
    for digit in fraction.bytes() {
        // Go ignores digits that are too small to matter.
        if weight == 0 {
            break;
        }
        value += u128::from(digit - b'0') * weight / 10;
        weight /= 10;
    }
    Some(value)
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Writes a duration as Go does, without loss: `1h2m3.5s`, `300ms`, `1µs`, `0s`.
///
/// Beyond Go's range the longest duration that Consul can read is written.
pub(crate) fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos().min(MAX_NANOS);
    let mut out = String::new();
    if nanos == 0 {
        out.push_str("0s");
    } else if nanos < 1_000 {
        decimal(&mut out, nanos, 1, "ns");
    } else if nanos < 1_000_000 {
        decimal(&mut out, nanos, 1_000, "\u{b5}s");
    } else if nanos < 1_000_000_000 {
        decimal(&mut out, nanos, 1_000_000, "ms");
    } else {
        let hours = nanos / 3_600_000_000_000;
        let minutes = nanos / 60_000_000_000 % 60;
        if hours > 0 {
            decimal(&mut out, hours, 1, "h");
        }
        if hours > 0 || minutes > 0 {
            decimal(&mut out, minutes, 1, "m");
        }
        decimal(&mut out, nanos % 60_000_000_000, 1_000_000_000, "s");
    }
    out
}

/// Writes `value / scale` with as many places as needed and no more.
fn decimal(out: &mut String, value: u128, scale: u128, unit: &str) {
    // Writing to a `String` cannot fail.
    let _ = write!(out, "{}", value / scale);
    let mut rest = value % scale;
    if rest > 0 {
        out.push('.');
        let mut place = scale / 10;
        while rest > 0 {
            let _ = write!(out, "{}", rest / place);
            rest %= place;
            place /= 10;
        }
    }
    out.push_str(unit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, want) in [
            ("0", Duration::ZERO),
            ("-0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("300ms", Duration::from_millis(300)),
            ("1µs", Duration::from_micros(1)),
            ("1μs", Duration::from_micros(1)),
            ("1us", Duration::from_micros(1)),
            ("7ns", Duration::from_nanos(7)),
            ("1h2m3.5s", Duration::from_millis(3_723_500)),
            ("+1.5h", Duration::from_secs(5400)),
            (".5s", Duration::from_millis(500)),
            ("1.s", Duration::from_secs(1)),
            ("0.000000001s", Duration::from_nanos(1)),
            ("0.0000000019s", Duration::from_nanos(1)),
            ("10m10m", Duration::from_secs(1200)),
            ("87600h0m0s", Duration::from_secs(87_600 * 3600)),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "invalid duration \"\""),
            ("10", "missing unit in duration \"10\""),
            ("zz", "invalid duration \"zz\""),
            (".s", "invalid duration \".s\""),
            ("5x", "unknown unit \"x\" in duration \"5x\""),
            ("1s ", "unknown unit \"s \" in duration \"1s \""),
            ("-10s", "negative duration \"-10s\""),
            ("--1s", "invalid duration \"--1s\""),
            ("3000000h", "duration \"3000000h\" is above 2^63 - 1 ns"),
            (
                "99999999999999999999s",
                "duration \"99999999999999999999s\" is above 2^63 - 1 ns",
            ),
        ] {
            let refused = parse(text).map_err(|e| e.to_string());
            assert_eq!(refused, Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (duration, want) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(1), "1ns"),
            (Duration::from_nanos(1100), "1.1µs"),
            (Duration::from_micros(2200), "2.2ms"),
            (Duration::from_millis(3300), "3.3s"),
            (Duration::from_secs(90), "1m30s"),
            (Duration::from_secs(3600), "1h0m0s"),
            (Duration::from_nanos(3_723_000_000_001), "1h2m3.000000001s"),
            (Duration::MAX, "2562047h47m16.854775807s"),
        ] {
            assert_eq!(format(duration), want);
        }
    }

    #[test]
    fn what_is_written_is_read_back_without_loss() {
        for nanos in [
            0,
            1,
            999,
            1_000,
            1_234_567,
            60_000_000_000,
            86_399_999_999_999,
        ] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
