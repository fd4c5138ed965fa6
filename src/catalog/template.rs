//! URI templates (RFC 6570), as far as it takes to tell which one a URI was made from.

enum Piece<'a> {
    Text(&'a str),
    /// An expression; without an operator it does not reach over a slash.
    Varies {
        over_slashes: bool,
    },
}

/// A longer URI comes from no template.
const LONGEST: usize = 8 << 10;
/// Nor does one come from a template with more parts.
const MOST_PIECES: usize = 64;

/// How much of the template stands in a URI that may have been made from it; `None` if it was not.
///
/// Costs at most the lengths of both multiplied, whatever they hold.
pub(super) fn matches(template: &str, uri: &str) -> Option<usize> {
    // Most are told apart by how they begin.
    if !uri.starts_with(template.split('{').next()?) {
        return None;
    }
    let pieces = cut(template)?;
    if pieces.len() > MOST_PIECES || uri.len() > LONGEST {
        return None;
    }
    // The places in the URI that the pieces so far can end at.
    let mut ends = vec![0];
    let mut standing = 0;
    for piece in &pieces {
        ends = match piece {
            Piece::Text(text) => {
                standing += text.len();
                let follows = |end: &usize| uri.get(*end..).is_some_and(|rest| rest.starts_with(text));
                ends.into_iter().filter(follows).map(|end| end + text.len()).collect()
            }
            Piece::Varies { over_slashes } => reach(uri, &ends, *over_slashes),
        };
        if ends.is_empty() {
            return None;
        }
    }
    ends.contains(&uri.len()).then_some(standing)
}

/// All places from any of these on, each once, up to the next slash unless it may be passed.
fn reach(uri: &str, starts: &[usize], over_slashes: bool) -> Vec<usize> {
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

fn cut(template: &str) -> Option<Vec<Piece<'_>>> {
    let (mut pieces, mut rest) = (Vec::new(), template);
    while let Some((text, after)) = rest.split_once('{') {
        let (expression, after) = after.split_once('}')?;
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        let over_slashes = expression.starts_with(['+', '#', '/', '?', '&', ';', '.']);
        pieces.push(Piece::Varies { over_slashes });
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_known_by_what_stands_in_its_template() {
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
            assert_eq!(matches(template, uri), expected, "{template} {uri}");
        }
    }

    #[test]
    fn no_template_takes_long() {
        let template = "{a}".repeat(MOST_PIECES);
        assert_eq!(matches(&template, &"x".repeat(LONGEST)), Some(0));
        assert_eq!(matches(&format!("{template}{{b}}"), "x"), None);
    }
}
