//! The policy for stdio servers: the commands and variables that an operator allowed on the command line. Pure.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::resource::{McpServerSpec, Problem, Reason, StdioTransport};

/// The variables that an allowed command may receive, unless the operator specifies others.
pub const DEFAULT_ALLOWED_VARIABLES: [&str; 2] = ["*_TOKEN", "*_API_KEY"];

/// The policy that decides which stdio servers may be started.
///
/// Stays fixed for the life of the process. A server that a stricter policy denies ends with the restart that sets the
/// policy.
#[derive(Clone, Debug, Default)]
pub struct StdioPolicy(Option<StdioAllowlist>);

#[derive(Clone, Debug)]
struct StdioAllowlist {
    commands: Vec<Vec<GlobMatcher>>,
    variables: Vec<GlobMatcher>,
    configured: AllowedStdio,
}

/// The allowed commands and variables, as written by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedStdio {
    /// Globs of commands, one glob per argument.
    pub commands: Vec<String>,
    /// Globs of variable names.
    pub variables: Vec<String>,
}

impl StdioPolicy {
    /// Allows every command: for a directory that a person named on the command line.
    pub fn allow_all() -> Self {
        Self(None)
    }

    /// Allows only commands that match one of `commands`, argument by argument (a `*` does not match a slash), with
    /// variables whose names match one of `variables`: a loader or index variable changes what runs. An empty
    /// `commands` allows nothing.
    pub fn allow_only(commands: &[String], variables: &[String]) -> Result<Self, globset::Error> {
        let command = |command_line: &String| command_line.split_whitespace().map(compile_glob).collect();
        Ok(Self(Some(StdioAllowlist {
            commands: commands.iter().map(command).collect::<Result<_, _>>()?,
            variables: variables.iter().map(|name| compile_glob(name)).collect::<Result<_, _>>()?,
            configured: AllowedStdio { commands: commands.to_vec(), variables: variables.to_vec() },
        })))
    }

    /// Returns the configured globs, or `None` if every command is allowed.
    pub fn configured(&self) -> Option<&AllowedStdio> {
        self.0.as_ref().map(|allowlist| &allowlist.configured)
    }

    /// Returns the working directory of every process, if it is not the folder of the declaring file: `/` if only some
    /// commands are allowed. The author of a declaration may control the files in its folder, and a `.npmrc` or a
    /// `package.json` there changes what runs.
    pub fn working_directory(&self) -> Option<&'static Path> {
        self.0.is_some().then_some(Path::new("/"))
    }

    /// Checks a spec against the policy.
    ///
    /// Errors: `PolicyDenied`, with the flag that would allow the command or variable.
    pub fn check(&self, spec: &McpServerSpec) -> Result<(), Problem> {
        let (Some(allowlist), Some(stdio)) = (&self.0, &spec.stdio) else { return Ok(()) };
        if !allowlist.commands.iter().any(|command| matches_command(command, stdio)) {
            let arguments: Vec<_> = command_line(stdio).collect();
            return Err(denied(format!(
                "spec.stdio: this command is not allowed here; an operator can allow it with --allow-stdio {:?}",
                arguments.join(" ")
            )));
        }
        if stdio.command.contains('/') && !stdio.command.starts_with('/') {
            let message = "spec.stdio.command: with --allow-stdio a path must be absolute, because a relative \
                path runs a file next to the declaration";
            return Err(denied(message.into()));
        }
        if stdio.cwd.is_some() {
            let message = "spec.stdio.cwd: with --allow-stdio servers run in /, because files in the working \
                directory (.npmrc, package.json) can change what a command runs; remove cwd";
            return Err(denied(message.into()));
        }
        let denied_variable = stdio
            .env
            .iter()
            .find(|var| !allowlist.variables.iter().any(|matcher| matcher.is_match(&var.name)));
        match denied_variable {
            None => Ok(()),
            Some(var) => Err(denied(format!(
                "spec.stdio.env: the variable {} is not allowed here, only {}; an operator can allow it with \
                 --allow-stdio-env {}",
                var.name,
                allowlist.configured.variables.join(", "),
                var.name
            ))),
        }
    }
}

fn compile_glob(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).build().map(|glob| glob.compile_matcher())
}

fn command_line(stdio: &StdioTransport) -> impl Iterator<Item = &str> {
    std::iter::once(stdio.command.as_str()).chain(stdio.args.iter().map(String::as_str))
}

fn matches_command(command: &[GlobMatcher], stdio: &StdioTransport) -> bool {
    command.len() == stdio.args.len() + 1
        && command.iter().zip(command_line(stdio)).all(|(matcher, argument)| matcher.is_match(argument))
}

