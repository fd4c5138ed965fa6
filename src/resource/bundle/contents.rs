use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::error::SkillError;
use super::file::{SKILL_FILE, SkillFile, SkillLimits, is_file_name};
use super::frontmatter;
use super::location::SkillLocation;
use crate::resource::{Digest, Problem, Reason};

/// The number of files that the message about left out files names.
const MAX_NAMED_FILES: usize = 5;

/// One skill as agents receive it: SKILL.md and the other files of its folder. Immutable.
#[derive(Clone)]
pub struct Bundle {
    name: Arc<str>,
    description: String,
    frontmatter: Range<usize>,
    body: Range<usize>,
    files: BTreeMap<Arc<str>, SkillFile>,
    digest: Digest,
    /// The violations of the Agent Skills specification in SKILL.md, which are tolerated.
    violations: Vec<SkillError>,
    degraded: Option<Problem>,
}

impl Bundle {
    /// Builds the skill that a source declares under `name`, with the files that were found at `location`, except those
    /// that were left out.
    ///
    /// Fails as [`Bundle::new`] does; the message says what to change.
    pub fn from_source(
        name: &str,
        location: &SkillLocation,
        files: BTreeMap<Arc<str>, SkillFile>,
        left_out: &[SkillError],
    ) -> Result<Self, Problem> {
        let mut bundle = Self::new(name, files).map_err(|error| location.problem(&error))?;
        let describe = |errors: &[SkillError]| {
            errors.iter().map(|error| location.message(error)).collect::<Vec<_>>().join("; ")
        };
        let mut message = describe(&bundle.violations);
        let mut reason = Reason::NonCompliant;
        if !left_out.is_empty() {
            reason = Reason::ItemsLeftOut;
            let (named, more) = left_out.split_at(left_out.len().min(MAX_NAMED_FILES));
            let more = if more.is_empty() { "" } else { "; and others" };
            let rest = if message.is_empty() { String::new() } else { format!("; {message}") };
            message = format!("agents do not get these files: {}{more}{rest}", describe(named));
        }
        bundle.degraded = (!message.is_empty()).then(|| Problem::new(reason, message));
        Ok(bundle)
    }

    /// Builds the skill that is declared under `name`. `files` maps each path, relative to the skill folder and
    /// separated by `/`, to its file.
    ///
    /// Fails if SKILL.md is missing or cannot be used, or if a path or size is not allowed.
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
            violations: frontmatter.violations,
            degraded: None,
        })
    }

    /// Builds a skill whose only file is SKILL.md.
    #[cfg(test)]
    pub(crate) fn from_text(name: &str, text: &str) -> Result<Self, SkillError> {
        Self::new(name, BTreeMap::from([(SKILL_FILE.into(), SkillFile::new(text.as_bytes(), false))]))
    }

    /// Returns the name under which the skill is declared and offered.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the description: what the skill does and when to use it, in at most 1,024 characters. Written by the
    /// skill's author, so not trusted.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Returns what agents do not get of the skill, or what in it agents may refuse; `None` for a well-formed skill.
    pub fn degraded(&self) -> Option<&Problem> {
        self.degraded.as_ref()
    }

    /// Returns the YAML of the frontmatter, byte for byte, including unknown fields. It may be no valid YAML.
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
        let is_allowed = path.split('/').all(is_file_name);
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
        self.name == other.name && self.digest == other.digest && self.degraded == other.degraded
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
    #[test]
    fn what_is_tolerated_is_told_with_its_location() {
        let folder = SkillLocation::Folder("skills/a".into());
        let build = |text: &str, left_out: &[SkillError]| {
            let files = BTreeMap::from([(SKILL_FILE.into(), SkillFile::new(text.as_bytes(), false))]);
            let skill = Bundle::from_source("a", &folder, files, left_out).unwrap();
            skill.degraded().map(ToString::to_string).unwrap_or_default()
        };
        let left_out: Vec<_> =
            (1..=6).map(|number| SkillError::for_file(&format!("{number}.bin"), "is too large")).collect();
        assert_eq!(build(SKILL_MD, &[]), "");
        assert_eq!(
            build("---\nname: b\ndescription: x\n---\n", &left_out[..1]),
            "ItemsLeftOut: agents do not get these files: skills/a/1.bin: is too large; skills/a/SKILL.md:2: the name \
             \"b\" must be the same as the name of the skill; the skill is offered as \"a\": \"name: b\""
        );
        assert!(build(SKILL_MD, &left_out).ends_with("skills/a/5.bin: is too large; and others"));
        assert!(
            build("Does it.\n", &[])
                .starts_with("NonCompliant: skills/a/SKILL.md:1: the frontmatter is missing")
        );
        let inline = SkillLocation::Text("spec.inline".into());
        let error = Bundle::from_source("a", &inline, BTreeMap::new(), &[]).unwrap_err().to_string();
        assert!(error.starts_with("InvalidSpec: spec.inline, SKILL.md: not found"), "{error}");
    }
}
