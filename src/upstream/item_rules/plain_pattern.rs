//! Regular expressions that every JavaScript engine certainly accepts.

/// Characters that stand for themselves outside a class.
const LITERALS: &str = "._ :,@%#&=!~<>;'\"-/";
/// Characters that may follow a backslash.
const ESCAPES: &str = "dDwWsS^$\\.*+?()[]{}|/";
/// Characters that stand for themselves in a class, besides letters and digits.
const CLASS_LITERALS: &str = "_ .,:@+%/";

/// Returns true if a pattern is a sequence of characters, escapes and classes, each with a quantifier or without. Groups
/// and alternatives are not looked at.
pub(super) fn is_plain_pattern(pattern: &str) -> bool {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let mut rest = pattern.strip_suffix('$').unwrap_or(pattern);
    while !rest.is_empty() {
        let Some(after) = after_atom(rest) else { return false };
        rest = after_quantifier(after).unwrap_or(after);
    }
    true
}

fn after_atom(pattern: &str) -> Option<&str> {
    if let Some(class) = pattern.strip_prefix('[') {
        let (items, after) = class.strip_prefix('^').unwrap_or(class).split_once(']')?;
        return is_plain_class(items).then_some(after);
    }
    if let Some(escape) = pattern.strip_prefix('\\') {
        return escape.strip_prefix(|char| ESCAPES.contains(char));
    }
    pattern.strip_prefix(|char: char| char.is_ascii_alphanumeric() || LITERALS.contains(char))
}

fn is_plain_class(items: &str) -> bool {
    // A hyphen at the end stands for itself.
    let items = items.strip_suffix('-').unwrap_or(items);
    let mut chars = items.chars().peekable();
    while let Some(first) = chars.next() {
        if !first.is_ascii_alphanumeric() && !CLASS_LITERALS.contains(first) {
            return false;
        }
        if chars.next_if_eq(&'-').is_some() {
            let is_range = first.is_ascii_alphanumeric()
                && chars.next().is_some_and(|last| last.is_ascii_alphanumeric() && first <= last);
            if !is_range {
                return false;
            }
        }
    }
    !items.is_empty()
}

fn after_quantifier(pattern: &str) -> Option<&str> {
    let Some(bounds) = pattern.strip_prefix('{') else {
        return pattern.strip_prefix(['*', '+', '?']);
    };
    let (bounds, after) = bounds.split_once('}')?;
    let (least, most) = bounds.split_once(',').unwrap_or((bounds, bounds));
    let least: u16 = least.parse().ok()?;
    (most.is_empty() || least <= most.parse().ok()?).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_simple_patterns_are_plain() {
        for (pattern, expected) in [
            ("", true),
            ("^[a-z0-9-]+$", true),
            (r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}Z?$", true),
            ("^[^ ,]{1,}@[A-Za-z0-9.-]{2,63}$", true),
            (r"v\.\w*", true),
            // Ajv refuses these.
            ("(", false),
            ("(?i)x", false),
            (r"[\w-.]", false),
            (r"\-", false),
            ("[z-a]", false),
            ("a{2,1}", false),
            ("a**", false),
            ("{", false),
            ("[", false),
            ("x\\", false),
            // These are valid, but not looked at.
            ("^(a|b)$", false),
            (r"\p{L}", false),
            ("a+?", false),
        ] {
            assert_eq!(is_plain_pattern(pattern), expected, "{pattern}");
        }
    }
}
