use unicode_width::UnicodeWidthStr;

use super::super::output::{Colour, Terminal, sanitize};

/// The gap between two columns, where there is room for it.
const COLUMN_GAP: usize = 3;
/// The minimum width for wrapping a column; its longest word may require more.
const MIN_WRAP_WIDTH: usize = 20;
/// The indentation of cells that are printed below their row.
const BELOW_INDENT: usize = 4;

/// A text table as kubectl prints it.
///
/// On a terminal that is too narrow, the widest column wraps. If too little room is left for that, wide columns are
/// printed below their row.
#[derive(Debug, Default)]
pub(in crate::cli) struct TextTable {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
    /// The width of the longest word of each column.
    longest_words: Vec<usize>,
}

impl TextTable {
    /// Creates a table with these column headings.
    pub fn new<T: Into<String>>(headings: impl IntoIterator<Item = T>) -> Self {
        let headings: Vec<String> =
            headings.into_iter().map(|heading| heading.into().to_uppercase()).collect();
        let widths: Vec<_> = headings.iter().map(|heading| heading.width()).collect();
        Self { headings, rows: Vec::new(), longest_words: widths.clone(), widths }
    }

    /// Adds a row with a cell for each column.
    pub fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = self.headings.iter().zip(cells);
        let cells: Vec<_> = cells.map(|(heading, cell)| shorten_digests(heading, &sanitize(&cell))).collect();
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = cell.width().max(*width);
        }
        for (word, cell) in self.longest_words.iter_mut().zip(&cells) {
            *word = cell.split(' ').map(UnicodeWidthStr::width).fold(*word, usize::max);
        }
        self.rows.push(cells);
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the headings and all rows, and removes the rows.
    pub fn render(&mut self, terminal: &Terminal) -> String {
        let headings = self.render_row(&self.headings, terminal, &|_, _, _| None);
        headings + &self.render_rows(terminal)
    }

    /// Returns the rows without headings, and removes them. Later rows keep the same column widths as far as possible.
    pub fn render_rows(&mut self, terminal: &Terminal) -> String {
        let rows = std::mem::take(&mut self.rows);
        rows.iter().map(|row| self.render_row(row, terminal, &cell_colour)).collect()
    }

    fn render_row(
        &self,
        cells: &[String],
        terminal: &Terminal,
        colour: &impl Fn(&[String], &str, &str) -> Option<Colour>,
    ) -> String {
        let Layout { gap, flows } = self.layout(terminal);
        let (mut line, mut indent) = (String::new(), 0);
        let (mut wrapped_lines, mut below_lines) = (Vec::new(), Vec::new());
        for (((cell, width), heading), flow) in cells.iter().zip(&self.widths).zip(&self.headings).zip(flows)
        {
            let (mut cell, mut width) = (cell.clone(), *width);
            match flow {
                ColumnFlow::Wrapped(room) => {
                    let mut parts = wrap(&cell, room).into_iter();
                    (cell, width) = (parts.next().unwrap_or_default(), room);
                    wrapped_lines.extend(parts.map(|part| " ".repeat(indent) + &part));
                }
                ColumnFlow::Below(room) => {
                    below_lines
                        .extend(wrap(&cell, room).into_iter().map(|part| " ".repeat(BELOW_INDENT) + &part));
                    continue;
                }
                ColumnFlow::Inline => {}
            }
            let painted = match colour(cells, heading, &cell) {
                Some(colour) => terminal.paint(colour, &cell),
                None => cell.clone(),
            };
            line += &painted;
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width()) + gap));
            indent += width.max(cell.width()) + gap;
        }
        let lines = std::iter::once(line)
            .chain(wrapped_lines)
            .chain(below_lines)
            .map(|line| line.trim_end().to_owned());
        // A cell below its row may be empty.
        lines
            .enumerate()
            .filter(|(number, line)| *number == 0 || !line.is_empty())
            .map(|(_, line)| line + "\n")
            .collect()
    }

    /// Fits the columns to a terminal.
    ///
    /// The widest column wraps. While too little room is left for that, columns move below the row, the widest first;
    /// narrow ones only if the row is too long even with minimal gaps. The first column stays in place.
    fn layout(&self, terminal: &Terminal) -> Layout {
        let mut flows = vec![ColumnFlow::Inline; self.widths.len()];
        let Some(terminal_width) = terminal.width else { return Layout { gap: COLUMN_GAP, flows } };
        loop {
            let inline = || {
                let columns = self.widths.iter().copied().enumerate().zip(&flows);
                columns.filter(|(_, flow)| matches!(flow, ColumnFlow::Inline)).map(|(column, _)| column)
            };
            let sum: usize = inline().map(|(_, width)| width).sum();
            let gaps = inline().count().saturating_sub(1);
            let fitting = (1..=COLUMN_GAP).rev().find(|gap| sum + gaps * gap <= terminal_width);
            let gap = fitting.unwrap_or(1);
            if fitting == Some(COLUMN_GAP) {
                return Layout { gap, flows };
            }
            let widest_column =
                inline().filter(|(_, width)| *width > MIN_WRAP_WIDTH).max_by_key(|(_, width)| *width);
            let room = widest_column
                .and_then(|(_, width)| terminal_width.checked_sub(sum - width + gaps * COLUMN_GAP));
            let longest_word =
                widest_column.and_then(|(index, _)| self.longest_words.get(index).filter(|_| index > 0));
            let min_width =
                longest_word.map_or(MIN_WRAP_WIDTH, |longest_word| MIN_WRAP_WIDTH.max(*longest_word));
            let candidate = inline().filter(|(index, _)| *index > 0).max_by_key(|(_, width)| *width);
            let candidate = candidate.filter(|(_, width)| *width > MIN_WRAP_WIDTH || fitting.is_none());
            let (index, flow) = match (widest_column.zip(room.filter(|room| *room >= min_width)), candidate) {
                (Some(((widest, _), room)), _) => (widest, ColumnFlow::Wrapped(room)),
                (None, Some((index, _))) => (
                    index,
                    ColumnFlow::Below(terminal_width.saturating_sub(BELOW_INDENT).max(MIN_WRAP_WIDTH)),
                ),
                (None, None) => return Layout { gap, flows },
            };
            if let Some(column_flow) = flows.get_mut(index) {
                *column_flow = flow;
            }
            if matches!(flow, ColumnFlow::Wrapped(_)) {
                return Layout { gap: COLUMN_GAP, flows };
            }
        }
    }
}

