//! What people do to a directory of declarations, and what comes of it. Real files, real events.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may block and fail")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evenkeel::resource::{DigestKey, McpServerSpec, ObjectKey, Reason};
use evenkeel::source::directory::{self, Environment, Options};
use evenkeel::source::{Declared, Desired, Watching};
use evenkeel::state::StateDir;
use tempfile::TempDir;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with a directory source in it, `fleet` unless said otherwise.
struct Rig {
    folder: TempDir,
    options: Options,
    source: Option<Source>,
}

struct Source {
    desired: Receiver<Arc<Desired>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Rig {
    /// Files are written before the source starts.
    fn new(files: &[(&str, String)]) -> Self {
        Self::at("fleet", files)
    }

    /// A rig whose root is `root`, made by `files` or later.
    fn at(root: &str, files: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            root: folder.path().join(root),
            secrets: folder.path().join("secrets"),
            environment: Environment::from_iter([("PROXY", "http://proxy")]),
            key: DigestKey::new(b"key"),
            prune_empty: false,
            poll: None,
        };
        let rig = Self { folder, options, source: None };
        for (name, text) in files {
            rig.write(name, text);
        }
        rig
    }

    fn start(&mut self) {
        let state = StateDir::open(&self.folder.path().join("state"), &self.options.root).unwrap();
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let desired = directory::start(self.options.clone(), Arc::new(state), &tracker, cancel.clone());
        self.source = Some(Source { desired, tracker, cancel });
    }

