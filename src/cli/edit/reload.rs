use std::collections::BTreeMap;

use hyper::Method;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::super::client::StatusClient;
use super::super::error::CommandError;
use super::super::instance::{Instance, NamespacedInstanceArgs};
use super::super::output::{self, ProgressLine, sanitize};
use super::super::query::{
    ListQuery, WatchCache, condition, is_current, items, object_name, report_unknown_name, text_at, value_at,
};
use super::super::runtime::block_on;
use super::removal_held::holds_removal;
use super::wait_timeout::WaitTimeout;
use crate::admin::PRUNE_EMPTY_PATH;
use crate::report::ObjectKind;
use crate::resource::{RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT, Reason};

/// The arguments of `evenkeel mcp reload`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// Servers to reload [default: all that are not suspended]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Replace healthy connections with new ones too
    #[arg(long)]
    reconnect: bool,
    /// Confirm the removal of the objects that are still held because the last files of the directory disappeared
    #[arg(long, conflicts_with_all = ["names", "reconnect"])]
    prune_empty: bool,
    /// Request the reload and do not wait until it is done
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    wait: WaitTimeout,
}

/// Digests of the definitions of a server's tools, by name.
type ToolDigests = BTreeMap<String, String>;

#[derive(Deserialize)]
struct ToolsResponse {
    tools: ToolDigests,
}

/// Requests a reload of servers and prints the result of each.
pub(super) fn reload(args: &Args) -> Result<(), CommandError> {
    block_on(args.run())
}

impl Args {
    async fn run(&self) -> Result<(), CommandError> {
        let instance = self.target.instance.resolve()?;
        let mut client = StatusClient::connect(&instance).await?;
        if self.prune_empty {
            return self.confirm_removal(&instance, &mut client).await;
        }
        let end = Instant::now() + self.wait.timeout.get();
        timeout_at(end, client.scan()).await.map_err(|_| self.timeout_error("the scan of the files"))??;
        let list: Value = client.get(&self.query().path()).await?;
        let servers = items(&list);
        if let Some(name) =
            self.names.iter().find(|name| !servers.iter().any(|server| object_name(server) == **name))
        {
            let namespace = Some(&*self.target.namespace);
            return Err(report_unknown_name(&mut client, ObjectKind::McpServer, name, namespace).await);
        }
        let selected = |server: &&Value| match &*self.names {
            [] => *value_at(server, "/spec/suspend") != true,
            names => names.iter().any(|name| object_name(server) == name),
        };
        let stamp = Timestamp::now().to_string();
        let mut before = BTreeMap::new();
        for server in servers.iter().filter(selected) {
            let name = object_name(server).to_owned();
            let offered = self.tool_digests(&mut client, &name).await?;
            self.request_reload(&mut client, &name, &stamp).await?;
            before.insert(name, offered);
        }
        let count =
            if before.len() == 1 { "1 server".to_owned() } else { format!("{} servers", before.len()) };
        output::print(&format!("requested reload of {count}\n")).map_err(CommandError::failed)?;
        if self.no_wait {
            Ok(())
        } else {
            self.wait_until_handled(&instance, &mut client, &stamp, before, end).await
        }
    }

    /// Confirms that the directory is intentionally empty, and waits until no removal is held back.
    async fn confirm_removal(
        &self,
        instance: &Instance,
        client: &mut StatusClient,
    ) -> Result<(), CommandError> {
        let mut source = WatchCache::open(instance, ObjectKind::Source, None).await?;
        if !source.objects().any(holds_removal) {
            let message = "no removal is held back; there is nothing to confirm\n";
            return output::print(message).map_err(CommandError::failed);
        }
        client.send(Method::POST, PRUNE_EMPTY_PATH, "application/json", None).await.map(drop)?;
        let end = Instant::now() + self.wait.timeout.get();
        while !self.no_wait && source.objects().any(holds_removal) {
            let Ok(changed) = timeout_at(end, source.changed()).await else {
                return Err(CommandError::Failed(format!("timed out after {}", self.wait.timeout)));
            };
            changed?;
        }
        output::print("confirmed: the objects of the deleted files are removed\n")
            .map_err(CommandError::failed)
    }

    fn query(&self) -> ListQuery {
        ListQuery::new(ObjectKind::McpServer, Some(&self.target.namespace))
    }

    async fn tool_digests(&self, client: &mut StatusClient, name: &str) -> Result<ToolDigests, CommandError> {
        let offered: ToolsResponse = client.get(&self.query().subpath(&[name, "tools"])).await?;
        Ok(offered.tools)
    }

    async fn request_reload(
        &self,
        client: &mut StatusClient,
        name: &str,
        stamp: &str,
    ) -> Result<(), CommandError> {
        let mut annotations = BTreeMap::from([(RECONCILE_REQUESTED_AT, stamp)]);
        if self.reconnect {
            annotations.insert(RECONNECT_REQUESTED_AT, stamp);
        }
        let patch = json!({ "metadata": { "annotations": annotations } });
        let body = Some(("application/merge-patch+json", &patch));
        client.send(Method::PATCH, &self.query().subpath(&[name]), "application/json", body).await.map(drop)
    }

