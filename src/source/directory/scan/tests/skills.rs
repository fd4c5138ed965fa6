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

/// Returns what of a skill is tolerated, or an empty text.
fn degraded(fixture: &ScanFixture, name: &str) -> String {
    let content = skill_content(fixture, name).unwrap();
    content.degraded().map(ToString::to_string).unwrap_or_default()
}

fn skill_files(fixture: &ScanFixture, name: &str) -> Vec<String> {
    skill_content(fixture, name).unwrap().files().keys().map(ToString::to_string).collect()
}

#[test]
fn invalid_skill_does_not_affect_others() {
    let mut fixture = ScanFixture::new(&[
        ("skills/good/SKILL.md", &skill_md("good", "Good.")),
        ("skills/empty/SKILL.md", "\n"),
        ("skills/open/SKILL.md", "---\nname: open\n"),
        ("inline.yaml", &skill_yaml("inline", "inline: '---'")),
        ("out.yaml", &skill_yaml("out", "path: ../../etc")),
        ("none.yaml", &skill_yaml("none", "path: ./nowhere")),
        ("map.yaml", &skill_yaml("map", "configMapRef: { name: x }")),
        ("skills/lower/skill.md", &skill_md("lower", "Lower.")),
    ]);
    symlink("/etc", fixture.path("skills/way-out")).unwrap();
    symlink("../nothing", fixture.path("skills/dangling")).unwrap();
    fixture.scan_until_settled();
    let descriptions = describe_skills(&fixture);
    let expected = [
        "empty skills/empty/SKILL.md:1: InvalidSpec: skills/empty/SKILL.md:1: there is no description, and no text",
        "good skills/good/SKILL.md:1: SKILL.md",
        "inline inline.yaml:1: InvalidSpec: spec.inline, SKILL.md:1: the frontmatter is not closed",
        "map map.yaml:1: InvalidSpec: map.yaml:4:9: spec.configMapRef: configMapRef is only supported in a cluster",
        "none none.yaml:1: InvalidSpec: nowhere: cannot be read",
        "open skills/open/SKILL.md:1: InvalidSpec: skills/open/SKILL.md:1: the frontmatter is not closed",
        "out out.yaml:1: InvalidSpec: spec.path: \"../../etc\" is outside the directory",
    ];
    for (descriptions, expected) in descriptions.iter().zip(expected) {
        assert!(descriptions.starts_with(expected), "{descriptions}\n{expected}");
    }
    assert_eq!(descriptions.len(), expected.len());
    assert_eq!(degraded(&fixture, "good"), "");
    let faults = fixture.faults();
    for expected in [
        "skills/way-out is a link to a target outside the directory; it is not followed",
        "skills/dangling is a link whose target does not exist",
        "the file must be called SKILL.md to declare a skill",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:#?}");
    }
    assert_eq!(faults.len(), 4, "with that of map.yaml: {faults:#?}");
}

