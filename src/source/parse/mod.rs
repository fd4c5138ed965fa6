//! The text of declarations, as objects: Kubernetes-style YAML and the JSON files of agents.
//!
//! Promises that one object which is wrong costs no other, that each mistake is told with its line and without a value
//! that may be secret, and that no text makes it fail. Never reads a file: the bytes and the path that they are said to
//! have are given to it, so that any source can use it.

mod documents;
mod excerpt;
mod expand;
mod file;
mod lists;
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
pub use expand::endpoint;
pub use file::ParsedFile;
pub use lists::parse_list;
pub use object::{EndpointResolver, ObjectSpec, ParsedObject, TargetMode};
pub use path::{
    display_path, is_declaration_name, is_declaration_path, is_json, is_skill_file, is_skipped, is_visited,
    join_within_root,
};

use crate::resource::Problem;
use excerpt::ParseError;
use file::FileParser;

/// Reads a file of a directory; `path` is relative to the root and used in messages alone.
pub fn parse(path: &Arc<PathBuf>, bytes: &[u8]) -> ParsedFile {
    parse_for(&TargetMode::Directory, path, bytes)
}

/// Reads a file by the rules that hold where its objects are to be.
pub fn parse_for(destination: &TargetMode, path: &Arc<PathBuf>, bytes: &[u8]) -> ParsedFile {
    // The parser is meant never to panic; if it does on one file, the others must not pay for it.
    catch_unwind(AssertUnwindSafe(|| parse_bytes(destination, path, bytes)))
        .unwrap_or_else(|_| ParsedFile::unreadable(path, "makes the parser fail; please report it"))
}

/// What is wrong with the text of a file of YAML; `path` is for the message.
pub fn mistake(path: &Path, text: &str) -> Option<String> {
    let parsed = parse(&Arc::new(path.to_owned()), text.as_bytes());
    let refused = |spec: Option<&Problem>| spec.map(|problem| problem.message.clone());
    let faults = parsed.faults.iter().map(|fault| fault.problem.message.clone());
    let servers = parsed.servers.iter().filter_map(|server| refused(server.spec.as_ref().err()));
    faults.chain(servers).next()
}

fn parse_bytes(destination: &TargetMode, path: &Arc<PathBuf>, bytes: &[u8]) -> ParsedFile {
    let mut file = FileParser::new(path, destination);
    let in_directory = *destination == TargetMode::Directory;
    if is_skill_file(path) {
        // To kubectl it is no manifest.
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
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.split(|byte| *byte == b'\n').count();
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            file.report_unidentified(ParseError::at_line(line, "the file is not text in UTF-8".to_owned()));
        }
    }
    file.parsed
}

#[cfg(test)]
mod tests;
