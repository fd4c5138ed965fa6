use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::super::client::{ResponseLines, StatusClient, disconnected_error};
use super::super::error::CommandError;
use super::super::output::{self, sanitize};
use crate::report::ObjectKind;
use crate::resource::API_VERSION;
use crate::source::closest_match;

/// The kinds that an argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindArg(pub Vec<ObjectKind>);

impl KindArg {
    /// Parses the kinds as kubectl does: plural, singular, short name or category, or a comma-separated list.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut kinds = Self(Vec::new());
        for kind_name in list.to_ascii_lowercase().split(',') {
            kinds.extend(match kind_name.strip_suffix(".evenkeel.dev").unwrap_or(kind_name) {
                "mcpserver" | "mcpservers" | "mcps" => &[ObjectKind::McpServer],
                "skill" | "skills" | "skl" => &[ObjectKind::Skill],
                "source" | "sources" | "src" => &[ObjectKind::Source],
                "mcp" => &[ObjectKind::McpServer, ObjectKind::Skill],
                _ => {
                    return Err(format!(
                        "unknown kind {kind_name:?}: expected mcpservers (mcps), skills (skl), \
                         sources (src), or mcp for servers and skills"
                    ));
                }
            });
        }
        Ok(kinds)
    }

    /// Adds kinds that are not in the list yet.
    fn extend(&mut self, kinds: &[ObjectKind]) {
        for kind in kinds {
            if !self.0.contains(kind) {
                self.0.push(*kind);
            }
        }
    }
}

/// The objects that arguments select: all of some kinds, or some by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The kinds, in the order of the arguments.
    pub kinds: KindArg,
    /// The names, each with the kinds that it may have; empty if all objects are selected.
    pub names: Vec<(KindArg, String)>,
}

impl Selection {
    /// Selects all objects of one kind.
    pub fn all_of(kind: ObjectKind) -> Self {
        Self { kinds: KindArg(vec![kind]), names: Vec::new() }
    }

    /// Parses `KIND`, `KIND NAME…`, or `KIND/NAME…`.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        if !args.iter().any(|arg| arg.contains('/')) {
            let [kind, names @ ..] = args else { return Err("expected a kind".into()) };
            let kinds = KindArg::parse(kind)?;
            let names = names.iter().map(|name| (kinds.clone(), (*name).to_owned())).collect();
            return Ok(Self { kinds, names });
        }
        let (mut kinds, mut names) = (KindArg(Vec::new()), Vec::new());
        for arg in args {
            let named = arg.split_once('/').filter(|(_, name)| !name.is_empty());
            let (kind, name) = named.ok_or_else(|| {
                format!(
                    "invalid argument {arg:?}: expected KIND/NAME; use KIND followed by names, \
                     or KIND/NAME for each object"
                )
            })?;
            let of = KindArg::parse(kind)?;
            kinds.extend(&of.0);
            names.push((of, name.to_owned()));
        }
        Ok(Self { kinds, names })
    }

    /// True if an object is selected.
    pub fn contains(&self, kind: ObjectKind, name: &str) -> bool {
        self.names.is_empty()
            || self.names.iter().any(|(kinds, wanted)| wanted == name && kinds.0.contains(&kind))
    }
}

/// One object that an argument names: `NAME` for a server, or `KIND/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectArg {
    /// The kind.
    pub kind: ObjectKind,
    /// The name.
    pub name: String,
}

impl ObjectArg {
    /// Parses `NAME` or `KIND/NAME`.
    pub fn parse(arg: &str) -> Result<Self, String> {
        let (kind, name) = match arg.split_once('/') {
            Some((kind, name)) => (KindArg::parse(kind)?, name),
            None => (KindArg(vec![ObjectKind::McpServer]), arg),
        };
        match &*kind.0 {
            [kind] if !name.is_empty() => Ok(Self { kind: *kind, name: name.to_owned() }),
            _ => Err("expected one object, such as github or skill/release-notes".into()),
        }
    }
}

/// A request for the objects of one kind: path and query parameters.
#[derive(Clone, Debug)]
pub(in crate::cli) struct ListQuery {
    path: String,
    parameters: Vec<(&'static str, String)>,
}

impl ListQuery {
    /// Requests all objects of a kind, or those of one namespace.
    pub fn new(kind: ObjectKind, namespace: Option<&str>) -> Self {
        Self::collection(API_VERSION, kind.plural(), namespace.filter(|_| kind.is_namespaced()))
    }

    /// Requests the events of all namespaces or of one.
    pub fn events(namespace: Option<&str>) -> Self {
        Self::collection("events.k8s.io/v1", "events", namespace)
    }

