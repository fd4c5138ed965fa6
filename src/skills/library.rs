//! The two tools that read the skills of one namespace, for agents that support only tools. Pure.

use std::fmt::Write;
use std::sync::Arc;

use imbl::OrdMap;
use serde_json::{Value, json};

use super::content::{resource_contents, response, skill_uri};
use crate::resource::bundle::{Bundle, SKILL_FILE};
use crate::upstream::{Item, LocalResponder, ServerLists};
use crate::wire::{ListKind, Members, RpcResponse};

/// The tool that lists the skills.
const LIST_SKILLS: &str = "list_skills";
/// The tool that reads a file of a skill.
const READ_SKILL: &str = "read_skill";

/// The names of both tools.
pub(super) const TOOL_NAMES: [&str; 2] = [LIST_SKILLS, READ_SKILL];

/// The server instructions about skills, written for models.
pub(super) const INSTRUCTIONS: &str = "Skills are instructions for certain tasks. When a task begins, call list_skills \
                                       to check whether there is a skill for it, and follow what read_skill returns.";

/// The offered skills of one namespace, by name. Cheap to clone: copies share unchanged parts.
#[derive(Clone, Debug)]
pub struct SkillLibrary {
    namespace: Arc<str>,
    skills: OrdMap<Arc<str>, Arc<Bundle>>,
}

impl SkillLibrary {
    /// Creates a library without skills.
    pub fn new(namespace: Arc<str>) -> Self {
        Self { namespace, skills: OrdMap::new() }
    }

    /// Inserts a skill, replacing an older one of the same name.
    pub fn insert(&mut self, skill: Arc<Bundle>) {
        self.skills.insert(skill.name().clone(), skill);
    }

    /// Removes a skill.
    pub fn remove(&mut self, name: &str) {
        self.skills.remove(name);
    }

    /// Returns true if there is no skill.
    pub fn is_empty(&self) -> bool {
        self.skills.is_empty()
    }

    /// Returns the lists of the section: two tools, independent of the skills.
    pub fn lists() -> ServerLists {
        let tools = [list_tool(), read_tool()];
        let tools = tools.iter().flat_map(|tool| Item::parse(ListKind::Tools, &tool.to_string())).collect();
        ServerLists { tools, ..ServerLists::default() }
    }

    fn list_text(&self) -> String {
        let mut text = String::new();
        for (name, skill) in &self.skills {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "- {name}: {}", skill.description().replace('\n', " "));
        }
        text
    }

    fn read(&self, params: &Members<'_>) -> Value {
        let arguments = params.get("arguments");
        let arguments: Value =
            arguments.and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default();
        let argument = |key: &str| arguments.get(key).and_then(Value::as_str);
        let Some(name) = argument("name") else {
            return error_result("read_skill needs the \"name\" of a skill; list_skills lists the names");
        };
        let Some(skill) = self.skills.get(name) else {
            let names: Vec<_> = self.skills.keys().map(|name| &**name).collect();
            return error_result(&format!(
                "There is no skill {name:?}. Available skills: {}",
                names.join(", ")
            ));
        };
        let path = argument("file").unwrap_or(SKILL_FILE);
        let files = || skill.files().keys().map(|path| &**path).collect::<Vec<_>>().join(", ");
        let Some(file) = skill.files().get(path) else {
            return error_result(&format!("Skill {name} has no file {path:?}. Available files: {}", files()));
        };
        let uri = skill_uri(&self.namespace, name, path);
        match std::str::from_utf8(&file.bytes) {
            Ok(text) if path == SKILL_FILE && skill.files().len() > 1 => {
                let note = format!("Files of this skill, to be read with read_skill: {}", files());
                json!({ "content": [{ "type": "text", "text": text }, { "type": "text", "text": note }] })
            }
            Ok(text) => text_result(text),
            Err(_) => {
                json!({ "content": [{ "type": "resource", "resource": resource_contents(&uri, path, file) }] })
            }
        }
    }
}

impl LocalResponder for SkillLibrary {
    fn respond(&self, method: &str, name: &str, params: &Members<'_>) -> RpcResponse {
        response(match (method, name) {
            ("tools/call", LIST_SKILLS) => Ok(text_result(&self.list_text())),
            ("tools/call", READ_SKILL) => Ok(self.read(params)),
            _ => Err(format!("unknown name: {name}")),
        })
    }
}

fn list_tool() -> Value {
    json!({
        "name": LIST_SKILLS,
        "description": "Lists the skills: instructions for certain tasks, each with what it does and when to use it.",
        "inputSchema": { "type": "object", "properties": {}, "additionalProperties": false },
        "annotations": { "readOnlyHint": true, "openWorldHint": false },
    })
}

fn read_tool() -> Value {
    json!({
        "name": READ_SKILL,
        "description": "Reads a skill's instructions, or another file of it. Read them before the task begins.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "name": { "type": "string", "description": "The skill, as list_skills names it" },
                "file": { "type": "string", "description": "A file of the skill; SKILL.md if left out" },
            },
            "required": ["name"],
            "additionalProperties": false,
        },
        "annotations": { "readOnlyHint": true, "openWorldHint": false },
    })
}

fn text_result(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }] })
}

fn error_result(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "isError": true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::bundle::SkillFile;
    use crate::wire::parse_members;

    #[test]
    fn skills_are_listed_and_read() {
        let main = "---\nname: notes\ndescription: Write notes.\n---\nWrite.\n";
        let files = [
            (SKILL_FILE, SkillFile::new(main.as_bytes(), false)),
            ("logo.png", SkillFile::new(*b"\x89PNG\xff", false)),
            ("run.sh", SkillFile::new(*b"#!", true)),
        ];
        let bundle = Bundle::new("notes", files.map(|(path, file)| (path.into(), file)).into()).unwrap();
        let mut library = SkillLibrary::new("team".into());
        library.insert(Arc::new(bundle));
        let call_tool = |name: &str, params: &str| -> Value {
            let response = library.respond("tools/call", name, &parse_members(params).unwrap());
            let (RpcResponse::Result(bytes) | RpcResponse::Error(bytes)) = response;
            serde_json::from_slice(&bytes).unwrap()
        };
        assert_eq!(call_tool(LIST_SKILLS, "{}")["content"][0]["text"], "- notes: Write notes.\n");
        let read = call_tool(READ_SKILL, r#"{"arguments":{"name":"notes"}}"#);
        assert!(read["content"][1]["text"].as_str().unwrap().contains("SKILL.md, logo.png, run.sh"));
        let read = call_tool(READ_SKILL, r#"{"arguments":{"name":"notes","file":"run.sh"}}"#);
        assert_eq!(read["content"][0]["text"], "#!");
        let read = call_tool(READ_SKILL, r#"{"arguments":{"name":"notes","file":"logo.png"}}"#);
        assert_eq!(read["content"][0]["resource"]["uri"], "skill://team/notes/logo.png");
        for wrong in
            ["{}", r#"{"arguments":{"name":"x"}}"#, r#"{"arguments":{"name":"notes","file":"../x"}}"#]
        {
            assert_eq!(call_tool(READ_SKILL, wrong)["isError"], true, "{wrong}");
        }
        assert!(call_tool("write_skill", "{}")["message"].is_string());
        library.remove("notes");
        assert!(library.is_empty());
    }
}
