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

/// The longest time to wait until a removed server is detached.
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments of `evenkeel mcp remove`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// Name of the server
    #[arg(value_name = "NAME")]
    name: String,
}

/// Removes the declaration of a server: its file, or its document in a file with several.
pub(super) fn remove(args: &Args) -> Result<(), CommandError> {
    let root = args.target.instance.declarations_dir()?;
    let locations = directory::find_objects(&root).map_err(|error| path_error(&root, &error))?;
    let servers = || locations.iter().filter(|location| location.kind == ObjectKind::McpServer.name());
    let matches = |location: &&ObjectLocation| {
        *location.key.name == *args.name && *location.key.namespace == *args.target.namespace
    };
    let found: Vec<_> = servers().filter(matches).collect();
    let display_location =
        |location: &ObjectLocation| format!("{}:{}", root.join(&location.path).display(), location.line);
    let location = match &*found {
        [] => {
            let all = servers().map(|location| (&*location.key.namespace, &*location.key.name));
            return Err(unknown_name_error(
                ObjectKind::McpServer,
                &args.name,
                Some(&args.target.namespace),
                all,
            ));
        }
        [location] => location,
        [first, duplicates @ ..] => {
            let others: Vec<_> = duplicates.iter().map(|location| display_location(location)).collect();
            return Err(CommandError::Failed(format!(
                "{} is declared more than once: in {} and {}; edit the files",
                args.name,
                display_location(first),
                others.join(", ")
            )));
        }
    };
    let path = root.join(&location.path);
    let Some(lines) = location.lines else {
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let form = if is_json { "in JSON" } else { "as an item of a list" };
        return Err(CommandError::Failed(format!(
            "{} is declared {form}, at {}; edit the file",
            args.name,
            display_location(location)
        )));
    };
    let done = if location.only_in_file && locations.len() > 1 {
        std::fs::remove_file(&path).map(|()| format!("removed {}\n", path.display()))
    } else {
        // An empty directory may be a mistake. A file that says otherwise confirms the removal.
        let text = if location.only_in_file {
            Ok(EMPTIED_FILE_TEXT.to_owned())
        } else {
            file::read(&path).map(|text| without_lines(&text, lines))
        };
        text.and_then(|text| file::replace(&path, &text))
            .map(|()| format!("removed {} from {}\n", args.name, path.display()))
    };
    let done = done.map_err(|error| path_error(&path, &error))?;
    output::print(&done).map_err(CommandError::failed)?;
    block_on(args.wait_until_detached())
}

const EMPTIED_FILE_TEXT: &str =
    "# `evenkeel mcp remove` removed the last declaration. This file confirms that it is intended.\n";

/// Returns a text without the lines from `first` up to and excluding `end`, counted from 1.
fn without_lines(text: &str, (first, end): (usize, usize)) -> String {
    let lines = (1..).zip(text.split_inclusive('\n'));
    let kept: String =
        lines.filter(|(number, _)| !(first..end).contains(number)).map(|(_, line)| line).collect();
    // The end marker of a document that was the first one.
    match kept.split_once('\n') {
        Some((line, following)) if line.trim_end() == "..." => following.to_owned(),
        _ => kept,
    }
}

impl Args {
    /// Waits until a running instance has detached the server.
    async fn wait_until_detached(&self) -> Result<(), CommandError> {
        let instance = self.target.instance.resolve()?;
        if StatusClient::connect_if_running(&instance).await?.is_none() {
            return Ok(());
        }
        let end = Instant::now() + DETACH_TIMEOUT;
        let mut cache =
            WatchCache::open(&instance, ObjectKind::McpServer, Some(&self.target.namespace)).await?;
        while cache.get(&self.target.namespace, &self.name).is_some() {
            match timeout_at(end, cache.changed()).await {
                Ok(changed) => changed?,
                Err(_) => {
                    return Err(CommandError::Failed(format!(
                        "evenkeel has not detached {} yet; see: evenkeel describe source directory",
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
