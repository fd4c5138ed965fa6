//! Words for people: what others wrote, and times, as a message, a status, a log line or a table may hold them. Pure.

use jiff::{SignedDuration, Timestamp};

/// From here on a time of day alone would be misread.
const DATE_THRESHOLD: SignedDuration = SignedDuration::from_hours(12);

/// True of a character that nobody sees but that changes what is read: one that moves a terminal's cursor, or a mark
/// that turns the direction of what follows, so that a line reads as another one.
pub fn is_invisible(char: char) -> bool {
    let is_turn = matches!(
        char,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    is_turn || char.is_control()
}

/// What others wrote, for a message: without such characters, trimmed, and at most `limit` characters long. What was
/// cut ends in `…`.
pub fn sanitize(text: &str, limit: usize) -> String {
    let clean: String = text.chars().filter(|char| !is_invisible(*char)).collect();
    let clean = clean.trim();
    if clean.char_indices().nth(limit).is_none() {
        return clean.to_owned();
    }
    let kept: String = clean.chars().take(limit.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// A time as it is told now: with its date if that is not plain.
pub fn format_time(at: Timestamp, now: Timestamp) -> String {
    if now.duration_until(at) > DATE_THRESHOLD {
        format_date_time(at)
    } else {
        at.strftime("%T UTC").to_string()
    }
}

/// The same with its date.
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
