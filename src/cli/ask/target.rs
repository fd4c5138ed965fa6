use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::super::Failure;
use super::super::client::{Client, Lines};
use super::super::output::{self, printable};
use crate::report::Kind;
use crate::resource::API_VERSION;

/// What a word on the command line may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds(pub Vec<Kind>);

impl Kinds {
    /// Reads the words that kubectl takes too: plural, singular, short name or category.
    pub fn parse(word: &str) -> Result<Self, String> {
        let word = word.to_ascii_lowercase();
        let word = word.strip_suffix(".evenkeel.dev").unwrap_or(&word);
        Ok(Self(match word {
            "mcpserver" | "mcpservers" | "mcps" => vec![Kind::McpServer],
            "skill" | "skills" | "skl" => vec![Kind::Skill],
            "source" | "sources" | "src" => vec![Kind::Source],
            "mcp" => vec![Kind::McpServer, Kind::Skill],
            _ => return Err(
                "a kind is one of mcpservers (mcps), skills (skl), sources (src), or mcp for the first two"
                    .into(),
            ),
        }))
    }
}

/// One object as it is named on the command line: `NAME`, which is a server, or `KIND/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl Target {
    /// Reads `NAME` or `KIND/NAME`.
    pub fn parse(word: &str) -> Result<Self, String> {
        let (kind, name) = match word.split_once('/') {
            Some((kind, name)) => (Kinds::parse(kind)?, name),
            None => (Kinds(vec![Kind::McpServer]), word),
        };
        match &*kind.0 {
            [kind] if !name.is_empty() => Ok(Self { kind: *kind, name: name.to_owned() }),
            _ => Err("name one object, such as github or skill/release-notes".into()),
        }
    }
}

/// A question for the objects of one kind.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Query {
    path: String,
    parameters: Vec<(&'static str, String)>,
}

impl Query {
    /// All objects of a kind, or those of one namespace.
    pub fn of(kind: Kind, namespace: Option<&str>) -> Self {
        Self::collection(API_VERSION, kind.plural(), namespace.filter(|_| kind.namespaced()))
    }

    /// The events, of all namespaces or of one.
    pub fn events(namespace: Option<&str>) -> Self {
        Self::collection("events.k8s.io/v1", "events", namespace)
    }

    fn collection(api_version: &str, plural: &str, namespace: Option<&str>) -> Self {
        let within =
            namespace.map(|namespace| format!("namespaces/{}/", encoded(namespace))).unwrap_or_default();
        Self { path: format!("/apis/{api_version}/{within}{plural}"), parameters: Vec::new() }
    }

    /// With a parameter.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }

    /// Only the object of this name.
    pub fn named(self, name: &str) -> Self {
        self.with("fieldSelector", format!("metadata.name={name}"))
    }

    /// The path and query to ask for.
    pub fn path(&self) -> String {
        if self.parameters.is_empty() {
            return self.path.clone();
        }
        let query = Serializer::new(String::new()).extend_pairs(&self.parameters).finish();
        format!("{}?{query}", self.path)
    }

    /// The path of one object, or of what is below it.
    pub fn below(&self, rest: &[&str]) -> String {
        rest.iter().fold(self.path.clone(), |path, part| format!("{path}/{}", encoded(part)))
    }
}

fn encoded(part: &str) -> String {
    // A space is no part of any name; `+` and `%20` are equally unknown.
    byte_serialize(part.as_bytes()).collect()
}

/// What stands at a place of a document; `null` if there is nothing.
pub(in crate::cli) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// The text that stands there; empty if there is none.
pub(in crate::cli) fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_default()
}

/// The objects of a list.
pub(in crate::cli) fn items(list: &Value) -> &[Value] {
    at(list, "/items").as_array().map_or(&[], Vec::as_slice)
}

/// The name of an object.
pub(in crate::cli) fn name_of(object: &Value) -> &str {
    text_at(object, "/metadata/name")
}

/// The conditions of an object.
pub(in crate::cli) fn conditions(object: &Value) -> &[Value] {
    at(object, "/status/conditions").as_array().map_or(&[], Vec::as_slice)
}

/// A condition of an object.
pub(in crate::cli) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions(object).iter().find(|condition| text_at(condition, "/type") == kind)
}

