use std::fmt::Display;
use std::io::{self, Write};

/// Prints what a command is for. A reader that has left is not an error.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Says on stderr why a command failed.
pub(super) fn complain(error: &impl Display) {
    // There is nowhere left to tell that stderr is closed.
    let _ = writeln!(io::stderr(), "error: {error}");
}
