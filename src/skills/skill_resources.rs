//! One skill over MCP: a prompt, a resource for each file, and its entry in the skills extension. Pure.

use std::sync::Arc;

use rmcp::model::ErrorCode;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::content::{error, media_type, resource_contents, response, skill_uri};
use super::directories::{directory_children, directory_item};
use super::frontmatter::{frontmatter, resource_members, served_skill_file};
use crate::resource::bundle::{Bundle, SKILL_FILE, SkillFile};
use crate::upstream::{Item, LocalResponder, ServerLists, SkillEntry};
use crate::wire::{ListKind, Members, RpcResponse};

/// One offered skill.
#[derive(Debug)]
pub struct SkillResources {
    namespace: Arc<str>,
    skill: Arc<Bundle>,
    uri: String,
    frontmatter: Map<String, Value>,
    /// SKILL.md as it is served.
    skill_file: Option<SkillFile>,
    entry: Option<Box<RawValue>>,
    directory: Option<Box<RawValue>>,
}

impl SkillResources {
    /// Creates the MCP representation of a skill in a namespace.
    pub fn new(namespace: Arc<str>, skill: Arc<Bundle>) -> Self {
        let uri = skill_uri(&namespace, skill.name(), SKILL_FILE);
        let frontmatter = frontmatter(&skill);
        let skill_file = served_skill_file(&skill, &frontmatter);
        let mut this = Self { namespace, skill, uri, frontmatter, skill_file, entry: None, directory: None };
        this.entry = serde_json::value::to_raw_value(&this.extension_entry()).ok();
        this.directory =
            serde_json::value::to_raw_value(&directory_item(this.root(), this.skill.name())).ok();
        this
    }

