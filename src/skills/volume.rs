//! One skill as an MCP server offers it: a prompt, a resource for each file, and its entry of the extension. Pure.

use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::library::reply;
use crate::catalog::{Item, Lists};
use crate::resource::bundle::{Bundle, File, SKILL_FILE};
use crate::wire::{List, Reply};

/// One skill that is offered.
#[derive(Debug)]
pub struct Volume {
    namespace: Arc<str>,
    skill: Arc<Bundle>,
    uri: String,
    entry: Option<Box<RawValue>>,
}

impl Volume {
    /// A skill of a namespace.
    pub fn new(namespace: Arc<str>, skill: Arc<Bundle>) -> Self {
        let uri = uri(&namespace, skill.name(), SKILL_FILE);
        let entry = serde_json::value::to_raw_value(&entry(&namespace, &skill)).ok();
        Self { namespace, skill, uri, entry }
    }

    /// The URI of its SKILL.md, by which the extension knows it.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The skill as `skills/list` gives it (SEP-2640).
    pub fn entry(&self) -> Option<&RawValue> {
        self.entry.as_deref()
    }

    /// What it lists: a prompt, and a resource for each file.
    pub fn lists(&self) -> Lists {
        let name = self.skill.name();
        let prompt = json!({ "name": &**name, "description": self.skill.description() });
        let resource = |(uri, path, file): (String, &str, &File)| {
            Item::read(List::Resources, &resource(&uri, &format!("{name}/{path}"), file).to_string())
        };
        let mut resources: Vec<_> = self.files().flat_map(resource).collect();
        resources.sort_by(|one, other| one.name().cmp(other.name()));
        let prompts = Item::read(List::Prompts, &prompt.to_string()).into_iter().collect();
        Lists { prompts, resources, ..Lists::default() }
    }

    /// Answers a request for something that is listed: `name` is its name or URI.
    pub fn answer(&self, method: &str, name: &str) -> Reply {
        reply(match (method, name) {
            ("prompts/get", name) if name == &**self.skill.name() => Ok(self.prompt()),
            ("resources/read", uri) => self.read(uri),
            _ => Err(format!("nothing is known of {name}")),
        })
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

    fn files(&self) -> impl Iterator<Item = (String, &str, &File)> {
        let name = self.skill.name();
        self.skill.files().iter().map(|(path, file)| (uri(&self.namespace, name, path), &**path, file))
    }
}

fn entry(namespace: &str, skill: &Bundle) -> Value {
    let frontmatter: Option<Value> = serde_yaml::from_str(skill.frontmatter()).ok();
    let known = || json!({ "name": &**skill.name(), "description": skill.description() });
    let of_file = |(path, file): (&Arc<str>, &File)| {
        let uri = uri(namespace, skill.name(), path);
        json!({ "uri": uri, "digest": file.digest, "size": file.bytes.len() })
    };
    json!({
        "uri": uri(namespace, skill.name(), SKILL_FILE),
        "frontmatter": frontmatter.filter(Value::is_object).unwrap_or_else(known),
        "resources": skill.files().iter().map(of_file).collect::<Vec<_>>(),
    })
}

/// The URI of a file. The namespace is in it, so that no two skills have one URI.
pub(super) fn uri(namespace: &str, name: &str, path: &str) -> String {
    let mut uri = format!("skill://{namespace}/{name}/");
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

pub(super) fn content(uri: &str, path: &str, file: &File) -> Value {
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

#[cfg(test)]
mod tests {
    use rmcp::model::{Skill, validate_skills};

    use super::*;

    fn volume() -> Volume {
        let main = "---\nname: notes\ndescription: Write notes.\nx-vendor: { a: 1 }\n---\nWrite.\n";
        let files = [
            (SKILL_FILE, File::new(main.as_bytes(), false)),
            ("a b/logo.png", File::new(*b"\x89PNG\xff", false)),
            ("run.sh", File::new(*b"#!", true)),
        ];
        let bundle = Bundle::new("notes", files.map(|(path, file)| (path.into(), file)).into()).unwrap();
        Volume::new("team".into(), Arc::new(bundle))
    }

    fn answer(method: &str, name: &str) -> Value {
        let (Reply::Result(bytes) | Reply::Error(bytes)) = volume().answer(method, name);
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn the_extension_finds_its_entry_in_order() {
        let volume = volume();
        let entry: Skill = serde_json::from_str(volume.entry().unwrap().get()).unwrap();
        assert_eq!(
            (&*entry.uri, volume.uri()),
            ("skill://team/notes/SKILL.md", "skill://team/notes/SKILL.md")
        );
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
