//! One skill over MCP: a prompt, a resource for each file, and its entry in the skills extension. Pure.

use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::content::{media_type, resource_contents, response, skill_uri};
use crate::resource::bundle::{Bundle, SKILL_FILE, SkillFile};
use crate::upstream::{Item, LocalResponder, ServerLists, SkillEntry};
use crate::wire::{ListKind, Members, RpcResponse};

/// One offered skill.
#[derive(Debug)]
pub struct SkillResources {
    namespace: Arc<str>,
    skill: Arc<Bundle>,
    uri: String,
    entry: Option<Box<RawValue>>,
}

impl SkillResources {
    /// Creates the MCP representation of a skill in a namespace.
    pub fn new(namespace: Arc<str>, skill: Arc<Bundle>) -> Self {
        let uri = skill_uri(&namespace, skill.name(), SKILL_FILE);
        let entry = serde_json::value::to_raw_value(&extension_entry(&namespace, &skill)).ok();
        Self { namespace, skill, uri, entry }
    }

    /// Returns the lists of the section: a prompt, and a resource for each file.
    pub fn lists(&self) -> ServerLists {
        let name = self.skill.name();
        let prompt = json!({ "name": &**name, "description": self.skill.description() });
        let resource = |(uri, path, file): (String, &str, &SkillFile)| {
            Item::parse(
                ListKind::Resources,
                &resource_item(&uri, &format!("{name}/{path}"), file).to_string(),
            )
        };
        let mut resources: Vec<_> = self.files().flat_map(resource).collect();
        resources.sort_by(|one, other| one.name().cmp(other.name()));
        let prompts = Item::parse(ListKind::Prompts, &prompt.to_string()).into_iter().collect();
        ServerLists { prompts, resources, ..ServerLists::default() }
    }

    fn prompt(&self) -> Value {
        json!({
            "description": self.skill.description(),
            "messages": [{ "role": "user", "content": { "type": "text", "text": self.skill.body() } }],
        })
    }

    fn read(&self, uri: &str) -> Result<Value, String> {
        let found = self.files().find(|(file_uri, ..)| file_uri == uri);
        let (uri, path, file) = found.ok_or_else(|| format!("there is no resource {uri}"))?;
        Ok(json!({ "contents": [resource_contents(&uri, path, file)] }))
    }

    fn files(&self) -> impl Iterator<Item = (String, &str, &SkillFile)> {
        let name = self.skill.name();
        self.skill.files().iter().map(|(path, file)| (skill_uri(&self.namespace, name, path), &**path, file))
    }
}

impl LocalResponder for SkillResources {
    fn respond(&self, method: &str, name: &str, _: &Members<'_>) -> RpcResponse {
        response(match (method, name) {
            ("prompts/get", name) if name == &**self.skill.name() => Ok(self.prompt()),
            ("resources/read", uri) => self.read(uri),
            _ => Err(format!("unknown name: {name}")),
        })
    }

    fn skill(&self) -> Option<SkillEntry<'_>> {
        Some(SkillEntry { uri: &self.uri, json: self.entry.as_deref()? })
    }
}

fn extension_entry(namespace: &str, skill: &Bundle) -> Value {
    let frontmatter: Option<Value> = serde_yaml::from_str(skill.frontmatter()).ok();
    let mut frontmatter = match frontmatter {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    // Agents get the names that the extension requires, even if SKILL.md has others.
    frontmatter.insert("name".to_owned(), (&**skill.name()).into());
    let declared = frontmatter.get("description").and_then(Value::as_str).map(str::trim);
    if declared != Some(skill.description()) {
        frontmatter.insert("description".to_owned(), skill.description().into());
    }
    let file_entry = |(path, file): (&Arc<str>, &SkillFile)| {
        let uri = skill_uri(namespace, skill.name(), path);
        json!({ "uri": uri, "digest": file.digest, "size": file.bytes.len() })
    };
    json!({
        "uri": skill_uri(namespace, skill.name(), SKILL_FILE),
        "frontmatter": frontmatter,
        "resources": skill.files().iter().map(file_entry).collect::<Vec<_>>(),
    })
}

/// Returns the resource of a file. It carries the digest, so that changed content changes the list.
fn resource_item(uri: &str, path: &str, file: &SkillFile) -> Value {
    json!({
        "uri": uri,
        "name": path,
        "mimeType": media_type(path, file),
        "size": file.bytes.len(),
        "_meta": { "evenkeel.dev/digest": file.digest },
    })
}

#[cfg(test)]
mod tests {
    use rmcp::model::{Skill, validate_skills};

    use super::*;
    use crate::wire::parse_members;

    fn notes_skill() -> SkillResources {
        let main = "---\nname: notes\ndescription: Write notes.\nx-vendor: { a: 1 }\n---\nWrite.\n";
        let files = [
            (SKILL_FILE, SkillFile::new(main.as_bytes(), false)),
            ("a b/logo.png", SkillFile::new(*b"\x89PNG\xff", false)),
            ("run.sh", SkillFile::new(*b"#!", true)),
        ];
        let bundle = Bundle::new("notes", files.map(|(path, file)| (path.into(), file)).into()).unwrap();
        SkillResources::new("team".into(), Arc::new(bundle))
    }

    fn send_request(method: &str, name: &str) -> Value {
        let (RpcResponse::Result(bytes) | RpcResponse::Error(bytes)) =
            notes_skill().respond(method, name, &parse_members("{}").unwrap());
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn extension_entry_is_valid() {
        let skill = notes_skill();
        let listed = skill.skill().unwrap();
        let entry: Skill = serde_json::from_str(listed.json.get()).unwrap();
        assert_eq!((&*entry.uri, listed.uri), ("skill://team/notes/SKILL.md", "skill://team/notes/SKILL.md"));
        assert_eq!(entry.frontmatter.extra["x-vendor"]["a"], 1);
        validate_skills(&[entry]).unwrap();
    }

    #[test]
    fn extension_entry_of_a_tolerated_skill_is_valid() {
        for (text, description) in [
            ("Does it.\n", "Does it."),
            ("---\nname: Other\ndescription: Use: it\n---\n", "Use: it"),
            ("---\nname: Other\ndescription: Does it.\n---\n", "Does it."),
        ] {
            let bundle = Arc::new(Bundle::from_text("notes", text).unwrap());
            let skill = SkillResources::new("team".into(), bundle);
            let entry: Skill = serde_json::from_str(skill.skill().unwrap().json.get()).unwrap();
            assert_eq!((&*entry.frontmatter.name, &*entry.frontmatter.description), ("notes", description));
            validate_skills(&[entry]).unwrap();
        }
    }

    #[test]
    fn listed_prompts_and_resources_can_be_read() {
        let lists = notes_skill().lists();
        let names = |items: &[Item]| items.iter().map(|item| item.name().to_string()).collect::<Vec<_>>();
        assert_eq!(names(&lists.prompts), ["notes"]);
        assert_eq!(
            names(&lists.resources),
            ["skill://team/notes/SKILL.md", "skill://team/notes/a%20b/logo.png", "skill://team/notes/run.sh"]
        );
        let read = send_request("resources/read", "skill://team/notes/a%20b/logo.png");
        assert_eq!(read["contents"][0]["blob"], "iVBOR/8=");
        assert_eq!(send_request("prompts/get", "notes")["messages"][0]["content"]["text"], "Write.\n");
        for (method, name) in
            [("prompts/get", "x"), ("resources/read", "skill://team/notes/x"), ("tools/call", "notes")]
        {
            assert!(send_request(method, name)["message"].is_string(), "{method} {name}");
        }
    }
}
