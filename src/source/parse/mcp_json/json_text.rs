//! The text of a JSON file, and the positions in it. Pure.

use jsonc_parser::common::Range;

use super::super::excerpt::{ParseError, excerpt};
use super::super::positions::Position;

/// A text with the offsets of its lines.
pub struct JsonText<'a> {
    pub text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> JsonText<'a> {
    pub fn new(text: &'a str) -> Self {
        let line_breaks =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1);
        Self { text, line_starts: std::iter::once(0).chain(line_breaks).collect() }
    }

    /// Returns the position of the start of a range.
    pub fn position(&self, range: Range) -> Position {
        let line = self.line_starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let start = self.line_starts.get(line).copied().unwrap_or_default();
        let column = self.text.get(start..range.start).map_or(0, |before| before.chars().count());
        let one_based = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
        Position { line: one_based(line), column: Some(one_based(column)) }
    }

    /// Returns an error with the position of the start of a range, and the lines around it.
    pub fn error_at(&self, range: Range, message: String) -> ParseError {
        let position = self.position(range);
        let context_start =
            self.line_starts.get(position.line.saturating_sub(2) as usize).copied().unwrap_or_default();
        let context = self.text.get(context_start..).unwrap_or_default();
        let excerpt = excerpt(context, position.line.saturating_sub(1).max(1), position);
        ParseError { position, message, excerpt: Some(excerpt) }
    }
}