    fn collection(api_version: &str, plural: &str, namespace: Option<&str>) -> Self {
        let within = namespace
            .map(|namespace| format!("namespaces/{}/", encode_segment(namespace)))
            .unwrap_or_default();
        Self { path: format!("/apis/{api_version}/{within}{plural}"), parameters: Vec::new() }
    }

    /// Adds a query parameter.
    pub fn with_parameter(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }

    /// Restricts the request to the object of this name.
    pub fn with_name(self, name: &str) -> Self {
        self.with_parameter("fieldSelector", format!("metadata.name={name}"))
    }

    /// Returns the path and query of the request.
    pub fn path(&self) -> String {
        if self.parameters.is_empty() {
            return self.path.clone();
        }
        let query = Serializer::new(String::new()).extend_pairs(&self.parameters).finish();
        format!("{}?{query}", self.path)
    }

    /// Returns the path of one object, or of a subresource of it.
    pub fn subpath(&self, segments: &[&str]) -> String {
        segments.iter().fold(self.path.clone(), |path, segment| format!("{path}/{}", encode_segment(segment)))
    }
}

fn encode_segment(part: &str) -> String {
    // Encodes a space as `+`; no name contains one, so `+` and `%20` are equally unknown.
    byte_serialize(part.as_bytes()).collect()
}

/// Returns the value at a JSON pointer; `null` if there is none.
pub(in crate::cli) fn value_at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// Returns the string at a JSON pointer; empty if there is none.
pub(in crate::cli) fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value_at(value, pointer).as_str().unwrap_or_default()
}

/// Returns the objects of a list.
pub(in crate::cli) fn items(list: &Value) -> &[Value] {
    value_at(list, "/items").as_array().map_or(&[], Vec::as_slice)
}

/// Returns the name of an object.
pub(in crate::cli) fn object_name(object: &Value) -> &str {
    text_at(object, "/metadata/name")
}

/// Returns the conditions of an object.
pub(in crate::cli) fn conditions(object: &Value) -> &[Value] {
    value_at(object, "/status/conditions").as_array().map_or(&[], Vec::as_slice)
}

/// Returns a condition of an object by its type.
pub(in crate::cli) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions(object).iter().find(|condition| text_at(condition, "/type") == kind)
}

/// True if a condition was observed for the current generation of the object.
pub(in crate::cli) fn is_current(object: &Value, condition: &Value) -> bool {
    value_at(condition, "/observedGeneration").as_i64() >= value_at(object, "/metadata/generation").as_i64()
}

/// Returns a note about the first source that is not completely read.
pub(in crate::cli) fn source_fault_note<'a>(sources: impl IntoIterator<Item = &'a Value>) -> Option<String> {
    let note = |source| {
        let ready = condition(source, "Ready").filter(|ready| text_at(ready, "/status") == "False")?;
        let message = sanitize(text_at(ready, "/message"));
        Some(format!("source: {message} (for details: evenkeel describe src {})", object_name(source)))
    };
    sources.into_iter().find_map(note)
}

/// One event of a watch.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct WatchLine {
    /// `ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The object, or a table that holds it.
    pub object: Value,
}

impl WatchLine {
    /// Reads the next event. Cancel safe.
    ///
    /// # Errors
    ///
    /// Returns [`CommandError::Interrupted`] if the watch ended or its version has expired.
    pub async fn next(lines: &mut ResponseLines) -> Result<Self, CommandError> {
        let line = lines.next().await?.ok_or_else(disconnected_error)?;
        let change: Self = serde_json::from_str(&line).map_err(CommandError::failed)?;
        if change.event_type == "ERROR" {
            return Err(CommandError::Interrupted(text_at(&change.object, "/message").to_owned()));
        }
        Ok(change)
    }
}

/// Returns the error for an unknown name in a namespace, or in any.
///
/// Prints a note first if a source is not completely read: the object may be declared there.
pub(in crate::cli) async fn report_unknown_name(
    client: &mut StatusClient,
    kind: ObjectKind,
    name: &str,
    namespace: Option<&str>,
) -> CommandError {
    let mut all = Vec::new();
    for kind in [ObjectKind::Source, kind] {
        match client.get::<Value>(&ListQuery::new(kind, None).path()).await {
            Ok(list) => all.push(list),
            Err(error) => return error,
        }
    }
    if let Some(note) = all.first().and_then(|sources| source_fault_note(items(sources))) {
        output::print_note(&note);
    }
    let all = all.last().map_or(&[][..], items);
    unknown_name_error(
        kind,
        name,
        namespace,
        all.iter().map(|item| (text_at(item, "/metadata/namespace"), object_name(item))),
    )
}

