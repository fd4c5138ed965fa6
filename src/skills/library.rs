//! The skills of one namespace as an MCP server offers them. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::ErrorCode;
use serde_json::{Value, json};

use super::{Bundle, File, SKILL_FILE};
use crate::catalog::{Item, Lists};
use crate::wire::{Members, Reply};

/// Lists the skills, for agents that have nothing but tools.
const LIST: &str = "list_skills";
/// Reads a file of one.
const READ: &str = "read_skill";

/// What models are told of skills.
pub(super) const INSTRUCTIONS: &str = "Skills are instructions for certain tasks. When a task begins, list_skills tells \
                                       whether there is one for it; follow what read_skill gives.";

/// The skills of one namespace that are offered, by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Library {
    namespace: Arc<str>,
    skills: BTreeMap<Arc<str>, Arc<Bundle>>,
}

impl Library {
    /// A library of these skills.
    pub fn new(namespace: Arc<str>, skills: BTreeMap<Arc<str>, Arc<Bundle>>) -> Self {
        Self { namespace, skills }
    }

    /// What it lists: two tools, a prompt for each skill, a resource for each file.
    pub fn lists(&self) -> Lists {
        let item = |name: String, raw: Value| Item { name, raw: raw.to_string().into() };
        let tools = vec![item(LIST.into(), list_tool()), item(READ.into(), read_tool())];
        let prompts = self.skills.iter().map(|(name, skill)| {
            item(name.to_string(), json!({ "name": &**name, "description": skill.description() }))
        });
        let mut resources: Vec<_> =
            self.files().map(|(uri, path, file)| item(uri.clone(), resource(&uri, &path, file))).collect();
        resources.sort_by(|one, other| one.name.cmp(&other.name));
        Lists { tools, prompts: prompts.collect(), resources, templates: Vec::new() }
    }

    /// The skills as `skills/list` gives them (SEP-2640).
    pub fn entries(&self) -> impl Iterator<Item = Value> {
        self.skills.values().map(|skill| {
            let frontmatter: Option<Value> = serde_yaml::from_str(skill.frontmatter()).ok();
            let known = || json!({ "name": &**skill.name(), "description": skill.description() });
            let resources: Vec<_> = skill
                .files()
                .iter()
                .map(|(path, file)| {
                    let uri = self.uri(skill.name(), path);
                    json!({ "uri": uri, "digest": file.digest, "size": file.bytes.len() })
                })
                .collect();
            json!({
                "uri": self.uri(skill.name(), SKILL_FILE),
                "frontmatter": frontmatter.filter(Value::is_object).unwrap_or_else(known),
                "resources": resources,
            })
        })
    }

    /// Answers a request for something that is listed: `name` is its name or URI.
    pub fn answer(&self, method: &str, name: &str, params: &Members<'_>) -> Reply {
        let answer = match (method, name) {
            ("tools/call", LIST) => Ok(said(&self.told())),
            ("tools/call", READ) => Ok(self.read(params)),
            ("prompts/get", name) => self.prompt(name),
            ("resources/read", uri) => self.resource(uri),
            _ => Err(format!("nothing is known of {name}")),
        };
        match answer {
            Ok(result) => Reply::Result(result.to_string().into()),
            Err(message) => {
                let error = json!({ "code": ErrorCode::INVALID_PARAMS.0, "message": message });
                Reply::Error(error.to_string().into())
            }
        }
    }

    fn told(&self) -> String {
        let mut text = String::new();
        for (name, skill) in &self.skills {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "- {name}: {}", skill.description().replace('\n', " "));
        }
        text
    }

    fn read(&self, params: &Members<'_>) -> Value {
        let arguments = params.iter().find(|(key, _)| key == "arguments");
        let arguments: Value =
            arguments.and_then(|(_, value)| serde_json::from_str(value.get()).ok()).unwrap_or_default();
        let argument = |key: &str| arguments.get(key).and_then(Value::as_str);
        let Some(name) = argument("name") else {
            return failed("read_skill needs the \"name\" of a skill; list_skills has them");
        };
        let Some(skill) = self.skills.get(name) else {
            let known: Vec<_> = self.skills.keys().map(|name| &**name).collect();
            return failed(&format!("There is no skill {name:?}. There are: {}", known.join(", ")));
        };
        let path = argument("file").unwrap_or(SKILL_FILE);
        let files = || skill.files().keys().map(|path| &**path).collect::<Vec<_>>().join(", ");
        let Some(file) = skill.files().get(path) else {
            return failed(&format!("Skill {name} has no file {path:?}. It has: {}", files()));
        };
        let uri = self.uri(name, path);
        match std::str::from_utf8(&file.bytes) {
            Ok(text) if path == SKILL_FILE && skill.files().len() > 1 => {
                let note = format!("Files of this skill, to be read with read_skill: {}", files());
                json!({ "content": [{ "type": "text", "text": text }, { "type": "text", "text": note }] })
            }
            Ok(text) => said(text),
            Err(_) => json!({ "content": [{ "type": "resource", "resource": content(&uri, path, file) }] }),
        }
    }

    fn prompt(&self, name: &str) -> Result<Value, String> {
        let skill = self.skills.get(name).ok_or_else(|| format!("there is no skill {name:?}"))?;
        Ok(json!({
            "description": skill.description(),
            "messages": [{ "role": "user", "content": { "type": "text", "text": skill.body() } }],
        }))
    }

    fn resource(&self, uri: &str) -> Result<Value, String> {
        let found = self.files().find(|(known, ..)| known == uri);
        let (uri, path, file) = found.ok_or_else(|| format!("there is no resource {uri}"))?;
        Ok(json!({ "contents": [content(&uri, &path, file)] }))
    }

    fn files(&self) -> impl Iterator<Item = (String, String, &File)> {
        self.skills.iter().flat_map(move |(name, skill)| {
            let files = skill.files().iter();
            files.map(move |(path, file)| (self.uri(name, path), format!("{name}/{path}"), file))
        })
    }

    /// The namespace is in it, so that no two skills have one URI.
    fn uri(&self, name: &str, path: &str) -> String {
        let mut uri = format!("skill://{}/{name}/", self.namespace);
        for byte in path.bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
                uri.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(uri, "%{byte:02X}");
            }
        }
        uri
    }
}

