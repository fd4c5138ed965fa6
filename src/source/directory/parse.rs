//! The bytes of one file, as the objects it declares. Pure.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_yaml::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Options};

use super::documents::{Chunk, documents};
use super::excerpt::{Mistake, bounded, describe, did_you_mean, printable};
use crate::resource::{
    API_VERSION, Endpoint, GROUP, McpServerSpec, ObjectKey, Problem, Reason, SkillSpec, Violation,
    check_server, check_skill,
};
use crate::source::{Fault, Origin};

/// A file with more documents is not read.
const MAX_DOCUMENTS: usize = 10_000;
/// More faults of one file are not told.
const MAX_FAULTS: usize = 20;

/// The namespace of objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// A spec that an object of our group may have.
pub(super) trait Kind: Clone + PartialEq + Serialize + DeserializeOwned {
    /// As in `kind:`.
    const NAME: &'static str;

    /// Every rule that it breaks.
    fn check(&self) -> Vec<Violation>;

    /// How to reach what `file` declares, if it is something to be reached.
    fn endpoint(&self, file: &Path, resolve: &Resolve<'_>) -> Option<Result<Arc<Endpoint>, Problem>>;
}

/// Makes an endpoint of a spec and of the file that declares it.
pub(super) type Resolve<'a> = dyn Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a;

impl Kind for McpServerSpec {
    const NAME: &'static str = "McpServer";

    fn check(&self) -> Vec<Violation> {
        check_server(self)
    }

    fn endpoint(&self, file: &Path, resolve: &Resolve<'_>) -> Option<Result<Arc<Endpoint>, Problem>> {
        Some(resolve(self, file))
    }
}

impl Kind for SkillSpec {
    const NAME: &'static str = "Skill";

    fn check(&self) -> Vec<Violation> {
        check_skill(self)
    }

    fn endpoint(&self, _: &Path, _: &Resolve<'_>) -> Option<Result<Arc<Endpoint>, Problem>> {
        None
    }
}

/// What one file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The servers whose names could be read, in the order of the file.
    pub servers: Vec<Object<McpServerSpec>>,
    /// The skills likewise.
    pub skills: Vec<Object<SkillSpec>>,
    /// What is wrong, for the person who wrote it.
    pub faults: Vec<Fault>,
    /// Documents of other API groups.
    pub foreign: usize,
    /// Set if the file, or a document of ours in it, could not be read as far as its name: an object that is
    /// no longer found in this file may be in there, so it stays as it was.
    pub unnamed: Option<Problem>,
}

/// One declared object.
#[derive(Clone, Debug)]
pub(super) struct Object<S> {
    pub key: ObjectKey,
    /// The line at which its document begins, from 1.
    pub line: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The document itself, to be remembered.
    pub text: Arc<str>,
    /// What is declared, or why it cannot be accepted.
    pub spec: Result<S, Problem>,
}

impl Parsed {
    /// What is known of a file that cannot be read: `why` completes a sentence that begins with its path.
    pub fn unreadable(path: &Arc<PathBuf>, why: &str) -> Self {
        let mut file = File::new(path);
        file.unnamed(1, format!("the file {why}"), "");
        file.parsed
    }
}

/// Reads a file; `path` is relative to the root and used in messages alone.
pub(super) fn parse(path: &Arc<PathBuf>, bytes: &[u8]) -> Parsed {
    // The parser is meant never to panic; if it does on one file, the others must not pay for it.
    catch_unwind(AssertUnwindSafe(|| read(path, bytes)))
        .unwrap_or_else(|_| Parsed::unreadable(path, "makes the YAML parser fail; please report it"))
}

/// A path for a message.
pub(super) fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

