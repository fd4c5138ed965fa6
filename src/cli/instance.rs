use std::fmt;
use std::path::PathBuf;

use tokio::net::UnixStream;

use super::dirs;
use super::error::CommandError;
use crate::daemon::socket;
use crate::state_dir::StateDir;

/// Arguments that select the running instance of a command.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "printed verbatim by --help")]
pub(super) struct InstanceArgs {
    /// Directory of the running instance [default: $XDG_CONFIG_HOME/evenkeel]
    #[arg(long, env = "EVENKEEL_DIR", value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
    /// Use the instance that runs with --kubernetes on this machine or in this container
    #[arg(long, global = true)]
    kubernetes: bool,
}

/// Arguments that select the running instance of a command, and a namespace.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct NamespacedInstanceArgs {
    #[command(flatten)]
    pub instance: InstanceArgs,
    /// Namespace of the objects
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
}

impl InstanceArgs {
    /// Returns these arguments with `dir` in place of `--dir`, if it is given.
    pub fn with_dir(self, dir: Option<PathBuf>) -> Self {
        Self { dir: dir.or(self.dir), ..self }
    }

    /// Returns the instance that is selected.
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

    /// Returns the directory whose files are to be edited: absolute, with its links unresolved.
    pub fn declarations_dir(&self) -> Result<PathBuf, CommandError> {
        let in_cluster = || CommandError::Usage("objects in a cluster are changed with kubectl".into());
        self.resolve()?.directory.ok_or_else(in_cluster)
    }
}

/// An instance: that of a directory of declarations, or the only one that reads a cluster.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    /// The state directories that it may use.
    pub state_dirs: Vec<PathBuf>,
    /// The command that starts the instance.
    pub start_command: String,
    /// The directory of its declarations, if they are in one.
    directory: Option<PathBuf>,
    display_name: String,
}

impl Instance {
    /// Returns the instance of a directory of declarations.
    pub fn for_directory(directory: PathBuf) -> Result<Self, CommandError> {
        let display_name = directory.display().to_string();
        Ok(Self {
            state_dirs: vec![StateDir::path_for(&dirs::state_home()?, &directory)],
            start_command: format!("evenkeel run {display_name}"),
            directory: Some(directory),
            display_name,
        })
    }

    /// Connects to the instance; `None` if it is not running. Must be called within a runtime.
    pub fn connect(&self) -> Result<Option<UnixStream>, CommandError> {
        let mut found = None;
        for state in &self.state_dirs {
            let stream = socket::connect(state).map_err(|error| {
                CommandError::Failed(format!("cannot connect to the evenkeel instance for {self}: {error}"))
            })?;
            if let Some(stream) = stream
                && found.replace(stream).is_some()
            {
                return Err(CommandError::Failed(
                    "more than one evenkeel instance reads a cluster here; use kubectl instead".into(),
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
