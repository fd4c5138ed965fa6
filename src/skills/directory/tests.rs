use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::resource::bundle::SkillFile;

struct DirectoryFixture {
    temp_dir: TempDir,
    directory: SkillDirectory,
}

fn bundle(name: &str, description: &str, files: &[(&str, &str)]) -> (Arc<str>, Arc<Bundle>) {
    let main = format!("---\nname: {name}\ndescription: {description}\n---\n");
    let files = files
        .iter()
        .map(|(path, text)| ((*path).into(), SkillFile::new(text.as_bytes(), path.starts_with("scripts/"))));
    let files = files.chain([("SKILL.md".into(), SkillFile::new(main.as_bytes(), false))]).collect();
    (name.into(), Arc::new(Bundle::new(name, files).unwrap()))
}

impl DirectoryFixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { directory: SkillDirectory::new(folder.path().join("skills"), "one".into()), temp_dir: folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp_dir.path().join("skills").join(name)
    }

    fn restart(&mut self) {
        self.directory = SkillDirectory::new(self.path(""), "one".into());
    }

    /// Applies skills and returns the problems.
    fn apply(&mut self, skills: &[(Arc<str>, Arc<Bundle>)], full: bool) -> Vec<String> {
        let desired = DesiredSkills {
            skills: skills.iter().cloned().collect(),
            untouched: BTreeSet::from(["kept".into()]),
        };
        match self.directory.apply(&desired, full) {
            Ok(problems) => problems.values().map(ToString::to_string).collect(),
            Err(problem) => vec![problem.to_string()],
        }
    }

    fn files(&self) -> Vec<String> {
        let mut names = BTreeSet::new();
        let _ = list_files(&self.path(""), "", &mut names);
        names.into_iter().filter(|name| !name.ends_with(MARK_FILE)).collect()
    }
}

#[test]
fn skills_are_written_and_foreign_entries_are_untouched() {
    let mut fixture = DirectoryFixture::new();
    assert_eq!(fixture.apply(&[], true), [""; 0]);
    assert!(!fixture.path("").exists(), "no directory is created without skills");

    let (a, b) = (bundle("a", "One.", &[("scripts/run.sh", "#!"), ("x/y.txt", "t")]), bundle("b", "B.", &[]));
    assert_eq!(fixture.apply(&[a.clone(), b.clone()], true), [""; 0]);
    assert_eq!(fixture.files(), ["a/SKILL.md", "a/scripts/run.sh", "a/x/y.txt", "b/SKILL.md"]);
    assert_eq!(fixture.path("a/scripts/run.sh").metadata().unwrap().permissions().mode() & 0o100, 0o100);
    assert_eq!(fixture.path("a/SKILL.md").metadata().unwrap().permissions().mode() & 0o111, 0);

    // Changed content, one file fewer and one skill fewer.
    let a = bundle("a", "Two.", &[("x/y.txt", "t")]);
    assert_eq!(fixture.apply(std::slice::from_ref(&a), false), [""; 0]);
    assert_eq!(fixture.files(), ["a/SKILL.md", "a/x/y.txt"]);
    assert!(fs::read_to_string(fixture.path("a/SKILL.md")).unwrap().contains("Two."));

    // Foreign entries of every kind are left unchanged.
    fs::create_dir_all(fixture.path("b")).unwrap();
    fs::write(fixture.path("b/SKILL.md"), "foreign").unwrap();
    fs::create_dir(fixture.temp_dir.path().join("precious")).unwrap();
    fs::write(fixture.temp_dir.path().join("precious/file"), "precious").unwrap();
    symlink(fixture.temp_dir.path().join("precious"), fixture.path("c")).unwrap();
    fs::write(fixture.path("d"), "a file").unwrap();
    let mut other = SkillDirectory::new(fixture.path(""), "two".into());
    let e = bundle("e", "E.", &[]);
    other.apply(&DesiredSkills { skills: [e.clone()].into(), ..DesiredSkills::default() }, true).unwrap();
    let desired = [a.clone(), b, bundle("c", "C.", &[]), bundle("d", "D.", &[]), e];
    let problems = fixture.apply(&desired, true);
    for (problem, expected) in problems.iter().zip([
        "b is a folder that evenkeel did not write and is left unchanged",
        "c is a file or a link and is left unchanged",
        "d is a file or a link and is left unchanged",
        "e is a folder of another evenkeel instance and is left unchanged",
    ]) {
        assert!(problem.starts_with("Shadowed: ") && problem.contains(expected), "{problem}");
    }
    assert_eq!(problems.len(), 4);
    assert_eq!(fixture.apply(&[a], true), [""; 0]);
    assert_eq!(fixture.files(), ["a/SKILL.md", "a/x/y.txt", "b/SKILL.md", "c", "d", "e/SKILL.md"]);
    assert_eq!(fs::read_to_string(fixture.temp_dir.path().join("precious/file")).unwrap(), "precious");
    assert_eq!(fs::read_to_string(fixture.path("b/SKILL.md")).unwrap(), "foreign");
}

#[test]
fn modified_or_interrupted_skill_is_restored() {
    let mut fixture = DirectoryFixture::new();
    let (a, kept) = (bundle("a", "A.", &[("x.txt", "t")]), bundle("kept", "K.", &[]));
    fixture.apply(&[a.clone(), kept], true);
    fs::write(fixture.path("a/x.txt"), "edited").unwrap();
    fs::write(fixture.path("a/more.txt"), "more").unwrap();
    // The remains of an interrupted run.
    fs::create_dir_all(fixture.path(".evenkeel-one/a.old")).unwrap();
    fs::write(fixture.path(".evenkeel-one/a.old/SKILL.md"), "half").unwrap();
    fixture.restart();
    assert_eq!(fixture.apply(std::slice::from_ref(&a), true), [""; 0]);
    assert_eq!(fixture.files(), ["a/SKILL.md", "a/x.txt", "kept/SKILL.md"], "untouched names stay");
    assert_eq!(fs::read_to_string(fixture.path("a/x.txt")).unwrap(), "t");
    // A link in place of the staging folder is removed, and its target is not.
    fs::create_dir(fixture.temp_dir.path().join("precious")).unwrap();
    fs::write(fixture.temp_dir.path().join("precious/file"), "precious").unwrap();
    symlink(fixture.temp_dir.path().join("precious"), fixture.path(".evenkeel-one")).unwrap();
    fs::remove_file(fixture.path("a/SKILL.md")).unwrap();
    assert_eq!(fixture.apply(&[a], true), [""; 0]);
    assert!(fixture.path("a/SKILL.md").exists() && fixture.temp_dir.path().join("precious/file").exists());
    assert!(!fixture.path(".evenkeel-one").exists());
}

#[test]
fn write_failure_is_reported() {
    let mut fixture = DirectoryFixture::new();
    fs::write(fixture.path(""), "a file in the way").unwrap_or_else(|_| {
        fs::write(fixture.temp_dir.path().join("skills"), "a file in the way").unwrap();
    });
    let problems = fixture.apply(&[bundle("a", "A.", &[])], true);
    assert!(problems[0].starts_with("WriteFailed: ") && problems[0].contains("retrying"), "{problems:?}");
}
