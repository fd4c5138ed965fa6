use std::fmt::Write;
use std::io;
use std::path::{Component, Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::error::CommandError;
use super::namespace::parse_namespace;
use super::{dirs, output};
use crate::resource::{DigestKey, Origin, Reason};
use crate::source::StdioPolicy;
use crate::source::directory::{
    CheckContext, CheckResult, Finding, Severity, TargetMode, check_directory, check_files, exclude_error,
};
use crate::text::is_invisible;

/// The arguments of `evenkeel validate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directories, each checked as one source, and files, checked together
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Directory of the secrets for secretKeyRef, as DIR/NAME/KEY; without it, references to secrets are not checked
    /// [default: $XDG_CONFIG_HOME/evenkeel-secrets, if it exists]
    #[arg(long, env = "EVENKEEL_SECRETS_DIR", value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
    /// Check manifests for a cluster, by the rules of a cluster: configMapRef is allowed; cwd, envFile, path and
    /// valueFrom.env are not
    #[arg(long)]
    kubernetes: bool,
    /// Namespace of manifests that set none
    #[arg(
        long,
        short,
        value_name = "NAMESPACE",
        value_parser = parse_namespace,
        default_value = "default",
        requires = "kubernetes"
    )]
    namespace: String,
    /// Do not check the files that match this pattern, in the syntax of .gitignore; may be repeated. A file
    /// .evenkeelignore in a directory has the same effect, and run follows it too
    #[arg(long, value_name = "GLOB", value_parser = parse_exclude)]
    exclude: Vec<String>,
    /// Output format; github prints annotations of a GitHub Actions run
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Github,
}

/// Checks declarations and prints the findings. Fails if one of them is an error.
pub(super) fn validate(args: &Args) -> Result<(), CommandError> {
    let mut report = ValidationReport::default();
    let context = args.check_context()?;
    let (folders, files): (Vec<_>, Vec<_>) = args.paths.iter().partition(|path| path.is_dir());
    for folder in folders {
        let checked = absolute(folder)
            .and_then(|root| check_directory(&root, &context))
            .map_err(|error| CommandError::Failed(format!("{}: {error}", folder.display())))?;
        if checked.files == 0 {
            let message = "no declarations found; declarations are files ending in .yaml or .yml";
            report.add(folder, &Finding::new(Severity::Warning, Reason::SourceUnavailable, message));
        }
        report.add_checked(folder, &checked);
    }
    if !files.is_empty() {
        let files: Vec<_> = files.into_iter().cloned().collect();
        let working_dir = absolute(Path::new(".")).map_err(CommandError::failed)?;
        report.add_checked(
            Path::new(""),
            &check_files(&working_dir, &files, &context).map_err(CommandError::failed)?,
        );
    }
    let text = match args.output {
        Format::Text => report.format_text(),
        Format::Json => report.format_json().map_err(CommandError::failed)?,
        Format::Github => report.format_github(),
    };
    output::print(&text).map_err(CommandError::failed)?;
    if report.errors > 0 {
        return Err(CommandError::Failed("the declarations are not valid".to_owned()));
    }
    Ok(())
}

impl Args {
    fn check_context(&self) -> Result<CheckContext, CommandError> {
        let secrets = match &self.secrets_dir {
            Some(given) => Some(absolute(given).map_err(CommandError::failed)?),
            // Without a home directory there is no default.
            None => dirs::secrets_dir(None).ok().filter(|default| default.is_dir()),
        };
        // The digests of a check are not compared with others, so an empty key is enough. Which commands may run
        // depends on the instance, so all are allowed here.
        let policy = StdioPolicy::allow_all();
        let (environment, key) = (dirs::environment(), DigestKey::new(&[]));
        Ok(CheckContext {
            secrets_dir: secrets,
            environment,
            digest_key: key,
            policy,
            target: if self.kubernetes {
                TargetMode::Cluster { namespace: self.namespace.clone() }
            } else {
                TargetMode::Directory
            },
            exclude: self.exclude.clone(),
        })
    }
}

fn parse_exclude(pattern: &str) -> Result<String, String> {
    match exclude_error(pattern) {
        Some(error) => Err(error),
        None => Ok(pattern.to_owned()),
    }
}

fn absolute(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

/// The report of a validation. Its JSON form is part of the interface.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ValidationReport {
    valid: bool,
    files: usize,
    servers: usize,
    skills: usize,
    foreign_documents: usize,
    errors: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<ReportEntry>,
}

