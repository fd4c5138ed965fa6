//! URI templates (RFC 6570), as far as it takes to tell which one a URI was made from.

enum Part<'a> {
    Literal(&'a str),
    /// An expression; without an operator it does not reach over a slash.
    Expression {
        crosses_slashes: bool,
    },
}

/// A longer URI comes from no template.
const MAX_URI_BYTES: usize = 8 << 10;
/// Nor does one come from a template with more parts.
const MAX_PARTS: usize = 64;

/// How much of the template stands in a URI that may have been made from it; `None` if it was not.
///
/// Costs at most the lengths of both multiplied, whatever they hold.
pub(super) fn matched_literal_bytes(template: &str, uri: &str) -> Option<usize> {
    // Most are told apart by how they begin.
    if !uri.starts_with(template.split('{').next()?) {
        return None;
    }
    let pieces = parse(template)?;
    if pieces.len() > MAX_PARTS || uri.len() > MAX_URI_BYTES {
        return None;
    }
    // The places in the URI that the pieces so far can end at.
    let mut ends = vec![0];
    let mut standing = 0;
    for piece in &pieces {
        ends = match piece {
            Part::Literal(text) => {
                standing += text.len();
                let follows = |end: &usize| uri.get(*end..).is_some_and(|rest| rest.starts_with(text));
                ends.into_iter().filter(follows).map(|end| end + text.len()).collect()
            }
            Part::Expression { crosses_slashes: over_slashes } => expression_ends(uri, &ends, *over_slashes),
        };
        if ends.is_empty() {
            return None;
        }
    }
    ends.contains(&uri.len()).then_some(standing)
}

/// All places from any of these on, each once, up to the next slash unless it may be passed.
fn expression_ends(uri: &str, starts: &[usize], over_slashes: bool) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut starts = starts.iter().peekable();
    let mut open = false;
    for (place, byte) in uri.bytes().map(Some).chain([None]).enumerate() {
        open |= starts.next_if(|start| **start == place).is_some();
        if open {
            ends.push(place);
        }
        open &= over_slashes || byte != Some(b'/');
    }
    ends
}

fn parse(template: &str) -> Option<Vec<Part<'_>>> {
    let (mut pieces, mut rest) = (Vec::new(), template);
    while let Some((text, after)) = rest.split_once('{') {
        let (expression, after) = after.split_once('}')?;
        if !text.is_empty() {
            pieces.push(Part::Literal(text));
        }
        let over_slashes = expression.starts_with(['+', '#', '/', '?', '&', ';', '.']);
        pieces.push(Part::Expression { crosses_slashes: over_slashes });
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Part::Literal(rest));
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_matches_the_template_it_was_made_from() {
        for (template, uri, expected) in [
            ("demo://r/{id}", "demo://r/7", Some(9)),
            ("demo://r/{id}", "demo://r/7/8", None),
            ("demo://r/{id}/x", "demo://r/7/x", Some(11)),
            ("demo://r/{id}/x", "demo://r/7/y", None),
            ("file://{+path}", "file:///a/b", Some(7)),
            ("a:{x}b{y}b", "a:1b2b3b", Some(4)),
            ("a:{x}b{y}b", "a:1b2", None),
            ("q:s{?q,r}", "q:s?q=1&r=/", Some(3)),
            ("q:s{?q}", "q:s", Some(3)),
            ("plain:x", "plain:x", Some(7)),
            ("broken:{x", "broken:{x", None),
            ("\u{e9}:{x}", "\u{e9}:\u{e9}\u{e9}", Some(3)),
            ("demo://r/{id}#abc123", "demo://r/7#abc123", Some(16)),
        ] {
            assert_eq!(matched_literal_bytes(template, uri), expected, "{template} {uri}");
        }
    }

    #[test]
    fn longest_template_and_uri_are_matched_quickly() {
        let template = "{a}".repeat(MAX_PARTS);
        assert_eq!(matched_literal_bytes(&template, &"x".repeat(MAX_URI_BYTES)), Some(0));
        assert_eq!(matched_literal_bytes(&format!("{template}{{b}}"), "x"), None);
    }
}
