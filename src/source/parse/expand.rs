//! Expands `${VAR}`, `${VAR:-default}` and `${env:VAR}` in the files of agents. Pure.

use std::path::Path;
use std::sync::Arc;

use secrecy::SecretString;

use super::path::is_json;
use crate::resource::{
    Endpoint, Literal, McpServerSpec, Problem, Reason, check_server, is_inherited_variable,
};
use crate::source::Environment;
use crate::source::resolve::ReferenceValues;

/// Returns the endpoint of the spec that `file` of the directory `root` declares.
///
/// `root` is used as it was given, because replacing a link in it must not change where servers run.
pub fn resolve_endpoint(
    references: &ReferenceValues<'_>,
    root: &Path,
    spec: &McpServerSpec,
    file: &Path,
) -> Result<Arc<Endpoint>, Problem> {
    let folder = root.join(file.parent().unwrap_or(Path::new("")));
    if !is_json(file) {
        return references.resolve(spec, Some(&folder), Vec::new());
    }
    let (expanded, values) = expand_spec(spec, references.environment)?;
    if let Some(violation) = check_server(&expanded).first() {
        let message = format!("after expanding variables: {violation}");
        return Err(Problem::new(Reason::InvalidSpec, message));
    }
    // The policy applies to the expanded command; the message shows the declared one, without values.
    if references.policy.check(&expanded).is_err() {
        references.policy.check(spec)?;
        let message = "spec.stdio: after expanding variables, this command is not allowed here";
        return Err(Problem::new(Reason::PolicyDenied, message));
    }
    references.resolve(&expanded, Some(&folder), values)
}

/// True if the text contains a variable.
pub fn has_variables(text: &str) -> bool {
    text.contains("${")
}

/// Returns the spec with its variables expanded, and the values used for them. The values are as secret as literal ones
/// and are meant only for an endpoint. A variable that is not set and has no default is an error.
fn expand_spec(
    spec: &McpServerSpec,
    environment: &Environment,
) -> Result<(McpServerSpec, Vec<SecretString>), Problem> {
    let (mut spec, mut values) = (spec.clone(), Vec::new());
    let mut expand_field = |field: &str, text: &str| -> Result<Option<String>, Problem> {
        let expanded = has_variables(text).then(|| expand_text(text, environment, &mut values));
        expanded.transpose().map_err(|name| variable_not_found(field, name))
    };
    let mut expand_in_place = |field: &str, text: &mut String| -> Result<(), Problem> {
        if let Some(expanded) = expand_field(field, text)? {
            *text = expanded;
        }
        Ok(())
    };
    if let Some(stdio) = &mut spec.stdio {
        expand_in_place("command", &mut stdio.command)?;
        stdio.args.iter_mut().try_for_each(|arg| expand_in_place("args", arg))?;
        stdio.cwd.iter_mut().try_for_each(|cwd| expand_in_place("cwd", cwd))?;
    }
    if let Some(http) = &mut spec.http {
        expand_in_place("url", &mut http.url)?;
    }
    let variables = spec.stdio.iter_mut().flat_map(|stdio| &mut stdio.env);
    let variables = variables.map(|var| (format!("variable {}", var.name), &mut var.value));
    let headers = spec.http.iter_mut().flat_map(|http| &mut http.headers);
    let headers = headers.map(|header| (format!("header {}", header.name), &mut header.value));
    for (field, value) in variables.chain(headers) {
        let expanded =
            value.as_ref().map(|value| expand_field(&field, value.expose())).transpose()?.flatten();
        if let Some(expanded) = expanded {
            *value = Some(Literal::new(expanded));
        }
    }
    Ok((spec, values))
}

/// Returns the text with its variables expanded, or the name of the first variable that is not set. Adds the values of
/// the environment that may be secret to `values`.
fn expand_text<'a>(
    text: &'a str,
    environment: &Environment,
    values: &mut Vec<SecretString>,
) -> Result<String, &'a str> {
    let mut output = String::new();
    let mut remaining = text;
    while let Some((literal, after)) = remaining.split_once("${") {
        let Some((expression, after)) = after.split_once('}') else { break };
        output.push_str(literal);
        let expression = expression.strip_prefix("env:").unwrap_or(expression);
        let (name, default) = match expression.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (expression, None),
        };
        match (environment.get(name), default) {
            (Some(value), _) => {
                if !is_inherited_variable(name) {
                    values.push(value.into());
                }
                output.push_str(value);
            }
            (None, Some(default)) => output.push_str(default),
            (None, None) => return Err(name),
        }
        remaining = after;
    }
    Ok(output + remaining)
}

fn variable_not_found(field: &str, name: &str) -> Problem {
    let message = format!(
        "{field}: the variable {name:?} is not set in evenkeel's environment; set it and restart evenkeel, or \
         add a default as in ${{NAME:-default}}"
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
        let references = ReferenceValues {
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
            let resolved = resolve_endpoint(&references, Path::new("/srv"), &spec, Path::new(".mcp.json"));
            let message = resolved.err().map(|problem| problem.to_string());
            assert_eq!(message.is_some(), denied, "{command} {arg}: {message:?}");
            let message = message.unwrap_or_default();
            assert!(
                message.is_empty() || message.starts_with("PolicyDenied: ") && !message.contains("hunter2"),
                "{message}"
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
