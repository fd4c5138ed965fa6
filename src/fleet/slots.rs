use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::descriptor_budget::DescriptorBudget;
use crate::resource::{StdioEndpoint, Transport};
use crate::wire::{ConnectionError, ProcessActivity};

/// The most concurrent attempts over HTTP in their busy phase.
const MAX_HTTP_ATTEMPTS: usize = 64;
/// The most processes starting at once: a start uses a core for a while.
const MAX_STDIO_ATTEMPTS: usize = 8;
/// The most runners that may be downloading a server at once.
const MAX_RUNNER_ATTEMPTS: usize = 4;
/// The longest time that an attempt over HTTP holds its slot. A hanging attempt uses no resources, so it does not block
/// others.
const HTTP_SLOT_TIMEOUT: Duration = Duration::from_millis(200);
/// The longest time that a process start holds its slot. A start is busy for longer than a request, but releases its
/// slot when the process becomes idle.
const STDIO_SLOT_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest time that a runner's first start holds its slot.
const RUNNER_SLOT_TIMEOUT: Duration = Duration::from_secs(30);
/// Commands that download a server before they run it, with the first argument that makes them do so, if one is needed.
const DOWNLOADING_COMMANDS: [(&str, Option<&str>); 18] = [
    ("npx", None),
    ("pnpx", None),
    ("bunx", None),
    ("uvx", None),
    ("pipx", None),
    ("dnx", None),
    ("npm", Some("exec")),
    ("npm", Some("x")),
    ("pnpm", Some("dlx")),
    ("yarn", Some("dlx")),
    ("bun", Some("x")),
    ("uv", Some("tool")),
    ("uv", Some("run")),
    ("docker", Some("run")),
    ("podman", Some("run")),
    ("deno", Some("run")),
    ("go", Some("run")),
    ("nix", Some("run")),
];

/// Limits how many attempts to connect are in their busy phase at once, and the files that they open.
#[derive(Debug)]
pub(super) struct AttemptSlots {
    descriptors: DescriptorBudget,
    http: Arc<Semaphore>,
    stdio: Arc<Semaphore>,
    runners: Arc<Semaphore>,
}

impl Default for AttemptSlots {
    fn default() -> Self {
        let [http, stdio, runners] = [MAX_HTTP_ATTEMPTS, MAX_STDIO_ATTEMPTS, MAX_RUNNER_ATTEMPTS]
            .map(|slots| Arc::new(Semaphore::new(slots)));
        Self { descriptors: DescriptorBudget::default(), http, stdio, runners }
    }
}

impl AttemptSlots {
    /// Runs an attempt once a slot is free. The slot is released when the attempt ends, or before.
    ///
    /// `first` is true if the server has never answered yet: a runner may have to download it, and then takes a slot of
    /// its own kind, so that no other server waits for the download.
    ///
    /// # Errors
    ///
    /// Returns the error of the attempt, or one with [`Reason::LocalLimit`](crate::resource::Reason::LocalLimit) if too few
    /// files may be opened.
    pub(super) async fn run<T>(
        &self,
        transport: &Transport,
        activity: &ProcessActivity,
        first: bool,
        attempt: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, ConnectionError> {
        let (slots, slot_timeout, process) = match transport {
            Transport::Http(_) => (&self.http, HTTP_SLOT_TIMEOUT, None),
            Transport::Stdio(endpoint) if first && may_download(endpoint) => {
                (&self.runners, RUNNER_SLOT_TIMEOUT, None)
            }
            Transport::Stdio(_) => (&self.stdio, STDIO_SLOT_TIMEOUT, Some(activity)),
        };
        // The semaphores are never closed.
        let permit: Option<OwnedSemaphorePermit> = slots.clone().acquire_owned().await.ok();
        let descriptors = self.descriptors.reserve().await?;
        tokio::pin!(attempt);
        let idle = async {
            match process {
                Some(process) => process.wait_until_idle().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = &mut attempt => return result,
            _ = tokio::time::timeout(slot_timeout, idle) => drop((permit, descriptors)),
        }
        attempt.await
    }
}

/// Returns true if the command may download the server before it runs it.
fn may_download(endpoint: &StdioEndpoint) -> bool {
    let program = Path::new(&endpoint.command).file_name().and_then(|name| name.to_str());
    let first = endpoint.args.first().map(String::as_str);
    DOWNLOADING_COMMANDS.iter().any(|(command, argument)| {
        program == Some(command) && argument.is_none_or(|argument| first == Some(argument))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn stdio_transport(line: &str) -> Transport {
        let mut arguments = line.split(' ').map(str::to_owned);
        let command = arguments.next().unwrap_or_default();
        Transport::Stdio(StdioEndpoint { command, args: arguments.collect(), cwd: None, env: Vec::new() })
    }

    #[test]
    fn downloading_commands_are_recognized() {
        for (line, expected) in [
            ("npx -y @modelcontextprotocol/server-everything", true),
            ("/usr/local/bin/uvx mcp-server-time", true),
            ("uv tool run mcp-server-time", true),
            ("docker run -i --rm mcp/time", true),
            ("npm exec -y server", true),
            ("npm start", false),
            ("docker", false),
            ("python server.py npx", false),
            ("mcp-npx", false),
        ] {
            let Transport::Stdio(endpoint) = stdio_transport(line) else { unreachable!() };
            assert_eq!(may_download(&endpoint), expected, "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn downloads_delay_only_each_other_and_not_for_long() {
        let (slots, activity) = (AttemptSlots::default(), ProcessActivity::default());
        let (runner, other) = (stdio_transport("npx x"), stdio_transport("x"));
        let hanging: Vec<_> = (0..MAX_RUNNER_ATTEMPTS)
            .map(|_| {
                let attempt = std::future::pending::<Result<(), ConnectionError>>();
                Box::pin(slots.run(&runner, &activity, true, attempt)).shared()
            })
            .collect();
        let all = futures_util::future::join_all(hanging);
        let mut all = std::pin::pin!(all);
        assert!(all.as_mut().now_or_never().is_none());
        // A command that downloads nothing, and a server that has answered before, do not wait.
        for (transport, first) in [(&other, true), (&runner, false)] {
            assert!(slots.run(transport, &activity, first, async { Ok(()) }).now_or_never().is_some());
        }
        assert!(slots.run(&runner, &activity, true, async { Ok(()) }).now_or_never().is_none());
        let started_at = tokio::time::Instant::now();
        tokio::select! {
            _ = all => unreachable!(),
            result = slots.run(&runner, &activity, true, async { Ok(()) }) => result.unwrap(),
        }
        assert!(
            started_at.elapsed() >= RUNNER_SLOT_TIMEOUT && started_at.elapsed() < RUNNER_SLOT_TIMEOUT * 2
        );
    }
}
