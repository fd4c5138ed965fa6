//! Skills: the folders that are declared by where they are, and the ones that are named.

use super::*;
use crate::resource::SkillContent;

fn skill_md(name: &str, description: &str) -> String {
    format!("---\nname: {name}\ndescription: {description}\n---\n")
}

fn skill_yaml(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n"
    )
}

fn skill_content(desk: &ScanFixture, name: &str) -> SkillContent {
    let contents = &desk.scanner.desired.skill_contents;
    let found = contents.iter().find(|(key, _)| &*key.name == name);
    found.unwrap_or_else(|| panic!("{name} was not looked at")).1.clone()
}

/// Each skill, as `name origin: files` or what is wrong with it.
fn describe_skills(desk: &ScanFixture) -> Vec<String> {
    let desired = &desk.scanner.desired;
    let told = desired.skills.values().map(|skill| {
        let refused = skill.rejected.as_ref().map(ToString::to_string);
        let content = desired.skill_contents.get(&skill.meta.key).map(|content| match content {
            Ok(bundle) => bundle.files().keys().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(problem) => problem.to_string(),
        });
        let told = refused.or(content).unwrap_or_else(|| "nothing".to_owned());
        format!("{} {}: {told}", skill.meta.key.name, skill.meta.origin)
    });
    told.collect()
}

#[test]
fn folder_under_skills_declares_only_its_skill() {
    let mut desk = ScanFixture::new(&[
        ("a.yaml", &server("a", "one")),
        ("skills/notes/SKILL.md", &skill_md("notes", "Notes.")),
        ("skills/notes/assets/k8s.yaml", &server("b", "evil")),
        ("skills/notes/mcp.json", "{ \"mcpServers\": { \"c\": { \"command\": \"evil\" } } }"),
        ("skills/notes/scripts/run.sh", "#!/bin/sh\n"),
        ("skills/notes/.DS_Store", "x"),
        ("skills/README.md", "not one"),
        ("team/skills/tests/SKILL.md", &skill_md("tests", "Tests.")),
        ("elsewhere/SKILL.md", &skill_md("elsewhere", "Nobody refers to it.")),
        ("elsewhere/b.yaml", &server("b", "evil")),
    ]);
    assert_eq!(desk.scan_until_settled(), ["a/1 one"]);
    assert_eq!(desk.faults(), [""; 0]);
    assert_eq!(
        describe_skills(&desk),
        [
            "notes skills/notes/SKILL.md:1: SKILL.md assets/k8s.yaml mcp.json scripts/run.sh",
            "tests team/skills/tests/SKILL.md:1: SKILL.md",
        ]
    );

    // One edited file is another content of that skill, once it is quiet; the other keeps its own.
    let (notes, tests) = (skill_content(&desk, "notes").unwrap(), skill_content(&desk, "tests").unwrap());
    desk.write("skills/notes/scripts/run.sh", "#!/bin/bash\n");
    desk.scan(&[], false);
    assert!(Arc::ptr_eq(&notes, &skill_content(&desk, "notes").unwrap()), "it may not be complete yet");
    desk.scan(&[], true);
    let after = skill_content(&desk, "notes").unwrap();
    assert_ne!(after.digest(), notes.digest());
    assert!(Arc::ptr_eq(&tests, &skill_content(&desk, "tests").unwrap()));
    let before = Arc::clone(&desk.scanner.desired);
    desk.scan_until_settled();
    assert!(Arc::ptr_eq(&before, &desk.scanner.desired), "nothing changed");

    // It is the same skill after a restart, and gone with its SKILL.md.
    let uid =
        |desk: &ScanFixture| desk.scanner.desired.skills.values().map(|skill| skill.meta.uid.clone()).next();
    let known = uid(&desk);
    desk.restart();
    desk.scan_until_settled();
    assert_eq!(uid(&desk), known);
    desk.remove("skills/notes/SKILL.md");
    desk.scan_until_settled();
    assert_eq!(describe_skills(&desk), ["tests team/skills/tests/SKILL.md:1: SKILL.md"]);
}

