//! Kubernetes-style documents of YAML. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_yaml::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Options};

use super::documents::{YamlDocument, documents};
use super::excerpt::{ParseError, describe, did_you_mean, excerpt};
use super::file::FileParser;
use super::lists::{ItemList, item_list};
use super::object::{ObjectSpec, ParsedObject, key};
use super::positions::{Node, Position, find, nodes};
use crate::resource::{API_VERSION, GROUP, McpServerSpec, ObjectKey, Problem, Reason, SkillSpec, Violation};

/// A file with more documents is not read, nor is a list with more items.
const MAX_DOCUMENTS: usize = 10_000;
/// Lists in lists are read so deep.
const MAX_NESTED: usize = 8;
/// What `kubectl apply` writes down: the whole object once more, with the values of its environment.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Reads every document of a file.
pub fn read(text: &str, file: &mut FileParser<'_>) {
    let chunks = documents(text);
    if chunks.len() > MAX_DOCUMENTS {
        let message = format!("the file holds more than {MAX_DOCUMENTS} documents");
        return file.unnamed(ParseError::at_line(1, message));
    }
    for chunk in chunks {
        document(&Document { chunk, kind: None, nested: 0 }, file);
    }
}

/// A document of a file, or an item of a list.
struct Document<'a> {
    chunk: YamlDocument<'a>,
    /// The kind of an item that does not say its own, from that of the list.
    kind: Option<&'a str>,
    /// How many lists it is in.
    nested: usize,
}

fn document(document: &Document<'_>, file: &mut FileParser<'_>) {
    let chunk = &document.chunk;
    if let Some(list) = item_list(chunk) {
        return items(document, &list, file);
    }
    let outline = match yaml::<Outline>(chunk, Reading::Outline) {
        Ok(outline) => outline,
        Err(_) if is_foreign(chunk) => {
            return file.foreign(Some(not_read(chunk, "it is no object of Kubernetes")));
        }
        Err(mistake) => return file.unnamed(mistake),
    };
    let (api_version, kind) = match (outline.api_version.as_deref(), outline.kind.as_deref()) {
        (None, None) if document.kind.is_some() => (Some(API_VERSION), document.kind),
        said => said,
    };
    if !is_ours(api_version) {
        let why = match (api_version, kind) {
            (None, _) => Some("it has no apiVersion"),
            (_, None) => Some("it has no kind"),
            // One that may hold objects of ours, or that a slip of the pen made another's.
            (_, Some(kind)) if OURS.contains(&kind) || chunk.text.contains(GROUP) => {
                Some("its apiVersion is of another group")
            }
            _ => None,
        };
        return file.foreign(why.map(|why| not_read(chunk, why)));
    }
    let api_version = api_version.unwrap_or_default();
    if api_version != API_VERSION {
        let message = format!("apiVersion {api_version:?} is not known; use {API_VERSION}");
        return file.unnamed(mistake_at(chunk, &nodes(chunk.text, chunk.first_line), "apiVersion", message));
    }
    let names = outline.metadata.unwrap_or_default();
    match kind.unwrap_or_default() {
        McpServerSpec::NAME => {
            let object = object(document, &names, file);
            file.parsed.servers.extend(object);
        }
        SkillSpec::NAME => {
            let object = object(document, &names, file);
            file.parsed.skills.extend(object);
        }
        kind => {
            let meant = did_you_mean(kind, [McpServerSpec::NAME, SkillSpec::NAME]);
            let message = format!("kind {kind:?} of {API_VERSION} is not known{meant}");
            file.unnamed(mistake_at(chunk, &nodes(chunk.text, chunk.first_line), "kind", message));
        }
    }
}

/// The kinds that evenkeel reads.
const OURS: [&str; 4] = [McpServerSpec::NAME, SkillSpec::NAME, "McpServerList", "SkillList"];

/// Reads each item of a list as if it were a document of its own.
fn items(document: &Document<'_>, list: &ItemList, file: &mut FileParser<'_>) {
    let line = document.chunk.line;
    let Some(items) = &list.items else {
        return file
            .unnamed(ParseError::at_line(line, "the list has no items, or they are no list".to_owned()));
    };
    if items.len() > MAX_DOCUMENTS || document.nested >= MAX_NESTED {
        let message = format!("a list may have {MAX_DOCUMENTS} items, and be in {MAX_NESTED} others");
        return file.unnamed(ParseError::at_line(line, message));
    }
    for (number, item) in items.iter().enumerate() {
        if !item.is_mapping {
            let message = format!("items[{number}] of the list is no object");
            file.unnamed(ParseError::at_line(item.line, message));
            continue;
        }
        let chunk = YamlDocument { text: &item.text, first_line: item.line, line: item.line };
        self::document(&Document { chunk, kind: list.kind.as_deref(), nested: document.nested + 1 }, file);
    }
}