/// The layout of rows on a terminal.
struct Layout {
    gap: usize,
    flows: Vec<ColumnFlow>,
}

/// The placement of a column, with its width.
#[derive(Clone, Copy)]
enum ColumnFlow {
    Inline,
    Wrapped(usize),
    Below(usize),
}

/// Shortens digests and commit ids to their first characters, which identify them. `-o json` prints them in full.
fn shorten_digests(heading: &str, cell: &str) -> String {
    const DIGEST_CHARS: usize = 12;
    let is_hex = |char: char| matches!(char, '0'..='9' | 'a'..='f');
    let mut text = String::new();
    let mut remaining = cell;
    while let Some(start) = remaining.find(is_hex) {
        let (before, from) = remaining.split_at(start);
        let (hex, after) = from.split_at(from.find(|char| !is_hex(char)).unwrap_or(from.len()));
        text += before;
        let is_digest = hex.len() == 64 && text.ends_with("sha256:");
        let is_commit = matches!(hex.len(), 40 | 64) && heading == "REVISION";
        text += hex.get(..DIGEST_CHARS).filter(|_| is_digest || is_commit).unwrap_or(hex);
        remaining = after;
    }
    text + remaining
}

/// Wraps words into lines of at most `width` columns. A longer word is split.
pub(in crate::cli) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for mut word in text.split(' ') {
        if used > 0 && used + 1 + word.width() > width {
            lines.push(String::new());
            used = 0;
        }
        while word.width() > width {
            let mut end = 0;
            for (start, char) in word.char_indices() {
                let next = start + char.len_utf8();
                if word.get(..next).unwrap_or_default().width() > width {
                    break;
                }
                end = next;
            }
            let (head, tail) = word.split_at(end.max(1));
            if let Some(line) = lines.last_mut() {
                line.push_str(head);
            }
            lines.push(String::new());
            (word, used) = (tail, 0);
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += word.width();
        }
    }
    lines
}

