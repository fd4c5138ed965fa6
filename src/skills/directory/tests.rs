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

    /// Gives what went wrong.
    fn apply(&mut self, skills: &[(Arc<str>, Arc<Bundle>)], whole: bool) -> Vec<String> {
        let wanted = DesiredSkills {
            skills: skills.iter().cloned().collect(),
            untouched: BTreeSet::from(["kept".into()]),
        };
        match self.directory.apply(&wanted, whole) {
            Ok(troubles) => troubles.values().map(ToString::to_string).collect(),
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
    let mut desk = DirectoryFixture::new();
    assert_eq!(desk.apply(&[], true), [""; 0]);
    assert!(!desk.path("").exists(), "nothing is made for nothing");

    let (a, b) = (bundle("a", "One.", &[("scripts/run.sh", "#!"), ("x/y.txt", "t")]), bundle("b", "B.", &[]));
    assert_eq!(desk.apply(&[a.clone(), b.clone()], true), [""; 0]);
    assert_eq!(desk.files(), ["a/SKILL.md", "a/scripts/run.sh", "a/x/y.txt", "b/SKILL.md"]);
    assert_eq!(desk.path("a/scripts/run.sh").metadata().unwrap().permissions().mode() & 0o100, 0o100);
    assert_eq!(desk.path("a/SKILL.md").metadata().unwrap().permissions().mode() & 0o111, 0);

    // Another content, one file less, and one skill less.
    let a = bundle("a", "Two.", &[("x/y.txt", "t")]);
    assert_eq!(desk.apply(std::slice::from_ref(&a), false), [""; 0]);
    assert_eq!(desk.files(), ["a/SKILL.md", "a/x/y.txt"]);
    assert!(fs::read_to_string(desk.path("a/SKILL.md")).unwrap().contains("Two."));

    // What others have is left alone, whatever it is.
    fs::create_dir_all(desk.path("b")).unwrap();
    fs::write(desk.path("b/SKILL.md"), "mine").unwrap();
    fs::create_dir(desk.temp_dir.path().join("precious")).unwrap();
    fs::write(desk.temp_dir.path().join("precious/file"), "precious").unwrap();
    symlink(desk.temp_dir.path().join("precious"), desk.path("c")).unwrap();
    fs::write(desk.path("d"), "a file").unwrap();
    let mut other = SkillDirectory::new(desk.path(""), "two".into());
    let e = bundle("e", "E.", &[]);
    other.apply(&DesiredSkills { skills: [e.clone()].into(), ..DesiredSkills::default() }, true).unwrap();
    let wanted = [a.clone(), b, bundle("c", "C.", &[]), bundle("d", "D.", &[]), e];
    let told = desk.apply(&wanted, true);
    for (told, expected) in told.iter().zip([
        "b is there and was not written by evenkeel, and is left alone",
        "c is a file or a link, and is left alone",
        "d is a file or a link, and is left alone",
        "e is written by another evenkeel, and is left alone",
    ]) {
        assert!(told.starts_with("Shadowed: ") && told.contains(expected), "{told}");
    }
    assert_eq!(told.len(), 4);
    assert_eq!(desk.apply(&[a], true), [""; 0]);
    assert_eq!(desk.files(), ["a/SKILL.md", "a/x/y.txt", "b/SKILL.md", "c", "d", "e/SKILL.md"]);
    assert_eq!(fs::read_to_string(desk.temp_dir.path().join("precious/file")).unwrap(), "precious");
    assert_eq!(fs::read_to_string(desk.path("b/SKILL.md")).unwrap(), "mine");
}

#[test]
fn modified_or_interrupted_skill_is_restored() {
    let mut desk = DirectoryFixture::new();
    let (a, kept) = (bundle("a", "A.", &[("x.txt", "t")]), bundle("kept", "K.", &[]));
    desk.apply(&[a.clone(), kept], true);
    fs::write(desk.path("a/x.txt"), "edited").unwrap();
    fs::write(desk.path("a/more.txt"), "more").unwrap();
    // As an interrupted run leaves it.
    fs::create_dir_all(desk.path(".evenkeel-one/a.old")).unwrap();
    fs::write(desk.path(".evenkeel-one/a.old/SKILL.md"), "half").unwrap();
    desk.restart();
    assert_eq!(desk.apply(std::slice::from_ref(&a), true), [""; 0]);
    assert_eq!(desk.files(), ["a/SKILL.md", "a/x.txt", "kept/SKILL.md"], "what is to be kept is");
    assert_eq!(fs::read_to_string(desk.path("a/x.txt")).unwrap(), "t");
    // A link in the place of the hidden folder is taken away, and what it leads to is not.
    fs::create_dir(desk.temp_dir.path().join("precious")).unwrap();
    fs::write(desk.temp_dir.path().join("precious/file"), "precious").unwrap();
    symlink(desk.temp_dir.path().join("precious"), desk.path(".evenkeel-one")).unwrap();
    fs::remove_file(desk.path("a/SKILL.md")).unwrap();
    assert_eq!(desk.apply(&[a], true), [""; 0]);
    assert!(desk.path("a/SKILL.md").exists() && desk.temp_dir.path().join("precious/file").exists());
    assert!(!desk.path(".evenkeel-one").exists());
}

#[test]
fn write_failure_is_reported() {
    let mut desk = DirectoryFixture::new();
    fs::write(desk.path(""), "a file in the way").unwrap_or_else(|_| {
        fs::write(desk.temp_dir.path().join("skills"), "a file in the way").unwrap();
    });
    let told = desk.apply(&[bundle("a", "A.", &[])], true);
    assert!(told[0].starts_with("WriteFailed: ") && told[0].contains("it is tried again"), "{told:?}");
}
