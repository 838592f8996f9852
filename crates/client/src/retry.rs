//! When to try again: only after an answer that says so, after the time it names, a bounded number of times.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Wait before the second attempt if the server names none; doubles with each attempt.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whether an answer invites another attempt: too many requests, or not yet or no longer serving.
pub(crate) fn is_temporary(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Seconds of the header; its other form, a date, is not used by servers of the protocol.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds))
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
    fn waits_grow_and_are_bounded() {
        assert_eq!(wait(0, None), FIRST_WAIT);
        assert_eq!(wait(2, None), FIRST_WAIT * 4);
        assert_eq!(wait(60, None), LONGEST_WAIT);
        assert_eq!(wait(0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(wait(0, Some(Duration::from_secs(7000))), LONGEST_WAIT);
    }
}
