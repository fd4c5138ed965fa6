//! Directories and links that are flipped, deleted and made again, and what does not belong there.

use super::*;

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

    rig.write("..v2/a.yaml", &server("a", "w"));
    rig.write("..v2/b.yaml", &server("b", "x"));
    rig.write("..v2/c.yaml", &server("c", "x"));
    symlink("..v2", rig.path("..data_tmp")).unwrap();
    rig.rename("..data_tmp", "..data");
    symlink("..data/c.yaml", rig.path("c.yaml")).unwrap();
    fs::remove_dir_all(rig.path("..v1")).unwrap();
    rig.until(&["a/2 w", "b/1 x", "c/1 x"]).await;
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
        for (version, command) in [("v2", "w"), ("v3", "z")] {
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
async fn an_empty_directory_is_emptied_once_somebody_says_that_it_is_meant() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    // Said where nothing is held back: it is no permission for later.
    rig.prune();
    let held = |desired: &Desired| {
        desired.source.faults.iter().any(|fault| fault.problem.reason == Reason::RemovalHeld)
    };
    for (name, _) in ab() {
        rig.remove(name);
    }
    let empty = rig.until_that(held).await;
    assert_eq!(told(&empty), ["a/1 x", "b/1 x"]);
    rig.prune();
    let pruned = rig.until(&[]).await;
    assert_eq!(pruned.source.faults, []);

    rig.write("c.yaml", &server("c", "x"));
    rig.until(&["c/1 x"]).await;
    rig.remove("c.yaml");
    let again = rig.until_that(held).await;
    assert_eq!(told(&again), ["c/1 x"], "it was said of the last time");
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
async fn a_rotated_secret_and_a_missing_one() {
    let spec = "x\n    env:\n      - { name: T, valueFrom: { secretKeyRef: { name: s, key: k } } }\n      - { name: P, valueFrom: { env: PROXY } }";
    let mut rig = Rig::new(&[("a.yaml", server("a", spec)), ("b.yaml", server("b", "x"))]);
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    let missing = rig.server("a").endpoint.clone().unwrap().unwrap_err();
    assert_eq!(missing.reason, Reason::SecretNotFound);
    let peer = rig.server("b");

    // The way Kubernetes mounts a secret, and rotates it.
    let secret = rig.folder.path().join("secrets/s");
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
async fn a_folder_is_moved_and_deleted_and_made_again() {
    let mut rig = Rig::new(&ab());
    rig.start();
    rig.until(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    for (from, to) in [("team", "crew"), ("crew", "team"), ("team", "crew")] {
        rig.rename(from, to);
        let place = format!("{to}/b.yaml:2");
        rig.until_that(|desired| {
            desired.servers.values().any(|server| server.meta.origin.to_string() == place)
        })
        .await;
        // What is written there later is heard of, not only found by the clock.
        rig.write(&format!("{to}/c.yaml"), &server("c", to));
        rig.until_that(|desired| told(desired).iter().any(|told| told.ends_with(to))).await;
    }
    assert_eq!(rig.server("b").meta.uid, peer.meta.uid);
    fs::remove_dir_all(rig.path("crew")).unwrap();
    rig.until(&["a/1 x"]).await;
    rig.write("crew/d.yaml", &server("d", "x"));
    rig.until(&["a/1 x", "d/1 x"]).await;
    rig.stop().await;
}
