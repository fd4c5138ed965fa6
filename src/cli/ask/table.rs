use unicode_width::UnicodeWidthStr;

use super::super::output::{Colour, Terminal, printable};

/// Between two columns, where there is room for it.
const GAP: usize = 3;
/// A column narrower than this is not worth wrapping.
const NARROW: usize = 20;
/// What stands beneath its row is indented by this.
const BENEATH: usize = 4;

/// Rows under headings, as kubectl prints them. On a terminal that is too narrow the widest column wraps under itself;
/// if little room is left for it, it stands beneath the row.
#[derive(Debug, Default)]
pub(in crate::cli) struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Table {
    /// A table of these columns.
    pub fn new<T: Into<String>>(headings: impl IntoIterator<Item = T>) -> Self {
        let headings: Vec<String> =
            headings.into_iter().map(|heading| heading.into().to_uppercase()).collect();
        let widths = headings.iter().map(|heading| heading.width()).collect();
        Self { headings, rows: Vec::new(), widths }
    }

    /// One more row, with a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = cell.width().max(*width);
        }
        self.rows.push(cells);
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The headings and all rows.
    pub fn whole(&mut self, terminal: &Terminal) -> String {
        let headings = self.line(&self.headings, terminal, &|_, _, _| None);
        headings + &self.rest(terminal)
    }

    /// The rows alone, which are forgotten: what follows keeps to the same columns as far as it can.
    pub fn rest(&mut self, terminal: &Terminal) -> String {
        let rows = std::mem::take(&mut self.rows);
        rows.iter().map(|row| self.line(row, terminal, &colour)).collect()
    }

    fn line(
        &self,
        cells: &[String],
        terminal: &Terminal,
        colour: &impl Fn(&[String], &str, &str) -> Option<Colour>,
    ) -> String {
        let Layout { gap, flow } = self.layout(terminal);
        let (mut line, mut indent, mut more) = (String::new(), 0, Vec::new());
        for (index, ((cell, width), heading)) in
            cells.iter().zip(&self.widths).zip(&self.headings).enumerate()
        {
            let (mut cell, mut width) = (cell.clone(), *width);
            match flow {
                Flow::Within(flowing, room) if index == flowing => {
                    let mut parts = wrap(&cell, room).into_iter();
                    (cell, width) = (parts.next().unwrap_or_default(), room);
                    more.extend(parts.map(|part| " ".repeat(indent) + &part));
                }
                Flow::Beneath(flowing, room) if index == flowing => {
                    more.extend(wrap(&cell, room).into_iter().map(|part| " ".repeat(BENEATH) + &part));
                    continue;
                }
                _ => {}
            }
            let painted = match colour(cells, heading, &cell) {
                Some(colour) => terminal.paint(colour, &cell),
                None => cell.clone(),
            };
            line += &painted;
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width()) + gap));
            indent += width.max(cell.width()) + gap;
        }
        let lines = std::iter::once(line).chain(more).map(|line| line.trim_end().to_owned());
        // A cell beneath may be empty.
        lines
            .enumerate()
            .filter(|(number, line)| *number == 0 || !line.is_empty())
            .map(|(_, line)| line + "\n")
            .collect()
    }

    /// How all this goes on a terminal.
    fn layout(&self, terminal: &Terminal) -> Layout {
        let sum: usize = self.widths.iter().sum();
        let gaps = self.widths.len().saturating_sub(1);
        let widest = self.widths.iter().enumerate().max_by_key(|(_, width)| **width);
        let (flowing, width) = widest.map_or((0, 0), |(index, width)| (index, *width));
        let Some(all) = terminal.width.filter(|all| sum + gaps * GAP > *all) else {
            return Layout { gap: GAP, flow: Flow::None };
        };
        let narrowest = |columns: usize, gaps: usize| {
            (1..=GAP).rev().find(|gap| columns + gaps * gap <= all).unwrap_or(1)
        };
        if width <= NARROW {
            return Layout { gap: narrowest(sum, gaps), flow: Flow::None };
        }
        match all.checked_sub(sum - width + gaps * GAP).filter(|room| *room >= NARROW) {
            Some(room) => Layout { gap: GAP, flow: Flow::Within(flowing, room) },
            None => Layout {
                gap: narrowest(sum - width, gaps.saturating_sub(1)),
                flow: Flow::Beneath(flowing, all.saturating_sub(BENEATH).max(NARROW)),
            },
        }
    }
}

/// How rows fit a terminal.
struct Layout {
    gap: usize,
    flow: Flow,
}

/// What happens to the widest column: its number, and the room that it has.
#[derive(Clone, Copy)]
enum Flow {
    None,
    Within(usize, usize),
    Beneath(usize, usize),
}

/// Words in lines of at most this width; a longer word is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
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

/// What a cell says at a glance.
fn colour(row: &[String], heading: &str, cell: &str) -> Option<Colour> {
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

    fn table() -> Table {
        let mut table = Table::new(["Name", "Ready", "Message"]);
        table.row(["a", "True", ""].map(String::from));
        table.row(
            ["longer", "False", "the command\u{1b}[31m was not found on the path of evenkeel"]
                .map(String::from),
        );
        table
    }

    #[test]
    fn columns_line_up_and_the_widest_one_wraps_on_a_terminal() {
        let plain = Terminal { width: None, colour: false };
        assert_eq!(
            table().whole(&plain),
            "NAME     READY   MESSAGE\n\
             a        True\n\
             longer   False   the command [31m was not found on the path of evenkeel\n"
        );
        let narrow = Terminal { width: Some(40), colour: true };
        assert_eq!(
            table().whole(&narrow),
            "NAME     READY   MESSAGE\n\
             a        \u{1b}[32mTrue\u{1b}[0m\n\
             longer   \u{1b}[31mFalse\u{1b}[0m   the command [31m was\n                 not found on the path\n                 of evenkeel\n"
        );
        let beneath = table().whole(&Terminal { width: Some(30), colour: false });
        assert_eq!(
            beneath,
            "NAME     READY\n    MESSAGE\n\
             a        True\n\
             longer   False\n    the command [31m was not\n    found on the path of\n    evenkeel\n"
        );
    }

    #[test]
    fn columns_move_together_before_anything_is_longer_than_the_terminal() {
        let mut table = Table::new(["Name", "Ready", "Reason", "Age"]);
        table.row(["weather", "False", "CommandNotFound", "3s"].map(String::from));
        for (width, gap) in [(40, 3), (38, 2), (35, 1), (20, 1)] {
            let text = table.layout(&Terminal { width: Some(width), colour: false });
            assert_eq!(text.gap, gap, "{width}");
        }
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("a b c", 3), ["a b", "c"]);
    }
}
