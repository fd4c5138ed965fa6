//! The frontmatter of a skill as the Skills extension requires it: equal in the skill's entry and in its SKILL.md.
//! Pure.

use serde_json::{Map, Value, json};

use crate::resource::bundle::{Bundle, SKILL_FILE, SkillFile};
use crate::wire::json_string;

/// Returns the fields of the frontmatter, with the name under which the skill is offered and with a description.
pub(super) fn frontmatter(skill: &Bundle) -> Map<String, Value> {
    let mut fields = written_frontmatter(skill).unwrap_or_default();
    fields.insert("name".to_owned(), (&**skill.name()).into());
    let written = fields.get("description").and_then(Value::as_str).map(str::trim);
    if written != Some(skill.description()) {
        fields.insert("description".to_owned(), skill.description().into());
    }
    fields
}

/// Returns SKILL.md as agents get it over MCP: the author's file, byte for byte, if its frontmatter has these fields.
/// Otherwise hosts would refuse the skill, so the frontmatter is written anew, with JSON values, which YAML includes.
pub(super) fn served_skill_file(skill: &Bundle, fields: &Map<String, Value>) -> Option<SkillFile> {
    let file = skill.files().get(SKILL_FILE)?;
    if file.bytes.starts_with(b"---") && written_frontmatter(skill).as_ref() == Some(fields) {
        return Some(file.clone());
    }
    let lines = fields.iter().map(|(name, value)| format!("{}: {value}\n", json_string(name)));
    let text = format!("---\n{}---\n{}", lines.collect::<String>(), skill.body());
    Some(SkillFile::new(text.into_bytes(), file.executable))
}

/// Returns the members of the SKILL.md resource that are those of the frontmatter.
pub(super) fn resource_members(fields: &Map<String, Value>) -> Value {
    json!({ "name": fields.get("name"), "description": fields.get("description") })
}

/// Returns the fields that the author wrote; `None` if the frontmatter is no YAML mapping.
fn written_frontmatter(skill: &Bundle) -> Option<Map<String, Value>> {
    match serde_yaml::from_str(skill.frontmatter()) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(text: &str) -> (Map<String, Value>, String) {
        let skill = Bundle::from_text("notes", text).unwrap();
        let fields = frontmatter(&skill);
        let file = served_skill_file(&skill, &fields).unwrap();
        (fields, String::from_utf8(file.bytes.to_vec()).unwrap())
    }

    #[test]
    fn well_formed_file_is_served_byte_for_byte() {
        for text in [
            "---\nname: notes\ndescription: Write notes.\n---\nWrite.\n",
            "---\n# why\ndescription: >-\n  Write\n  notes.\nname: \"notes\"\nx-vendor: { a: [1.10, yes] }\n---\nWrite.\n",
            "---\r\nname: notes\r\ndescription: Write notes.\r\n---\r\n",
        ] {
            assert_eq!(served(text).1, text);
        }
    }

    #[test]
    fn frontmatter_of_a_tolerated_file_is_written_anew() {
        for text in [
            "Write.\n",
            "---\nname: Other\ndescription: Use it\n---\nWrite.\n",
            "---\nname: notes\ndescription: Use: it\n---\nWrite.\n",
            "---\nname: notes\nx: { a: \"\\u2028é\" }\n---\nWrite.\n",
            "---\nname: notes\nDescription: Use \"it\"\n---\nWrite.\n",
            "\n<!-- x -->\n---\nname: notes\ndescription: Use it\n---\nWrite.\n",
            "\u{feff}---\nname: notes\ndescription: Use it\n---\nWrite.\n",
            &format!("---\nname: notes\ndescription: {}\n---\nWrite.\n", "x".repeat(2_000)),
        ] {
            let (fields, served) = served(text);
            let again = Bundle::from_text("notes", &served).unwrap();
            assert_eq!(written_frontmatter(&again).as_ref(), Some(&fields), "{served}");
            assert_eq!((again.body(), fields["name"].as_str()), ("Write.\n", Some("notes")), "{served}");
            assert!(again.degraded().is_none() && served.starts_with("---\n"), "{served}");
        }
    }
}