/// Tells of a document that declares nothing, though objects may have stood where it stands.
fn not_read(chunk: &YamlDocument<'_>, why: &str) -> ParseError {
    ParseError::at_line(chunk.line, format!("nothing is declared here: {why}"))
}

fn object<S: ObjectSpec>(
    document: &Document<'_>,
    names: &Names,
    file: &mut FileParser<'_>,
) -> Option<ParsedObject<S>> {
    let chunk = &document.chunk;
    let namespace = names.namespace.as_deref().unwrap_or_else(|| file.destination.namespace());
    let key = match key(names.name.as_deref(), namespace) {
        Ok(key) => key,
        Err(message) => {
            let path = message.split(' ').next().unwrap_or_default().to_owned();
            let message = format!("{}: {message}", S::NAME);
            file.unnamed(mistake_at(chunk, &nodes(chunk.text, chunk.first_line), &path, message));
            return None;
        }
    };
    let (metadata, spec) = manifest(chunk, &key, file);
    Some(ParsedObject {
        key,
        line: chunk.line,
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        text: document.alone::<S>().into(),
        spec,
    })
}

impl Document<'_> {
    /// Gives the text, as it can be read without the list that it is in.
    fn alone<S: ObjectSpec>(&self) -> Cow<'_, str> {
        let text = self.chunk.text;
        let says = |field: &str| has_field(text, field);
        if self.kind.is_none() || says("kind") {
            return Cow::Borrowed(text);
        }
        let written = text.trim_start();
        let margin = text.get(..text.len() - written.len()).unwrap_or_default();
        match written.strip_prefix('{') {
            Some(rest) => Cow::Owned(format!(
                "{margin}{{\"apiVersion\": {API_VERSION:?}, \"kind\": {:?}, {rest}",
                S::NAME
            )),
            None => {
                Cow::Owned(format!("{margin}apiVersion: {API_VERSION}\n{margin}kind: {}\n{text}", S::NAME))
            }
        }
    }
}

/// Tells whether the document itself has this field.
fn has_field(text: &str, field: &str) -> bool {
    nodes(text, 1).iter().any(|node| node.path == field)
}

fn manifest<S: ObjectSpec>(
    chunk: &YamlDocument<'_>,
    key: &ObjectKey,
    file: &mut FileParser<'_>,
) -> (Metadata, Result<S, Problem>) {
    let manifest = match yaml::<Manifest<S>>(chunk, Reading::Whole) {
        Ok(mut manifest) => {
            if let Some(annotations) = &mut manifest.metadata.annotations {
                annotations.remove(LAST_APPLIED);
            }
            manifest
        }
        Err(mistake) => {
            return (Metadata::default(), Err(file.refuse::<S>(key, Reason::InvalidSpec, vec![mistake])));
        }
    };
    let broken = manifest.spec.check(file.destination);
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

fn mistake_at(chunk: &YamlDocument<'_>, nodes: &[Node<'_>], path: &str, message: String) -> ParseError {
    let place = find(nodes, path).unwrap_or(Position { line: chunk.line, column: None });
    ParseError { place, message, excerpt: Some(excerpt(chunk.text, chunk.first_line, place)) }
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
fn booleans(chunk: &YamlDocument<'_>, nodes: &[Node<'_>]) -> Vec<ParseError> {
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
fn is_foreign(chunk: &YamlDocument<'_>) -> bool {
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

fn yaml<T: DeserializeOwned>(chunk: &YamlDocument<'_>, reading: Reading) -> Result<T, ParseError> {
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
    api_version: Option<IgnoredAny>,
    kind: Option<IgnoredAny>,
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
    deletion_grace_period_seconds: Option<IgnoredAny>,
    deletion_timestamp: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    generate_name: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    resource_version: Option<IgnoredAny>,
    self_link: Option<IgnoredAny>,
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
