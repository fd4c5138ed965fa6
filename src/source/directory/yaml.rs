//! Kubernetes-style documents of YAML. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_yaml::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Options};

use super::documents::{Chunk, documents};
use super::excerpt::{Mistake, describe, did_you_mean, excerpt};
use super::parse::{File, Kind, Object, key};
use super::places::{Node, Place, find, nodes};
use crate::resource::{API_VERSION, GROUP, McpServerSpec, ObjectKey, Problem, Reason, SkillSpec, Violation};

/// A file with more documents is not read.
const MAX_DOCUMENTS: usize = 10_000;

/// Reads every document of a file.
pub(super) fn read(text: &str, file: &mut File<'_>) {
    let chunks = documents(text);
    if chunks.len() > MAX_DOCUMENTS {
        let message = format!("the file holds more than {MAX_DOCUMENTS} documents");
        return file.unnamed(Mistake::at_line(1, message));
    }
    for chunk in chunks {
        document(&chunk, file);
    }
}

fn document(chunk: &Chunk<'_>, file: &mut File<'_>) {
    let outline = match yaml::<Outline>(chunk, Reading::Outline) {
        Ok(outline) => outline,
        Err(_) if is_foreign(chunk) => {
            file.parsed.foreign += 1;
            return;
        }
        Err(mistake) => return file.unnamed(mistake),
    };
    let api_version = outline.api_version.as_deref();
    if !is_ours(api_version) {
        file.parsed.foreign += 1;
        return;
    }
    let api_version = api_version.unwrap_or_default();
    if api_version != API_VERSION {
        let message = format!("apiVersion {api_version:?} is not known; use {API_VERSION}");
        return file.unnamed(mistake_at(chunk, &nodes(chunk.text, chunk.first_line), "apiVersion", message));
    }
    let names = outline.metadata.unwrap_or_default();
    match outline.kind.as_deref().unwrap_or_default() {
        McpServerSpec::NAME => {
            let object = object(chunk, &names, file);
            file.parsed.servers.extend(object);
        }
        SkillSpec::NAME => {
            let object = object(chunk, &names, file);
            file.parsed.skills.extend(object);
        }
        kind => {
            let meant = did_you_mean(kind, [McpServerSpec::NAME, SkillSpec::NAME]);
            let message = format!("kind {kind:?} of {API_VERSION} is not known{meant}");
            file.unnamed(mistake_at(chunk, &nodes(chunk.text, chunk.first_line), "kind", message));
        }
    }
}

fn object<S: Kind>(chunk: &Chunk<'_>, names: &Names, file: &mut File<'_>) -> Option<Object<S>> {
    let key = match key(names.name.as_deref(), names.namespace.as_deref()) {
        Ok(key) => key,
        Err(message) => {
            let path = message.split(' ').next().unwrap_or_default().to_owned();
            let message = format!("{}: {message}", S::NAME);
            file.unnamed(mistake_at(chunk, &nodes(chunk.text, chunk.first_line), &path, message));
            return None;
        }
    };
    let (metadata, spec) = manifest(chunk, &key, file);
    Some(Object {
        key,
        line: chunk.line,
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        text: chunk.text.into(),
        spec,
    })
}

fn manifest<S: Kind>(
    chunk: &Chunk<'_>,
    key: &ObjectKey,
    file: &mut File<'_>,
) -> (Metadata, Result<S, Problem>) {
    let manifest = match yaml::<Manifest<S>>(chunk, Reading::Whole) {
        Ok(manifest) => manifest,
        Err(mistake) => {
            return (Metadata::default(), Err(file.refuse::<S>(key, Reason::InvalidSpec, vec![mistake])));
        }
    };
    let broken = manifest.spec.check();
    if broken.is_empty() && !may_hold_booleans(chunk.text) {
        return (manifest.metadata, Ok(manifest.spec));
    }
    let nodes = nodes(chunk.text, chunk.first_line);
    let violation = |Violation { path, message }: &Violation| {
        mistake_at(chunk, &nodes, path, format!("{path}: {message}"))
    };
    let mistakes: Vec<_> = broken.iter().map(violation).chain(booleans(chunk, &nodes)).collect();
    if mistakes.is_empty() {
        return (manifest.metadata, Ok(manifest.spec));
    }
    (manifest.metadata, Err(file.refuse::<S>(key, Reason::InvalidSpec, mistakes)))
}

fn mistake_at(chunk: &Chunk<'_>, nodes: &[Node<'_>], path: &str, message: String) -> Mistake {
    let place = find(nodes, path).unwrap_or(Place { line: chunk.line, column: None });
    Mistake { place, message, excerpt: Some(excerpt(chunk.text, chunk.first_line, place)) }
}

/// Words that are booleans to the YAML of Kubernetes' clients, and texts to ours.
const BOOLEANS: &[&str] = &["y", "n", "yes", "no", "on", "off"];

fn is_boolean(word: &str) -> bool {
    BOOLEANS.iter().any(|boolean| boolean.eq_ignore_ascii_case(word))
}

fn may_hold_booleans(text: &str) -> bool {
    text.split(|char: char| !char.is_ascii_alphanumeric()).any(is_boolean)
}

/// What `kubectl apply` would send as a boolean where a text is wanted. No other field takes these words.
fn booleans(chunk: &Chunk<'_>, nodes: &[Node<'_>]) -> Vec<Mistake> {
    let bare = nodes.iter().filter(|node| node.plain.as_deref().is_some_and(is_boolean));
    let ours = bare.filter(|node| ["spec", "metadata"].iter().any(|field| node.path.starts_with(field)));
    ours.map(|node| {
        let message = format!("{}: y, n, yes, no, on and off must stand in quotes to be a text", node.path);
        mistake_at(chunk, nodes, &node.path, message)
    })
    .collect()
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
