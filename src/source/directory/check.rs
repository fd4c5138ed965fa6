//! Checks declarations once, with the same files, parser and rules as the source: nothing is watched, saved or
//! connected. Blocks.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::env_files::EnvFiles;
use super::history::{AcceptedObjects, MergeContext};
use super::other_agents::find_other_agent_files;
use super::secrets::SecretFiles;
use super::skills::SkillContents;
use super::tree::{
    FileId, FoundFile, IgnoreRules, MAX_FILE_BYTES, TreeRoot, TreeVisitor, read_failure, read_file, walk,
};
use crate::resource::{
    DeclaredObject, Desired, DigestKey, Endpoint, McpServerSpec, Origin, Problem, Reason, SecretKeyRef,
    SkillSpec, SourceProblem, SourceState,
};
use crate::source::parse::{
    ObjectSpec, ParsedFile, TargetMode, did_you_mean, display_path, join_within_root, mentions_declarations,
    parse_for, resolve_endpoint,
};
use crate::source::resolve::{ReferenceValues, SecretLookup};
use crate::source::{Environment, StdioPolicy};

/// The context in which declarations and their references are checked.
#[derive(Clone, Debug)]
pub struct CheckContext {
    /// The directory in which `secretKeyRef` finds `<name>/<key>`; `None` if the secrets are not on this machine.
    pub secrets_dir: Option<PathBuf>,
    /// The environment in which references to variables are resolved.
    pub environment: Environment,
    /// The key of connection digests.
    pub digest_key: DigestKey,
    /// The policy for stdio servers of the target.
    pub policy: StdioPolicy,
    /// The target of the objects.
    pub target: TargetMode,
    /// Patterns of files that are not checked, in the syntax of `.gitignore`, in addition to those of
    /// `.evenkeelignore`.
    pub exclude: Vec<String>,
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The declaration is not accepted.
    Error,
    /// The entry has no effect.
    Warning,
    /// The result depends on the environment of the instance, or on its earlier state.
    Note,
}

/// A finding of a check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The severity.
    pub severity: Severity,
    /// The problem, with its position in a file relative to the checked directory.
    pub fault: SourceProblem,
}

impl Finding {
    /// Creates a finding that concerns no particular file.
    pub fn new(severity: Severity, reason: Reason, message: impl Into<String>) -> Self {
        Self { severity, fault: SourceProblem::new(None, Problem::new(reason, message)) }
    }
}

/// The result of a check.
#[derive(Clone, Debug)]
pub struct CheckResult {
    /// The declared objects, as an instance would load them at its first start.
    pub desired: Desired,
    /// The findings, in the order of the files.
    pub findings: Vec<Finding>,
    /// The number of files that were read.
    pub files: usize,
}

/// Checks a directory as a source would read it.
///
/// Errors: the directory, or its file of ignore rules, cannot be read.
pub fn check_directory(root: &Path, context: &CheckContext) -> io::Result<CheckResult> {
    let tree = TreeRoot::open(root)?;
    let (rules, invalid_rules) = IgnoreRules::read(&tree)?;
    let (excluded, _) = IgnoreRules::parse(context.exclude.iter().map(String::as_str));
    let mut collector = FileCollector::new(&tree, &excluded);
    walk(&tree, &rules, &mut collector);
    let FileCollector { files, unreadable_folders, other_agent_files, .. } = collector;
    let mut checked = check_contents(root, files, unreadable_folders, true, context);
    let findings = invalid_rules.into_iter().map(|fault| Finding { severity: Severity::Warning, fault });
    checked.findings.extend(findings.chain(other_agent_files));
    sort_findings(&mut checked.findings);
    Ok(checked)
}

/// Checks individually named files; `root` is the folder that their paths are relative to.
///
/// Errors: the first file that cannot be read.
pub fn check_files(root: &Path, paths: &[PathBuf], context: &CheckContext) -> io::Result<CheckResult> {
    let mut files = BTreeMap::new();
    let (excluded, _) = IgnoreRules::parse(context.exclude.iter().map(String::as_str));
    let is_excluded = |path: &Path| {
        join_within_root(Path::new(""), &path.to_string_lossy())
            .is_some_and(|path| excluded.ignores_within(&path))
    };
    for path in paths.iter().filter(|path| !is_excluded(path)) {
        let (_, bytes) = read_file(&root.join(path), MAX_FILE_BYTES)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", display_path(path))))?;
        files.insert(Arc::new(path.clone()), Ok(bytes));
    }
    Ok(check_contents(root, files, Vec::new(), false, context))
}

/// Returns what is wrong with a pattern of [`CheckContext::exclude`].
pub fn exclude_error(pattern: &str) -> Option<String> {
    IgnoreRules::parse([pattern]).1.pop().map(|(_, message)| message)
}

