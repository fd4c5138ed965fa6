use std::fmt::Write;

use crate::catalog::Generation;
use crate::upstream::ViewName;

/// So much is told of all servers together, in bytes; agents put it before everything else.
const MAX_INSTRUCTIONS_BYTES: usize = 16 << 10;

/// What the servers that a view shows want models to know, each under its name; `None` if none wants anything.
///
/// The same servers give the same text, so that an agent's prompt cache survives.
pub(super) fn instructions(generation: &Generation, view: &ViewName) -> Option<String> {
    let shown = generation.sections().filter(|section| view.shows(&section.key.namespace));
    let mut text = String::new();
    let mut left_out = 0;
    for section in shown {
        let Some(told) = &section.instructions else { continue };
        if text.len() + told.len() > MAX_INSTRUCTIONS_BYTES {
            left_out += 1;
            continue;
        }
        let names = match &*section.prefix {
            "" => String::new(),
            prefix => format!(" (its tools begin with {prefix}_)"),
        };
        let _ = write!(text, "# {}{names}\n\n{told}\n\n", section.key.name);
    }
    if left_out > 0 {
        let _ =
            write!(text, "({left_out} more servers have instructions that are too long to be told here.)");
    }
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}
