//! One skill as an MCP server offers it: a prompt, a resource for each file, and its entry of the extension. Pure.

use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::content::{content, mime, reply, uri};
use crate::resource::bundle::{Bundle, SKILL_FILE, SkillFile};
use crate::upstream::{Item, LocalResponder, ServerLists, SkillEntry};
use crate::wire::{ListKind, Members, RpcResponse};

/// One skill that is offered.
#[derive(Debug)]
pub struct SkillResources {
    namespace: Arc<str>,
    skill: Arc<Bundle>,
    uri: String,
    entry: Option<Box<RawValue>>,
}

impl SkillResources {
    /// A skill of a namespace.
    pub fn new(namespace: Arc<str>, skill: Arc<Bundle>) -> Self {
        let uri = uri(&namespace, skill.name(), SKILL_FILE);
        let entry = serde_json::value::to_raw_value(&entry(&namespace, &skill)).ok();
        Self { namespace, skill, uri, entry }
    }

    /// What it lists: a prompt, and a resource for each file.
    pub fn lists(&self) -> ServerLists {
        let name = self.skill.name();
        let prompt = json!({ "name": &**name, "description": self.skill.description() });
        let resource = |(uri, path, file): (String, &str, &SkillFile)| {
            Item::read(ListKind::Resources, &resource(&uri, &format!("{name}/{path}"), file).to_string())
        };
        let mut resources: Vec<_> = self.files().flat_map(resource).collect();
        resources.sort_by(|one, other| one.name().cmp(other.name()));
        let prompts = Item::read(ListKind::Prompts, &prompt.to_string()).into_iter().collect();
        ServerLists { prompts, resources, ..ServerLists::default() }
    }

    fn prompt(&self) -> Value {
        json!({
            "description": self.skill.description(),
            "messages": [{ "role": "user", "content": { "type": "text", "text": self.skill.body() } }],
        })
    }

    fn read(&self, uri: &str) -> Result<Value, String> {
        let found = self.files().find(|(known, ..)| known == uri);
        let (uri, path, file) = found.ok_or_else(|| format!("there is no resource {uri}"))?;
        Ok(json!({ "contents": [content(&uri, path, file)] }))
    }

    fn files(&self) -> impl Iterator<Item = (String, &str, &SkillFile)> {
        let name = self.skill.name();
        self.skill.files().iter().map(|(path, file)| (uri(&self.namespace, name, path), &**path, file))
    }
}

impl LocalResponder for SkillResources {
    fn answer(&self, method: &str, name: &str, _: &Members<'_>) -> RpcResponse {
        reply(match (method, name) {
            ("prompts/get", name) if name == &**self.skill.name() => Ok(self.prompt()),
            ("resources/read", uri) => self.read(uri),
            _ => Err(format!("nothing is known of {name}")),
        })
    }

    fn skill(&self) -> Option<SkillEntry<'_>> {
        Some(SkillEntry { uri: &self.uri, json: self.entry.as_deref()? })
    }
}

fn entry(namespace: &str, skill: &Bundle) -> Value {
    let frontmatter: Option<Value> = serde_yaml::from_str(skill.frontmatter()).ok();
    let known = || json!({ "name": &**skill.name(), "description": skill.description() });
    let of_file = |(path, file): (&Arc<str>, &SkillFile)| {
        let uri = uri(namespace, skill.name(), path);
        json!({ "uri": uri, "digest": file.digest, "size": file.bytes.len() })
    };
    json!({
        "uri": uri(namespace, skill.name(), SKILL_FILE),
        "frontmatter": frontmatter.filter(Value::is_object).unwrap_or_else(known),
        "resources": skill.files().iter().map(of_file).collect::<Vec<_>>(),
    })
}

/// The digest is there so that another content is another list.
fn resource(uri: &str, path: &str, file: &SkillFile) -> Value {
    json!({
        "uri": uri,
        "name": path,
        "mimeType": mime(path, file),
        "size": file.bytes.len(),
        "_meta": { "evenkeel.dev/digest": file.digest },
    })
}

#[cfg(test)]
mod tests {
    use rmcp::model::{Skill, validate_skills};

    use super::*;
    use crate::wire::members;

    fn volume() -> SkillResources {
        let main = "---\nname: notes\ndescription: Write notes.\nx-vendor: { a: 1 }\n---\nWrite.\n";
        let files = [
            (SKILL_FILE, SkillFile::new(main.as_bytes(), false)),
            ("a b/logo.png", SkillFile::new(*b"\x89PNG\xff", false)),
            ("run.sh", SkillFile::new(*b"#!", true)),
        ];
        let bundle = Bundle::new("notes", files.map(|(path, file)| (path.into(), file)).into()).unwrap();
        SkillResources::new("team".into(), Arc::new(bundle))
    }

    fn answer(method: &str, name: &str) -> Value {
        let (RpcResponse::Result(bytes) | RpcResponse::Error(bytes)) =
            volume().answer(method, name, &members("{}").unwrap());
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn the_extension_finds_its_entry_in_order() {
        let volume = volume();
        let listed = volume.skill().unwrap();
        let entry: Skill = serde_json::from_str(listed.json.get()).unwrap();
        assert_eq!((&*entry.uri, listed.uri), ("skill://team/notes/SKILL.md", "skill://team/notes/SKILL.md"));
        assert_eq!(entry.frontmatter.extra["x-vendor"]["a"], 1);
        validate_skills(&[entry]).unwrap();
    }

    #[test]
    fn what_is_listed_can_be_read() {
        let lists = volume().lists();
        let names = |items: &[Item]| items.iter().map(|item| item.name().to_string()).collect::<Vec<_>>();
        assert_eq!(names(&lists.prompts), ["notes"]);
        assert_eq!(
            names(&lists.resources),
            ["skill://team/notes/SKILL.md", "skill://team/notes/a%20b/logo.png", "skill://team/notes/run.sh"]
        );
        let read = answer("resources/read", "skill://team/notes/a%20b/logo.png");
        assert_eq!(read["contents"][0]["blob"], "iVBOR/8=");
        assert_eq!(answer("prompts/get", "notes")["messages"][0]["content"]["text"], "Write.\n");
        for (method, name) in
            [("prompts/get", "x"), ("resources/read", "skill://team/notes/x"), ("tools/call", "notes")]
        {
            assert!(answer(method, name)["message"].is_string(), "{method} {name}");
        }
    }
}
