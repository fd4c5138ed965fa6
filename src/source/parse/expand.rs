//! `${VAR}`, `${VAR:-default}` and `${env:VAR}` in what agents' own files declare. Pure.

use std::path::Path;
use std::sync::Arc;

use secrecy::SecretString;

use super::path::is_json;
use crate::resource::{
    Endpoint, Literal, McpServerSpec, Problem, Reason, check_server, is_inherited_variable,
};
use crate::source::Environment;
use crate::source::resolve::ReferenceValues;

/// The endpoint of what `file` of the directory `root` declares.
///
/// The root is taken as it was given: a link in it that is flipped must not change where servers run.
pub fn endpoint(
    sources: &ReferenceValues<'_>,
    root: &Path,
    spec: &McpServerSpec,
    file: &Path,
) -> Result<Arc<Endpoint>, Problem> {
    let folder = root.join(file.parent().unwrap_or(Path::new("")));
    if !is_json(file) {
        return sources.resolve(spec, Some(&folder), Vec::new());
    }
    let (filled, values) = expand_spec(spec, sources.environment)?;
    if let Some(broken) = check_server(&filled).first() {
        let message = format!("with the values of its variables, {broken}");
        return Err(Problem::new(Reason::InvalidSpec, message));
    }
    // What runs is what must be allowed; what is told of it is what was written.
    if sources.policy.check(&filled).is_err() {
        sources.policy.check(spec)?;
        let message = "spec.stdio: with the values of its variables, this command may not run here";
        return Err(Problem::new(Reason::PolicyDenied, message));
    }
    sources.resolve(&filled, Some(&folder), values)
}

/// Whether a text holds a variable.
pub fn has_variables(text: &str) -> bool {
    text.contains("${")
}

/// The spec with the values of its variables, and these: they are as secret as if they were written out, for an
/// endpoint alone. A variable that is not set and has no default is an error.
fn expand_spec(
    spec: &McpServerSpec,
    environment: &Environment,
) -> Result<(McpServerSpec, Vec<SecretString>), Problem> {
    let (mut spec, mut values) = (spec.clone(), Vec::new());
    let mut fill = |place: &str, text: &str| -> Result<Option<String>, Problem> {
        let filled = has_variables(text).then(|| expand_text(text, environment, &mut values));
        filled.transpose().map_err(|name| variable_not_found(place, name))
    };
    let mut expand = |place: &str, text: &mut String| -> Result<(), Problem> {
        if let Some(filled) = fill(place, text)? {
            *text = filled;
        }
        Ok(())
    };
    if let Some(stdio) = &mut spec.stdio {
        expand("command", &mut stdio.command)?;
        stdio.args.iter_mut().try_for_each(|arg| expand("args", arg))?;
        stdio.cwd.iter_mut().try_for_each(|cwd| expand("cwd", cwd))?;
    }
    if let Some(http) = &mut spec.http {
        expand("url", &mut http.url)?;
    }
    let variables = spec.stdio.iter_mut().flat_map(|stdio| &mut stdio.env);
    let variables = variables.map(|var| (format!("variable {}", var.name), &mut var.value));
    let headers = spec.http.iter_mut().flat_map(|http| &mut http.headers);
    let headers = headers.map(|header| (format!("header {}", header.name), &mut header.value));
    for (place, value) in variables.chain(headers) {
        let filled = value.as_ref().map(|value| fill(&place, value.expose())).transpose()?.flatten();
        if let Some(filled) = filled {
            *value = Some(Literal::new(filled));
        }
    }
    Ok((spec, values))
}

/// The text with its variables filled in, or the name of the first that is not set; `values` gets those of the
/// environment that may be secret.
fn expand_text<'a>(
    text: &'a str,
    environment: &Environment,
    values: &mut Vec<SecretString>,
) -> Result<String, &'a str> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((inside, after)) = after.split_once('}') else { break };
        filled.push_str(before);
        let inside = inside.strip_prefix("env:").unwrap_or(inside);
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        match (environment.get(name), default) {
            (Some(value), _) => {
                if !is_inherited_variable(name) {
                    values.push(value.into());
                }
                filled.push_str(value);
            }
            (None, Some(default)) => filled.push_str(default),
            (None, None) => return Err(name),
        }
        rest = after;
    }
    Ok(filled + rest)
}

fn variable_not_found(place: &str, name: &str) -> Problem {
    let message = format!(
        "{place}: the variable {name:?} is not set in evenkeel's environment; set it and start again, or give it \
         a default as in ${{NAME:-default}}"
    );
    Problem::new(Reason::VariableNotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::DigestKey;
    use crate::source::StdioPolicy;
    use crate::source::resolve::SecretLookup;

    #[test]
    fn expanded_command_must_be_allowed_and_is_not_shown() {
        let environment = Environment::from_iter([("TOOL", "rm"), ("OK", "pkg"), ("KEY", "hunter2")]);
        let policy = StdioPolicy::allow_only(&["npx *".to_owned()], &[]).unwrap();
        let sources = ReferenceValues {
            secret_location: &|_| String::new(),
            environment: &environment,
            policy: &policy,
            lookup_secret: &|_| SecretLookup::Missing,
            digest_key: &DigestKey::new(b"k"),
        };
        for (command, arg, denied) in [
            ("npx", "${OK}", false),
            ("${NONE:-npx}", "x", false),
            ("${TOOL}", "x", true),
            ("npx", "a/${KEY}", true),
            ("npx", "${KEY}/${KEY}/${OK}", true),
            ("npx", "${NO:-/}", true),
            ("npx", "${NO", false),
        ] {
            let spec = serde_json::json!({ "stdio": { "command": command, "args": [arg] } });
            let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
            let found = endpoint(&sources, Path::new("/srv"), &spec, Path::new(".mcp.json"));
            let told = found.err().map(|problem| problem.to_string());
            assert_eq!(told.is_some(), denied, "{command} {arg}: {told:?}");
            let told = told.unwrap_or_default();
            assert!(
                told.is_empty() || told.starts_with("PolicyDenied: ") && !told.contains("hunter2"),
                "{told}"
            );
        }
    }

    #[test]
    fn variables_are_expanded_once() {
        let environment = Environment::from_iter([("A", "one"), ("EMPTY", ""), ("NESTED", "${A}")]);
        for (text, expected) in [
            ("", Ok("")),
            ("plain $A $(A) {A}", Ok("plain $A $(A) {A}")),
            ("${A}", Ok("one")),
            ("x${A}y${A}z", Ok("xoneyonez")),
            ("${env:A}", Ok("one")),
            ("${A:-two}", Ok("one")),
            ("${B:-two}", Ok("two")),
            ("${B:-}", Ok("")),
            ("${B:-http://a:1/}", Ok("http://a:1/")),
            ("${EMPTY}", Ok("")),
            ("${EMPTY:-two}", Ok("")),
            ("${NESTED}", Ok("${A}")),
            ("${A", Ok("${A")),
            ("${A}${B}", Err("B")),
            ("${}", Err("")),
            ("${input:token}", Err("input:token")),
            ("${workspaceFolder}/x", Err("workspaceFolder")),
        ] {
            assert_eq!(
                expand_text(text, &environment, &mut Vec::new()),
                expected.map(str::to_owned),
                "{text}"
            );
        }
    }
}