fn list_tool() -> Value {
    json!({
        "name": LIST,
        "description": "Lists the skills: instructions for certain tasks, each with what it does and when to use it.",
        "inputSchema": { "type": "object", "properties": {}, "additionalProperties": false },
        "annotations": { "readOnlyHint": true, "openWorldHint": false },
    })
}

fn read_tool() -> Value {
    json!({
        "name": READ,
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

/// The digest is there so that another content is another list.
fn resource(uri: &str, path: &str, file: &File) -> Value {
    json!({
        "uri": uri,
        "name": path,
        "mimeType": mime(path, file),
        "size": file.bytes.len(),
        "_meta": { "evenkeel.dev/digest": file.digest },
    })
}

fn content(uri: &str, path: &str, file: &File) -> Value {
    match std::str::from_utf8(&file.bytes) {
        Ok(text) => json!({ "uri": uri, "mimeType": mime(path, file), "text": text }),
        Err(_) => json!({ "uri": uri, "mimeType": mime(path, file), "blob": STANDARD.encode(&file.bytes) }),
    }
}

fn mime(path: &str, file: &File) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("md") => "text/markdown",
        Some("json") => "application/json",
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        _ if std::str::from_utf8(&file.bytes).is_ok() => "text/plain",
        _ => "application/octet-stream",
    }
}

fn said(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }] })
}

fn failed(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "isError": true })
}

#[cfg(test)]
mod tests {
    use rmcp::model::{Skill, validate_skills};

    use super::*;
    use crate::wire::members;

    fn library() -> Library {
        let main = "---\nname: notes\ndescription: Write notes.\nx-vendor: { a: 1 }\n---\nWrite.\n";
        let files = [
            (SKILL_FILE, File::new(main.as_bytes(), false)),
            ("a b/logo.png", File::new(*b"\x89PNG\xff", false)),
            ("run.sh", File::new(*b"#!", true)),
        ];
        let bundle = Bundle::new("notes", files.map(|(path, file)| (path.into(), file)).into()).unwrap();
        Library::new("team".into(), BTreeMap::from([("notes".into(), Arc::new(bundle))]))
    }

    fn answer(method: &str, name: &str, params: &str) -> Value {
        let bytes = match library().answer(method, name, &members(params).unwrap()) {
            Reply::Result(bytes) | Reply::Error(bytes) => bytes,
        };
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn the_extension_finds_its_entries_in_order() {
        let entries: Vec<Skill> =
            library().entries().map(|entry| serde_json::from_value(entry).unwrap()).collect();
        validate_skills(&entries).unwrap();
        assert_eq!(entries[0].uri, "skill://team/notes/SKILL.md");
        assert_eq!(entries[0].frontmatter.extra["x-vendor"]["a"], 1);
    }

    #[test]
    fn what_is_listed_can_be_read() {
        let lists = library().lists();
        let names = |items: &[Item]| items.iter().map(|item| item.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&lists.tools), [LIST, READ]);
        assert_eq!(names(&lists.prompts), ["notes"]);
        assert_eq!(
            names(&lists.resources),
            ["skill://team/notes/SKILL.md", "skill://team/notes/a%20b/logo.png", "skill://team/notes/run.sh"]
        );
        let read = answer("resources/read", "skill://team/notes/a%20b/logo.png", "{}");
        assert_eq!(read["contents"][0]["blob"], "iVBOR/8=");
        assert_eq!(answer("prompts/get", "notes", "{}")["messages"][0]["content"]["text"], "Write.\n");
        assert_eq!(answer("tools/call", LIST, "{}")["content"][0]["text"], "- notes: Write notes.\n");
        let read = answer("tools/call", READ, r#"{"arguments":{"name":"notes"}}"#);
        assert!(read["content"][1]["text"].as_str().unwrap().contains("SKILL.md, a b/logo.png, run.sh"));
        let read = answer("tools/call", READ, r#"{"arguments":{"name":"notes","file":"run.sh"}}"#);
        assert_eq!(read["content"][0]["text"], "#!");
        for wrong in
            ["{}", r#"{"arguments":{"name":"x"}}"#, r#"{"arguments":{"name":"notes","file":"../x"}}"#]
        {
            assert_eq!(answer("tools/call", READ, wrong)["isError"], true, "{wrong}");
        }
        assert!(answer("prompts/get", "x", "{}")["message"].is_string());
    }
}
