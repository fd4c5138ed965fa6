//! Skills: the folders that are skills by their location, and those that a declaration names.

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

fn skill_content(fixture: &ScanFixture, name: &str) -> SkillContent {
    let contents = &fixture.scanner.desired.skill_contents;
    let content = contents.iter().find(|(key, _)| &*key.name == name);
    content.unwrap_or_else(|| panic!("{name} was not read")).1.clone()
}

/// Returns each skill as `name origin: files`, or with its problem.
fn describe_skills(fixture: &ScanFixture) -> Vec<String> {
    let desired = &fixture.scanner.desired;
    let descriptions = desired.skills.values().map(|skill| {
        let refused = skill.rejected.as_ref().map(ToString::to_string);
        let content = desired.skill_contents.get(&skill.meta.key).map(|content| match content {
            Ok(bundle) => bundle.files().keys().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(problem) => problem.to_string(),
        });
        let descriptions = refused.or(content).unwrap_or_else(|| "nothing".to_owned());
        format!("{} {}: {descriptions}", skill.meta.key.name, skill.meta.origin)
    });
    descriptions.collect()
}

#[test]
fn folder_under_skills_declares_only_its_skill() {
    let mut fixture = ScanFixture::new(&[
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
    assert_eq!(fixture.scan_until_settled(), ["a/1 one"]);
    assert_eq!(fixture.faults(), [""; 0]);
    assert_eq!(
        describe_skills(&fixture),
        [
            "notes skills/notes/SKILL.md:1: SKILL.md assets/k8s.yaml mcp.json scripts/run.sh",
            "tests team/skills/tests/SKILL.md:1: SKILL.md",
        ]
    );

    // An edited file changes the content of its skill after the quiet period; the other skill keeps its content.
    let (notes, tests) =
        (skill_content(&fixture, "notes").unwrap(), skill_content(&fixture, "tests").unwrap());
    fixture.write("skills/notes/scripts/run.sh", "#!/bin/bash\n");
    fixture.scan(&[], false);
    assert!(Arc::ptr_eq(&notes, &skill_content(&fixture, "notes").unwrap()), "it may be incomplete");
    fixture.scan(&[], true);
    let after = skill_content(&fixture, "notes").unwrap();
    assert_ne!(after.digest(), notes.digest());
    assert!(Arc::ptr_eq(&tests, &skill_content(&fixture, "tests").unwrap()));
    let before = Arc::clone(&fixture.scanner.desired);
    fixture.scan_until_settled();
    assert!(Arc::ptr_eq(&before, &fixture.scanner.desired), "nothing changed");

    // It is the same skill after a restart, and it is removed with its SKILL.md.
    let uid = |fixture: &ScanFixture| {
        fixture.scanner.desired.skills.values().map(|skill| skill.meta.uid.clone()).next()
    };
    let uid_before = uid(&fixture);
    fixture.restart();
    fixture.scan_until_settled();
    assert_eq!(uid(&fixture), uid_before);
    fixture.remove("skills/notes/SKILL.md");
    fixture.scan_until_settled();
    assert_eq!(describe_skills(&fixture), ["tests team/skills/tests/SKILL.md:1: SKILL.md"]);
}

#[test]
fn invalid_skill_does_not_affect_others() {
    let mut fixture = ScanFixture::new(&[
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
    symlink("/etc/hostname", fixture.path("skills/link/stolen")).unwrap();
    symlink("/etc", fixture.path("skills/way-out")).unwrap();
    fixture.scan_until_settled();
    let descriptions = describe_skills(&fixture);
    let expected = [
        "colon skills/colon/SKILL.md:1: InvalidSpec: skills/colon/SKILL.md:3: the frontmatter is not valid YAML",
        "good skills/good/SKILL.md:1: SKILL.md",
        "inline inline.yaml:1: InvalidSpec: spec.inline, SKILL.md:1: the frontmatter is missing",
        "link skills/link/SKILL.md:1: InvalidSpec: skills/link/stolen: is a link to a target that is not a file",
        "map map.yaml:1: InvalidSpec: map.yaml:4:9: spec.configMapRef: configMapRef is only supported in a cluster",
        "none none.yaml:1: InvalidSpec: nowhere: cannot be read",
        "other-name skills/other-name/SKILL.md:1: InvalidSpec: skills/other-name/SKILL.md:2: the name \"good\" must",
        "out out.yaml:1: InvalidSpec: spec.path: \"../../etc\" is outside the directory",
        "plain skills/plain/SKILL.md:1: InvalidSpec: skills/plain/SKILL.md:1: the frontmatter is missing",
    ];
    for (descriptions, expected) in descriptions.iter().zip(expected) {
        assert!(descriptions.starts_with(expected), "{descriptions}\n{expected}");
    }
    assert_eq!(descriptions.len(), 9);
    assert!(fixture.faults().iter().any(|fault| fault.contains("the folder of a skill must have a name")));
}

#[test]
fn explicit_declaration_takes_over_a_skill_folder() {
    let mut fixture = ScanFixture::new(&[("skills/notes/SKILL.md", &skill_md("notes", "Notes."))]);
    fixture.scan_until_settled();
    let uid = |fixture: &ScanFixture| {
        fixture.scanner.desired.skills.values().map(|skill| skill.meta.uid.clone()).next()
    };
    let before = uid(&fixture);
    fixture.write("z.yaml", &skill_yaml("notes", "path: ./skills/notes, suspend: true"));
    fixture.scan_until_settled();
    assert_eq!(describe_skills(&fixture), ["notes z.yaml:1: SKILL.md"]);
    assert_eq!((uid(&fixture), fixture.faults()), (before, Vec::<String>::new()));
    // Another declaration of that name is a duplicate and is reported.
    fixture.write("a.yaml", &skill_yaml("notes", "inline: text"));
    fixture.scan_until_settled();
    assert_eq!(describe_skills(&fixture), ["notes z.yaml:1: SKILL.md"]);
    assert_eq!(fixture.faults().len(), 1, "{:?}", fixture.faults());
    fixture.remove("a.yaml");
    fixture.remove("z.yaml");
    fixture.scan_until_settled();
    assert_eq!(describe_skills(&fixture), ["notes skills/notes/SKILL.md:1: SKILL.md"]);
}

#[test]
fn mounted_volume_skill_changes_when_its_link_is_replaced() {
    let mut fixture = ScanFixture::new(&[
        ("skills/notes/..1/SKILL.md", &skill_md("notes", "One.")),
        ("skills/notes/..2/SKILL.md", &skill_md("notes", "Two.")),
    ]);
    symlink("..1", fixture.path("skills/notes/..data")).unwrap();
    symlink("..data/SKILL.md", fixture.path("skills/notes/SKILL.md")).unwrap();
    fixture.scan_until_settled();
    assert_eq!(skill_content(&fixture, "notes").unwrap().description(), "One.");
    symlink("..2", fixture.path("skills/notes/..new")).unwrap();
    fs::rename(fixture.path("skills/notes/..new"), fixture.path("skills/notes/..data")).unwrap();
    fixture.scan_until_settled();
    assert_eq!(skill_content(&fixture, "notes").unwrap().description(), "Two.");
}
