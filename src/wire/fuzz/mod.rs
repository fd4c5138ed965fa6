//! Fuzz tests of what servers and agents send: event streams, messages, and edits of JSON.
//!
//! As ordinary tests they run their corpus and a thousand random inputs. CONTRIBUTING.md says how to run them for longer.

mod event_stream;
mod json_edit;
mod message;

/// Returns a text of fragments, one for each byte of the input. It gets further in a parser than random bytes.
pub(super) fn compose(input: &[u8], fragments: &[&str]) -> Vec<u8> {
    let fragment = |byte: &u8| fragments[usize::from(*byte) % fragments.len()];
    input.iter().map(fragment).collect::<String>().into_bytes()
}

/// Cuts a text into pieces of 1 to 16 bytes, or of 1 to 256 bytes, whose sizes depend on the input.
pub(super) fn cut<'a>(text: &'a [u8], input: &[u8]) -> Vec<&'a [u8]> {
    let max = if input.len().is_multiple_of(2) { 16 } else { 256 };
    let mut sizes = input.iter().rev().map(|byte| 1 + usize::from(*byte) % max).chain([1]).cycle();
    let (mut rest, mut pieces) = (text, Vec::new());
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
        pieces.push(piece);
        rest = more;
    }
    pieces
}
