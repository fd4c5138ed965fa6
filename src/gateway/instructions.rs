use std::fmt::Write;

use crate::catalog::Generation;
use crate::upstream::ViewName;

/// The maximum total size of the instructions of all servers. Agents put them before everything else in the prompt.
const MAX_INSTRUCTIONS_BYTES: usize = 16 << 10;

/// Returns the instructions of the servers in a view, each under its server's name; `None` if no server has any.
///
/// Equal servers give equal text, so that an agent's prompt cache stays valid.
pub(super) fn instructions(generation: &Generation, view: &ViewName) -> Option<String> {
    let sections = generation.sections().filter(|section| view.shows(&section.key.namespace));
    let mut text = String::new();
    let mut omitted = 0;
    for section in sections {
        let Some(server_instructions) = &section.instructions else { continue };
        if text.len() + server_instructions.len() > MAX_INSTRUCTIONS_BYTES {
            omitted += 1;
            continue;
        }
        let name_hint = match &*section.prefix {
            "" => String::new(),
            prefix => format!(" (tool names start with {prefix}_)"),
        };
        let _ = write!(text, "# {}{name_hint}\n\n{server_instructions}\n\n", section.key.name);
    }
    if omitted > 0 {
        let _ = write!(
            text,
            "({omitted} more servers have instructions that are omitted because of their length.)"
        );
    }
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}
