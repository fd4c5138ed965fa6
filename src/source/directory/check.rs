//! The same files, parser and rules as the source has, once and for a person: nothing is watched, kept or
//! connected. Blocks.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use memchr::memmem;

use super::history::{AcceptedObjects, MergeContext};
use super::secrets::SecretFiles;
use super::skills::SkillContents;
use super::tree::{FileId, FoundFile, MAX_FILE_BYTES, TreeRoot, TreeVisitor, read_file, walk, why};
use crate::resource::{
    DeclaredObject, Desired, DigestKey, Endpoint, GROUP, McpServerSpec, Origin, Problem, Reason,
    SecretKeyRef, SkillSpec, SourceProblem, SourceState,
};
use crate::source::parse::{
    ObjectSpec, ParsedFile, TargetMode, did_you_mean, display_path, endpoint, parse_for,
};
use crate::source::resolve::{ReferenceValues, SecretLookup};
use crate::source::{Environment, StdioPolicy};

/// What references are checked against.
#[derive(Clone, Debug)]
pub struct CheckContext {
    /// Where `secretKeyRef` finds `<name>/<key>`; `None` if secrets are elsewhere.
    pub secrets_dir: Option<PathBuf>,
    /// What references to variables find.
    pub environment: Environment,
    /// The key of connection digests.
    pub digest_key: DigestKey,
    /// Which stdio servers may run, where they will.
    pub policy: StdioPolicy,
    /// Where the objects are to be.
    pub target: TargetMode,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It is not accepted.
    Error,
    /// It has no effect.
    Warning,
    /// It depends on where it runs, or on what stood there before.
    Note,
}

/// Something that a check found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What, with its place in a file relative to what was checked.
    pub fault: SourceProblem,
}

impl Finding {
    /// One of no file in particular.
    pub fn new(level: Severity, reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: level, fault: SourceProblem::new(None, Problem::new(reason, message)) }
    }
}

/// What was checked.
#[derive(Clone, Debug)]
pub struct CheckResult {
    /// What is declared, as a fresh start would take it.
    pub desired: Desired,
    /// What is to be said of it, in the order of the files.
    pub findings: Vec<Finding>,
    /// How many files were read.
    pub files: usize,
}

/// Checks a directory as a source would read it.
pub fn check_directory(root: &Path, against: &CheckContext) -> io::Result<CheckResult> {
    let mut sight = FileCollector::default();
    walk(&TreeRoot::open(root)?, &mut sight);
    let FileCollector { files, unreadable_folders: blind } = sight;
    Ok(check_contents(root, files, blind, true, against))
}

/// Checks files that were named one by one; `root` is what their paths are relative to.
///
/// Errors: the first file that cannot be read.
pub fn check_files(root: &Path, paths: &[PathBuf], against: &CheckContext) -> io::Result<CheckResult> {
    let mut files = BTreeMap::new();
    for path in paths {
        let (_, bytes) = read_file(&root.join(path), MAX_FILE_BYTES)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", display_path(path))))?;
        files.insert(Arc::new(path.clone()), Ok(bytes));
    }
    Ok(check_contents(root, files, Vec::new(), false, against))
}

/// Checks a text as if it stood in a file of this name.
pub fn check_text(path: &Path, text: &[u8], against: &CheckContext) -> CheckResult {
    let files = BTreeMap::from([(Arc::new(path.to_path_buf()), Ok(text.to_vec()))]);
    check_contents(Path::new("/"), files, Vec::new(), false, against)
}

/// True if a file that declares nothing may have been meant to: it holds a word that declarations hold.
fn mentions_declarations(bytes: &[u8]) -> bool {
    [GROUP, "McpServer", "mcpServers"].iter().any(|word| memmem::find(bytes, word.as_bytes()).is_some())
}

type FileContents = BTreeMap<Arc<PathBuf>, Result<Vec<u8>, String>>;