/// Returns the error for an unknown name, given all existing namespaces and names.
pub(in crate::cli) fn unknown_name_error<'a>(
    kind: ObjectKind,
    name: &str,
    namespace: Option<&str>,
    all: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> CommandError {
    let namespace = namespace.filter(|_| kind.is_namespaced());
    let is_here = |(own, _): &(&str, &str)| namespace.is_none_or(|namespace| namespace == *own);
    let (here, elsewhere): (Vec<_>, Vec<_>) = all.into_iter().partition(is_here);
    let scope = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    let other_namespace = elsewhere.iter().find(|(_, other)| *other == name);
    let other_namespace =
        other_namespace.map(|(other, _)| format!("; it exists in namespace {other} (use -n {other})"));
    let near = || closest_match(name, here.iter().map(|(_, other)| *other)).filter(|near| *near != name);
    let hint = other_namespace.or_else(|| Some(format!("; did you mean {}?", near()?))).unwrap_or_default();
    CommandError::Failed(format!("there is no {} {name:?}{scope}{hint}", kind.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_arg_accepts_kubectl_names() {
        for (arg, kind) in [
            ("mcps", ObjectKind::McpServer),
            ("McpServer", ObjectKind::McpServer),
            ("mcpservers.evenkeel.dev", ObjectKind::McpServer),
            ("skl", ObjectKind::Skill),
            ("src", ObjectKind::Source),
        ] {
            assert_eq!(KindArg::parse(arg).unwrap().0, [kind], "{arg}");
        }
        assert_eq!(KindArg::parse("mcp").unwrap().0.len(), 2);
        assert_eq!(KindArg::parse("skl,mcp").unwrap().0, [ObjectKind::Skill, ObjectKind::McpServer]);
        assert!(KindArg::parse("pods").unwrap_err().contains("mcps"));
        assert_eq!(
            ObjectArg::parse("a").unwrap(),
            ObjectArg { kind: ObjectKind::McpServer, name: "a".into() }
        );
        assert_eq!(
            ObjectArg::parse("skill/a").unwrap(),
            ObjectArg { kind: ObjectKind::Skill, name: "a".into() }
        );
        for invalid in ["mcp/a", "skill/", "pod/a"] {
            assert!(ObjectArg::parse(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn list_query_is_percent_encoded() {
        let query = ListQuery::new(ObjectKind::McpServer, Some("a b/c"))
            .with_parameter("labelSelector", "a in (b,c)");
        assert_eq!(
            query.path(),
            "/apis/evenkeel.dev/v1alpha1/namespaces/a+b%2Fc/mcpservers?labelSelector=a+in+%28b%2Cc%29"
        );
        assert_eq!(
            ListQuery::new(ObjectKind::Source, Some("a")).path(),
            "/apis/evenkeel.dev/v1alpha1/sources"
        );
    }

    #[test]
    fn selection_accepts_kubectl_forms() {
        let holds = |args: &[&str]| {
            let selection = Selection::parse(args).unwrap();
            let all = [
                (ObjectKind::McpServer, "a"),
                (ObjectKind::McpServer, "b"),
                (ObjectKind::Skill, "a"),
                (ObjectKind::Source, "a"),
            ];
            let selected = all.into_iter().filter(|(kind, _)| selection.kinds.0.contains(kind));
            let selected = selected.filter(|(kind, name)| selection.contains(*kind, name));
            selected.map(|(kind, name)| format!("{}/{name}", kind.name())).collect::<Vec<_>>().join(" ")
        };
        for (args, expected) in [
            (&["mcps"][..], "McpServer/a McpServer/b"),
            (&["mcps", "a", "b"], "McpServer/a McpServer/b"),
            (&["mcps/a", "mcps/b"], "McpServer/a McpServer/b"),
            (&["mcps/b", "skl/a"], "McpServer/b Skill/a"),
            (&["mcp", "a"], "McpServer/a Skill/a"),
            (&["mcps,src"], "McpServer/a McpServer/b Source/a"),
        ] {
            assert_eq!(holds(args), expected, "{args:?}");
        }
        for invalid in [&["mcps/a", "b"][..], &["mcps", "skl/a"], &["mcps/"], &["pods/a"]] {
            assert!(Selection::parse(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn unknown_name_error_suggests_nearest_and_other_namespaces() {
        let all = [("default", "time"), ("other", "ro"), ("default", "two")];
        for (name, namespace, expected) in [
            ("tim", Some("default"), "\"tim\" in namespace default; did you mean time?"),
            ("tow", None, "\"tow\"; did you mean two?"),
            (
                "ro",
                Some("default"),
                "\"ro\" in namespace default; it exists in namespace other (use -n other)",
            ),
            ("zzz", Some("default"), "\"zzz\" in namespace default"),
        ] {
            let error = unknown_name_error(ObjectKind::McpServer, name, namespace, all).to_string();
            assert_eq!(error, format!("there is no McpServer {expected}"));
        }
    }
}