    async fn stop(&mut self) {
        let source = self.source.take().unwrap();
        source.cancel.cancel();
        source.tracker.close();
        timeout(PATIENCE, source.tracker.wait()).await.unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("fleet").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn now(&self) -> Arc<Desired> {
        Arc::clone(&self.source.as_ref().unwrap().desired.borrow())
    }

    fn server(&self, name: &str) -> Arc<Declared<McpServerSpec>> {
        let key = ObjectKey::new("default", name);
        Arc::clone(
            self.now().servers.get(&key).unwrap_or_else(|| panic!("no {name} in {:?}", told(&self.now()))),
        )
    }

    /// Waits until what is declared is as expected.
    async fn until(&mut self, expected: &[&str]) -> Arc<Desired> {
        self.until_that(|desired| desired.source.synced && told(desired) == expected).await
    }

    async fn until_that(&mut self, holds: impl Fn(&Desired) -> bool) -> Arc<Desired> {
        let desired = &mut self.source.as_mut().unwrap().desired;
        let found = timeout(PATIENCE, desired.wait_for(|desired| holds(desired))).await;
        let found = found.map(|found| Arc::clone(&found.unwrap()));
        match found {
            Ok(found) => found,
            Err(_) => {
                let now = self.now();
                panic!("never came; it is {:?} with {:#?}", told(&now), now.source)
            }
        }
    }

    /// Waits until all that was done before is seen: another change is, which is taken with everything else.
    async fn all_seen(&mut self) {
        let name = "marker.yaml";
        for command in ["one", "two"] {
            self.write(name, &server("marker", command));
            self.until_that(|desired| {
                let marker = desired.servers.get(&ObjectKey::new("default", "marker"));
                marker.and_then(|marker| command_of(marker)).is_some_and(|found| found == command)
            })
            .await;
        }
        self.remove(name);
        self.until_that(|desired| !desired.servers.contains_key(&ObjectKey::new("default", "marker"))).await;
    }
}

fn server(name: &str, command: &str) -> String {
    format!(
        "---\napiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {name}\nspec:\n  stdio:\n    command: {command}\n"
    )
}

fn command_of(server: &Declared<McpServerSpec>) -> Option<&str> {
    Some(server.spec.as_ref()?.stdio.as_ref()?.command.as_str())
}

/// `name/generation command`, with what is refused.
fn told(desired: &Desired) -> Vec<String> {
    let told = |server: &Arc<Declared<McpServerSpec>>| {
        let refused = server.refused.as_ref().map(|problem| format!(" {}", problem.reason));
        let command = command_of(server).unwrap_or("-");
        format!(
            "{}/{} {command}{}",
            server.meta.key.name,
            server.meta.generation,
            refused.unwrap_or_default()
        )
    };
    desired.servers.values().map(told).collect()
}

fn ab() -> [(&'static str, String); 2] {
    [("a.yaml", server("a", "x")), ("team/b.yaml", server("b", "x"))]
}

#[tokio::test]
async fn files_are_added_edited_renamed_broken_and_deleted() {
    let mut rig = Rig::new(&ab());
    rig.start();
    let first = rig.until(&["a/1 x", "b/1 x"]).await;
    assert_eq!(first.source.watching, Watching::Events);
    let peer = rig.server("b");

    rig.write("c.yaml", &server("c", "x"));
    rig.until(&["a/1 x", "b/1 x", "c/1 x"]).await;
    rig.write("a.yaml", &server("a", "y"));
    rig.until(&["a/2 y", "b/1 x", "c/1 x"]).await;
    let uid = rig.server("c").meta.uid.clone();
    rig.rename("c.yaml", "team/d.yaml");
    rig.until_that(|desired| {
        desired.servers.values().any(|server| server.meta.origin.to_string() == "team/d.yaml:2")
    })
    .await;
    assert_eq!(rig.server("c").meta.uid, uid);

    rig.write("a.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {\n");
    let broken = rig.until(&["a/2 y ParseError", "b/1 x", "c/1 x"]).await;
    assert_eq!(broken.source.faults.len(), 1, "{:?}", broken.source.faults);
    let refused = rig.server("a").refused.clone().unwrap().message;
    assert!(
        refused.starts_with("a.yaml:") && refused.ends_with("the last good declaration stays in force"),
        "{refused}"
    );
    rig.write("a.yaml", &server("a", "{}"));
    rig.until(&["a/2 y InvalidSpec", "b/1 x", "c/1 x"]).await;
    rig.write("a.yaml", &server("a", "z"));
    let mended = rig.until(&["a/3 z", "b/1 x", "c/1 x"]).await;
    assert_eq!(mended.source.faults, []);

    rig.remove("a.yaml");
    rig.until(&["b/1 x", "c/1 x"]).await;
    fs::remove_dir_all(rig.path("team")).unwrap();
    rig.write("a.yaml", &server("a", "x"));
    rig.until(&["a/1 x"]).await;
    rig.write("team/b.yaml", &server("b", "x"));
    rig.until(&["a/1 x", "b/1 x"]).await;
    assert_ne!(rig.server("b").meta.uid, peer.meta.uid, "it went and came again");
    rig.stop().await;
}

#[tokio::test]
async fn peers_stay_the_same_object_whatever_happens_beside_them() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    rig.write("a.yaml", "]");
    rig.write("team/c.yaml", &server("c", "x"));
    rig.write("team/b.yaml", &(server("b", "x") + &server("d", "x")));
    rig.until(&["a/1 x ParseError", "b/1 x", "c/1 x", "d/1 x"]).await;
    rig.remove("a.yaml");
    rig.remove("team/c.yaml");
    rig.until(&["b/1 x", "d/1 x"]).await;
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    rig.stop().await;
}

#[tokio::test]
async fn an_editor_may_save_as_it_likes() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    let uid = rig.server("a").meta.uid.clone();

    // As vim does: a probe, a backup by rename, a new file, the backup removed.
    rig.write("4913", "");
    rig.remove("4913");
    rig.rename("a.yaml", "a.yaml~");
    rig.write("a.yaml", &server("a", "vim"));
    rig.remove("a.yaml~");
    rig.until(&["a/2 vim", "b/1 x"]).await;

    // As sed -i does: another file, renamed into place.
    rig.write("sedXy12", &server("a", "sed"));
    rig.rename("sedXy12", "a.yaml");
    rig.until(&["a/3 sed", "b/1 x"]).await;

