//! When to try again: only after an answer that says so, after the time it names, a bounded number of times.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Wait before the second attempt if the server names none; doubles with each attempt.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whether an answer invites another attempt: too slow, too many requests, or not yet or no longer serving.
pub(crate) fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 502 | 503 | 504)
}

/// Whether an answer says that the request was not taken. Behind 502 and 504 of a proxy the server may work on it.
pub(crate) fn is_untaken(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 503)
}

/// What the header says: seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = httpdate::parse_http_date(text).ok()?;
    // A moment that has passed means at once.
    Some(moment.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Wait after attempt `attempt` (from 0).
pub(crate) fn wait(attempt: u32, asked: Option<Duration>) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(attempt));
    asked.unwrap_or(doubled).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_header_are_read() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        let wait = read(&soon).unwrap().as_secs();
        assert!((25..=30).contains(&wait), "{wait}");
        assert_eq!((read("soon"), read("-1")), (None, None));
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        assert_eq!(wait(0, None), FIRST_WAIT);
        assert_eq!(wait(2, None), FIRST_WAIT * 4);
        assert_eq!(wait(60, None), LONGEST_WAIT);
        assert_eq!(wait(0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(wait(0, Some(Duration::from_secs(7000))), LONGEST_WAIT);
    }
}
