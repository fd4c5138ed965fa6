use std::fmt;
use std::path::PathBuf;

use tokio::net::UnixStream;

use super::dirs;
use super::error::CommandError;
use crate::daemon::socket;
use crate::state_dir::StateDir;

/// Which running evenkeel a command asks.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "printed as it is by --help")]
pub(super) struct InstanceArgs {
    /// The directory that evenkeel runs on [default: $XDG_CONFIG_HOME/evenkeel]
    #[arg(long, env = "EVENKEEL_DIR", value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
    /// The one on this machine, or in this container, that runs with --kubernetes
    #[arg(long, global = true)]
    kubernetes: bool,
}

/// Which running evenkeel a command asks, and for what is declared in which of its namespaces.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct NamespacedInstanceArgs {
    #[command(flatten)]
    pub instance: InstanceArgs,
    /// In this namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
}

impl InstanceArgs {
    /// The same, where a directory may be named in another way too.
    pub fn with_dir(self, dir: Option<PathBuf>) -> Self {
        Self { dir: dir.or(self.dir), ..self }
    }

    /// Finds out which daemon is meant.
    pub fn resolve(&self) -> Result<Instance, CommandError> {
        if self.kubernetes {
            return Ok(Instance {
                state_dirs: dirs::dir_entries(&dirs::clusters_state_home()?)?,
                directory: None,
                display_name: "a cluster".into(),
                start_command: "evenkeel run --kubernetes".into(),
            });
        }
        Instance::for_directory(dirs::declarations_dir(self.dir.clone())?)
    }

    /// The directory whose files are to be edited, absolute, with its links unresolved.
    pub fn declarations_dir(&self) -> Result<PathBuf, CommandError> {
        let elsewhere = || CommandError::Usage("what a cluster declares is changed with kubectl".into());
        self.resolve()?.directory.ok_or_else(elsewhere)
    }
}

/// Which daemon: that of a directory of declarations, or the only one that reads a cluster.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    /// The state directories that it may have.
    pub state_dirs: Vec<PathBuf>,
    /// The command that starts it.
    pub start_command: String,
    /// The directory of its declarations, if they are in one.
    directory: Option<PathBuf>,
    display_name: String,
}

impl Instance {
    /// The daemon of a directory of declarations.
    pub fn for_directory(directory: PathBuf) -> Result<Self, CommandError> {
        let shown = directory.display().to_string();
        Ok(Self {
            state_dirs: vec![StateDir::path_for(&dirs::state_home()?, &directory)],
            start_command: format!("evenkeel run {shown}"),
            directory: Some(directory),
            display_name: shown,
        })
    }

    /// Connects to it; `None` if it does not run. Must be called within a runtime.
    pub fn connect(&self) -> Result<Option<UnixStream>, CommandError> {
        let mut found = None;
        for state in &self.state_dirs {
            let stream = socket::connect(state).map_err(|error| {
                CommandError::Failed(format!("the evenkeel of {self} cannot be asked: {error}"))
            })?;
            if let Some(stream) = stream
                && found.replace(stream).is_some()
            {
                return Err(CommandError::Failed(
                    "more than one evenkeel reads a cluster here; ask the cluster itself with kubectl".into(),
                ));
            }
        }
        Ok(found)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display_name)
    }
}
