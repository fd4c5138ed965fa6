//! Expands `${VAR}`, `${VAR:-default}` and `${env:VAR}` in the files of agents. Pure.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::env_file::parse_env_file;
use super::excerpt::printable;
use super::path::{is_json, join_within_root};
use crate::resource::{
    Endpoint, EnvVar, Literal, McpServerSpec, Problem, Reason, StdioTransport, check_server,
    is_public_variable,
};
use crate::source::Environment;
use crate::source::resolve::ReferenceValues;

/// Returns the content of a file of variables, by its path relative to the directory.
pub type EnvFileReader<'a> = dyn Fn(&Path) -> Result<SecretString, Problem> + 'a;

/// Returns the endpoint of the spec that `file` of the directory `root` declares.
///
/// `root` is used as it was given, because replacing a link in it must not change where servers run.
pub fn resolve_endpoint(
    references: &ReferenceValues<'_>,
    root: &Path,
    read_env_file: &EnvFileReader<'_>,
    spec: &McpServerSpec,
    file: &Path,
) -> Result<Arc<Endpoint>, Problem> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let (mut spec, mut values) = (Cow::Borrowed(spec), Vec::new());
    if is_json(file) {
        let (expanded, expanded_values) = expand_spec(&spec, references.environment)?;
        ensure_valid(&expanded, "expanding variables")?;
        // The policy applies to the expanded command; the message shows the declared one, without values.
        if references.policy.check(&expanded).is_err() {
            references.policy.check(&spec)?;
            let message = "spec.stdio: after expanding variables, this command is not allowed here";
            return Err(Problem::new(Reason::PolicyDenied, message));
        }
        (spec, values) = (Cow::Owned(expanded), expanded_values);
    }
    if let Some(path) = spec.stdio.as_ref().and_then(|stdio| stdio.env_file.as_ref()) {
        // A server that may not run is not worth reading a file for.
        references.policy.check(&spec)?;
        let path = env_file_path(file, path)?;
        let variables = parse_env_file(read_env_file(&path)?.expose_secret());
        values.extend(variables.iter().map(|(_, value)| value.clone()));
        let spec = spec.to_mut();
        if let Some(stdio) = &mut spec.stdio {
            add_variables(stdio, &variables);
        }
        ensure_valid(spec, "reading envFile")?;
    }
    references.resolve(&spec, Some(&root.join(folder)), values)
}

/// Returns the path of a file of variables relative to the directory. `file` is the declaring file.
///
/// Errors: the path leaves the directory.
fn env_file_path(file: &Path, path: &str) -> Result<PathBuf, Problem> {
    join_within_root(file.parent().unwrap_or(Path::new("")), path).ok_or_else(|| {
        let message = format!("envFile: {path:?} is outside the directory of declarations");
        Problem::new(Reason::InvalidSpec, message)
    })
}

/// Returns the path of the file of variables that a spec refers to, if it is inside the directory.
pub fn referenced_env_file(file: &Path, spec: &McpServerSpec) -> Option<PathBuf> {
    env_file_path(file, spec.stdio.as_ref()?.env_file.as_ref()?).ok()
}

/// Adds the variables that the declaration itself does not set.
fn add_variables(stdio: &mut StdioTransport, variables: &[(String, SecretString)]) {
    for (name, value) in variables {
        if stdio.env.iter().all(|declared| declared.name != *name) {
            let value = Some(Literal::new(value.expose_secret().to_owned()));
            stdio.env.push(EnvVar { name: name.clone(), value, value_from: None });
        }
    }
}

