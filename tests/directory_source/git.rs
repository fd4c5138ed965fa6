//! Directories that git keeps, with the real git.

use super::*;

impl Rig {
    /// Runs git in the source, or in a folder beside it.
    fn git(&self, folder: &str, args: &[&str]) -> String {
        real_git::git(&self.folder.path().join(folder), "Ann", args)
    }

    fn commit(&self, message: &str) -> String {
        self.git("fleet", &["add", "-A"]);
        self.git("fleet", &["commit", "-q", "-m", message]);
        self.git("fleet", &["rev-parse", "HEAD"])
    }

    async fn until_revision(&mut self, expected: &str) -> Arc<Desired> {
        self.until_that(|desired| &*desired.source.revision == expected).await
    }

    fn change(&self, name: &str) -> Option<String> {
        let change = self.server(name).meta.change.clone()?;
        Some(format!("{} {} {}", change.id, change.author, change.subject))
    }
}

#[tokio::test]
async fn the_revision_is_the_commit_and_objects_know_who_changed_them() {
    let mut rig = Rig::new(&ab());
    rig.git("fleet", &["init", "-q"]);
    let first = rig.commit("Two servers\n\nand more words");
    rig.start();
    rig.until_revision(&first).await;
    let by_ann = |commit: &str, subject: &str| Some(format!("{commit} Ann <ann@example.com> {subject}"));
    assert_eq!(rig.change("a"), by_ann(&first, "Two servers"));
    let peer = rig.server("b");

    // An edit is not committed yet: nobody is told to have made it.
    rig.write("a.yaml", &server("a", "w"));
    rig.until(&["a/2 w", "b/1 x"]).await;
    rig.until_revision(&format!("{first}-dirty")).await;
    assert_eq!((rig.change("a"), &*rig.server("a").meta.revision), (None, &*format!("{first}-dirty")));
    let second = rig.commit("Another command");
    rig.until_revision(&second).await;
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));

    // Files that are new, missing or not declarations.
    rig.write("README.txt", "x");
    rig.write("c.yaml", &server("c", "x"));
    rig.until_revision(&format!("{second}-dirty")).await;
    rig.remove("c.yaml");
    rig.until_revision(&second).await;
    rig.remove("team/b.yaml");
    rig.until_revision(&format!("{second}-dirty")).await;
    rig.git("fleet", &["checkout", "-q", "--", "."]);
    rig.until_revision(&second).await;

    // Back, to a detached HEAD: the change is that of the commit which last touched the file there.
    rig.git("fleet", &["checkout", "-q", &first]);
    rig.until_revision(&first).await;
    rig.until(&["a/3 x", "b/1 x"]).await;
    assert_eq!(rig.change("a"), by_ann(&first, "Two servers"));
    rig.stop().await;

    // What is known outlives a restart, and a repository that breaks.
    fs::write(rig.path(".git/HEAD"), "broken").unwrap();
    rig.start();
    let digest = rig.until_that(|desired| desired.source.revision.starts_with("sha256:")).await;
    assert_eq!(told(&digest), ["a/3 x", "b/1 x"]);
    assert_eq!(rig.change("a"), by_ann(&first, "Two servers"));
    rig.stop().await;
}

#[tokio::test]
async fn a_work_tree_of_a_folder_is_a_source_like_any_other() {
    let mut rig = Rig::at("tree/team", &[]);
    rig.write("team/a.yaml", &server("a", "x"));
    rig.write("elsewhere.yaml", &server("e", "x"));
    rig.git("fleet", &["init", "-q"]);
    let first = rig.commit("First");
    rig.git("fleet", &["worktree", "add", "-q", "../tree", "-b", "other"]);
    rig.start();
    rig.until_revision(&first).await;
    assert_eq!(told(&rig.now()), ["a/1 x"]);
    assert!(rig.change("a").unwrap().ends_with(" First"));
    rig.write("elsewhere.yaml", "# what is outside of the root is not looked at\n");
    fs::write(rig.folder.path().join("tree/team/a.yaml"), server("a", "w")).unwrap();
    rig.until(&["a/2 w"]).await;
    rig.until_revision(&format!("{first}-dirty")).await;
    rig.git("tree", &["commit", "-q", "-a", "-m", "Second"]);
    let second = rig.git("tree", &["rev-parse", "HEAD"]);
    rig.until_revision(&second).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_submodule_has_a_commit_of_its_own() {
    let mut rig = Rig::at("outer/team", &[]);
    rig.write("a.yaml", &server("a", "x"));
    rig.git("fleet", &["init", "-q"]);
    let first = rig.commit("First");
    fs::create_dir_all(rig.folder.path().join("outer")).unwrap();
    rig.git("outer", &["init", "-q"]);
    let add = ["-c", "protocol.file.allow=always", "submodule", "add", "-q", "../fleet", "team"];
    rig.git("outer", &add);
    rig.git("outer", &["commit", "-q", "-m", "Outer"]);
    rig.start();
    rig.until_revision(&first).await;
    fs::write(rig.folder.path().join("outer/team/a.yaml"), server("a", "w")).unwrap();
    rig.until_revision(&format!("{first}-dirty")).await;
    rig.git("outer/team", &["commit", "-q", "-a", "-m", "Second"]);
    let second = rig.git("outer/team", &["rev-parse", "HEAD"]);
    rig.until_revision(&second).await;
    rig.stop().await;
}

#[tokio::test]
#[cfg_attr(without_reftable, ignore = "needs git 2.45 or later")]
async fn refs_may_be_in_a_reftable() {
    let mut rig = Rig::at("tree", &[]);
    rig.write("a.yaml", &server("a", "x"));
    rig.git("fleet", &["init", "-q", "--ref-format=reftable"]);
    let first = rig.commit("First");
    rig.git("fleet", &["worktree", "add", "-q", "../tree", "-b", "other"]);
    rig.start();
    rig.until_revision(&first).await;
    assert!(rig.change("a").unwrap().ends_with(" First"));
    fs::write(rig.folder.path().join("tree/a.yaml"), server("a", "w")).unwrap();
    rig.until_revision(&format!("{first}-dirty")).await;
    rig.git("tree", &["commit", "-q", "-a", "-m", "Second"]);
    let second = rig.git("tree", &["rev-parse", "HEAD"]);
    rig.until_revision(&second).await;
    rig.git("tree", &["checkout", "-q", "--detach", &first]);
    rig.until_revision(&first).await;
    rig.stop().await;
}