fn read(path: &Arc<PathBuf>, bytes: &[u8]) -> Parsed {
    let mut file = File::new(path);
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let chunks = documents(text.strip_prefix('\u{feff}').unwrap_or(text));
            if chunks.len() > MAX_DOCUMENTS {
                return Parsed::unreadable(path, &format!("holds more than {MAX_DOCUMENTS} documents"));
            }
            for chunk in chunks {
                file.document(&chunk);
            }
        }
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + before.split(|byte| *byte == b'\n').count().saturating_sub(1);
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            file.unnamed(line, "the file is not text in UTF-8".to_owned(), "");
        }
    }
    file.parsed
}

struct File<'a> {
    path: &'a Arc<PathBuf>,
    parsed: Parsed,
}

impl<'a> File<'a> {
    fn new(path: &'a Arc<PathBuf>) -> Self {
        Self { path, parsed: Parsed::default() }
    }

    fn document(&mut self, chunk: &Chunk<'_>) {
        let outline = match yaml::<Outline>(chunk, Reading::Outline) {
            Ok(outline) => outline,
            Err(_) if is_foreign(chunk) => {
                self.parsed.foreign += 1;
                return;
            }
            Err(mistake) => return self.unnamed(mistake.line, at_column(&mistake), &mistake.excerpt),
        };
        let api_version = outline.api_version.as_deref();
        if !is_ours(api_version) {
            self.parsed.foreign += 1;
            return;
        }
        let api_version = api_version.unwrap_or_default();
        if api_version != API_VERSION {
            return self.unnamed(
                chunk.line,
                format!("apiVersion {api_version:?} is not known; use {API_VERSION}"),
                "",
            );
        }
        let names = outline.metadata.unwrap_or_default();
        match outline.kind.as_deref().unwrap_or_default() {
            McpServerSpec::NAME => {
                let object = self.object(chunk, names);
                self.parsed.servers.extend(object);
            }
            SkillSpec::NAME => {
                let object = self.object(chunk, names);
                self.parsed.skills.extend(object);
            }
            kind => {
                let meant = did_you_mean(kind, [McpServerSpec::NAME, SkillSpec::NAME]);
                let message = format!("kind {kind:?} of {API_VERSION} is not known{meant}");
                self.unnamed(chunk.line, message, "");
            }
        }
    }

    fn object<S: Kind>(&mut self, chunk: &Chunk<'_>, names: Names) -> Option<Object<S>> {
        let key = match key(names) {
            Ok(key) => key,
            Err(message) => {
                self.unnamed(chunk.line, format!("{}: {message}", S::NAME), "");
                return None;
            }
        };
        let (metadata, spec) = self.manifest(chunk, &key);
        Some(Object {
            key,
            line: chunk.line,
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            text: chunk.text.into(),
            spec,
        })
    }

    fn manifest<S: Kind>(&mut self, chunk: &Chunk<'_>, key: &ObjectKey) -> (Metadata, Result<S, Problem>) {
        match yaml::<Manifest<S>>(chunk, Reading::Whole) {
            Ok(manifest) => {
                let broken: Vec<_> = manifest.spec.check().iter().map(ToString::to_string).collect();
                if broken.is_empty() {
                    return (manifest.metadata, Ok(manifest.spec));
                }
                let message = broken.join("; ");
                self.fault(chunk.line, Reason::InvalidSpec, &format!("{} {key}: {message}", S::NAME));
                let problem = self.problem(Reason::InvalidSpec, chunk.line, None, &message);
                (manifest.metadata, Err(problem))
            }
            Err(mistake) => {
                let told = format!("{} {key}: {}\n{}", S::NAME, at_column(&mistake), mistake.excerpt);
                self.fault(mistake.line, Reason::InvalidSpec, &told);
                let problem =
                    self.problem(Reason::InvalidSpec, mistake.line, Some(mistake.column), &mistake.message);
                (Metadata::default(), Err(problem))
            }
        }
    }

    /// A document that should be one of ours, but does not say which.
    fn unnamed(&mut self, line: u32, message: String, excerpt: &str) {
        self.parsed.unnamed = Some(self.problem(Reason::ParseError, line, None, &message));
        let told = if excerpt.is_empty() { message } else { format!("{message}\n{excerpt}") };
        self.fault(line, Reason::ParseError, &told);
    }

