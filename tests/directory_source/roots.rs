//! Directories and links that are flipped, deleted and made again, and what does not belong there.

use super::*;

#[tokio::test]
async fn kubernetes_volume_update_is_followed() {
    let mut rig = TestDirectory::new(&[("..v1/a.yaml", server("a", "x")), ("..v1/b.yaml", server("b", "x"))]);
    symlink("..v1", rig.path("..data")).unwrap();
    for name in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(name), rig.path(name)).unwrap();
    }
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    let endpoint = |rig: &TestDirectory| rig.server("a").endpoint.clone().unwrap().unwrap().digest();
    let before = endpoint(&rig);

    rig.write("..v2/a.yaml", &server("a", "w"));
    rig.write("..v2/b.yaml", &server("b", "x"));
    rig.write("..v2/c.yaml", &server("c", "x"));
    symlink("..v2", rig.path("..data_tmp")).unwrap();
    rig.rename("..data_tmp", "..data");
    symlink("..data/c.yaml", rig.path("c.yaml")).unwrap();
    fs::remove_dir_all(rig.path("..v1")).unwrap();
    rig.wait_for_servers(&["a/2 w", "b/1 x", "c/1 x"]).await;
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    assert_ne!(endpoint(&rig), before);
    rig.stop().await;
}

#[tokio::test]
async fn replaced_link_at_or_above_the_root_is_followed() {
    for root in ["current", "current/team"] {
        let at = |version: &str| format!("../{version}/{}", root.strip_prefix("current").unwrap());
        let mut rig = TestDirectory::with_root(
            root,
            &[
                (&format!("{}/a.yaml", at("v1")), server("a", "x")),
                (&format!("{}/b.yaml", at("v1")), server("b", "x")),
            ],
        );
        let current = rig.folder.path().join("current");
        symlink("v1", &current).unwrap();
        rig.start();
        rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
        let peer = rig.server("b");

        // As git-sync publishes: another work tree, and one rename.
        for (version, command) in [("v2", "w"), ("v3", "z")] {
            rig.write(&format!("{}/a.yaml", at(version)), &server("a", command));
            rig.write(&format!("{}/b.yaml", at(version)), &server("b", "x"));
            let next = rig.folder.path().join("next");
            symlink(version, &next).unwrap();
            fs::rename(&next, &current).unwrap();
            let generation = if version == "v2" { 2 } else { 3 };
            rig.wait_for_servers(&[&format!("a/{generation} {command}"), "b/1 x"]).await;
        }
        assert!(Arc::ptr_eq(&peer, &rig.server("b")), "where servers run is told by the path as given");
        // And the new tree is watched, not the old one.
        rig.write(&format!("{}/c.yaml", at("v3")), &server("c", "x"));
        rig.wait_for_servers(&["a/3 z", "b/1 x", "c/1 x"]).await;
        rig.stop().await;
    }
}

#[tokio::test]
async fn deleted_and_recreated_root_keeps_its_servers() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    let unavailable = |desired: &Desired| {
        desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::SourceUnavailable)
    };
    fs::remove_dir_all(rig.path("")).unwrap();
    let gone = rig.wait_for(unavailable).await;
    assert_eq!(describe_servers(&gone), ["a/1 x", "b/1 x"], "nothing is taken away");

    fs::create_dir(rig.path("")).unwrap();
    let held = |desired: &Desired| {
        desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::RemovalHeld)
    };
    let empty = rig.wait_for(held).await;
    assert_eq!(describe_servers(&empty), ["a/1 x", "b/1 x"], "not by an empty directory either");
    for (name, text) in two_servers() {
        rig.write(name, &text);
    }
    let back = rig.wait_for(|desired| desired.source.problems.is_empty()).await;
    assert_eq!(describe_servers(&back), ["a/1 x", "b/1 x"]);
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    rig.write("c.yaml", &server("c", "x"));
    rig.wait_for_servers(&["a/1 x", "b/1 x", "c/1 x"]).await;
    rig.stop().await;
}

