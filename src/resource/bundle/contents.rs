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

/// One skill as agents receive it: SKILL.md and the other files of its folder. Immutable.
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
    /// Builds the skill that is declared under `name`. `files` maps each path, relative to the skill folder and
    /// separated by `/`, to its file.
    ///
    /// Fails if SKILL.md is missing or invalid, or if a path or size is not allowed.
    pub fn new(name: &str, files: BTreeMap<Arc<str>, SkillFile>) -> Result<Self, SkillError> {
        check_files(&files)?;
        let not_found =
            || SkillError::for_file(SKILL_FILE, "not found; a skill folder must contain this file");
        let skill_md = &files.get(SKILL_FILE).ok_or_else(not_found)?.bytes;
        // The parser should never panic. If it does, only this skill fails, not the whole scan.
        let frontmatter = catch_unwind(AssertUnwindSafe(|| frontmatter::parse(name, skill_md)))
            .unwrap_or_else(|_| {
                Err(SkillError::for_file(SKILL_FILE, "the parser panicked on this file; please report it"))
            })?;
        let mut manifest = String::new();
        for (path, file) in &files {
            // Writing to a String cannot fail.
            let _ = writeln!(manifest, "{} {} {path}", file.digest, if file.executable { 'x' } else { '-' });
        }
        Ok(Self {
            name: name.into(),
            description: frontmatter.description,
            frontmatter: frontmatter.yaml,
            body: frontmatter.body,
            files,
            digest: Digest::of(manifest.as_bytes()),
        })
    }

    /// Builds a skill whose only file is SKILL.md.
    pub fn from_text(name: &str, text: &str) -> Result<Self, SkillError> {
        Self::new(name, BTreeMap::from([(SKILL_FILE.into(), SkillFile::new(text.as_bytes(), false))]))
    }

    /// Returns the name: 1 to 64 lower-case letters, digits and single hyphens.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the description: what the skill does and when to use it, in at most 1,024 characters. Written by the
    /// skill's author, so not trusted.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Returns the YAML of the frontmatter, byte for byte, including unknown fields.
    pub fn frontmatter(&self) -> &str {
        self.slice(&self.frontmatter)
    }

    /// Returns the part of SKILL.md after the frontmatter.
    pub fn body(&self) -> &str {
        self.slice(&self.body)
    }

    /// Returns every file by its path, including SKILL.md.
    pub fn files(&self) -> &BTreeMap<Arc<str>, SkillFile> {
        &self.files
    }

    /// Returns the digest over all paths, contents and executable bits. It changes whenever the content changes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    fn slice(&self, range: &Range<usize>) -> &str {
        let skill_md = self.files.get(SKILL_FILE).and_then(|file| std::str::from_utf8(&file.bytes).ok());
        skill_md.and_then(|text| text.get(range.clone())).unwrap_or_default()
    }
}

fn check_files(files: &BTreeMap<Arc<str>, SkillFile>) -> Result<(), SkillError> {
    if files.len() > SkillLimits::MAX_FILES {
        return Err(SkillError::for_file(
            "",
            format!("the skill has more than {} files", SkillLimits::MAX_FILES),
        ));
    }
    let mut total = 0_usize;
    for (path, file) in files {
        let is_allowed = path
            .split('/')
            .all(|part| !part.is_empty() && is_part_of_skill(part) && !part.contains(char::is_control));
        if !is_allowed || path.split('/').count() > SkillLimits::MAX_DEPTH + 1 {
            return Err(SkillError::for_file(path, "this path is not allowed for a file of a skill"));
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
            format!(
                "the files of the skill are larger than {} MiB in total",
                SkillLimits::MAX_TOTAL_BYTES >> 20
            ),
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

/// Omits the content of the files.
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
        assert_ne!(
            skill.digest(),
            Bundle::new("a", files).unwrap().digest(),
            "the digest includes the executable bit"
        );
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
        assert_eq!(
            bundle_with(&five).unwrap_err().to_string(),
            "the files of the skill are larger than 16 MiB in total"
        );
        let missing = Bundle::new("a", BTreeMap::new()).unwrap_err().to_string();
        assert!(missing.starts_with("SKILL.md: not found"), "{missing}");
    }
}
