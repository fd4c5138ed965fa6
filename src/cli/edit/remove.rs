use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::super::client::StatusClient;
use super::super::error::CommandError;
use super::super::instance::NamespacedInstanceArgs;
use super::super::output;
use super::super::query::{WatchCache, unknown_name_error};
use super::super::runtime::block_on;
use super::file;
use crate::report::ObjectKind;
use crate::source::directory::{self, ObjectLocation};

/// How long evenkeel may take to see that a declaration is gone.
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments of `evenkeel mcp remove`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// The name of the server
    #[arg(value_name = "NAME")]
    name: String,
}

/// Takes a server's declaration away: its file, or its document of a file that holds more.
pub(super) fn remove(args: &Args) -> Result<(), CommandError> {
    let root = args.target.instance.declarations_dir()?;
    let places = directory::find_objects(&root).map_err(|error| path_error(&root, &error))?;
    let servers = || places.iter().filter(|place| place.kind == ObjectKind::McpServer.name());
    let is_meant = |place: &&ObjectLocation| {
        *place.key.name == *args.name && *place.key.namespace == *args.target.namespace
    };
    let found: Vec<_> = servers().filter(is_meant).collect();
    let where_ = |place: &ObjectLocation| format!("{}:{}", root.join(&place.path).display(), place.line);
    let place = match &*found {
        [] => {
            let all = servers().map(|place| (&*place.key.namespace, &*place.key.name));
            return Err(unknown_name_error(
                ObjectKind::McpServer,
                &args.name,
                Some(&args.target.namespace),
                all,
            ));
        }
        [place] => place,
        [first, rest @ ..] => {
            let others: Vec<_> = rest.iter().map(|place| where_(place)).collect();
            return Err(CommandError::Failed(format!(
                "{} is declared more than once: in {} and {}; edit the files",
                args.name,
                where_(first),
                others.join(", ")
            )));
        }
    };
    let path = root.join(&place.path);
    let Some(lines) = place.lines else {
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let how = if is_json { "in JSON" } else { "as an item of a list" };
        return Err(CommandError::Failed(format!(
            "{} is declared {how}, at {}; edit the file",
            args.name,
            where_(place)
        )));
    };
    let done = if place.only_in_file && places.len() > 1 {
        std::fs::remove_file(&path).map(|()| format!("{} is removed\n", path.display()))
    } else {
        // An empty directory may be a mistake; a file that says so is none.
        let text = if place.only_in_file {
            Ok(EMPTIED_FILE_TEXT.to_owned())
        } else {
            file::read(&path).map(|text| without_lines(&text, lines))
        };
        text.and_then(|text| file::replace(&path, &text))
            .map(|()| format!("{} is no longer declared in {}\n", args.name, path.display()))
    };
    let done = done.map_err(|error| path_error(&path, &error))?;
    output::print(&done).map_err(CommandError::failed)?;
    block_on(args.wait_until_detached())
}

const EMPTIED_FILE_TEXT: &str =
    "# The last declaration was taken away by `evenkeel mcp remove`; this file says that it is meant.\n";

/// A text without some of its lines, which are counted from 1.
fn without_lines(text: &str, (first, end): (usize, usize)) -> String {
    let lines = (1..).zip(text.split_inclusive('\n'));
    let left: String =
        lines.filter(|(number, _)| !(first..end).contains(number)).map(|(_, line)| line).collect();
    // The end of a document that was the first one.
    match left.split_once('\n') {
        Some((line, rest)) if line.trim_end() == "..." => rest.to_owned(),
        _ => left,
    }
}

impl Args {
    /// Waits until a running evenkeel has seen it.
    async fn wait_until_detached(&self) -> Result<(), CommandError> {
        let whose = self.target.instance.resolve()?;
        if StatusClient::connect_if_running(&whose).await?.is_none() {
            return Ok(());
        }
        let end = Instant::now() + DETACH_TIMEOUT;
        let mut mirror =
            WatchCache::open(&whose, ObjectKind::McpServer, Some(&self.target.namespace)).await?;
        while mirror.get(&self.target.namespace, &self.name).is_some() {
            match timeout_at(end, mirror.changed()).await {
                Ok(changed) => changed?,
                Err(_) => {
                    return Err(CommandError::Failed(format!(
                        "evenkeel still has {}; see: evenkeel describe source directory",
                        self.name
                    )));
                }
            }
        }
        output::print(&format!("{} is detached\n", self.name)).map_err(CommandError::failed)
    }
}

fn path_error(path: &Path, error: &io::Error) -> CommandError {
    CommandError::Failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_lines_removes_only_one_document() {
        let text = "# head\na: 1\n---\n# two\nb: 2\n---\nc: 3";
        assert_eq!(without_lines(text, (3, 6)), "# head\na: 1\n---\nc: 3");
        assert_eq!(without_lines(text, (1, 3)), "---\n# two\nb: 2\n---\nc: 3");
        assert_eq!(without_lines(text, (6, 8)), "# head\na: 1\n---\n# two\nb: 2\n");
        assert_eq!(without_lines("a: 1\n...\n---\nb: 2\n...\n", (1, 2)), "---\nb: 2\n...\n");
        assert_eq!(
            without_lines("a: 1\n---\nb: 2\n...\n%YAML 1.2\n---\nc: 3", (2, 4)),
            "a: 1\n...\n%YAML 1.2\n---\nc: 3"
        );
    }
}