#[tokio::test]
async fn empty_directory_applies_only_after_confirmation() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    // Said where nothing is held back: it is no permission for later.
    rig.confirm_removal();
    let held = |desired: &Desired| {
        desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::RemovalHeld)
    };
    for (name, _) in two_servers() {
        rig.remove(name);
    }
    let empty = rig.wait_for(held).await;
    assert_eq!(describe_servers(&empty), ["a/1 x", "b/1 x"]);
    rig.confirm_removal();
    let pruned = rig.wait_for_servers(&[]).await;
    assert_eq!(pruned.source.problems, []);

    rig.write("c.yaml", &server("c", "x"));
    rig.wait_for_servers(&["c/1 x"]).await;
    rig.remove("c.yaml");
    let again = rig.wait_for(held).await;
    assert_eq!(describe_servers(&again), ["c/1 x"], "it was said of the last time");
    rig.stop().await;
}

#[tokio::test]
async fn missing_root_is_read_once_created() {
    let mut rig = TestDirectory::with_root("fleet/deep/er", &[]);
    rig.start();
    let waiting = rig.wait_for(|desired| !desired.source.problems.is_empty()).await;
    assert!(!waiting.source.synced);
    assert!(
        waiting.source.problems[0].problem.message.contains("is waited for"),
        "{:?}",
        waiting.source.problems
    );
    rig.write("deep/er/a.yaml", &server("a", "x"));
    let come = rig.wait_for_servers(&["a/1 x"]).await;
    assert_eq!(come.source.problems, []);
    rig.stop().await;
}

#[tokio::test]
async fn special_files_do_not_affect_servers() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
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
        rig.wait_for(|desired| desired.servers.len() == 3 && desired.source.problems.len() == 6).await;
    assert_eq!(describe_servers(&found), ["a/1 x", "b/1 x", "c/1 x"]);
    rig.stop().await;
}

#[tokio::test]
async fn rotated_secret_changes_only_its_server() {
    let spec = "x\n    env:\n      - { name: T, valueFrom: { secretKeyRef: { name: s, key: k } } }\n      - { name: P, valueFrom: { env: PROXY } }";
    let mut rig = TestDirectory::new(&[("a.yaml", server("a", spec)), ("b.yaml", server("b", "x"))]);
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
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
        rig.wait_for(|desired| {
            let endpoint = desired.servers.values().next().unwrap().endpoint.as_ref().unwrap().as_ref();
            endpoint.is_ok_and(|endpoint| Ok(endpoint.digest()) != last)
        })
        .await;
        assert!(!format!("{:?}", rig.desired()).contains("hunter"));
    }
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    assert_eq!(describe_servers(&rig.desired()), ["a/1 x", "b/1 x"]);
    rig.stop().await;
}

#[tokio::test]
async fn moved_deleted_and_recreated_folder_is_followed() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    for (from, to) in [("team", "crew"), ("crew", "team"), ("team", "crew")] {
        rig.rename(from, to);
        let place = format!("{to}/b.yaml:2");
        rig.wait_for(|desired| {
            desired.servers.values().any(|server| server.meta.origin.to_string() == place)
        })
        .await;
        // What is written there later is heard of, not only found by the clock.
        rig.write(&format!("{to}/c.yaml"), &server("c", to));
        rig.wait_for(|desired| describe_servers(desired).iter().any(|told| told.ends_with(to))).await;
    }
    assert_eq!(rig.server("b").meta.uid, peer.meta.uid);
    fs::remove_dir_all(rig.path("crew")).unwrap();
    rig.wait_for_servers(&["a/1 x"]).await;
    rig.write("crew/d.yaml", &server("d", "x"));
    rig.wait_for_servers(&["a/1 x", "d/1 x"]).await;
    rig.stop().await;
}
