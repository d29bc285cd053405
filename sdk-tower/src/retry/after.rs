//! How long a server asks to be left alone.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// The time that `Retry-After` asks for, in either of its forms (RFC 9110, 10.2.3).
///
/// A date is measured from the `Date` of the same response: the two clocks need not agree then. A
/// date without one says nothing; a server that has a clock "MUST generate a Date header field"
/// (RFC 9110, 6.6.1). A date that has passed is no time at all.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = date(value)?;
    let from = date(headers.get(DATE)?.to_str().ok()?)?;
    Some(until.duration_since(from).unwrap_or_default())
}

fn date(value: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(value.trim()).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked(after: &'static str, date: Option<&'static str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_static(date));
        }
        retry_after(&headers).map(|time| time.as_secs())
    }

    #[test]
    fn both_forms_are_read_and_nonsense_is_not() {
        const NOON: Option<&str> = Some("Sun, 06 Nov 1994 12:00:00 GMT");
        assert_eq!(asked("120", None), Some(120));
        assert_eq!(asked(" 0 ", None), Some(0));
        // The three forms of a date that a recipient must accept (RFC 9110, 5.6.7).
        for until in [
            "Sun, 06 Nov 1994 12:00:37 GMT",
            "Sunday, 06-Nov-94 12:00:37 GMT",
            "Sun Nov  6 12:00:37 1994",
        ] {
            assert_eq!(asked(until, NOON), Some(37), "{until}");
            assert_eq!(asked(until, None), None, "{until}");
        }
        assert_eq!(asked("Sun, 06 Nov 1994 11:00:00 GMT", NOON), Some(0));
        for nonsense in ["-1", "1.5", "soon", "", "99999999999999999999"] {
            assert_eq!(asked(nonsense, NOON), None, "{nonsense}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