fn check_contents(
    root: &Path,
    files: FileContents,
    blind: Vec<SourceProblem>,
    whole: bool,
    against: &CheckContext,
) -> CheckResult {
    let count = files.len();
    let mut book = AcceptedObjects::default();
    let mut unread = Vec::new();
    for (path, content) in files {
        let parsed = match &content {
            Ok(bytes) => parse_for(&against.target, &path, bytes),
            Err(why) => ParsedFile::unreadable(&path, why),
        };
        // Other files of a repository are none of our business, whatever they hold.
        if content.is_ok_and(|bytes| mentions_declarations(&bytes)) {
            unread.extend(parsed.unrecognized.as_deref().cloned());
        }
        book.record_file(&path, parsed);
    }
    let secrets = SecretFiles::new(against.secrets_dir.clone().unwrap_or_default());
    let now = Timestamp::now();
    let secret = |reference: &SecretKeyRef| match against.secrets_dir {
        Some(_) => secrets.get(reference, now),
        // Whatever it will be: what else is wrong should be told all the same.
        None => SecretLookup::Found("unknown".into()),
    };
    let resolve = |spec: &McpServerSpec, file: &Path| -> Result<Arc<Endpoint>, Problem> {
        let sources = ReferenceValues {
            secret_location: &|SecretKeyRef { name, key, .. }| {
                secrets.root().join(name).join(key).display().to_string()
            },
            environment: &against.environment,
            policy: &against.policy,
            lookup_secret: &secret,
            digest_key: &against.digest_key,
        };
        match against.target {
            TargetMode::Directory => endpoint(&sources, root, spec, file),
            TargetMode::Cluster { .. } => sources.resolve(spec, None, Vec::new()),
        }
    };
    let revision: Arc<str> = "".into();
    let uid = || Arc::from("");
    book.apply(&MergeContext {
        now,
        revision: &revision,
        last_commit: &|_| None,
        new_uid: &uid,
        resolve: &resolve,
    });

    let mut findings: Vec<_> =
        blind.into_iter().map(|fault| Finding { severity: Severity::Error, fault }).collect();
    findings.extend(book.faults().into_iter().map(|fault| Finding { severity: Severity::Error, fault }));
    findings.extend(book.warnings().into_iter().map(|fault| Finding { severity: Severity::Warning, fault }));
    findings.extend(unread.into_iter().map(|fault| Finding { severity: Severity::Note, fault }));
    let servers = &book.servers.objects;
    findings.extend(servers.values().filter_map(|server| unresolved_reference(server)));
    let mut contents = SkillContents::default();
    if against.target == TargetMode::Directory {
        contents.update(root, &book.skills.objects, true, now, &mut |_, _| ());
    }
    for (key, skill) in &book.skills.objects {
        findings.extend(undeclared_servers(skill, &book, whole));
        if let Some(Err(problem)) = contents.contents.get(key) {
            findings.push(finding(Severity::Error, skill, problem.reason, &problem.message));
        }
    }
    if against.secrets_dir.is_none() && !book.secret_references().is_empty() {
        let message = "references to secrets were not checked; --secrets-dir says where they are";
        findings.push(Finding::new(Severity::Note, Reason::SecretNotFound, message));
    }
    findings.sort_by_key(|finding| {
        let file = finding.fault.origin.as_ref().and_then(Origin::file);
        (file.map(|(path, line)| (Arc::clone(path), line)), finding.fault.column)
    });
    let source = SourceState {
        synced: true,
        skills_synced: true,
        foreign_documents: book.foreign_documents(),
        ..SourceState::default()
    };
    let (servers, skills) = (servers.clone(), book.skills.objects.clone());
    let desired = Desired {
        servers,
        skills,
        skill_contents: contents.contents,
        source: Arc::new(source),
        ..Desired::default()
    };
    CheckResult { desired, findings, files: count }
}

/// A reference that leads nowhere here. It may where evenkeel runs, except if the secrets are those.
fn unresolved_reference(server: &DeclaredObject<McpServerSpec>) -> Option<Finding> {
    let problem = server.endpoint.as_ref()?.as_ref().err()?;
    let level = if problem.reason == Reason::VariableNotFound { Severity::Note } else { Severity::Error };
    Some(finding(level, server, problem.reason, &problem.message))
}

/// The servers that a skill waits for and that nobody declares.
fn undeclared_servers<'a>(
    skill: &'a DeclaredObject<SkillSpec>,
    book: &'a AcceptedObjects,
    whole: bool,
) -> impl Iterator<Item = Finding> + 'a {
    let namespace = &skill.meta.key.namespace;
    let known =
        || book.servers.objects.keys().filter(|key| key.namespace == *namespace).map(|key| &*key.name);
    let refs = skill.spec.iter().flat_map(|spec| &spec.server_refs);
    refs.filter(move |wanted| known().all(|name| name != wanted.name)).map(move |wanted| {
        let meant = did_you_mean(&wanted.name, known());
        let level = if whole { Severity::Error } else { Severity::Note };
        let message = format!("server {:?} is not declared{meant}", wanted.name);
        finding(level, skill, Reason::ServerNotFound, &message)
    })
}

fn finding<S: ObjectSpec>(
    level: Severity,
    object: &DeclaredObject<S>,
    reason: Reason,
    message: &str,
) -> Finding {
    let message = format!("{} {}: {message}", S::KIND, object.meta.key);
    Finding {
        severity: level,
        fault: SourceProblem::new(Some(object.meta.origin.clone()), Problem::new(reason, message)),
    }
}

/// Collects the files of a directory.
#[derive(Default)]
struct FileCollector {
    files: FileContents,
    unreadable_folders: Vec<SourceProblem>,
}

impl TreeVisitor for FileCollector {
    fn visit_folder(&mut self, _: &Path, _: FileId) {}

    fn visit_file(&mut self, file: &FoundFile<'_>) {
        let content = file.read().map(|(_, bytes)| bytes).map_err(|error| why(&error));
        self.files.insert(Arc::new(file.path.clone()), content);
    }

    fn unreadable_file(&mut self, path: &Path, why: &str) {
        self.files.insert(Arc::new(path.to_path_buf()), Err(why.to_owned()));
    }

    fn unreadable_folder(&mut self, path: &Path, why: &str) {
        let place = if path.as_os_str().is_empty() { "the directory".to_owned() } else { display_path(path) };
        self.unreadable_folders.push(SourceProblem::new(
            None,
            Problem::new(Reason::SourceUnavailable, format!("{place} {why}")),
        ));
    }
}