#[test]
fn invalid_skill_does_not_affect_others() {
    let mut desk = ScanFixture::new(&[
        ("skills/good/SKILL.md", &skill_md("good", "Good.")),
        ("skills/other-name/SKILL.md", &skill_md("good", "Good.")),
        ("skills/plain/SKILL.md", "# Plain\n"),
        ("skills/colon/SKILL.md", &skill_md("colon", "Use: it")),
        ("inline.yaml", &skill_yaml("inline", "inline: 'text'")),
        ("out.yaml", &skill_yaml("out", "path: ../../etc")),
        ("none.yaml", &skill_yaml("none", "path: ./nowhere")),
        ("map.yaml", &skill_yaml("map", "configMapRef: { name: x }")),
        ("skills/link/SKILL.md", &skill_md("link", "Leaves.")),
        ("skills/Bad_Name/SKILL.md", &skill_md("bad", "Bad.")),
    ]);
    symlink("/etc/hostname", desk.path("skills/link/stolen")).unwrap();
    symlink("/etc", desk.path("skills/way-out")).unwrap();
    desk.scan_until_settled();
    let told = describe_skills(&desk);
    for (told, expected) in told.iter().zip([
        "colon skills/colon/SKILL.md:1: InvalidSpec: skills/colon/SKILL.md:3: the frontmatter is not valid YAML",
        "good skills/good/SKILL.md:1: SKILL.md",
        "inline inline.yaml:1: InvalidSpec: spec.inline, SKILL.md:1: the frontmatter is missing",
        "link skills/link/SKILL.md:1: InvalidSpec: skills/link/stolen: is a link that leads to no file of this",
        "map map.yaml:1: InvalidSpec: map.yaml:4:9: spec.configMapRef: there are no ConfigMaps beside a file",
        "none none.yaml:1: InvalidSpec: nowhere: cannot be read",
        "other-name skills/other-name/SKILL.md:1: InvalidSpec: skills/other-name/SKILL.md:2: the name \"good\" must",
        "out out.yaml:1: InvalidSpec: spec.path: \"../../etc\" leads out of the directory",
        "plain skills/plain/SKILL.md:1: InvalidSpec: skills/plain/SKILL.md:1: the frontmatter is missing",
    ]) {
        assert!(told.starts_with(expected), "{told}\n{expected}");
    }
    assert_eq!(told.len(), 9);
    assert!(desk.faults().iter().any(|fault| fault.contains("the folder of a skill must have a name")));
}

#[test]
fn explicit_declaration_takes_over_a_skill_folder() {
    let mut desk = ScanFixture::new(&[("skills/notes/SKILL.md", &skill_md("notes", "Notes."))]);
    desk.scan_until_settled();
    let uid =
        |desk: &ScanFixture| desk.scanner.desired.skills.values().map(|skill| skill.meta.uid.clone()).next();
    let before = uid(&desk);
    desk.write("z.yaml", &skill_yaml("notes", "path: ./skills/notes, suspend: true"));
    desk.scan_until_settled();
    assert_eq!(describe_skills(&desk), ["notes z.yaml:1: SKILL.md"]);
    assert_eq!((uid(&desk), desk.faults()), (before, Vec::<String>::new()));
    // Another text under that name loses, and says so.
    desk.write("a.yaml", &skill_yaml("notes", "inline: text"));
    desk.scan_until_settled();
    assert_eq!(describe_skills(&desk), ["notes z.yaml:1: SKILL.md"]);
    assert_eq!(desk.faults().len(), 1, "{:?}", desk.faults());
    desk.remove("a.yaml");
    desk.remove("z.yaml");
    desk.scan_until_settled();
    assert_eq!(describe_skills(&desk), ["notes skills/notes/SKILL.md:1: SKILL.md"]);
}

#[test]
fn mounted_volume_skill_changes_when_its_link_is_replaced() {
    let mut desk = ScanFixture::new(&[
        ("skills/notes/..1/SKILL.md", &skill_md("notes", "One.")),
        ("skills/notes/..2/SKILL.md", &skill_md("notes", "Two.")),
    ]);
    symlink("..1", desk.path("skills/notes/..data")).unwrap();
    symlink("..data/SKILL.md", desk.path("skills/notes/SKILL.md")).unwrap();
    desk.scan_until_settled();
    assert_eq!(skill_content(&desk, "notes").unwrap().description(), "One.");
    symlink("..2", desk.path("skills/notes/..new")).unwrap();
    fs::rename(desk.path("skills/notes/..new"), desk.path("skills/notes/..data")).unwrap();
    desk.scan_until_settled();
    assert_eq!(skill_content(&desk, "notes").unwrap().description(), "Two.");
}
