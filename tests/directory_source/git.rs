//! Directories in git repositories, with the real git.

use super::*;

impl TestDirectory {
    /// Runs git in the source, or in a folder next to it.
    fn git(&self, folder: &str, args: &[&str]) -> String {
        real_git::git(&self.folder.path().join(folder), "Ann", args)
    }

    fn commit(&self, message: &str) -> String {
        self.git("fleet", &["add", "-A"]);
        self.git("fleet", &["commit", "-q", "-m", message]);
        self.git("fleet", &["rev-parse", "HEAD"])
    }

    async fn wait_for_revision(&mut self, expected: &str) -> Arc<Desired> {
        self.wait_for(|desired| &*desired.source.revision == expected).await
    }

    fn last_change(&self, name: &str) -> Option<String> {
        let change = self.server(name).meta.last_commit.clone()?;
        Some(format!("{} {} {}", change.id, change.author, change.subject))
    }
}

#[tokio::test]
async fn revision_and_last_change_come_from_git() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.git("fleet", &["init", "-q"]);
    let first = directory.commit("Two servers\n\nand more words");
    directory.start();
    directory.wait_for_revision(&first).await;
    let by_ann = |commit: &str, subject: &str| Some(format!("{commit} Ann <ann@example.com> {subject}"));
    assert_eq!(directory.last_change("a"), by_ann(&first, "Two servers"));
    let unrelated = directory.server("b");

    // An edit that is not committed has no author.
    directory.write("a.yaml", &server("a", "w"));
    directory.wait_for_servers(&["a/2 w", "b/1 x"]).await;
    directory.wait_for_revision(&format!("{first}-dirty")).await;
    assert_eq!(
        (directory.last_change("a"), &*directory.server("a").meta.revision),
        (None, &*format!("{first}-dirty"))
    );
    let second = directory.commit("Another command");
    directory.wait_for_revision(&second).await;
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));

    // Files that are new or missing, and files that are not declarations.
    directory.write("README.txt", "x");
    directory.write("c.yaml", &server("c", "x"));
    directory.wait_for_revision(&format!("{second}-dirty")).await;
    directory.remove("c.yaml");
    directory.wait_for_revision(&second).await;
    directory.remove("team/b.yaml");
    directory.wait_for_revision(&format!("{second}-dirty")).await;
    directory.git("fleet", &["checkout", "-q", "--", "."]);
    directory.wait_for_revision(&second).await;

    // Returns to a detached HEAD: the change is the commit that last changed the file there.
    directory.git("fleet", &["checkout", "-q", &first]);
    directory.wait_for_revision(&first).await;
    directory.wait_for_servers(&["a/3 x", "b/1 x"]).await;
    assert_eq!(directory.last_change("a"), by_ann(&first, "Two servers"));
    directory.stop().await;

    // The objects survive a restart and a broken repository.
    fs::write(directory.path(".git/HEAD"), "broken").unwrap();
    directory.start();
    let desired = directory.wait_for(|desired| desired.source.revision.starts_with("sha256:")).await;
    assert_eq!(describe_servers(&desired), ["a/3 x", "b/1 x"]);
    assert_eq!(directory.last_change("a"), by_ann(&first, "Two servers"));
    directory.stop().await;
}

#[tokio::test]
async fn linked_work_tree_is_a_valid_source() {
    let mut directory = TestDirectory::with_root("tree/team", &[]);
    directory.write("team/a.yaml", &server("a", "x"));
    directory.write("elsewhere.yaml", &server("e", "x"));
    directory.git("fleet", &["init", "-q"]);
    let first = directory.commit("First");
    directory.git("fleet", &["worktree", "add", "-q", "../tree", "-b", "other"]);
    directory.start();
    directory.wait_for_revision(&first).await;
    assert_eq!(describe_servers(&directory.desired()), ["a/1 x"]);
    assert!(directory.last_change("a").unwrap().ends_with(" First"));
    directory.write("elsewhere.yaml", "# files outside the root are not read\n");
    fs::write(directory.folder.path().join("tree/team/a.yaml"), server("a", "w")).unwrap();
    directory.wait_for_servers(&["a/2 w"]).await;
    directory.wait_for_revision(&format!("{first}-dirty")).await;
    directory.git("tree", &["commit", "-q", "-a", "-m", "Second"]);
    let second = directory.git("tree", &["rev-parse", "HEAD"]);
    directory.wait_for_revision(&second).await;
    directory.stop().await;
}

#[tokio::test]
async fn submodule_revision_is_its_own_commit() {
    let mut directory = TestDirectory::with_root("outer/team", &[]);
    directory.write("a.yaml", &server("a", "x"));
    directory.git("fleet", &["init", "-q"]);
    let first = directory.commit("First");
    fs::create_dir_all(directory.folder.path().join("outer")).unwrap();
    directory.git("outer", &["init", "-q"]);
    let add = ["-c", "protocol.file.allow=always", "submodule", "add", "-q", "../fleet", "team"];
    directory.git("outer", &add);
    directory.git("outer", &["commit", "-q", "-m", "Outer"]);
    directory.start();
    directory.wait_for_revision(&first).await;
    fs::write(directory.folder.path().join("outer/team/a.yaml"), server("a", "w")).unwrap();
    directory.wait_for_revision(&format!("{first}-dirty")).await;
    directory.git("outer/team", &["commit", "-q", "-a", "-m", "Second"]);
    let second = directory.git("outer/team", &["rev-parse", "HEAD"]);
    directory.wait_for_revision(&second).await;
    directory.stop().await;
}

#[tokio::test]
#[cfg_attr(without_reftable, ignore = "needs git 2.45 or later")]
async fn refs_in_a_reftable_are_supported() {
    let mut directory = TestDirectory::with_root("tree", &[]);
    directory.write("a.yaml", &server("a", "x"));
    directory.git("fleet", &["init", "-q", "--ref-format=reftable"]);
    let first = directory.commit("First");
    directory.git("fleet", &["worktree", "add", "-q", "../tree", "-b", "other"]);
    directory.start();
    directory.wait_for_revision(&first).await;
    assert!(directory.last_change("a").unwrap().ends_with(" First"));
    fs::write(directory.folder.path().join("tree/a.yaml"), server("a", "w")).unwrap();
    directory.wait_for_revision(&format!("{first}-dirty")).await;
    directory.git("tree", &["commit", "-q", "-a", "-m", "Second"]);
    let second = directory.git("tree", &["rev-parse", "HEAD"]);
    directory.wait_for_revision(&second).await;
    directory.git("tree", &["checkout", "-q", "--detach", &first]);
    directory.wait_for_revision(&first).await;
    directory.stop().await;
}
