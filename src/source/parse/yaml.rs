//! Parses Kubernetes-style YAML documents. Pure.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::documents::{YamlDocument, split_documents};
use super::excerpt::{ParseError, did_you_mean, excerpt};
use super::file::FileParser;
use super::lists::{ItemList, parse_list};
use super::manifest::{
    ApiVersionField, Manifest, Metadata, ObjectNames, ObjectOutline, Strictness, deserialize_yaml,
};
use super::object::{ObjectSpec, ParsedObject, object_key};
use super::path::mentions_declarations;
use super::positions::{Node, Position, find_position, parse_nodes};
use crate::resource::{API_VERSION, GROUP, McpServerSpec, ObjectKey, Problem, Reason, SkillSpec, Violation};

/// The number of documents of a file, and of items of a list, above which the file or list is not read.
const MAX_DOCUMENTS: usize = 10_000;
/// The depth up to which nested lists are read.
const MAX_LIST_NESTING: usize = 8;
/// The annotation of `kubectl apply`, which repeats the whole object with the values of its environment.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Parses every document of a file.
pub fn parse(text: &str, file: &mut FileParser<'_>) {
    let documents = split_documents(text);
    if documents.len() > MAX_DOCUMENTS {
        let message = format!("the file contains more than {MAX_DOCUMENTS} documents");
        return file.report_unidentified(ParseError::at_line(1, message));
    }
    for document in documents {
        parse_document(&DocumentOrItem { yaml: document, list_kind: None, list_depth: 0 }, file);
    }
}

/// A document of a file, or an item of a list.
struct DocumentOrItem<'a> {
    yaml: YamlDocument<'a>,
    /// The kind that the enclosing list implies for an item without a kind.
    list_kind: Option<&'a str>,
    /// The number of enclosing lists.
    list_depth: usize,
}

fn parse_document(document: &DocumentOrItem<'_>, file: &mut FileParser<'_>) {
    let yaml = &document.yaml;
    if let Some(list) = parse_list(yaml) {
        return parse_items(document, &list, file);
    }
    let outline = match deserialize_yaml::<ObjectOutline>(yaml, Strictness::Lenient) {
        Ok(outline) => outline,
        Err(_) if is_foreign(yaml) => {
            return file.add_foreign(Some(nothing_declared(yaml, "it is not a Kubernetes object")));
        }
        Err(_) if has_template_actions(yaml.text) => {
            return file.add_foreign(Some(nothing_declared(
                yaml,
                "it is a template, such as those of Helm; render it first",
            )));
        }
        // A manifest that is being edited may not name its kind yet.
        Err(_) if !mentions_declarations(yaml.text.as_bytes()) && !yaml.text.contains("apiVersion") => {
            return file.add_foreign(Some(nothing_declared(yaml, "it is not valid YAML")));
        }
        Err(error) => return file.report_unidentified(error),
    };
    let (api_version, kind) = match (outline.api_version.as_deref(), outline.kind.as_deref()) {
        (None, None) if document.list_kind.is_some() => (Some(API_VERSION), document.list_kind),
        given => given,
    };
    let is_known_kind = kind.is_some_and(|kind| KNOWN_KINDS.contains(&kind));
    let is_misspelled = |group: &str| !did_you_mean(group, [GROUP]).is_empty();
    match api_version {
        None if is_known_kind => {
            let message = format!("apiVersion is missing; write apiVersion: {API_VERSION}");
            return report_unknown(file, yaml, "kind", message);
        }
        Some(text) if is_known_kind && !is_evenkeel_group(api_version) && is_misspelled(group_of(text)) => {
            let message = format!("unknown apiVersion {text:?}; write {API_VERSION}");
            return report_unknown(file, yaml, "apiVersion", message);
        }
        _ => {}
    }
    if !is_evenkeel_group(api_version) {
        let reason = match (api_version, kind) {
            (None, _) => Some("it has no apiVersion"),
            (_, None) => Some("it has no kind"),
            // It may contain evenkeel objects, or a typo may have changed its API group.
            _ if is_known_kind || yaml.text.contains(GROUP) => {
                Some("its apiVersion belongs to another API group than evenkeel.dev/v1alpha1")
            }
            _ => None,
        };
        return file.add_foreign(reason.map(|reason| nothing_declared(yaml, reason)));
    }
    let api_version = api_version.unwrap_or_default();
    if api_version != API_VERSION {
        let message = format!("unknown apiVersion {api_version:?}; use {API_VERSION}");
        return report_unknown(file, yaml, "apiVersion", message);
    }
    let metadata = outline.metadata.unwrap_or_default();
    match kind.unwrap_or_default() {
        McpServerSpec::KIND => {
            let object = parse_object(document, &metadata, file);
            file.parsed.servers.extend(object);
        }
        SkillSpec::KIND => {
            let object = parse_object(document, &metadata, file);
            file.parsed.skills.extend(object);
        }
        kind => {
            let suggestion = did_you_mean(kind, [McpServerSpec::KIND, SkillSpec::KIND]);
            let message = format!("unknown kind {kind:?} of {API_VERSION}{suggestion}");
            report_unknown(file, yaml, "kind", message);
        }
    }
}

