//! Parses the text of declarations into objects: Kubernetes-style YAML and the JSON files of agents.
//!
//! Promises that an invalid object does not affect any other, that each error has its line and contains no value that
//! may be secret, and that no text makes the parser fail. Never reads a file: it receives the bytes and the path, so
//! any source can use it.

mod documents;
mod env_file;
mod excerpt;
mod expand;
mod file;
mod lists;
mod manifest;
mod mcp_json;
mod names;
mod object;
mod path;
mod positions;
mod yaml;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use documents::split_documents;
pub use excerpt::{closest_match, did_you_mean, printable};
pub use expand::{referenced_env_file, resolve_endpoint};
pub use file::ParsedFile;
pub use lists::parse_list;
pub use object::{EndpointResolver, ObjectSpec, ParsedObject, TargetMode};
pub use path::{
    display_path, is_declaration_name, is_declaration_path, is_json, is_skill_file, is_skills_folder,
    is_skipped, is_visited, join_within_root, mentions_declarations,
};

use crate::resource::Problem;
use excerpt::ParseError;
use file::FileParser;

/// Parses a file of a directory. `path` is relative to the root and is used only in messages.
pub fn parse(path: &Arc<PathBuf>, bytes: &[u8]) -> ParsedFile {
    parse_for(&TargetMode::Directory, path, bytes)
}

/// Parses a file by the rules of the target of its objects.
pub fn parse_for(target: &TargetMode, path: &Arc<PathBuf>, bytes: &[u8]) -> ParsedFile {
    // The parser should never panic; if it panics on one file, the other files must not be affected.
    catch_unwind(AssertUnwindSafe(|| parse_bytes(target, path, bytes)))
        .unwrap_or_else(|_| ParsedFile::unreadable(path, "causes a parser failure; please report this"))
}

/// Returns the first problem of the text of a YAML file; `path` is used in the message.
pub fn first_problem(path: &Path, text: &str) -> Option<String> {
    let parsed = parse(&Arc::new(path.to_owned()), text.as_bytes());
    let message = |spec: Option<&Problem>| spec.map(|problem| problem.message.clone());
    let faults = parsed.faults.iter().map(|fault| fault.problem.message.clone());
    let servers = parsed.servers.iter().filter_map(|server| message(server.spec.as_ref().err()));
    faults.chain(servers).next()
}

fn parse_bytes(target: &TargetMode, path: &Arc<PathBuf>, bytes: &[u8]) -> ParsedFile {
    let mut file = FileParser::new(path, target);
    let in_directory = *target == TargetMode::Directory;
    if is_skill_file(path) {
        // kubectl does not read it as a manifest.
        if in_directory {
            file.add_skill_folder();
        }
        return file.parsed;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            if is_json(path) && in_directory {
                mcp_json::parse(text, &mut file);
            } else {
                yaml::parse(text, &mut file);
            }
        }
        Err(error) => {
            // In UTF-16 every second byte of ASCII text is 0.
            let without_nul: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.split(|byte| *byte == b'\n').count();
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            let is_utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
            let message =
                if is_utf16 { "the file is UTF-16; save it as UTF-8" } else { "the file is not valid UTF-8" };
            let error = ParseError::at_line(line, message.to_owned());
            if is_json(path) && in_directory || mentions_declarations(&without_nul) {
                file.report_unidentified(error);
            } else {
                file.add_foreign(Some(error));
            }
        }
    }
    file.parsed
}

#[cfg(test)]
mod tests;
