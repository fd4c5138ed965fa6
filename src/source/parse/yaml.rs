//! Kubernetes-style documents of YAML. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_yaml::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Options};

use super::documents::{YamlDocument, split_documents};
use super::excerpt::{ParseError, describe_yaml_error, did_you_mean, excerpt};
use super::file::FileParser;
use super::lists::{ItemList, parse_list};
use super::object::{ObjectSpec, ParsedObject, key};
use super::positions::{Node, Position, find_position, nodes};
use crate::resource::{API_VERSION, GROUP, McpServerSpec, ObjectKey, Problem, Reason, SkillSpec, Violation};

/// A file with more documents is not read, nor is a list with more items.
const MAX_DOCUMENTS: usize = 10_000;
/// Lists in lists are read so deep.
const MAX_LIST_NESTING: usize = 8;
/// What `kubectl apply` writes down: the whole object once more, with the values of its environment.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Reads every document of a file.
pub fn parse(text: &str, file: &mut FileParser<'_>) {
    let chunks = split_documents(text);
    if chunks.len() > MAX_DOCUMENTS {
        let message = format!("the file holds more than {MAX_DOCUMENTS} documents");
        return file.report_unidentified(ParseError::at_line(1, message));
    }
    for chunk in chunks {
        parse_document(&DocumentOrItem { yaml: chunk, list_kind: None, list_depth: 0 }, file);
    }
}

/// A document of a file, or an item of a list.
struct DocumentOrItem<'a> {
    yaml: YamlDocument<'a>,
    /// The kind of an item that does not say its own, from that of the list.
    list_kind: Option<&'a str>,
    /// How many lists it is in.
    list_depth: usize,
}

fn parse_document(document: &DocumentOrItem<'_>, file: &mut FileParser<'_>) {
    let chunk = &document.yaml;
    if let Some(list) = parse_list(chunk) {
        return parse_items(document, &list, file);
    }
    let outline = match deserialize_yaml::<ObjectOutline>(chunk, Strictness::Lenient) {
        Ok(outline) => outline,
        Err(_) if is_foreign(chunk) => {
            return file.add_foreign(Some(nothing_declared(chunk, "it is no object of Kubernetes")));
        }
        Err(mistake) => return file.report_unidentified(mistake),
    };
    let (api_version, kind) = match (outline.api_version.as_deref(), outline.kind.as_deref()) {
        (None, None) if document.list_kind.is_some() => (Some(API_VERSION), document.list_kind),
        said => said,
    };
    if !is_evenkeel_group(api_version) {
        let why = match (api_version, kind) {
            (None, _) => Some("it has no apiVersion"),
            (_, None) => Some("it has no kind"),
            // One that may hold objects of ours, or that a slip of the pen made another's.
            (_, Some(kind)) if KNOWN_KINDS.contains(&kind) || chunk.text.contains(GROUP) => {
                Some("its apiVersion is of another group")
            }
            _ => None,
        };
        return file.add_foreign(why.map(|why| nothing_declared(chunk, why)));
    }
    let api_version = api_version.unwrap_or_default();
    if api_version != API_VERSION {
        let message = format!("apiVersion {api_version:?} is not known; use {API_VERSION}");
        return file.report_unidentified(error_at(
            chunk,
            &nodes(chunk.text, chunk.first_line),
            "apiVersion",
            message,
        ));
    }
    let names = outline.metadata.unwrap_or_default();
    match kind.unwrap_or_default() {
        McpServerSpec::KIND => {
            let object = parse_object(document, &names, file);
            file.parsed.servers.extend(object);
        }
        SkillSpec::KIND => {
            let object = parse_object(document, &names, file);
            file.parsed.skills.extend(object);
        }
        kind => {
            let meant = did_you_mean(kind, [McpServerSpec::KIND, SkillSpec::KIND]);
            let message = format!("kind {kind:?} of {API_VERSION} is not known{meant}");
            file.report_unidentified(error_at(chunk, &nodes(chunk.text, chunk.first_line), "kind", message));
        }
    }
}

/// The kinds that evenkeel reads.
const KNOWN_KINDS: [&str; 4] = [McpServerSpec::KIND, SkillSpec::KIND, "McpServerList", "SkillList"];

