//! A directory of declarations.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A temporary directory with YAML files.
pub struct TestDirectory(TempDir);

impl TestDirectory {
    /// An empty one.
    pub fn new() -> Self {
        Self(TempDir::with_prefix("declared").unwrap())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Renames a file with this text into place, as careful editors and git do.
    pub fn write(&self, file: &str, text: &str) {
        let half = self.0.path().join(format!(".{file}.half"));
        std::fs::write(&half, text).unwrap();
        std::fs::rename(half, self.file_path(file)).unwrap();
    }

    /// Writes into the file that is there, as careless editors do.
    pub fn overwrite(&self, file: &str, text: &str) {
        std::fs::write(self.file_path(file), text).unwrap();
    }

    /// Declares one server in a file of its name. `spec` is the lines under `spec:`.
    pub fn write_server(&self, name: &str, spec: &str) {
        self.write(&format!("{name}.yaml"), &server_yaml(name, spec));
    }

    /// Gives a file another name.
    pub fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.file_path(from), self.file_path(to)).unwrap();
    }

    /// Takes a file away.
    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.file_path(file)).unwrap();
    }

    fn file_path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }
}

/// The YAML of one server. `spec` is the lines under `spec:`.
pub fn server_yaml(name: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\nspec:\n  {spec}\n"
    )
}
