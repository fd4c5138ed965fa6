//! URI templates (RFC 6570), as far as needed to find the template that a URI was made from.

enum Part<'a> {
    Literal(&'a str),
    /// An expression; without an operator its value contains no slash.
    Expression {
        crosses_slashes: bool,
    },
}

/// The longest URI that is matched; a longer one matches no template.
const MAX_URI_BYTES: usize = 8 << 10;
/// The most parts of a template that is matched; one with more parts matches no URI.
const MAX_PARTS: usize = 64;

/// Returns the number of the template's literal bytes in a URI that may have been made from it; `None` if it was not.
///
/// Costs at most the lengths of both multiplied, whatever they hold.
pub(super) fn matched_literal_bytes(template: &str, uri: &str) -> Option<usize> {
    // Most templates are ruled out by their first literal.
    if !uri.starts_with(template.split('{').next()?) {
        return None;
    }
    let parts = parse(template)?;
    if parts.len() > MAX_PARTS || uri.len() > MAX_URI_BYTES {
        return None;
    }
    // The positions in the URI at which the parts so far can end.
    let mut ends = vec![0];
    let mut literal_bytes = 0;
    for part in &parts {
        ends = match part {
            Part::Literal(text) => {
                literal_bytes += text.len();
                let follows = |end: &usize| uri.get(*end..).is_some_and(|rest| rest.starts_with(text));
                ends.into_iter().filter(follows).map(|end| end + text.len()).collect()
            }
            Part::Expression { crosses_slashes } => expression_ends(uri, &ends, *crosses_slashes),
        };
        if ends.is_empty() {
            return None;
        }
    }
    ends.contains(&uri.len()).then_some(literal_bytes)
}

/// Returns all positions at which an expression that begins at any of `starts` can end, each once: up to the next
/// slash, unless the expression crosses slashes.
fn expression_ends(uri: &str, starts: &[usize], crosses_slashes: bool) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut starts = starts.iter().peekable();
    let mut started = false;
    for (position, byte) in uri.bytes().map(Some).chain([None]).enumerate() {
        started |= starts.next_if(|start| **start == position).is_some();
        if started {
            ends.push(position);
        }
        started &= crosses_slashes || byte != Some(b'/');
    }
    ends
}

fn parse(template: &str) -> Option<Vec<Part<'_>>> {
    let (mut parts, mut rest) = (Vec::new(), template);
    while let Some((text, after)) = rest.split_once('{') {
        let (expression, after) = after.split_once('}')?;
        if !text.is_empty() {
            parts.push(Part::Literal(text));
        }
        let crosses_slashes = expression.starts_with(['+', '#', '/', '?', '&', ';', '.']);
        parts.push(Part::Expression { crosses_slashes });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest));
    }
    Some(parts)
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