/// Checks a text as if it were the content of a file of this name.
pub fn check_text(path: &Path, text: &[u8], context: &CheckContext) -> CheckResult {
    let files = BTreeMap::from([(Arc::new(path.to_path_buf()), Ok(text.to_vec()))]);
    check_contents(Path::new("/"), files, Vec::new(), false, context)
}

type FileContents = BTreeMap<Arc<PathBuf>, Result<Vec<u8>, String>>;

fn check_contents(
    root: &Path,
    files: FileContents,
    unreadable_folders: Vec<SourceProblem>,
    is_complete: bool,
    context: &CheckContext,
) -> CheckResult {
    let file_count = files.len();
    let mut objects = AcceptedObjects::default();
    let mut unrecognized = Vec::new();
    for (path, content) in files {
        let parsed = match &content {
            Ok(bytes) => parse_for(&context.target, &path, bytes),
            Err(reason) => ParsedFile::unreadable(&path, reason),
        };
        // Other files of a repository do not concern evenkeel, whatever their content.
        if content.is_ok_and(|bytes| mentions_declarations(&bytes)) {
            unrecognized.extend(parsed.unrecognized.as_deref().cloned());
        }
        objects.record_file(&path, parsed);
    }
    let secrets = SecretFiles::new(context.secrets_dir.clone().unwrap_or_default());
    let env_files = EnvFiles::new(root.to_path_buf());
    let now = Timestamp::now();
    let secret = |reference: &SecretKeyRef| match context.secrets_dir {
        Some(_) => secrets.get(reference, now),
        // A placeholder, so that other problems of the server are still reported.
        None => SecretLookup::Found("unknown".into()),
    };
    let resolve = |spec: &McpServerSpec, file: &Path| -> Result<Arc<Endpoint>, Problem> {
        let references = ReferenceValues {
            secret_location: &|SecretKeyRef { name, key, .. }| {
                secrets.root().join(name).join(key).display().to_string()
            },
            environment: &context.environment,
            policy: &context.policy,
            lookup_secret: &secret,
            digest_key: &context.digest_key,
        };
        match context.target {
            TargetMode::Directory => {
                resolve_endpoint(&references, root, &|path| env_files.get(path, now), spec, file)
            }
            TargetMode::Cluster { .. } => references.resolve(spec, None, Vec::new()),
        }
    };
    let revision: Arc<str> = "".into();
    let uid = || Arc::from("");
    objects.apply(&MergeContext {
        now,
        revision: &revision,
        last_commit: &|_| None,
        new_uid: &uid,
        resolve: &resolve,
    });

    let mut findings: Vec<_> =
        unreadable_folders.into_iter().map(|fault| Finding { severity: Severity::Error, fault }).collect();
    let errors = objects.faults().into_iter().chain(objects.rejected_entries());
    findings.extend(errors.map(|fault| Finding { severity: Severity::Error, fault }));
    findings
        .extend(objects.warnings().into_iter().map(|fault| Finding { severity: Severity::Warning, fault }));
    findings.extend(unrecognized.into_iter().map(|fault| Finding { severity: Severity::Note, fault }));
    let servers = &objects.servers.objects;
    findings.extend(servers.values().filter_map(|server| unresolved_reference(server)));
    let mut contents = SkillContents::default();
    if context.target == TargetMode::Directory {
        contents.update(root, &objects.skills.objects, true, now, &mut |_, _| ());
    }
    for (key, skill) in &objects.skills.objects {
        // In a cluster a server may exist without a manifest here.
        let is_complete = is_complete && context.target == TargetMode::Directory;
        findings.extend(undeclared_servers(skill, &objects, is_complete));
        match contents.contents.get(key) {
            Some(Err(problem)) => {
                findings.push(finding(Severity::Error, skill, problem.reason, &problem.message));
            }
            Some(Ok(bundle)) => findings.extend(
                bundle
                    .degraded()
                    .map(|problem| finding(Severity::Warning, skill, problem.reason, &problem.message)),
            ),
            None => {}
        }
    }
    if context.secrets_dir.is_none() && !objects.secret_references().is_empty() {
        let message = "references to secrets were not checked; set --secrets-dir to check them";
        findings.push(Finding::new(Severity::Note, Reason::SecretNotFound, message));
    }
    sort_findings(&mut findings);
    let source = SourceState {
        synced: true,
        skills_synced: true,
        foreign_documents: objects.foreign_documents(),
        ..SourceState::default()
    };
    let (servers, skills) = (servers.clone(), objects.skills.objects.clone());
    let desired = Desired {
        servers,
        skills,
        skill_contents: contents.contents,
        source: Arc::new(source),
        ..Desired::default()
    };
    CheckResult { desired, findings, files: file_count }
}