/// Returns the colour of a cell.
fn cell_colour(row: &[String], heading: &str, cell: &str) -> Option<Colour> {
    match (row.first().map_or("", |first| first), heading, cell) {
        ("Stalled", "STATUS", "True") | (_, "READY" | "STATUS", "False") => Some(Colour::Red),
        ("Reconciling", "STATUS", "True") | (_, "READY" | "STATUS", "Unknown") | (_, "TYPE", "Warning") => {
            Some(Colour::Yellow)
        }
        (_, "READY" | "STATUS", "True") => Some(Colour::Green),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_table() -> TextTable {
        let mut table = TextTable::new(["Name", "Ready", "Message"]);
        table.add_row(["a", "True", ""].map(String::from));
        table.add_row(
            ["longer", "False", "the command\u{1b}[31m was not found on the path of evenkeel"]
                .map(String::from),
        );
        table
    }

    #[test]
    fn widest_column_wraps_on_a_narrow_terminal() {
        let plain = Terminal { width: None, colour: false };
        assert_eq!(
            sample_table().render(&plain),
            "NAME     READY   MESSAGE\n\
             a        True\n\
             longer   False   the command [31m was not found on the path of evenkeel\n"
        );
        let narrow = Terminal { width: Some(40), colour: true };
        assert_eq!(
            sample_table().render(&narrow),
            "NAME     READY   MESSAGE\n\
             a        \u{1b}[32mTrue\u{1b}[0m\n\
             longer   \u{1b}[31mFalse\u{1b}[0m   the command [31m was\n                 \
             not found on the path\n                 of evenkeel\n"
        );
        let mut long = sample_table();
        long.add_row(["b", "True", "no word of weather-server-of-tomorrow is cut"].map(String::from));
        let text = long.render(&Terminal { width: Some(40), colour: false });
        assert!(
            text.ends_with("b        True\n    no word of\n    weather-server-of-tomorrow is cut\n"),
            "{text}"
        );
        let beneath = sample_table().render(&Terminal { width: Some(30), colour: false });
        assert_eq!(
            beneath,
            "NAME     READY\n    MESSAGE\n\
             a        True\n\
             longer   False\n    the command [31m was not\n    found on the path of\n    evenkeel\n"
        );
    }

    #[test]
    fn gaps_shrink_before_columns_move_below() {
        let mut table = TextTable::new(["Name", "Ready", "Reason", "Age"]);
        table.add_row(["weather", "False", "CommandNotFound", "3s"].map(String::from));
        for (width, gap, beneath) in [(40, 3, 0), (38, 2, 0), (35, 1, 0), (20, 2, 1), (9, 3, 3)] {
            let layout = table.layout(&Terminal { width: Some(width), colour: false });
            let lower = layout.flows.iter().filter(|flow| matches!(flow, ColumnFlow::Below(_))).count();
            assert_eq!((layout.gap, lower), (gap, beneath), "{width}");
        }
    }

    #[test]
    fn wide_tables_fit_every_terminal_width() {
        let mut table =
            TextTable::new(["Name", "Ready", "Reason", "Revision", "Directory", "Message", "Age"]);
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let directory = "/home/somebody/projects/a-very-long-name/fleet";
        let message = format!("read at revision {digest}, with many words after it that take much room");
        let name = "a-name-of-forty-letters-which-is-allowed";
        table.add_row([name, "True", "Available", &digest, directory, &message, "3s"].map(String::from));
        for width in [200, 160, 120, 100, 80, 70, 60, 50, 40] {
            let terminal = Terminal { width: Some(width), colour: false };
            let headings = table.render_row(&table.headings, &terminal, &|_, _, _| None);
            let row = table.render_row(&table.rows[0], &terminal, &|_, _, _| None);
            let longest = headings.lines().chain(row.lines()).map(UnicodeWidthStr::width).max().unwrap();
            assert!(longest <= width, "{longest} at {width}:\n{headings}{row}");
            let letters = |text: &str| {
                let mut letters: Vec<_> = text.chars().filter(|char| !char.is_whitespace()).collect();
                letters.sort_unstable();
                letters
            };
            assert_eq!(letters(&row), letters(&table.rows[0].concat()), "nothing is lost at {width}:\n{row}");
        }
        let narrow = table.render(&Terminal { width: Some(70), colour: false });
        assert_eq!(
            narrow.lines().next_back().unwrap().trim_start(),
            "that take much room",
            "columns keep their order:\n{narrow}"
        );
    }

    #[test]
    fn digests_are_shortened_and_names_are_not() {
        let hex = "0123456789abcdef".repeat(4);
        let commit = &hex[..40];
        for (heading, cell, expected) in [
            ("MESSAGE", format!("at sha256:{hex}; so"), "at sha256:0123456789ab; so"),
            ("REVISION", format!("{commit}-dirty"), "0123456789ab-dirty"),
            ("REVISION", hex.clone(), "0123456789ab"),
            ("NAME", commit.to_owned(), commit),
            ("NAME", "größe-ab12".into(), "größe-ab12"),
        ] {
            assert_eq!(shorten_digests(heading, &cell), expected);
        }
    }

    #[test]
    fn wrap_splits_long_words() {
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("a b c", 3), ["a b", "c"]);
    }
}
