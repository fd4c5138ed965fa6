use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

use crate::text::is_invisible;

/// The properties of stdout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terminal {
    /// The width in columns; `None` if stdout is not a terminal.
    pub width: Option<usize>,
    /// True if colours are printed.
    pub colour: bool,
}

/// The colours of the output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Colour {
    /// Healthy.
    Green,
    /// Failed.
    Red,
    /// Needs attention.
    Yellow,
}

impl Terminal {
    /// Returns the properties of stdout. Colours are off if the variable `NO_COLOR` is set (no-color.org).
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self { width: None, colour: false };
        }
        let width =
            tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { width, colour: !no_color }
    }

    /// Returns the same terminal with a smaller width, for indented text.
    pub fn narrowed(self, by: usize) -> Self {
        Self { width: self.width.map(|width| width.saturating_sub(by)), ..self }
    }

    /// Returns the text in a colour, if colours are printed.
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints the result of a command to stdout. A closed pipe is not an error.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints a part of a streamed result to stdout. Returns false once the pipe is closed.
pub(super) fn print_chunk(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

/// Prints a note to stderr.
pub(super) fn print_note(text: &(impl Display + ?Sized)) {
    // An error on stderr cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{}", sanitize_lines(&text.to_string()));
}

/// Prints the error of a command to stderr.
pub(super) fn print_error(error: &impl Display) {
    let _ = writeln!(io::stderr(), "error: {}", sanitize_lines(&error.to_string()));
}

/// Replaces control and invisible characters with spaces: text from servers could otherwise change what a terminal
/// shows.
pub(super) fn sanitize(text: &str) -> String {
    text.replace(is_invisible, " ")
}

/// Sanitizes text of several lines and keeps its line ends.
pub(super) fn sanitize_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(sanitize).collect();
    lines.join("\n")
}

/// A line on stderr that shows the progress of a wait. Shown only on a terminal.
#[derive(Debug, Default)]
pub(super) struct ProgressLine {
    current: String,
}

impl ProgressLine {
    /// Replaces the line.
    pub fn show(&mut self, text: &str) {
        if !io::stderr().is_terminal() || text == self.current {
            return;
        }
        let width = tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col.max(2)));
        let cut: String = sanitize(text).chars().take(width - 1).collect();
        let _ = write!(io::stderr(), "\r\x1b[K{cut}");
        text.clone_into(&mut self.current);
    }

    /// Clears the line, before other output is printed.
    pub fn clear(&mut self) {
        if !std::mem::take(&mut self.current).is_empty() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitize_replaces_control_and_bidi_characters() {
        assert_eq!(sanitize("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(sanitize("evil\u{202e}txt.exe \u{2066}x\u{2069} \u{200f}\u{61c}"), "evil txt.exe  x    ");
        assert_eq!(sanitize("größer, 大, \u{5d0}\u{5d1}"), "größer, 大, \u{5d0}\u{5d1}");
        assert_eq!(sanitize_lines("a\rb\nc\u{7}\n"), "a b\nc ");
    }
}
