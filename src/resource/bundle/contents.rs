use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::error::SkillError;
use super::file::{SKILL_FILE, SkillFile, SkillLimits, is_part_of_skill};
use super::frontmatter;
use crate::resource::Digest;

/// One skill as agents get it: SKILL.md and the files beside it. Immutable.
#[derive(Clone)]
pub struct Bundle {
    name: Arc<str>,
    description: String,
    frontmatter: Range<usize>,
    body: Range<usize>,
    files: BTreeMap<Arc<str>, SkillFile>,
    digest: Digest,
}

impl Bundle {
    /// The skill that is declared under `name`, from its files by their paths in it, with `/` between parts.
    pub fn new(name: &str, files: BTreeMap<Arc<str>, SkillFile>) -> Result<Self, SkillError> {
        check_files(&files)?;
        let missing =
            || SkillError::for_file(SKILL_FILE, "there is no such file, which makes a folder a skill");
        let main = &files.get(SKILL_FILE).ok_or_else(missing)?.bytes;
        // The parser is meant never to panic; if it does on one skill, the others must not pay for it.
        let found =
            catch_unwind(AssertUnwindSafe(|| frontmatter::parse(name, main))).unwrap_or_else(|_| {
                Err(SkillError::for_file(SKILL_FILE, "makes the parser fail; please report it"))
            })?;
        let mut all = String::new();
        for (path, file) in &files {
            // Writing to a String cannot fail.
            let _ = writeln!(all, "{} {} {path}", file.digest, if file.executable { 'x' } else { '-' });
        }
        Ok(Self {
            name: name.into(),
            description: found.description,
            frontmatter: found.yaml,
            body: found.body,
            files,
            digest: Digest::of(all.as_bytes()),
        })
    }

    /// A skill that is SKILL.md alone.
    pub fn from_text(name: &str, text: &str) -> Result<Self, SkillError> {
        Self::new(name, BTreeMap::from([(SKILL_FILE.into(), SkillFile::new(text.as_bytes(), false))]))
    }

    /// Its name: 1 to 64 lower-case letters, digits and single hyphens.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it does and when to use it, in at most 1,024 characters. The words of its author.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The YAML of the frontmatter, byte for byte, unknown fields and all.
    pub fn frontmatter(&self) -> &str {
        self.slice(&self.frontmatter)
    }

    /// What follows the frontmatter.
    pub fn body(&self) -> &str {
        self.slice(&self.body)
    }

    /// Every file by its path, SKILL.md among them.
    pub fn files(&self) -> &BTreeMap<Arc<str>, SkillFile> {
        &self.files
    }

    /// Of everything in it: another digest is another content.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    fn slice(&self, range: &Range<usize>) -> &str {
        let main = self.files.get(SKILL_FILE).and_then(|file| std::str::from_utf8(&file.bytes).ok());
        main.and_then(|text| text.get(range.clone())).unwrap_or_default()
    }
}

fn check_files(files: &BTreeMap<Arc<str>, SkillFile>) -> Result<(), SkillError> {
    if files.len() > SkillLimits::MAX_FILES {
        return Err(SkillError::for_file("", format!("has more than {} files", SkillLimits::MAX_FILES)));
    }
    let mut total = 0_usize;
    for (path, file) in files {
        let sound = path
            .split('/')
            .all(|part| !part.is_empty() && is_part_of_skill(part) && !part.contains(char::is_control));
        if !sound || path.split('/').count() > SkillLimits::MAX_DEPTH + 1 {
            return Err(SkillError::for_file(path, "the path is not one that a file of a skill may have"));
        }
        total = total.saturating_add(file.bytes.len());
        if file.bytes.len() > SkillLimits::MAX_FILE_BYTES {
            return Err(SkillError::for_file(
                path,
                format!("the file is larger than {} MiB", SkillLimits::MAX_FILE_BYTES >> 20),
            ));
        }
    }
    if total > SkillLimits::MAX_TOTAL_BYTES {
        return Err(SkillError::for_file(
            "",
            format!("its files have more than {} MiB together", SkillLimits::MAX_TOTAL_BYTES >> 20),
        ));
    }
    Ok(())
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.digest == other.digest
    }
}

impl Eq for Bundle {}

/// Without the files' content.
impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.files.keys().collect();
        f.debug_struct("Bundle").field("name", &self.name).field("files", &paths).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKILL_MD: &str = "---\nname: a\ndescription: Does it.\nx: 1\n---\nBody.\n";

    fn bundle_with(files: &[(&str, &[u8])]) -> Result<Bundle, SkillError> {
        let files = files.iter().map(|(path, bytes)| ((*path).into(), SkillFile::new(*bytes, false)));
        Bundle::new(
            "a",
            files.chain([(SKILL_FILE.into(), SkillFile::new(SKILL_MD.as_bytes(), false))]).collect(),
        )
    }

    #[test]
    fn digest_depends_on_every_path_content_and_mode() {
        let skill = bundle_with(&[("assets/logo.png", b"\x89PNG\0"), ("scripts/a/b.sh", b"#!")]).unwrap();
        assert_eq!(
            (skill.description(), skill.frontmatter()),
            ("Does it.", "name: a\ndescription: Does it.\nx: 1\n")
        );
        assert_eq!(skill.body(), "Body.\n");
        let same = bundle_with(&[("scripts/a/b.sh", b"#!"), ("assets/logo.png", b"\x89PNG\0")]).unwrap();
        assert_eq!(skill.digest(), same.digest());
        for other in [
            bundle_with(&[("assets/logo.png", b"\x89PNG\x01"), ("scripts/a/b.sh", b"#!")]),
            bundle_with(&[("assets/logo.png", b"\x89PNG\0"), ("scripts/b.sh", b"#!")]),
            bundle_with(&[("assets/logo.png", b"\x89PNG\0")]),
        ] {
            assert_ne!(skill.digest(), other.unwrap().digest());
        }
        let mut files = skill.files().clone();
        files.insert("scripts/a/b.sh".into(), SkillFile::new(*b"#!", true));
        assert_ne!(skill.digest(), Bundle::new("a", files).unwrap().digest(), "who may run it counts");
    }

    #[test]
    fn invalid_paths_and_oversized_files_are_rejected() {
        let deep = "d/".repeat(SkillLimits::MAX_DEPTH + 1) + "f";
        for path in ["../x", "a/../../x", "/etc/x", "a//b", ".hidden", "a/.b", "", "a\nb", &deep] {
            assert!(bundle_with(&[(path, b"x")]).is_err(), "{path:?}");
        }
        let large = vec![0; SkillLimits::MAX_FILE_BYTES + 1];
        assert_eq!(
            bundle_with(&[("f", &large)]).unwrap_err().to_string(),
            "f: the file is larger than 4 MiB"
        );
        let full = vec![0; SkillLimits::MAX_FILE_BYTES];
        let five: Vec<_> = ["a", "b", "c", "d", "e"].map(|path| (path, &*full)).to_vec();
        assert_eq!(bundle_with(&five).unwrap_err().to_string(), "its files have more than 16 MiB together");
        let none = Bundle::new("a", BTreeMap::new()).unwrap_err().to_string();
        assert!(none.starts_with("SKILL.md: there is no such file"), "{none}");
    }
}