#[test]
fn skill_that_other_agents_load_is_offered_with_its_violations() {
    let mut fixture = ScanFixture::new(&[
        ("skills/other-name/SKILL.md", &skill_md("good", "Good.")),
        ("skills/plain/SKILL.md", "# Plain\n"),
        ("skills/colon/SKILL.md", &skill_md("colon", "Use: it")),
        ("skills/Bad_Name/SKILL.md", &skill_md("Bad_Name", "Bad.")),
        ("inline.yaml", &skill_yaml("inline", "inline: 'Does it.'")),
    ]);
    fixture.scan_until_settled();
    assert_eq!(fixture.faults(), [""; 0]);
    for (name, description, expected) in [
        (
            "other-name",
            "Good.",
            "NonCompliant: skills/other-name/SKILL.md:2: the name \"good\" must be the same",
        ),
        ("plain", "Plain", "NonCompliant: skills/plain/SKILL.md:1: the frontmatter is missing"),
        ("colon", "Use: it", "NonCompliant: skills/colon/SKILL.md:3: the frontmatter is not valid YAML"),
        (
            "bad-name",
            "Bad.",
            "NonCompliant: skills/Bad_Name/SKILL.md:2: the name \"Bad_Name\" may contain only",
        ),
        ("inline", "Does it.", "NonCompliant: spec.inline, SKILL.md:1: the frontmatter is missing"),
    ] {
        assert_eq!(skill_content(&fixture, name).unwrap().description(), description);
        let found = degraded(&fixture, name);
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}

#[test]
fn linked_skill_folder_is_offered_and_changes_with_its_target() {
    let mut fixture = ScanFixture::new(&[
        ("shared/notes/SKILL.md", &skill_md("notes", "Notes.")),
        ("shared/notes/run.sh", "#!/bin/sh\n"),
        ("shared/notes/b.yaml", &server("b", "evil")),
        (".agents/skills/hidden/SKILL.md", &skill_md("hidden", "Hidden.")),
        ("team/skills/same/SKILL.md", &skill_md("same", "Same.")),
        ("pool/one/SKILL.md", &skill_md("one", "One.")),
        ("pool/two/text.md", "not one"),
        ("pool/a.yaml", &server("a", "x")),
        ("docs/main.md", &skill_md("file", "File.")),
        ("skills/file/other.md", "other"),
        ("other/keep", ""),
    ]);
    for (target, name) in [
        ("../shared/notes", "skills/notes"),
        ("../shared/notes", "skills/alias"),
        ("../.agents/skills/hidden", "skills/hidden"),
        ("../team/skills/same", "skills/same"),
        ("../../docs/main.md", "skills/file/SKILL.md"),
        (".", "skills/self"),
        ("../pool", "other/skills"),
        ("../shared/notes", "pool/three"),
    ] {
        symlink(target, fixture.path(name)).unwrap();
    }
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"], "each other file is read once");
    assert_eq!(fixture.faults(), [""; 0]);
    assert_eq!(
        describe_skills(&fixture),
        [
            "alias skills/alias/SKILL.md:1: SKILL.md b.yaml run.sh",
            "file skills/file/SKILL.md:1: SKILL.md other.md",
            "hidden skills/hidden/SKILL.md:1: SKILL.md",
            "notes skills/notes/SKILL.md:1: SKILL.md b.yaml run.sh",
            "one other/skills/one/SKILL.md:1: SKILL.md",
            "same team/skills/same/SKILL.md:1: SKILL.md",
            "three other/skills/three/SKILL.md:1: SKILL.md b.yaml run.sh",
        ]
    );
    assert_eq!(degraded(&fixture, "notes"), "");
    let hidden = skill_content(&fixture, "hidden").unwrap();
    fixture.write("shared/notes/SKILL.md", &skill_md("notes", "Better notes."));
    fixture.write("docs/main.md", &skill_md("file", "Better file."));
    fixture.scan_until_settled();
    for (name, description) in [("notes", "Better notes."), ("file", "Better file.")] {
        assert_eq!(skill_content(&fixture, name).unwrap().description(), description);
    }
    assert!(Arc::ptr_eq(&hidden, &skill_content(&fixture, "hidden").unwrap()));
    fs::remove_file(fixture.path("skills/notes")).unwrap();
    fixture.scan_until_settled();
    assert!(!describe_skills(&fixture).iter().any(|skill| skill.starts_with("notes")));
}

#[test]
fn links_in_a_skill_are_followed_within_the_tree() {
    let mut fixture = ScanFixture::new(&[
        ("skills/notes/SKILL.md", &skill_md("notes", "Notes.")),
        ("skills/notes/own/a.txt", "a"),
        ("shared/lib/b.txt", "b"),
        ("shared/lib/deep/c.txt", "c"),
        ("shared/text.md", "text"),
        ("shared/config.yaml", "kind: ConfigMap\n"),
        ("shared/server.yaml", &server("a", "x")),
        (".env", "TOKEN=hunter2"),
    ]);
    fs::write(fixture.folder.path().join("outside.txt"), "hunter2").unwrap();
    for (target, name) in [
        ("own", "linked"),
        ("../../shared/lib", "lib"),
        ("../../shared/text.md", "text.md"),
        ("../../shared/config.yaml", "config.yaml"),
        ("../../shared/server.yaml", "server.yaml"),
        ("../../.env", "env.txt"),
        ("../../../outside.txt", "a-outside.txt"),
        ("/etc", "etc"),
        ("nothing", "dangling"),
        ("loop", "loop"),
        (".", "self"),
        ("../..", "root"),
        ("..", "own/up"),
    ] {
        symlink(target, fixture.path("skills/notes").join(name)).unwrap();
    }
    fixture.scan_until_settled();
    let files =
        ["SKILL.md", "config.yaml", "lib/b.txt", "lib/deep/c.txt", "linked/a.txt", "own/a.txt", "text.md"];
    assert_eq!(skill_files(&fixture, "notes"), files);
    let told = degraded(&fixture, "notes");
    assert!(
        told.starts_with(
            "ItemsLeftOut: agents do not get these files: skills/notes/a-outside.txt: is a link"
        ),
        "{told}"
    );
    for expected in [
        "skills/notes/env.txt: is a link to a hidden file or folder; it is not followed",
        "skills/notes/etc: is a link to a target outside the directory; it is not followed",
        "skills/notes/dangling: is a link whose target does not exist",
        "skills/notes/linked/up: is a link to a folder that contains it",
        "and others",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }

    fixture.write("shared/lib/b.txt", "better");
    fixture.scan_until_settled();
    assert_eq!(&*skill_content(&fixture, "notes").unwrap().files()["lib/b.txt"].bytes, b"better");
}

#[test]
fn generated_and_oversized_files_are_left_out() {
    let mut fixture = ScanFixture::new(&[
        ("skills/notes/SKILL.md", &skill_md("notes", "Notes.")),
        ("skills/notes/z.txt", "z"),
        ("skills/notes/.gitignore", "x"),
        ("skills/plain/SKILL.md", &skill_md("plain", "Plain.")),
        ("skills/plain/.DS_Store", "x"),
    ]);
    for folder in ["node_modules/x", ".git", ".venv/lib", "env", "scripts/__pycache__"] {
        fixture.write(&format!("skills/notes/{folder}/file"), "x");
    }
    fixture.write("skills/notes/env/pyvenv.cfg", "");
    fixture.write("skills/notes/large.bin", &"x".repeat((4 << 20) + 1));
    fixture.scan_until_settled();
    assert_eq!(skill_files(&fixture, "notes"), ["SKILL.md", "z.txt"]);
    let told = degraded(&fixture, "notes");
    for expected in [
        "skills/notes/.git: is a folder that a tool generated",
        "skills/notes/.venv: is a folder",
        "skills/notes/node_modules: is a folder",
        "skills/notes/large.bin: is larger than 4 MiB",
        "skills/notes/env: is a virtual environment of Python",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    assert_eq!(degraded(&fixture, "plain"), "");

    // The files that are nearest to SKILL.md stay.
    for folder in ["node_modules", ".git", ".venv", "env", "scripts"] {
        fs::remove_dir_all(fixture.path("skills/notes").join(folder)).unwrap();
    }
    fixture.remove("skills/notes/large.bin");
    for number in 0..600 {
        fixture.write(&format!("skills/notes/a/{number}.txt"), "x");
    }
    fixture.scan_until_settled();
    let files = skill_files(&fixture, "notes");
    assert!(files.len() == 512 && files.contains(&"z.txt".to_owned()), "{}", files.len());
    let expected = "ItemsLeftOut: agents do not get these files: skills/notes: contains more than 512 files";
    assert_eq!(degraded(&fixture, "notes"), expected);

    fixture.write("skills/notes/SKILL.md", &"x".repeat((4 << 20) + 1));
    fixture.scan_until_settled();
    let problem = skill_content(&fixture, "notes").unwrap_err().to_string();
    assert_eq!(problem, "InvalidSpec: skills/notes/SKILL.md: is larger than 4 MiB");
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