/// One finding of a report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportEntry {
    level: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u32>,
    reason: Reason,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    excerpt: Option<String>,
}

impl ValidationReport {
    /// Adds the findings of a check. `base` is the path that theirs are relative to, as it was given.
    fn add_checked(&mut self, base: &Path, checked: &CheckResult) {
        self.files += checked.files;
        self.servers += checked.desired.servers.len();
        self.skills += checked.desired.skills.len();
        self.foreign_documents += checked.desired.source.foreign_documents;
        for finding in &checked.findings {
            self.add(base, finding);
        }
    }

    fn add(&mut self, base: &Path, Finding { severity: level, fault }: &Finding) {
        let (level, count) = match level {
            Severity::Error => ("error", &mut self.errors),
            Severity::Warning => ("warning", &mut self.warnings),
            Severity::Note => ("note", &mut self.notes),
        };
        *count += 1;
        let (file, line) = match fault.origin.as_ref().and_then(Origin::file) {
            Some((path, line)) => (Some(base.join(path.as_path())), Some(line)),
            None => (Some(base.to_path_buf()).filter(|base| !base.as_os_str().is_empty()), None),
        };
        self.findings.push(ReportEntry {
            level,
            file: file.as_deref().map(display_path),
            line,
            column: fault.column,
            reason: fault.problem.reason,
            message: fault.problem.message.clone(),
            excerpt: fault.excerpt.clone(),
        });
    }

    fn summary(&self) -> String {
        let count = |number: usize, one: &str| match number {
            1 => format!("1 {one}"),
            more => format!("{more} {one}s"),
        };
        let found = [(self.errors, "error"), (self.warnings, "warning"), (self.notes, "note")];
        let found: Vec<_> =
            found.iter().filter(|(number, _)| *number > 0).map(|(n, one)| count(*n, one)).collect();
        let found = if found.is_empty() { "no findings".to_owned() } else { found.join(", ") };
        let files = count(self.files, "file");
        let (servers, skills) = (count(self.servers, "server"), count(self.skills, "skill"));
        let foreign = match self.foreign_documents {
            0 => String::new(),
            documents => format!("; {} of other programs passed over", count(documents, "document")),
        };
        format!("{servers} and {skills} in {files}: {found}{foreign}\n")
    }

    fn format_text(&self) -> String {
        let mut text = String::new();
        for ReportEntry { level, file, line, column, message, excerpt, .. } in &self.findings {
            let location: String = file
                .iter()
                .cloned()
                .chain(line.iter().chain(column).map(|number| format!(":{number}")))
                .collect();
            let location = if location.is_empty() { location } else { format!("{location}: ") };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{location}{level}: {message}");
            if let Some(excerpt) = excerpt {
                let _ = writeln!(text, "{excerpt}");
            }
        }
        text + &self.summary()
    }

    fn format_json(&mut self) -> serde_json::Result<String> {
        self.valid = self.errors == 0;
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Formats the findings as annotations, as specified in GitHub's "Workflow commands".
    fn format_github(&self) -> String {
        let mut text = String::new();
        for ReportEntry { level, file, line, column, reason, message, excerpt } in &self.findings {
            let command = if *level == "note" { "notice" } else { level };
            let numbers = [("line", line), ("col", column)];
            let numbers =
                numbers.iter().filter_map(|(name, number)| Some(format!("{name}={}", (*number).as_ref()?)));
            let properties: Vec<_> = file
                .iter()
                .map(|file| format!("file={}", escape_annotation(file, true)))
                .chain(numbers)
                .chain([format!("title={}", escape_annotation(&reason.to_string(), true))])
                .collect();
            let text_of_finding =
                excerpt.as_ref().map_or_else(|| message.clone(), |excerpt| format!("{message}\n{excerpt}"));
            let _ = writeln!(
                text,
                "::{command} {}::{}",
                properties.join(","),
                escape_annotation(&text_of_finding, false)
            );
        }
        text + &self.summary()
    }
}

/// Formats a path without `.` components and without characters that move a terminal's cursor.
fn display_path(path: &Path) -> String {
    let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
    path.display().to_string().replace(is_invisible, "\u{fffd}")
}

/// Escapes text in a workflow command.
fn escape_annotation(text: &str, property: bool) -> String {
    let text = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if property { text.replace(':', "%3A").replace(',', "%2C") } else { text }
}
