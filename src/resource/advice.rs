//! Finds what a valid spec most likely does not mean as it is written. Pure.

use super::{McpServerSpec, Violation};

/// Returns advice for a spec: the path of a field, and what to write instead. The spec is accepted all the same.
/// `is_expanded` is true if `${NAME}` in the declaration stands for a variable.
pub fn server_advice(spec: &McpServerSpec, is_expanded: bool) -> Vec<Violation> {
    let mut advice = Vec::new();
    let mut add = |path: String, message: String| advice.push(Violation { path, message });
    if let Some(stdio) = &spec.stdio
        && let Some(message) = command_line_advice(&stdio.command)
    {
        add("spec.stdio.command".to_owned(), message);
    }
    if is_expanded {
        return advice;
    }
    let env = spec.stdio.iter().flat_map(|stdio| &stdio.env).map(|var| &var.value).enumerate();
    let env = env.map(|(index, value)| (format!("spec.stdio.env[{index}].value"), value));
    let headers = spec.http.iter().flat_map(|http| &http.headers).map(|header| &header.value).enumerate();
    let headers = headers.map(|(index, value)| (format!("spec.http.headers[{index}].value"), value));
    for (path, value) in env.chain(headers) {
        if value.as_ref().is_some_and(|value| mentions_variable(value.expose())) {
            let message = "${NAME} and $NAME are not expanded here; write valueFrom with env (the name of a variable \
                           of evenkeel's environment) or secretKeyRef in place of value";
            add(path, message.to_owned());
        }
    }
    let args = spec.stdio.iter().flat_map(|stdio| &stdio.args).enumerate();
    let args = args.map(|(index, arg)| (format!("spec.stdio.args[{index}]"), arg));
    let url = spec.http.iter().map(|http| ("spec.http.url".to_owned(), &http.url));
    for (path, text) in args.chain(url) {
        // A longer text may be a script, whose shell expands it.
        if mentions_variable(text) && !text.contains(char::is_whitespace) {
            add(path, "${NAME} and $NAME are not expanded here; write the value".to_owned());
        }
    }
    advice
}

/// Returns advice for a command that holds its arguments, such as `npx -y server`. A path may contain blanks.
pub fn command_line_advice(command: &str) -> Option<String> {
    let (program, arguments) = command.trim().split_once(char::is_whitespace)?;
    let is_path = program.contains('/') && !arguments.split_whitespace().any(|word| word.starts_with('-'));
    // Other characters may be a part of a secret.
    let is_plain = program.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/@-".contains(&byte));
    let program = if is_plain { program } else { "the program" };
    (!is_path).then(|| {
        format!("this is taken as the name of one program; write {program} here, and each argument in args")
    })
}

/// True if a word of the text is, or holds, a reference to a variable: `${NAME}`, or `$NAME` alone. Any other `$` may be
/// a part of a password.
pub fn mentions_variable(text: &str) -> bool {
    let is_braced = |word: &str| {
        let name = word.split_once("${").and_then(|(_, after)| after.split_once('}')).map(|(name, _)| name);
        name.is_some_and(|name| is_variable_name(name.strip_prefix("env:").unwrap_or(name)))
    };
    text.split_whitespace().any(|word| is_braced(word) || is_unbraced_variable(word))
}

/// True if a word is `$NAME`, alone or at the start of a path or list of paths.
pub fn is_unbraced_variable(word: &str) -> bool {
    let name = word.strip_prefix('$').and_then(|rest| rest.split(['/', ':']).next());
    name.is_some_and(is_variable_name)
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn advice_is_given_for_what_is_most_likely_a_mistake() {
        let env =
            |value: &str| json!({ "stdio": { "command": "c", "env": [{ "name": "A", "value": value }] } });
        for (spec, expected) in [
            (json!({ "stdio": { "command": "npx" } }), ""),
            (json!({ "stdio": { "command": "npx -y server" } }), "spec.stdio.command"),
            (json!({ "stdio": { "command": "npx\t-y" } }), "spec.stdio.command"),
            (json!({ "stdio": { "command": "/usr/bin/npx -y server" } }), "spec.stdio.command"),
            (json!({ "stdio": { "command": "/opt/My Tools/server" } }), ""),
            (env("${TOKEN}"), "spec.stdio.env[0].value"),
            (env("Bearer ${TOKEN}"), "spec.stdio.env[0].value"),
            (env("${env:TOKEN}"), "spec.stdio.env[0].value"),
            (env("$TOKEN"), "spec.stdio.env[0].value"),
            (env("$HOME/bin:/bin"), "spec.stdio.env[0].value"),
            (env("pa$$word"), ""),
            (env("a$B"), ""),
            (env("${lower}"), ""),
            (
                json!({ "http": { "url": "http://a", "headers": [{ "name": "A", "value": "Bearer ${T}" }] } }),
                "spec.http.headers[0].value",
            ),
            (json!({ "http": { "url": "http://a/${PATH}" } }), "spec.http.url"),
            (json!({ "stdio": { "command": "c", "args": ["a", "--key=${KEY}"] } }), "spec.stdio.args[1]"),
            (json!({ "stdio": { "command": "sh", "args": ["-c", "echo ${KEY}"] } }), ""),
        ] {
            let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
            let paths: Vec<_> = server_advice(&spec, false).into_iter().map(|advice| advice.path).collect();
            assert_eq!(paths.join(" "), expected, "{spec:?}");
            let expanded = server_advice(&spec, true);
            assert!(expanded.iter().all(|advice| advice.path == "spec.stdio.command"), "{spec:?}");
        }
        assert!(!command_line_advice("KEY=hunter2 npx --key hunter2").unwrap().contains("hunter2"));
        assert_eq!(
            command_line_advice("npx -y server").unwrap(),
            "this is taken as the name of one program; write npx here, and each argument in args"
        );
    }
}