    // As simple programs do: truncated, then written in pieces.
    let text = server("a", "slow");
    let mut file = fs::File::create(rig.path("a.yaml")).unwrap();
    for piece in text.as_bytes().chunks(10) {
        std::io::Write::write_all(&mut file, piece).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(file);
    rig.until(&["a/4 slow", "b/1 x"]).await;
    assert_eq!(rig.server("a").meta.uid, uid);
    rig.stop().await;
}

#[tokio::test]
async fn a_new_file_renamed_into_place_is_taken_before_the_tree_is_quiet() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    rig.all_seen().await;
    // The tree is kept noisy, so that nothing but the rename can be the reason.
    let noisy = CancellationToken::new();
    let noise = tokio::spawn({
        let (path, noisy) = (rig.path("noise.yaml"), noisy.clone());
        async move {
            while !noisy.is_cancelled() {
                fs::write(&path, format!("# {:?}\n", Instant::now())).unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let mut times = Vec::new();
    for number in 0..5 {
        rig.write("incoming", &server(&format!("n{number}"), "x"));
        let begun = Instant::now();
        rig.rename("incoming", &format!("n{number}.yaml"));
        rig.until_that(|desired| {
            desired.servers.contains_key(&ObjectKey::new("default", format!("n{number}")))
        })
        .await;
        times.push(begun.elapsed());
    }
    noisy.cancel();
    noise.await.unwrap();
    times.sort();
    println!("rename to desired: {times:?}");
    assert!(times[2] < Duration::from_millis(200), "{times:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_volume_that_kubernetes_mounts_is_flipped() {
    let mut rig = Rig::new(&[("..v1/a.yaml", server("a", "x")), ("..v1/b.yaml", server("b", "x"))]);
    symlink("..v1", rig.path("..data")).unwrap();
    for name in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(name), rig.path(name)).unwrap();
    }
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    let endpoint = |rig: &Rig| rig.server("a").endpoint.clone().unwrap().unwrap().digest();
    let before = endpoint(&rig);

    rig.write("..v2/a.yaml", &server("a", "y"));
    rig.write("..v2/b.yaml", &server("b", "x"));
    rig.write("..v2/c.yaml", &server("c", "x"));
    symlink("..v2", rig.path("..data_tmp")).unwrap();
    rig.rename("..data_tmp", "..data");
    symlink("..data/c.yaml", rig.path("c.yaml")).unwrap();
    fs::remove_dir_all(rig.path("..v1")).unwrap();
    rig.until(&["a/2 y", "b/1 x", "c/1 x"]).await;
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    assert_ne!(endpoint(&rig), before);
    rig.stop().await;
}

#[tokio::test]
async fn a_link_to_the_root_or_above_it_is_flipped() {
    for root in ["current", "current/team"] {
        let at = |version: &str| format!("../{version}/{}", root.strip_prefix("current").unwrap());
        let mut rig = Rig::at(
            root,
            &[
                (&format!("{}/a.yaml", at("v1")), server("a", "x")),
                (&format!("{}/b.yaml", at("v1")), server("b", "x")),
            ],
        );
        let current = rig.folder.path().join("current");
        symlink("v1", &current).unwrap();
        rig.start();
        rig.until(&["a/1 x", "b/1 x"]).await;
        let peer = rig.server("b");

        // As git-sync publishes: another work tree, and one rename.
        for (version, command) in [("v2", "y"), ("v3", "z")] {
            rig.write(&format!("{}/a.yaml", at(version)), &server("a", command));
            rig.write(&format!("{}/b.yaml", at(version)), &server("b", "x"));
            let next = rig.folder.path().join("next");
            symlink(version, &next).unwrap();
            fs::rename(&next, &current).unwrap();
            let generation = if version == "v2" { 2 } else { 3 };
            rig.until(&[&format!("a/{generation} {command}"), "b/1 x"]).await;
        }
        assert!(Arc::ptr_eq(&peer, &rig.server("b")), "where servers run is told by the path as given");
        // And the new tree is watched, not the old one.
        rig.write(&format!("{}/c.yaml", at("v3")), &server("c", "x"));
        rig.until(&["a/3 z", "b/1 x", "c/1 x"]).await;
        rig.stop().await;
    }
}

#[tokio::test]
async fn the_root_is_deleted_and_made_again() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    let unavailable = |desired: &Desired| {
        desired.source.faults.iter().any(|fault| fault.problem.reason == Reason::SourceUnavailable)
    };
    fs::remove_dir_all(rig.path("")).unwrap();
    let gone = rig.until_that(unavailable).await;
    assert_eq!(told(&gone), ["a/1 x", "b/1 x"], "nothing is taken away");

    fs::create_dir(rig.path("")).unwrap();
    let held = |desired: &Desired| {
        desired.source.faults.iter().any(|fault| fault.problem.reason == Reason::RemovalHeld)
    };
    let empty = rig.until_that(held).await;
    assert_eq!(told(&empty), ["a/1 x", "b/1 x"], "not by an empty directory either");
    for (name, text) in ab() {
        rig.write(name, &text);
    }
    let back = rig.until_that(|desired| desired.source.faults.is_empty()).await;
    assert_eq!(told(&back), ["a/1 x", "b/1 x"]);
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    rig.write("c.yaml", &server("c", "x"));
    rig.until(&["a/1 x", "b/1 x", "c/1 x"]).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_root_that_is_not_there_yet_is_waited_for() {
    let mut rig = Rig::at("fleet/deep/er", &[]);
    rig.start();
    let waiting = rig.until_that(|desired| !desired.source.faults.is_empty()).await;
    assert!(!waiting.source.synced);
    assert!(
        waiting.source.faults[0].problem.message.contains("is waited for"),
        "{:?}",
        waiting.source.faults
    );
    rig.write("deep/er/a.yaml", &server("a", "x"));
    let come = rig.until(&["a/1 x"]).await;
    assert_eq!(come.source.faults, []);
    rig.stop().await;
}

#[tokio::test]
async fn what_is_not_a_file_of_the_tree_harms_nobody() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    fs::write(rig.folder.path().join("outside.yaml"), server("o", "x")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        rig.path("fifo.yaml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    symlink("../outside.yaml", rig.path("link.yaml")).unwrap();
    symlink("..", rig.path("up")).unwrap();
    rig.write("huge.yaml", &"#".repeat(2 << 20));
    fs::write(rig.path("junk.yaml"), [0xff, 0xfe, 0, 0x80]).unwrap();
    rig.write("bad\u{1b}[2Jname.yaml", "kind: [");
    rig.write("c.yaml", &server("c", "x"));
    let found =
        rig.until_that(|desired| desired.servers.len() == 3 && desired.source.faults.len() == 6).await;
    assert_eq!(told(&found), ["a/1 x", "b/1 x", "c/1 x"]);
    rig.stop().await;
}

#[tokio::test]
async fn identity_and_last_good_outlive_a_restart() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    rig.write("a.yaml", &server("a", "y"));
    rig.until(&["a/2 y", "b/1 x"]).await;
    let before = [rig.server("a"), rig.server("b")];
    rig.stop().await;

    rig.write("team/b.yaml", "broken: [");
    rig.start();
    rig.until(&["a/2 y", "b/1 x ParseError"]).await;
    for server in before {
        let after = rig.server(&server.meta.key.name);
        assert_eq!(after.meta.uid, server.meta.uid);
        assert_eq!(after.meta.created, server.meta.created);
        assert_eq!(after.spec_digest, server.spec_digest);
    }
    rig.stop().await;

    rig.remove("a.yaml");
    rig.rename("team/b.yaml", "b.yaml");
    rig.write("b.yaml", &server("b", "z"));
    rig.start();
    let first = rig.until_that(|desired| desired.source.synced).await;
    assert_eq!(told(&first), ["b/2 z"], "what is gone is never seen as desired");
    rig.stop().await;
}

#[tokio::test]
async fn where_events_do_not_come_the_clock_does() {
    let mut rig = Rig::new(&ab());
    rig.options.poll = Some(Duration::from_millis(50));
    rig.start();
    let first = rig.until(&["a/1 x", "b/1 x"]).await;
    assert_eq!(first.source.watching, Watching::Polling);
    rig.write("a.yaml", &server("a", "y"));
    rig.write("c.yaml", &server("c", "x"));
    rig.remove("team/b.yaml");
    rig.until(&["a/2 y", "c/1 x"]).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_rotated_secret_and_a_missing_one() {
    let spec = "x\n    env:\n      - { name: T, valueFrom: { secretKeyRef: { name: n, key: k } } }\n      - { name: P, valueFrom: { env: PROXY } }";
    let mut rig = Rig::new(&[("a.yaml", server("a", spec)), ("b.yaml", server("b", "x"))]);
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    let missing = rig.server("a").endpoint.clone().unwrap().unwrap_err();
    assert_eq!(missing.reason, Reason::SecretNotFound);
    let peer = rig.server("b");

    // The way Kubernetes mounts a secret, and rotates it.
    let secret = rig.folder.path().join("secrets/n");
    for (version, value) in [("..1", "hunter2"), ("..2", "hunter3")] {
        fs::create_dir_all(secret.join(version)).unwrap();
        fs::write(secret.join(version).join("k"), value).unwrap();
        symlink(version, secret.join("..tmp")).unwrap();
        fs::rename(secret.join("..tmp"), secret.join("..data")).unwrap();
        let _ = symlink("..data/k", secret.join("k"));
        let last = rig.server("a").endpoint.clone().unwrap().map(|endpoint| endpoint.digest());
        rig.until_that(|desired| {
            let endpoint = desired.servers.values().next().unwrap().endpoint.as_ref().unwrap().as_ref();
            endpoint.is_ok_and(|endpoint| Ok(endpoint.digest()) != last)
        })
        .await;
        assert!(!format!("{:?}", rig.now()).contains("hunter"));
    }
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    assert_eq!(told(&rig.now()), ["a/1 x", "b/1 x"]);
    rig.stop().await;
}

#[tokio::test]
async fn servers_may_write_files_of_their_own_into_the_tree() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    rig.all_seen().await;
    let before = rig.now();
    for number in 0..200 {
        rig.write("team/data.db-journal", &number.to_string());
        rig.rename("team/data.db-journal", "team/data.db");
    }
    rig.write("c.yaml", &server("c", "x"));
    let after = rig.until(&["a/1 x", "b/1 x", "c/1 x"]).await;
    for (key, server) in &before.servers {
        assert!(Arc::ptr_eq(server, &after.servers[key]));
    }
    rig.stop().await;
}

#[tokio::test]
async fn many_files_change_at_once() {
    let name = |number: usize| format!("many/{number}.yaml");
    let mut rig = Rig::new(&ab());
    for number in 0..200 {
        rig.write(&name(number), &server(&format!("s{number}"), "x"));
    }
    rig.start();
    rig.until_that(|desired| desired.source.synced && desired.servers.len() == 202).await;
    let peer = rig.server("b");
    // As git checkout does.
    for number in 0..200 {
        rig.remove(&name(number));
        rig.write(&name(number), &server(&format!("s{number}"), if number % 2 == 0 { "y" } else { "x" }));
    }
    let changed =
        |desired: &Desired| desired.servers.values().filter(|server| command_of(server) == Some("y")).count();
    let found = rig.until_that(|desired| changed(desired) == 100).await;
    assert_eq!(found.servers.len(), 202, "none went on the way");
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    assert!(found.servers.values().all(|server| server.meta.generation <= 2));
    rig.stop().await;
}