/// Reads each item of a list as if it were a document of its own.
fn parse_items(document: &DocumentOrItem<'_>, list: &ItemList, file: &mut FileParser<'_>) {
    let line = document.yaml.content_line;
    let Some(items) = &list.items else {
        return file.report_unidentified(ParseError::at_line(
            line,
            "the list has no items, or they are no list".to_owned(),
        ));
    };
    if items.len() > MAX_DOCUMENTS || document.list_depth >= MAX_LIST_NESTING {
        let message = format!("a list may have {MAX_DOCUMENTS} items, and be in {MAX_LIST_NESTING} others");
        return file.report_unidentified(ParseError::at_line(line, message));
    }
    for (number, item) in items.iter().enumerate() {
        if !item.is_mapping {
            let message = format!("items[{number}] of the list is no object");
            file.report_unidentified(ParseError::at_line(item.line, message));
            continue;
        }
        let chunk = YamlDocument { text: &item.text, first_line: item.line, content_line: item.line };
        parse_document(
            &DocumentOrItem {
                yaml: chunk,
                list_kind: list.kind.as_deref(),
                list_depth: document.list_depth + 1,
            },
            file,
        );
    }
}

/// Tells of a document that declares nothing, though objects may have stood where it stands.
fn nothing_declared(chunk: &YamlDocument<'_>, why: &str) -> ParseError {
    ParseError::at_line(chunk.content_line, format!("nothing is declared here: {why}"))
}

fn parse_object<S: ObjectSpec>(
    document: &DocumentOrItem<'_>,
    names: &ObjectNames,
    file: &mut FileParser<'_>,
) -> Option<ParsedObject<S>> {
    let chunk = &document.yaml;
    let namespace = names.namespace.as_deref().unwrap_or_else(|| file.target.namespace());
    let key = match key(names.name.as_deref(), namespace) {
        Ok(key) => key,
        Err(message) => {
            let path = message.split(' ').next().unwrap_or_default().to_owned();
            let message = format!("{}: {message}", S::KIND);
            file.report_unidentified(error_at(chunk, &nodes(chunk.text, chunk.first_line), &path, message));
            return None;
        }
    };
    let (metadata, spec) = parse_manifest(chunk, &key, file);
    Some(ParsedObject {
        key,
        line: chunk.content_line,
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        document: document.standalone_text::<S>().into(),
        spec,
    })
}

impl DocumentOrItem<'_> {
    /// Gives the text, as it can be read without the list that it is in.
    fn standalone_text<S: ObjectSpec>(&self) -> Cow<'_, str> {
        let text = self.yaml.text;
        let says = |field: &str| has_field(text, field);
        if self.list_kind.is_none() || says("kind") {
            return Cow::Borrowed(text);
        }
        let written = text.trim_start();
        let margin = text.get(..text.len() - written.len()).unwrap_or_default();
        match written.strip_prefix('{') {
            Some(rest) => Cow::Owned(format!(
                "{margin}{{\"apiVersion\": {API_VERSION:?}, \"kind\": {:?}, {rest}",
                S::KIND
            )),
            None => {
                Cow::Owned(format!("{margin}apiVersion: {API_VERSION}\n{margin}kind: {}\n{text}", S::KIND))
            }
        }
    }
}

/// Tells whether the document itself has this field.
fn has_field(text: &str, field: &str) -> bool {
    nodes(text, 1).iter().any(|node| node.path == field)
}

