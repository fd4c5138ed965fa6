//! Directories that git keeps, with the real git.

use super::*;

impl TestDirectory {
    /// Runs git in the source, or in a folder beside it.
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
    let mut rig = TestDirectory::new(&two_servers());
    rig.git("fleet", &["init", "-q"]);
    let first = rig.commit("Two servers\n\nand more words");
    rig.start();
    rig.wait_for_revision(&first).await;
    let by_ann = |commit: &str, subject: &str| Some(format!("{commit} Ann <ann@example.com> {subject}"));
    assert_eq!(rig.last_change("a"), by_ann(&first, "Two servers"));
    let peer = rig.server("b");

    // An edit is not committed yet: nobody is told to have made it.
    rig.write("a.yaml", &server("a", "w"));
    rig.wait_for_servers(&["a/2 w", "b/1 x"]).await;
    rig.wait_for_revision(&format!("{first}-dirty")).await;
    assert_eq!((rig.last_change("a"), &*rig.server("a").meta.revision), (None, &*format!("{first}-dirty")));
    let second = rig.commit("Another command");
    rig.wait_for_revision(&second).await;
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));

    // Files that are new, missing or not declarations.
    rig.write("README.txt", "x");
    rig.write("c.yaml", &server("c", "x"));
    rig.wait_for_revision(&format!("{second}-dirty")).await;
    rig.remove("c.yaml");
    rig.wait_for_revision(&second).await;
    rig.remove("team/b.yaml");
    rig.wait_for_revision(&format!("{second}-dirty")).await;
    rig.git("fleet", &["checkout", "-q", "--", "."]);
    rig.wait_for_revision(&second).await;

    // Back, to a detached HEAD: the change is that of the commit which last touched the file there.
    rig.git("fleet", &["checkout", "-q", &first]);
    rig.wait_for_revision(&first).await;
    rig.wait_for_servers(&["a/3 x", "b/1 x"]).await;
    assert_eq!(rig.last_change("a"), by_ann(&first, "Two servers"));
    rig.stop().await;

    // What is known outlives a restart, and a repository that breaks.
    fs::write(rig.path(".git/HEAD"), "broken").unwrap();
    rig.start();
    let digest = rig.wait_for(|desired| desired.source.revision.starts_with("sha256:")).await;
    assert_eq!(describe_servers(&digest), ["a/3 x", "b/1 x"]);
    assert_eq!(rig.last_change("a"), by_ann(&first, "Two servers"));
    rig.stop().await;
}

#[tokio::test]
async fn linked_work_tree_is_a_valid_source() {
    let mut rig = TestDirectory::with_root("tree/team", &[]);
    rig.write("team/a.yaml", &server("a", "x"));
    rig.write("elsewhere.yaml", &server("e", "x"));
    rig.git("fleet", &["init", "-q"]);
    let first = rig.commit("First");
    rig.git("fleet", &["worktree", "add", "-q", "../tree", "-b", "other"]);
    rig.start();
    rig.wait_for_revision(&first).await;
    assert_eq!(describe_servers(&rig.desired()), ["a/1 x"]);
    assert!(rig.last_change("a").unwrap().ends_with(" First"));
    rig.write("elsewhere.yaml", "# what is outside of the root is not looked at\n");
    fs::write(rig.folder.path().join("tree/team/a.yaml"), server("a", "w")).unwrap();
    rig.wait_for_servers(&["a/2 w"]).await;
    rig.wait_for_revision(&format!("{first}-dirty")).await;
    rig.git("tree", &["commit", "-q", "-a", "-m", "Second"]);
    let second = rig.git("tree", &["rev-parse", "HEAD"]);
    rig.wait_for_revision(&second).await;
    rig.stop().await;
}

#[tokio::test]
async fn submodule_revision_is_its_own_commit() {
    let mut rig = TestDirectory::with_root("outer/team", &[]);
    rig.write("a.yaml", &server("a", "x"));
    rig.git("fleet", &["init", "-q"]);
    let first = rig.commit("First");
    fs::create_dir_all(rig.folder.path().join("outer")).unwrap();
    rig.git("outer", &["init", "-q"]);
    let add = ["-c", "protocol.file.allow=always", "submodule", "add", "-q", "../fleet", "team"];
    rig.git("outer", &add);
    rig.git("outer", &["commit", "-q", "-m", "Outer"]);
    rig.start();
    rig.wait_for_revision(&first).await;
    fs::write(rig.folder.path().join("outer/team/a.yaml"), server("a", "w")).unwrap();
    rig.wait_for_revision(&format!("{first}-dirty")).await;
    rig.git("outer/team", &["commit", "-q", "-a", "-m", "Second"]);
    let second = rig.git("outer/team", &["rev-parse", "HEAD"]);
    rig.wait_for_revision(&second).await;
    rig.stop().await;
}

#[tokio::test]
#[cfg_attr(without_reftable, ignore = "needs git 2.45 or later")]
async fn refs_in_a_reftable_are_supported() {
    let mut rig = TestDirectory::with_root("tree", &[]);
    rig.write("a.yaml", &server("a", "x"));
    rig.git("fleet", &["init", "-q", "--ref-format=reftable"]);
    let first = rig.commit("First");
    rig.git("fleet", &["worktree", "add", "-q", "../tree", "-b", "other"]);
    rig.start();
    rig.wait_for_revision(&first).await;
    assert!(rig.last_change("a").unwrap().ends_with(" First"));
    fs::write(rig.folder.path().join("tree/a.yaml"), server("a", "w")).unwrap();
    rig.wait_for_revision(&format!("{first}-dirty")).await;
    rig.git("tree", &["commit", "-q", "-a", "-m", "Second"]);
    let second = rig.git("tree", &["rev-parse", "HEAD"]);
    rig.wait_for_revision(&second).await;
    rig.git("tree", &["checkout", "-q", "--detach", &first]);
    rig.wait_for_revision(&first).await;
    rig.stop().await;
}
