//! What may run: the commands and variables that an operator allowed on the command line. Pure.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::resource::{McpServerSpec, Problem, Reason, StdioTransport};

/// The variables that an allowed command may be given unless the operator says otherwise.
pub const DEFAULT_ALLOWED_VARIABLES: [&str; 2] = ["*_TOKEN", "*_API_KEY"];

/// Which stdio servers may be started.
///
/// It is fixed for the life of the process: a server that a tighter policy denies ends with the restart that
/// brings the policy.
#[derive(Clone, Debug, Default)]
pub struct StdioPolicy(Option<StdioAllowlist>);

#[derive(Clone, Debug)]
struct StdioAllowlist {
    commands: Vec<Vec<GlobMatcher>>,
    variables: Vec<GlobMatcher>,
    configured: AllowedStdio,
}

/// What an operator allowed, as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedStdio {
    /// Globs of commands, argument by argument.
    pub commands: Vec<String>,
    /// Globs of names of variables.
    pub variables: Vec<String>,
}

impl StdioPolicy {
    /// Everything may run: for a directory that a person named on the command line.
    pub fn allow_all() -> Self {
        Self(None)
    }

    /// Only what fits one of `commands`, argument by argument (a `*` stops at a slash), with variables whose
    /// names fit one of `variables`: a loader or index variable changes what runs. No command is nothing.
    pub fn allow_only(commands: &[String], variables: &[String]) -> Result<Self, globset::Error> {
        let command = |pattern: &String| pattern.split_whitespace().map(compile_glob).collect();
        Ok(Self(Some(StdioAllowlist {
            commands: commands.iter().map(command).collect::<Result<_, _>>()?,
            variables: variables.iter().map(|name| compile_glob(name)).collect::<Result<_, _>>()?,
            configured: AllowedStdio { commands: commands.to_vec(), variables: variables.to_vec() },
        })))
    }

    /// What was written, unless everything may run.
    pub fn configured(&self) -> Option<&AllowedStdio> {
        self.0.as_ref().map(|allowed| &allowed.configured)
    }

    /// Where every process runs, if not in the folder of the file that declares it: `/`, where only some commands are
    /// allowed. What lies in that folder may be of whoever wrote the declaration, and a `.npmrc` or a `package.json`
    /// changes what runs.
    pub fn working_directory(&self) -> Option<&'static Path> {
        self.0.is_some().then_some(Path::new("/"))
    }

    /// Says no to what may not run, and with which flag it could.
    pub fn check(&self, spec: &McpServerSpec) -> Result<(), Problem> {
        let (Some(allowed), Some(stdio)) = (&self.0, &spec.stdio) else { return Ok(()) };
        if !allowed.commands.iter().any(|command| matches_command(command, stdio)) {
            let words: Vec<_> = command_line(stdio).collect();
            return Err(denied(format!(
                "spec.stdio: this command may not run here; an operator allows it with --allow-stdio {:?}",
                words.join(" ")
            )));
        }
        if stdio.command.contains('/') && !stdio.command.starts_with('/') {
            return Err(denied(
                "spec.stdio.command: under --allow-stdio a path is absolute, since a relative one runs what lies \
                 beside the declaration"
                    .into(),
            ));
        }
        if stdio.cwd.is_some() {
            return Err(denied(
                "spec.stdio.cwd: under --allow-stdio servers run in /, since files of the working directory \
                 (.npmrc, package.json) can change what a command runs; leave it out"
                    .into(),
            ));
        }
        let refused =
            stdio.env.iter().find(|var| !allowed.variables.iter().any(|glob| glob.is_match(&var.name)));
        match refused {
            None => Ok(()),
            Some(var) => Err(denied(format!(
                "spec.stdio.env: the variable {} may not be set here, only {}; an operator allows it with \
                 --allow-stdio-env {}",
                var.name,
                allowed.configured.variables.join(", "),
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
        && command.iter().zip(command_line(stdio)).all(|(glob, word)| glob.is_match(word))
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
        for (command, args, may_run) in [
            ("npx", json!(["-y", "@modelcontextprotocol/server-everything"]), true),
            ("npx", json!(["-y", "@modelcontextprotocol/a/../../evil"]), false),
            ("npx", json!(["-y", "evil"]), false),
            ("npx", json!(["-y", "@modelcontextprotocol/a", "--eval"]), false),
            ("npx", json!(["-y"]), false),
            ("npx", json!([]), false),
            ("/tmp/npx", json!(["-y", "@modelcontextprotocol/a"]), false),
            // One argument with spaces is one argument.
            ("npx", json!(["-y @modelcontextprotocol/a"]), false),
            ("/opt/mcp/fetch", json!([]), true),
            ("/opt/mcp/../sh", json!([]), false),
        ] {
            let told = check(&policy, json!({ "command": command, "args": args.clone() }));
            assert_eq!(told.is_empty(), may_run, "{command} {args}: {told}");
        }
        let told = check(&policy, json!({ "command": "sh", "args": ["-c", "x"] }));
        assert_eq!(
            told,
            "PolicyDenied: spec.stdio: this command may not run here; an operator allows it with --allow-stdio \
             \"sh -c x\""
        );
    }

    #[test]
    fn files_next_to_the_declaration_cannot_change_what_runs() {
        let allowed = ["npx".to_owned(), "./bin/*".to_owned(), "bin/*".to_owned(), "/opt/*".to_owned()];
        let policy = StdioPolicy::allow_only(&allowed, &[]).unwrap();
        for (stdio, refused) in [
            (json!({ "command": "npx" }), ""),
            (json!({ "command": "npx", "cwd": "." }), "spec.stdio.cwd: "),
            (json!({ "command": "npx", "cwd": "/srv" }), "spec.stdio.cwd: "),
            (json!({ "command": "./bin/x" }), "spec.stdio.command: "),
            (json!({ "command": "bin/x" }), "spec.stdio.command: "),
            (json!({ "command": "/opt/x" }), ""),
        ] {
            let told = check(&policy, stdio.clone());
            let expected =
                if refused.is_empty() { String::new() } else { format!("PolicyDenied: {refused}") };
            assert!(told.starts_with(&expected) && told.is_empty() == refused.is_empty(), "{stdio}: {told}");
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
        for (name, may_be_set) in [
            ("GITHUB_TOKEN", true),
            ("X_API_KEY", true),
            ("LD_PRELOAD", false),
            ("NPM_CONFIG_REGISTRY", false),
        ] {
            let told =
                check(&policy, json!({ "command": "s", "env": [{ "name": name, "value": "hunter2" }] }));
            assert_eq!(told.is_empty(), may_be_set, "{told}");
            assert!(!told.contains("hunter2"), "{told}");
            assert!(may_be_set || told.contains(&format!("--allow-stdio-env {name}")), "{told}");
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