    /// Returns the lists of the section: a prompt, and a resource for each file.
    pub fn lists(&self) -> ServerLists {
        let prompt = json!({ "name": &**self.skill.name(), "description": self.skill.description() });
        let resource = |(uri, path, file): (String, &str, &SkillFile)| {
            Item::parse(ListKind::Resources, &self.resource_item(&uri, path, file).to_string())
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

    fn read(&self, uri: &str) -> RpcResponse {
        match self.files().find(|(file_uri, ..)| file_uri == uri) {
            Some((uri, path, file)) => {
                response(Ok(json!({ "contents": [resource_contents(&uri, path, file)] })))
            }
            None => error(ErrorCode::RESOURCE_NOT_FOUND, &format!("there is no resource {uri}")),
        }
    }

    /// Returns the URI, the path and the content of each file.
    fn files(&self) -> impl Iterator<Item = (String, &str, &SkillFile)> {
        self.skill.files().iter().map(|(path, file)| {
            let served = self.skill_file.as_ref().filter(|_| **path == *SKILL_FILE).unwrap_or(file);
            (skill_uri(&self.namespace, self.skill.name(), path), &**path, served)
        })
    }

    /// Returns the URI of the root directory.
    fn root(&self) -> &str {
        self.uri.strip_suffix(SKILL_FILE).and_then(|root| root.strip_suffix('/')).unwrap_or_default()
    }

    /// Returns the skill as an item of `skills/list`.
    fn extension_entry(&self) -> Value {
        let file_entry = |(uri, _, file): (String, &str, &SkillFile)| json!({ "uri": uri, "digest": file.digest, "size": file.bytes.len() });
        json!({
            "uri": self.uri,
            "frontmatter": self.frontmatter,
            "resources": self.files().map(file_entry).collect::<Vec<_>>(),
        })
    }

    /// Returns the resource of a file. It carries the digest, so that changed content changes the list.
    fn resource_item(&self, uri: &str, path: &str, file: &SkillFile) -> Value {
        let mut item = if path == SKILL_FILE {
            resource_members(&self.frontmatter)
        } else {
            json!({ "name": format!("{}/{path}", self.skill.name()) })
        };
        if let Some(members) = item.as_object_mut() {
            members.insert("uri".to_owned(), uri.into());
            members.insert("mimeType".to_owned(), media_type(path, file).into());
            members.insert("size".to_owned(), file.bytes.len().into());
            members.insert("_meta".to_owned(), json!({ "evenkeel.dev/digest": file.digest }));
        }
        item
    }
}

impl LocalResponder for SkillResources {
    fn respond(&self, method: &str, name: &str, _: &Members<'_>) -> RpcResponse {
        match (method, name) {
            ("prompts/get", name) if name == &**self.skill.name() => response(Ok(self.prompt())),
            ("resources/read", uri) => self.read(uri),
            _ => response(Err(format!("unknown name: {name}"))),
        }
    }

    fn skill(&self) -> Option<SkillEntry<'_>> {
        let (json, directory) = (self.entry.as_deref()?, self.directory.as_deref()?);
        Some(SkillEntry { uri: &self.uri, json, directory })
    }

    fn directory_children(&self, uri: &str) -> Option<Vec<Value>> {
        let item = |(uri, path, file): (String, _, _)| {
            let item = self.resource_item(&uri, path, file);
            (uri, path, item)
        };
        directory_children(self.root(), uri, self.files().map(item))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
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

    /// Reads every file of an entry and compares it with the digest and size.
    fn check_files(skill: &SkillResources, entry: &Skill) {
        let rmcp::model::SkillResources::Files(files) = &entry.resources else { panic!("{entry:?}") };
        for file in files {
            let RpcResponse::Result(read) = skill.read(&file.uri) else { panic!("{}", file.uri) };
            let read: Value = serde_json::from_slice(&read).unwrap();
            let content = &read["contents"][0];
            let bytes = match content["text"].as_str() {
                Some(text) => text.as_bytes().to_vec(),
                None => STANDARD.decode(content["blob"].as_str().unwrap()).unwrap(),
            };
            file.verify(&bytes).unwrap();
        }
    }

    #[test]
    fn skill_md_resource_has_the_name_and_description_of_the_frontmatter() {
        let lists = notes_skill().lists();
        let item = |index: usize| -> Value { serde_json::from_str(lists.resources[index].raw()).unwrap() };
        let main = item(0);
        assert_eq!(
            (&main["name"], &main["description"], &main["mimeType"]),
            (&json!("notes"), &json!("Write notes."), &json!("text/markdown"))
        );
        assert_eq!((&item(2)["name"], item(2).get("description")), (&json!("notes/run.sh"), None));
    }

    #[test]
    fn directories_list_their_children_with_the_metadata_of_the_files() {
        let skill = notes_skill();
        let listed = |directory: &str| -> Vec<rmcp::model::Resource> {
            serde_json::from_value(skill.directory_children(directory).unwrap().into()).unwrap()
        };
        let root = listed("skill://team/notes");
        let found: Vec<_> = root.iter().map(|child| (&*child.name, child.is_directory())).collect();
        assert_eq!(found, [("notes", false), ("a b", true), ("notes/run.sh", false)]);
        assert_eq!(listed(&root[1].uri)[0].uri, "skill://team/notes/a%20b/logo.png");
        assert!(skill.directory_children("skill://team/notes/SKILL.md").is_none());
        let directory: Value = serde_json::from_str(skill.skill().unwrap().directory.get()).unwrap();
        let expected = json!({ "uri": "skill://team/notes", "name": "notes", "mimeType": "inode/directory" });
        assert_eq!(directory, expected);
    }

    #[test]
    fn extension_entry_is_valid() {
        let skill = notes_skill();
        let listed = skill.skill().unwrap();
        let entry: Skill = serde_json::from_str(listed.json.get()).unwrap();
        check_files(&skill, &entry);
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
            check_files(&skill, &entry);
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
        assert_eq!(send_request("resources/read", "skill://team/notes/x")["code"], -32002);
    }
}