fn parse_manifest<S: ObjectSpec>(
    chunk: &YamlDocument<'_>,
    key: &ObjectKey,
    file: &mut FileParser<'_>,
) -> (Metadata, Result<S, Problem>) {
    let manifest = match deserialize_yaml::<Manifest<S>>(chunk, Strictness::Strict) {
        Ok(mut manifest) => {
            if let Some(annotations) = &mut manifest.metadata.annotations {
                annotations.remove(LAST_APPLIED_ANNOTATION);
            }
            manifest
        }
        Err(mistake) => {
            return (Metadata::default(), Err(file.reject::<S>(key, Reason::InvalidSpec, vec![mistake])));
        }
    };
    let broken = manifest.spec.check(file.target);
    if broken.is_empty() && !may_contain_booleans(chunk.text) {
        return (manifest.metadata, Ok(manifest.spec));
    }
    let nodes = nodes(chunk.text, chunk.first_line);
    let violation =
        |Violation { path, message }: &Violation| error_at(chunk, &nodes, path, format!("{path}: {message}"));
    let mistakes: Vec<_> = broken.iter().map(violation).chain(unquoted_booleans(chunk, &nodes)).collect();
    if mistakes.is_empty() {
        return (manifest.metadata, Ok(manifest.spec));
    }
    (manifest.metadata, Err(file.reject::<S>(key, Reason::InvalidSpec, mistakes)))
}

fn error_at(chunk: &YamlDocument<'_>, nodes: &[Node<'_>], path: &str, message: String) -> ParseError {
    let place = find_position(nodes, path).unwrap_or(Position { line: chunk.content_line, column: None });
    ParseError { position: place, message, excerpt: Some(excerpt(chunk.text, chunk.first_line, place)) }
}

/// Words that are booleans to the YAML of Kubernetes' clients, and texts to ours.
const YAML_1_1_BOOLEANS: &[&str] = &["y", "n", "yes", "no", "on", "off"];

fn is_yaml_1_1_boolean(word: &str) -> bool {
    YAML_1_1_BOOLEANS.iter().any(|boolean| boolean.eq_ignore_ascii_case(word))
}

fn may_contain_booleans(text: &str) -> bool {
    text.split(|char: char| !char.is_ascii_alphanumeric()).any(is_yaml_1_1_boolean)
}

/// What `kubectl apply` would send as a boolean where a text is wanted. No other field takes these words.
fn unquoted_booleans(chunk: &YamlDocument<'_>, nodes: &[Node<'_>]) -> Vec<ParseError> {
    let bare = nodes.iter().filter(|node| node.plain_scalar.as_deref().is_some_and(is_yaml_1_1_boolean));
    let ours = bare.filter(|node| ["spec", "metadata"].iter().any(|field| node.path.starts_with(field)));
    ours.map(|node| {
        let message = format!("{}: y, n, yes, no, on and off must stand in quotes to be a text", node.path);
        error_at(chunk, nodes, &node.path, message)
    })
    .collect()
}

fn is_evenkeel_group(api_version: Option<&str>) -> bool {
    api_version.and_then(|text| text.split('/').next()) == Some(GROUP)
}

/// Whether a document that has not the outline of an object is sound YAML of somebody else.
fn is_foreign(chunk: &YamlDocument<'_>) -> bool {
    match deserialize_yaml::<ApiVersionField>(chunk, Strictness::Lenient) {
        Ok(heading) => !is_evenkeel_group(heading.api_version.as_deref()),
        Err(_) => deserialize_yaml::<IgnoredAny>(chunk, Strictness::Lenient).is_ok(),
    }
}

/// How closely a document is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strictness {
    /// Whose it is and what it is called; others' documents may hold what they like.
    Lenient,
    /// Every field.
    Strict,
}

fn deserialize_yaml<T: DeserializeOwned>(
    chunk: &YamlDocument<'_>,
    reading: Strictness,
) -> Result<T, ParseError> {
    serde_yaml::from_str_with_options(chunk.text, parser_options(reading))
        .map_err(|error| describe_yaml_error(&error, chunk.text, chunk.first_line))
}

/// As an API server would read it: `yes` is no boolean, and a bare number is no text. Bounded, because a
/// small file can describe a huge document.
fn parser_options(reading: Strictness) -> Options {
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
            Strictness::Lenient => DuplicateKeyPolicy::FirstWins,
            Strictness::Strict => DuplicateKeyPolicy::Error,
        },
        emit_comments: false,
        no_schema: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: reading == Strictness::Strict,
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
struct ObjectOutline {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<ObjectNames>,
}

#[derive(Default, Deserialize)]
struct ObjectNames {
    name: Option<String>,
    namespace: Option<String>,
}

/// Less still: enough to know whose document it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiVersionField {
    api_version: Option<String>,
}