fn sort_findings(findings: &mut [Finding]) {
    findings.sort_by_key(|finding| {
        let file = finding.fault.origin.as_ref().and_then(Origin::file);
        (file.map(|(path, line)| (Arc::clone(path), line)), finding.fault.column)
    });
}

/// Returns a finding if a reference of the server cannot be resolved here. A variable, or a file of variables, may be
/// set where the instance runs, and a suspended server needs none, so it is only a note.
fn unresolved_reference(server: &DeclaredObject<McpServerSpec>) -> Option<Finding> {
    let problem = server.endpoint.as_ref()?.as_ref().err()?;
    let severity = match problem.reason {
        _ if server.spec.as_ref().is_some_and(|spec| spec.suspend) => Severity::Note,
        Reason::VariableNotFound | Reason::EnvFileNotFound => Severity::Note,
        _ => Severity::Error,
    };
    Some(finding(severity, server, problem.reason, &problem.message))
}

/// Returns a finding for each server that a skill refers to and that no file declares.
fn undeclared_servers<'a>(
    skill: &'a DeclaredObject<SkillSpec>,
    objects: &'a AcceptedObjects,
    is_complete: bool,
) -> impl Iterator<Item = Finding> + 'a {
    let namespace = &skill.meta.key.namespace;
    let declared =
        || objects.servers.objects.keys().filter(|key| key.namespace == *namespace).map(|key| &*key.name);
    let refs = skill.spec.iter().flat_map(|spec| &spec.server_refs);
    refs.filter(move |server_ref| declared().all(|name| name != server_ref.name)).map(move |server_ref| {
        let suggestion = did_you_mean(&server_ref.name, declared());
        let severity = if is_complete { Severity::Error } else { Severity::Note };
        let message = format!("server {:?} is not declared{suggestion}", server_ref.name);
        finding(severity, skill, Reason::ServerNotFound, &message)
    })
}

fn finding<S: ObjectSpec>(
    severity: Severity,
    object: &DeclaredObject<S>,
    reason: Reason,
    message: &str,
) -> Finding {
    let message = format!("{} {}: {message}", S::KIND, object.meta.key);
    Finding {
        severity,
        fault: SourceProblem::new(Some(object.meta.origin.clone()), Problem::new(reason, message)),
    }
}

/// Collects the contents of the files of a directory.
struct FileCollector<'a> {
    root: &'a TreeRoot,
    excluded: &'a IgnoreRules,
    files: FileContents,
    unreadable_folders: Vec<SourceProblem>,
    other_agent_files: Vec<Finding>,
}

impl<'a> FileCollector<'a> {
    fn new(root: &'a TreeRoot, excluded: &'a IgnoreRules) -> Self {
        Self {
            root,
            excluded,
            files: FileContents::new(),
            unreadable_folders: Vec::new(),
            other_agent_files: Vec::new(),
        }
    }
}

impl TreeVisitor for FileCollector<'_> {
    fn visit_folder(&mut self, real_path: &Path, _: FileId) {
        let Ok(folder) = real_path.strip_prefix(&self.root.path) else { return };
        let found = find_other_agent_files(self.root, folder);
        let found = found.filter(|(path, _)| !self.excluded.ignores_within(path));
        self.other_agent_files.extend(found.map(|(path, message)| {
            let origin = Origin::File { path: Arc::new(path), line: 1 };
            let problem = Problem::new(Reason::SourceUnavailable, message);
            Finding { severity: Severity::Note, fault: SourceProblem::new(Some(origin), problem) }
        }));
    }

    fn visit_file(&mut self, file: &FoundFile<'_>) {
        if self.excluded.ignores_within(file.path) {
            return;
        }
        let content = file.read().map(|(_, bytes)| bytes).map_err(|error| read_failure(&error));
        self.files.insert(Arc::new(file.path.clone()), content);
    }

    fn unreadable_file(&mut self, path: &Path, reason: &str) {
        if !self.excluded.ignores_within(path) {
            self.files.insert(Arc::new(path.to_path_buf()), Err(reason.to_owned()));
        }
    }

    fn unreadable_folder(&mut self, path: &Path, reason: &str) {
        if self.excluded.ignores_within(path) {
            return;
        }
        let folder =
            if path.as_os_str().is_empty() { "the directory".to_owned() } else { display_path(path) };
        self.unreadable_folders.push(SourceProblem::new(
            None,
            Problem::new(Reason::SourceUnavailable, format!("{folder} {reason}")),
        ));
    }
}