    /// Waits for each server and prints its result, in the order in which they complete.
    async fn wait_until_handled(
        &self,
        instance: &Instance,
        client: &mut StatusClient,
        stamp: &str,
        mut waiting: BTreeMap<String, ToolDigests>,
        end: Instant,
    ) -> Result<(), CommandError> {
        let mut progress = ProgressLine::default();
        let mut cache =
            WatchCache::open(instance, ObjectKind::McpServer, Some(&self.target.namespace)).await?;
        let (mut failed, total) = (0, waiting.len());
        loop {
            let handled: Vec<String> = waiting
                .keys()
                .filter(|name| {
                    cache.get(&self.target.namespace, name).is_none_or(|server| is_handled(server, stamp))
                })
                .cloned()
                .collect();
            for name in handled {
                progress.clear();
                let before = waiting.remove(&name).unwrap_or_default();
                let Some(server) = cache.get(&self.target.namespace, &name) else {
                    output::print(&format!("{name}: no longer declared\n")).map_err(CommandError::failed)?;
                    continue;
                };
                let ready = condition(server, "Ready").cloned().unwrap_or_default();
                let line = if let Some(failure) = list_failure(server) {
                    failed += 1;
                    format!("{name}: {}\n", sanitize(failure))
                } else if text_at(&ready, "/status") == "True" {
                    let after = self.tool_digests(client, &name).await?;
                    format!("{name}: {}\n", difference(&before, &after))
                } else {
                    failed += 1;
                    let message = sanitize(text_at(&ready, "/message"));
                    format!("{name}: {}: {message}\n", text_at(&ready, "/reason"))
                };
                output::print(&line).map_err(CommandError::failed)?;
            }
            if waiting.is_empty() {
                break;
            }
            let names: Vec<_> = waiting.keys().map(String::as_str).collect();
            progress.show(&format!("waiting for {}", names.join(", ")));
            let Ok(changed) = timeout_at(end, cache.changed()).await else {
                drop(progress);
                return Err(self.timeout_error(&names.join(", ")));
            };
            changed?;
        }
        if failed > 0 {
            Err(CommandError::Failed(format!("{failed} of {total} servers failed to reload")))
        } else {
            Ok(())
        }
    }

    fn timeout_error(&self, what: &str) -> CommandError {
        CommandError::Failed(format!("timed out after {} waiting for {what}", self.wait.timeout))
    }
}

/// True once a server has handled the request, whatever the result.
fn is_handled(server: &Value, stamp: &str) -> bool {
    let Some(ready) = condition(server, "Ready").filter(|ready| is_current(server, ready)) else {
        return false;
    };
    let is_false =
        |kind| condition(server, kind).is_some_and(|condition| text_at(condition, "/status") == "False");
    let is = |reason: Reason| text_at(ready, "/reason") == reason.to_string();
    // A server that is not accepted, lacks a reference or is suspended handles nothing until that changes.
    is_false("Accepted")
        || is_false("ResolvedRefs")
        || is(Reason::Suspended)
        || text_at(server, "/status/lastHandledReconcileAt") == stamp && !is(Reason::Connecting)
}

/// Returns the reason why the lists of an attached server could not be read again.
fn list_failure(server: &Value) -> Option<&str> {
    let is_true = |kind| condition(server, kind).filter(|condition| text_at(condition, "/status") == "True");
    let unavailable =
        |condition: &&Value| text_at(condition, "/reason") == Reason::ListUnavailable.to_string();
    let degraded = is_true("Ready").and_then(|_| is_true("Degraded")).filter(unavailable);
    degraded
        .or_else(|| is_true("Ready").and_then(|_| is_true("Reconciling")))
        .map(|condition| text_at(condition, "/message"))
}

fn difference(before: &ToolDigests, after: &ToolDigests) -> String {
    let added = after.keys().filter(|name| !before.contains_key(*name));
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    let both = || after.iter().filter_map(|(name, digest)| Some((name, before.get(name)? == digest)));
    let changed = both().filter(|(_, same)| !same).map(|(name, _)| name);
    let unchanged = both().filter(|(_, same)| *same).count();
    let mut parts = Vec::new();
    for (verb, names) in
        [("added", added.collect::<Vec<_>>()), ("removed", removed.collect()), ("changed", changed.collect())]
    {
        if !names.is_empty() {
            let names: Vec<_> = names.into_iter().map(String::as_str).collect();
            parts.push(format!("{verb} {}", names.join(", ")));
        }
    }
    parts.push(format!("unchanged {unchanged}"));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_lists_added_removed_and_changed_tools() {
        let tools = |list: &[(&str, &str)]| -> ToolDigests {
            list.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect()
        };
        let before = tools(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let after = tools(&[("b", "2"), ("c", "1"), ("d", "1")]);
        assert_eq!(difference(&before, &after), "added d; removed a; changed b; unchanged 1");
        assert_eq!(difference(&before, &before), "unchanged 3");
    }
}