/// True if a condition speaks of the declaration as it is now: what was said of an earlier generation says nothing
/// of this one.
pub(in crate::cli) fn is_current(object: &Value, condition: &Value) -> bool {
    at(condition, "/observedGeneration").as_i64() >= at(object, "/metadata/generation").as_i64()
}

/// What is said of a source that was not read as a whole.
pub(in crate::cli) fn unread<'a>(sources: impl IntoIterator<Item = &'a Value>) -> Option<String> {
    let told = |source| {
        let ready = condition(source, "Ready").filter(|ready| text_at(ready, "/status") == "False")?;
        let message = printable(text_at(ready, "/message"));
        Some(format!("source: {message} (evenkeel describe src {} has more)", name_of(source)))
    };
    sources.into_iter().find_map(told)
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Change {
    /// `ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The object, or a table that holds it.
    pub object: Value,
}

impl Change {
    /// Reads the next line; a watch that ended, or says that it cannot go on, is interrupted.
    pub async fn next(lines: &mut Lines) -> Result<Self, Failure> {
        let line = lines.next().await?.ok_or_else(|| Failure::Interrupted("evenkeel has ended".into()))?;
        let change: Self = serde_json::from_str(&line).map_err(Failure::failed)?;
        if change.kind == "ERROR" {
            return Err(Failure::Interrupted(text_at(&change.object, "/message").to_owned()));
        }
        Ok(change)
    }
}

/// The name most like another one, if any is like it.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known| strsim::normalized_damerau_levenshtein(name, known);
    let best = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.6).then_some(best)
}

/// The same, after a note on what could not be read, if there is any: it may be declared there.
pub(in crate::cli) async fn unknown_to<'a>(
    client: &mut Client,
    kind: Kind,
    name: &str,
    namespace: Option<&str>,
    known: impl IntoIterator<Item = &'a str>,
) -> Failure {
    match client.get::<Value>(&Query::of(Kind::Source, None).path()).await {
        Ok(sources) => {
            if let Some(note) = unread(items(&sources)) {
                output::note(&note);
            }
            unknown(kind, name, namespace, known)
        }
        Err(failure) => failure,
    }
}

/// What is said of a name that nobody has in a namespace, or in any.
pub(in crate::cli) fn unknown<'a>(
    kind: Kind,
    name: &str,
    namespace: Option<&str>,
    known: impl IntoIterator<Item = &'a str>,
) -> Failure {
    let within = namespace.filter(|_| kind.namespaced());
    let within = within.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    let hint = nearest(name, known).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Failure::Failed(format!("there is no {} {name:?}{within}{hint}", kind.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_kubectl_are_understood() {
        for (word, kind) in [
            ("mcps", Kind::McpServer),
            ("McpServer", Kind::McpServer),
            ("mcpservers.evenkeel.dev", Kind::McpServer),
            ("skl", Kind::Skill),
            ("src", Kind::Source),
        ] {
            assert_eq!(Kinds::parse(word).unwrap().0, [kind], "{word}");
        }
        assert_eq!(Kinds::parse("mcp").unwrap().0.len(), 2);
        assert!(Kinds::parse("pods").unwrap_err().contains("mcps"));
        assert_eq!(Target::parse("a").unwrap(), Target { kind: Kind::McpServer, name: "a".into() });
        assert_eq!(Target::parse("skill/a").unwrap(), Target { kind: Kind::Skill, name: "a".into() });
        for wrong in ["mcp/a", "skill/", "pod/a"] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_query_is_encoded() {
        let query = Query::of(Kind::McpServer, Some("a b/c")).with("labelSelector", "a in (b,c)");
        assert_eq!(
            query.path(),
            "/apis/evenkeel.dev/v1alpha1/namespaces/a+b%2Fc/mcpservers?labelSelector=a+in+%28b%2Cc%29"
        );
        assert_eq!(Query::of(Kind::Source, Some("a")).path(), "/apis/evenkeel.dev/v1alpha1/sources");
    }

    #[test]
    fn the_nearest_name_is_given_if_it_is_near() {
        assert_eq!(nearest("githb", ["gitlab", "github", "time"]), Some("github"));
        assert_eq!(nearest("tow", ["one", "two"]), Some("two"));
        assert_eq!(nearest("githb", ["zzz"]), None);
        let failure = unknown(Kind::McpServer, "tim", Some("default"), ["time"]).to_string();
        assert_eq!(failure, "there is no McpServer \"tim\" in namespace default; did you mean time?");
    }
}