    fn fault(&mut self, line: u32, reason: Reason, message: &str) {
        let message = match self.parsed.faults.len() {
            ..MAX_FAULTS => bounded(message),
            MAX_FAULTS => "there is more that is wrong with this file".to_owned(),
            _ => return,
        };
        self.parsed.faults.push(Fault {
            origin: Some(Origin::File { path: Arc::clone(self.path), line }),
            problem: Problem::new(reason, message),
        });
    }

    fn problem(&self, reason: Reason, line: u32, column: Option<u32>, message: &str) -> Problem {
        let column = column.map_or_else(String::new, |column| format!(":{column}"));
        Problem::new(reason, format!("{}:{line}{column}: {}", shown(self.path), bounded(message)))
    }
}

fn is_ours(api_version: Option<&str>) -> bool {
    api_version.and_then(|text| text.split('/').next()) == Some(GROUP)
}

/// Whether a document that has not the outline of an object is sound YAML of somebody else.
fn is_foreign(chunk: &Chunk<'_>) -> bool {
    match yaml::<Heading>(chunk, Reading::Outline) {
        Ok(heading) => !is_ours(heading.api_version.as_deref()),
        Err(_) => yaml::<IgnoredAny>(chunk, Reading::Outline).is_ok(),
    }
}

fn at_column(mistake: &Mistake) -> String {
    format!("{} (column {})", mistake.message, mistake.column)
}

/// How closely a document is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Whose it is and what it is called; others' documents may hold what they like.
    Outline,
    /// Every field.
    Whole,
}

fn yaml<T: DeserializeOwned>(chunk: &Chunk<'_>, reading: Reading) -> Result<T, Mistake> {
    serde_yaml::from_str_with_options(chunk.text, options(reading))
        .map_err(|error| describe(&error, chunk.text, chunk.first_line))
}

/// As an API server would read it: `yes` is no boolean, and a bare number is no text. Bounded, because a
/// small file can describe a huge document.
fn options(reading: Reading) -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: 96,
            max_nodes: 100_000,
            max_events: 300_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 20_000,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 16,
        },
        duplicate_keys: match reading {
            Reading::Outline => DuplicateKeyPolicy::FirstWins,
            Reading::Whole => DuplicateKeyPolicy::Error,
        },
        emit_comments: false,
        no_schema: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: reading == Reading::Whole,
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Namespace and name, as Kubernetes allows them.
fn key(names: Names) -> Result<ObjectKey, String> {
    let name = names.name.ok_or("metadata.name is missing")?;
    let namespace = names.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let allowed = "lower-case letters, digits and -, beginning and ending with a letter or digit";
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(format!(
            "metadata.name {name:?} must be at most 253 {allowed}; it may have several parts joined by dots"
        ));
    }
    if namespace.len() > 63 || !is_label(namespace) {
        return Err(format!("metadata.namespace {namespace:?} must be at most 63 {allowed}"));
    }
    Ok(ObjectKey::new(namespace, name))
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().all(|byte| inner(byte) || byte == b'-')
        && text.bytes().next().is_some_and(inner)
        && text.bytes().next_back().is_some_and(inner)
}

/// A whole manifest, strictly.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "fields that are only there to be known")]
struct Manifest<S> {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: Metadata,
    spec: S,
    status: Option<IgnoredAny>,
}

/// What people write in `metadata`, and what `kubectl get -o yaml` adds to it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "fields that are only there to be known")]
struct Metadata {
    name: Option<IgnoredAny>,
    namespace: Option<IgnoredAny>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    resource_version: Option<IgnoredAny>,
    uid: Option<IgnoredAny>,
}

/// What tells the objects of a file apart, whatever else is in a document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Names>,
}

#[derive(Default, Deserialize)]
struct Names {
    name: Option<String>,
    namespace: Option<String>,
}

/// Less still: enough to know whose document it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Heading {
    api_version: Option<String>,
}

#[cfg(test)]
mod tests;