/// Reports a document that is meant for evenkeel and whose type is not known, at one of its fields.
fn report_unknown(file: &mut FileParser<'_>, yaml: &YamlDocument<'_>, field: &str, message: String) {
    let nodes = parse_nodes(yaml.text, yaml.first_line);
    file.report_unidentified(error_at(yaml, &nodes, field, message));
}

/// The kinds that evenkeel reads.
const KNOWN_KINDS: [&str; 4] = [McpServerSpec::KIND, SkillSpec::KIND, "McpServerList", "SkillList"];

/// Parses each item of a list as if it were a document of its own.
fn parse_items(document: &DocumentOrItem<'_>, list: &ItemList, file: &mut FileParser<'_>) {
    let line = document.yaml.content_line;
    let Some(items) = &list.items else {
        return file.report_unidentified(ParseError::at_line(
            line,
            "the list has no items, or items is not a list".to_owned(),
        ));
    };
    if items.len() > MAX_DOCUMENTS || document.list_depth >= MAX_LIST_NESTING {
        let message = format!(
            "a list may have at most {MAX_DOCUMENTS} items and be nested in at most {MAX_LIST_NESTING} lists"
        );
        return file.report_unidentified(ParseError::at_line(line, message));
    }
    for (index, item) in items.iter().enumerate() {
        if !item.is_mapping {
            let message = format!("items[{index}] of the list is not an object");
            file.report_unidentified(ParseError::at_line(item.line, message));
            continue;
        }
        let yaml = YamlDocument { text: &item.text, first_line: item.line, content_line: item.line };
        parse_document(
            &DocumentOrItem { yaml, list_kind: list.kind.as_deref(), list_depth: document.list_depth + 1 },
            file,
        );
    }
}

/// Returns the error for a document that declares nothing although it may have been meant to declare objects.
fn nothing_declared(yaml: &YamlDocument<'_>, reason: &str) -> ParseError {
    ParseError::at_line(yaml.content_line, format!("nothing is declared here: {reason}"))
}

fn parse_object<S: ObjectSpec>(
    document: &DocumentOrItem<'_>,
    metadata: &ObjectNames,
    file: &mut FileParser<'_>,
) -> Option<ParsedObject<S>> {
    let yaml = &document.yaml;
    let namespace = metadata.namespace.as_deref().unwrap_or_else(|| file.target.namespace());
    let key = match object_key(metadata.name.as_deref(), namespace) {
        Ok(key) => key,
        Err(message) => {
            let path = message.split(' ').next().unwrap_or_default().to_owned();
            let message = format!("{}: {message}", S::KIND);
            file.report_unidentified(error_at(
                yaml,
                &parse_nodes(yaml.text, yaml.first_line),
                &path,
                message,
            ));
            return None;
        }
    };
    let (metadata, spec) = parse_manifest(yaml, &key, file);
    Some(ParsedObject {
        key,
        line: yaml.content_line,
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        document: document.standalone_text::<S>().into(),
        spec,
    })
}

impl DocumentOrItem<'_> {
    /// Returns the text in a form that can be parsed without the enclosing list.
    fn standalone_text<S: ObjectSpec>(&self) -> Cow<'_, str> {
        let text = self.yaml.text;
        let has = |field: &str| has_field(text, field);
        if self.list_kind.is_none() || has("kind") {
            return Cow::Borrowed(text);
        }
        let unindented = text.trim_start();
        let indent = text.get(..text.len() - unindented.len()).unwrap_or_default();
        match unindented.strip_prefix('{') {
            Some(fields) => Cow::Owned(format!(
                "{indent}{{\"apiVersion\": {API_VERSION:?}, \"kind\": {:?}, {fields}",
                S::KIND
            )),
            None => {
                Cow::Owned(format!("{indent}apiVersion: {API_VERSION}\n{indent}kind: {}\n{text}", S::KIND))
            }
        }
    }
}

