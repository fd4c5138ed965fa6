//! Formats untrusted text and times for messages, statuses, log lines and tables. Pure functions.

use jiff::{SignedDuration, Timestamp};

/// The time span after which a time of day without a date would be ambiguous.
const DATE_THRESHOLD: SignedDuration = SignedDuration::from_hours(12);

/// Returns true for an invisible character that can disguise a text: a control character, which can move a terminal's
/// cursor, or a mark that changes the text direction.
pub fn is_invisible(char: char) -> bool {
    let is_turn = matches!(
        char,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    is_turn || char.is_control()
}

/// Returns untrusted text in a form that is safe for messages: without [invisible characters](is_invisible), trimmed,
/// and at most `limit` characters long. A truncated text ends with `…`.
pub fn sanitize(text: &str, limit: usize) -> String {
    let clean: String = text.chars().filter(|char| !is_invisible(*char)).collect();
    let clean = clean.trim();
    if clean.char_indices().nth(limit).is_none() {
        return clean.to_owned();
    }
    let kept: String = clean.chars().take(limit.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Formats a time. Includes the date if the time is more than 12 hours after `now`.
pub fn format_time(at: Timestamp, now: Timestamp) -> String {
    if now.duration_until(at) > DATE_THRESHOLD {
        format_date_time(at)
    } else {
        at.strftime("%T UTC").to_string()
    }
}

/// Formats a time with its date.
pub fn format_date_time(at: Timestamp) -> String {
    at.strftime("%F %T UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitize_removes_invisible_characters_and_truncates() {
        for (text, limit, expected) in [
            ("a\u{1b}[2Jb \u{202e}txt.exe\u{202c}\n", 99, "a[2Jb txt.exe"),
            (" whole ", 5, "whole"),
            ("cut here", 5, "cut…"),
            ("é\u{2066}éé", 3, "ééé"),
            ("éééé", 3, "éé…"),
        ] {
            assert_eq!(sanitize(text, limit), expected, "{text:?}");
        }
    }

    #[test]
    fn distant_time_includes_its_date() {
        let now: Timestamp = "2026-11-21T23:00:00Z".parse().unwrap();
        for (after, expected) in [
            (SignedDuration::from_mins(-1), "22:59:00 UTC"),
            (SignedDuration::from_hours(12), "11:00:00 UTC"),
            (SignedDuration::from_hours(24), "2026-11-22 23:00:00 UTC"),
        ] {
            assert_eq!(format_time(now + after, now), expected);
        }
    }
}
