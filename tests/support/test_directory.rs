//! A temporary directory of declarations.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A temporary directory with YAML files.
pub struct TestDirectory(TempDir);

impl TestDirectory {
    /// Creates an empty directory.
    pub fn new() -> Self {
        Self(TempDir::with_prefix("declared").unwrap())
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file by a rename into place, as editors with atomic saves and git do.
    pub fn write(&self, file: &str, text: &str) {
        let staged = self.0.path().join(format!(".{file}.staged"));
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, self.file_path(file)).unwrap();
    }

    /// Writes into the existing file, as editors without atomic saves do.
    pub fn overwrite(&self, file: &str, text: &str) {
        std::fs::write(self.file_path(file), text).unwrap();
    }

    /// Declares one server in a file named after it. `spec` is the lines under `spec:`.
    pub fn write_server(&self, name: &str, spec: &str) {
        self.write(&format!("{name}.yaml"), &server_yaml(name, spec));
    }

    /// Renames a file.
    pub fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.file_path(from), self.file_path(to)).unwrap();
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.file_path(file)).unwrap();
    }

    fn file_path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }
}

/// Returns the YAML of one server. `spec` is the lines under `spec:`.
pub fn server_yaml(name: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\nspec:\n  {spec}\n"
    )
}