/// True if the document has this top-level field.
fn has_field(text: &str, field: &str) -> bool {
    parse_nodes(text, 1).iter().any(|node| node.path == field)
}

fn parse_manifest<S: ObjectSpec>(
    yaml: &YamlDocument<'_>,
    key: &ObjectKey,
    file: &mut FileParser<'_>,
) -> (Metadata, Result<S, Problem>) {
    let manifest = match deserialize_yaml::<Manifest<S>>(yaml, Strictness::Strict) {
        Ok(mut manifest) => {
            if let Some(annotations) = &mut manifest.metadata.annotations {
                annotations.remove(LAST_APPLIED_ANNOTATION);
            }
            manifest
        }
        Err(error) => {
            return (Metadata::default(), Err(file.reject::<S>(key, Reason::InvalidSpec, vec![error])));
        }
    };
    let violations = manifest.spec.check(file.target);
    let advice = manifest.spec.advice(false);
    if violations.is_empty() && advice.is_empty() && !may_contain_booleans(yaml.text) {
        return (manifest.metadata, Ok(manifest.spec));
    }
    let nodes = parse_nodes(yaml.text, yaml.first_line);
    let to_error =
        |Violation { path, message }: &Violation| error_at(yaml, &nodes, path, format!("{path}: {message}"));
    let errors: Vec<_> = violations.iter().map(to_error).chain(unquoted_booleans(yaml, &nodes)).collect();
    for warning in advice.iter().map(to_error) {
        file.warn(ParseError { message: format!("{} {key}: {}", S::KIND, warning.message), ..warning });
    }
    if errors.is_empty() {
        return (manifest.metadata, Ok(manifest.spec));
    }
    (manifest.metadata, Err(file.reject::<S>(key, Reason::InvalidSpec, errors)))
}

fn error_at(yaml: &YamlDocument<'_>, nodes: &[Node<'_>], path: &str, message: String) -> ParseError {
    let position = find_position(nodes, path).unwrap_or(Position { line: yaml.content_line, column: None });
    ParseError { position, message, excerpt: Some(excerpt(yaml.text, yaml.first_line, position)) }
}

/// Words that are booleans to the YAML parser of Kubernetes clients (YAML 1.1), and strings to ours.
const YAML_1_1_BOOLEANS: &[&str] = &["y", "n", "yes", "no", "on", "off"];

fn is_yaml_1_1_boolean(text: &str) -> bool {
    YAML_1_1_BOOLEANS.iter().any(|boolean| boolean.eq_ignore_ascii_case(text))
}

fn may_contain_booleans(text: &str) -> bool {
    text.split(|char: char| !char.is_ascii_alphanumeric()).any(is_yaml_1_1_boolean)
}

/// Returns an error for each word that `kubectl apply` would send as a boolean where a string is expected. No other
/// field accepts these words.
fn unquoted_booleans(yaml: &YamlDocument<'_>, nodes: &[Node<'_>]) -> Vec<ParseError> {
    let plain_booleans =
        nodes.iter().filter(|node| node.plain_scalar.as_deref().is_some_and(is_yaml_1_1_boolean));
    let object_fields =
        plain_booleans.filter(|node| ["spec", "metadata"].iter().any(|field| node.path.starts_with(field)));
    object_fields
        .map(|node| {
            let message = format!("{}: quote y, n, yes, no, on and off to use them as strings", node.path);
            error_at(yaml, nodes, &node.path, message)
        })
        .collect()
}

fn group_of(api_version: &str) -> &str {
    api_version.split('/').next().unwrap_or_default()
}

fn is_evenkeel_group(api_version: Option<&str>) -> bool {
    api_version.map(group_of) == Some(GROUP)
}

/// True if a value of the text is an action of a template (`{{ … }}`) without quotes, which no manifest holds.
fn has_template_actions(text: &str) -> bool {
    text.lines().any(|line| {
        let value = line.trim_start_matches([' ', '-', '\t']);
        value.starts_with("{{")
            || value.split_once(": ").is_some_and(|(_, value)| value.trim_start().starts_with("{{"))
    })
}

/// True if a document that does not have the outline of an object is valid YAML for another program.
fn is_foreign(yaml: &YamlDocument<'_>) -> bool {
    match deserialize_yaml::<ApiVersionField>(yaml, Strictness::Lenient) {
        Ok(document) => !is_evenkeel_group(document.api_version.as_deref()),
        Err(_) => deserialize_yaml::<IgnoredAny>(yaml, Strictness::Lenient).is_ok(),
    }
}