fn denied(message: String) -> Problem {
    Problem::new(Reason::PolicyDenied, message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "tables read better")]
    fn check(policy: &StdioPolicy, stdio: Value) -> String {
        let spec = serde_json::from_value(json!({ "stdio": stdio })).unwrap();
        policy.check(&spec).map_or_else(|problem| problem.to_string(), |()| String::new())
    }

    #[test]
    fn command_is_matched_argument_by_argument() {
        let variables = DEFAULT_ALLOWED_VARIABLES.map(String::from);
        let allowed = ["npx -y @modelcontextprotocol/*".to_owned(), "/opt/mcp/*".to_owned()];
        let policy = StdioPolicy::allow_only(&allowed, &variables).unwrap();
        for (command, args, allowed) in [
            ("npx", json!(["-y", "@modelcontextprotocol/server-everything"]), true),
            ("npx", json!(["-y", "@modelcontextprotocol/a/../../evil"]), false),
            ("npx", json!(["-y", "evil"]), false),
            ("npx", json!(["-y", "@modelcontextprotocol/a", "--eval"]), false),
            ("npx", json!(["-y"]), false),
            ("npx", json!([]), false),
            ("/tmp/npx", json!(["-y", "@modelcontextprotocol/a"]), false),
            // An argument that contains spaces is a single argument.
            ("npx", json!(["-y @modelcontextprotocol/a"]), false),
            ("/opt/mcp/fetch", json!([]), true),
            ("/opt/mcp/../sh", json!([]), false),
        ] {
            let message = check(&policy, json!({ "command": command, "args": args.clone() }));
            assert_eq!(message.is_empty(), allowed, "{command} {args}: {message}");
        }
        let message = check(&policy, json!({ "command": "sh", "args": ["-c", "x"] }));
        assert_eq!(
            message,
            "PolicyDenied: spec.stdio: this command is not allowed here; an operator can allow it with --allow-stdio \
             \"sh -c x\""
        );
    }

    #[test]
    fn files_next_to_the_declaration_cannot_change_what_runs() {
        let allowed = ["npx".to_owned(), "./bin/*".to_owned(), "bin/*".to_owned(), "/opt/*".to_owned()];
        let policy = StdioPolicy::allow_only(&allowed, &[]).unwrap();
        for (stdio, field) in [
            (json!({ "command": "npx" }), ""),
            (json!({ "command": "npx", "cwd": "." }), "spec.stdio.cwd: "),
            (json!({ "command": "npx", "cwd": "/srv" }), "spec.stdio.cwd: "),
            (json!({ "command": "./bin/x" }), "spec.stdio.command: "),
            (json!({ "command": "bin/x" }), "spec.stdio.command: "),
            (json!({ "command": "/opt/x" }), ""),
        ] {
            let message = check(&policy, stdio.clone());
            let expected = if field.is_empty() { String::new() } else { format!("PolicyDenied: {field}") };
            assert!(
                message.starts_with(&expected) && message.is_empty() == field.is_empty(),
                "{stdio}: {message}"
            );
            assert_eq!(check(&StdioPolicy::allow_all(), stdio), "");
        }
        assert_eq!(
            [policy.working_directory(), StdioPolicy::allow_all().working_directory()],
            [Some(Path::new("/")), None]
        );
    }

    #[test]
    fn variable_must_be_allowed_by_name() {
        let policy =
            StdioPolicy::allow_only(&["s".into()], &DEFAULT_ALLOWED_VARIABLES.map(String::from)).unwrap();
        for (name, allowed) in [
            ("GITHUB_TOKEN", true),
            ("X_API_KEY", true),
            ("LD_PRELOAD", false),
            ("NPM_CONFIG_REGISTRY", false),
        ] {
            let message =
                check(&policy, json!({ "command": "s", "env": [{ "name": name, "value": "hunter2" }] }));
            assert_eq!(message.is_empty(), allowed, "{message}");
            assert!(!message.contains("hunter2"), "{message}");
            assert!(allowed || message.contains(&format!("--allow-stdio-env {name}")), "{message}");
        }
    }

    #[test]
    fn empty_allowlist_denies_stdio_and_permits_http() {
        let stdio = json!({ "command": "s" });
        assert_eq!(check(&StdioPolicy::allow_all(), stdio.clone()), "");
        let nothing = StdioPolicy::allow_only(&[], &[]).unwrap();
        assert!(check(&nothing, stdio).starts_with("PolicyDenied"));
        let http = serde_json::from_value(json!({ "http": { "url": "http://a" } })).unwrap();
        assert_eq!(nothing.check(&http), Ok(()));
    }
}