fn ensure_valid(spec: &McpServerSpec, step: &str) -> Result<(), Problem> {
    match check_server(spec).first() {
        Some(violation) => Err(Problem::new(Reason::InvalidSpec, format!("after {step}: {violation}"))),
        None => Ok(()),
    }
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
                if !is_public_variable(name) {
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

/// Returns what to write in place of the first variable in a text that only an editor can fill in.
pub fn editor_variable_advice(text: &str) -> Option<String> {
    let expressions = text.split("${").skip(1).filter_map(|after| after.split_once('}'));
    let mut without_default = expressions.filter(|(expression, _)| !expression.contains(":-"));
    without_default.find_map(|(expression, _)| {
        let (editor, instead) = match expression.split_once(':').unwrap_or((expression, "")) {
            ("input", id) => (
                "VS Code, which asks a person for it",
                format!("write ${{{}}} and set that variable in evenkeel's environment", variable_name(id)),
            ),
            ("workspaceFolder" | "workspaceRoot" | "fileWorkspaceFolder", _) => (
                "VS Code and Cursor",
                "write a path relative to the folder of this file, or an absolute path".to_owned(),
            ),
            ("workspaceFolderBasename", _) => {
                ("VS Code and Cursor", "write the name of the folder".to_owned())
            }
            ("userHome", _) => ("VS Code and Cursor", "write ${HOME}".to_owned()),
            ("pathSeparator" | "/", _) => ("VS Code and Cursor", "write /".to_owned()),
            ("command" | "config" | "file" | "secret", argument) if !argument.is_empty() => (
                "the editor that it was written for",
                "write the value, or ${NAME} for a variable of evenkeel's environment".to_owned(),
            ),
            _ => return None,
        };
        Some(format!("${{{}}} is filled in by {editor}, not by evenkeel; {instead}", printable(expression)))
    })
}

/// Returns a name for the variable that replaces an input of VS Code.
fn variable_name(input: &str) -> String {
    let to_name_char =
        |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_uppercase() } else { '_' };
    let name: String = input.chars().take(64).map(to_name_char).collect();
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        format!("INPUT_{name}")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{DigestKey, Transport};
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
            let resolved = resolve_endpoint(
                &references,
                Path::new("/srv"),
                &|_| Ok("".into()),
                &spec,
                Path::new(".mcp.json"),
            );
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
    fn variables_of_a_file_are_added_to_those_of_the_declaration() {
        let environment = Environment::default();
        let read = |path: &Path| match path.to_str() {
            Some("team/.env") => Ok("A=file\nB=hunter2\n".into()),
            _ => Err(Problem::new(Reason::EnvFileNotFound, format!("no {}", path.display()))),
        };
        let all = StdioPolicy::allow_all();
        let some = StdioPolicy::allow_only(&["c".to_owned()], &["A".to_owned()]).unwrap();
        for (policy, env_file, expected) in [
            (&all, ".env", Ok("A=declared B=hunter2")),
            (&all, "./x/../.env", Ok("A=declared B=hunter2")),
            (&all, "../.env", Err("EnvFileNotFound: no .env")),
            (&all, "../../.env", Err("InvalidSpec: envFile: \"../../.env\" is outside the directory")),
            (&all, "/etc/passwd", Err("InvalidSpec: envFile: \"/etc/passwd\" is outside the directory")),
            (&some, ".env", Err("PolicyDenied: spec.stdio.env: the variable B is not allowed here")),
        ] {
            let references = ReferenceValues {
                secret_location: &|_| String::new(),
                environment: &environment,
                policy,
                lookup_secret: &|_| SecretLookup::Missing,
                digest_key: &DigestKey::new(b"k"),
            };
            let env = serde_json::json!([{ "name": "A", "value": "declared" }]);
            let spec = serde_json::json!({ "stdio": { "command": "c", "env": env, "envFile": env_file } });
            let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
            let file = Path::new("team/a.yaml");
            let resolved = resolve_endpoint(&references, Path::new("/srv"), &read, &spec, file);
            match (resolved, expected) {
                (Ok(endpoint), Ok(expected)) => {
                    let Transport::Stdio(stdio) = &endpoint.transport else { panic!("{endpoint:?}") };
                    let env: Vec<_> = stdio
                        .env
                        .iter()
                        .map(|(name, value)| format!("{name}={}", value.expose_secret()))
                        .collect();
                    assert_eq!(env.join(" "), expected);
                    assert!(
                        endpoint.referenced_values().iter().any(|value| value.expose_secret() == "hunter2")
                    );
                }
                (Err(problem), Err(expected)) => {
                    assert!(problem.to_string().starts_with(expected), "{env_file}: {problem}");
                    assert!(!problem.to_string().contains("hunter2"), "{problem}");
                }
                (resolved, _) => panic!("{env_file}: {resolved:?}"),
            }
        }
    }

    #[test]
    fn variables_of_editors_name_what_to_write_instead() {
        for (text, expected) in [
            (
                "Bearer ${input:github-token}",
                Some(
                    "${input:github-token} is filled in by VS Code, which asks a person for it, not by evenkeel; write ${GITHUB_TOKEN} and",
                ),
            ),
            ("${input:1}", Some("write ${INPUT_1} and")),
            ("${HOME}/${workspaceFolder}", Some("write a path relative to the folder of this file")),
            ("${workspaceFolder:api}", Some("write a path relative to the folder of this file")),
            ("${workspaceFolderBasename}", Some("write the name of the folder")),
            ("${userHome}/x", Some("write ${HOME}")),
            ("${command:ext.token}", Some("write the value, or ${NAME}")),
            ("${file:-default} ${workspaceFolder:-/srv}", None),
            ("${TOKEN} ${env:TOKEN} ${input", None),
            ("", None),
        ] {
            let advice = editor_variable_advice(text);
            match expected {
                Some(expected) => {
                    assert!(advice.as_ref().is_some_and(|advice| advice.contains(expected)), "{advice:?}");
                }
                None => assert_eq!(advice, None, "{text}"),
            }
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
