//! Directories and links that are replaced, deleted and created again, and files that do not belong to the tree.

use super::*;

#[tokio::test]
async fn kubernetes_volume_update_is_followed() {
    let mut directory =
        TestDirectory::new(&[("..v1/a.yaml", server("a", "x")), ("..v1/b.yaml", server("b", "x"))]);
    symlink("..v1", directory.path("..data")).unwrap();
    for name in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(name), directory.path(name)).unwrap();
    }
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let unrelated = directory.server("b");
    let endpoint =
        |directory: &TestDirectory| directory.server("a").endpoint.clone().unwrap().unwrap().digest();
    let before = endpoint(&directory);

    directory.write("..v2/a.yaml", &server("a", "w"));
    directory.write("..v2/b.yaml", &server("b", "x"));
    directory.write("..v2/c.yaml", &server("c", "x"));
    symlink("..v2", directory.path("..data_tmp")).unwrap();
    directory.rename("..data_tmp", "..data");
    symlink("..data/c.yaml", directory.path("c.yaml")).unwrap();
    fs::remove_dir_all(directory.path("..v1")).unwrap();
    directory.wait_for_servers(&["a/2 w", "b/1 x", "c/1 x"]).await;
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    assert_ne!(endpoint(&directory), before);
    directory.stop().await;
}

#[tokio::test]
async fn replaced_link_at_or_above_the_root_is_followed() {
    for root in ["current", "current/team"] {
        let at = |version: &str| format!("../{version}/{}", root.strip_prefix("current").unwrap());
        let mut directory = TestDirectory::with_root(
            root,
            &[
                (&format!("{}/a.yaml", at("v1")), server("a", "x")),
                (&format!("{}/b.yaml", at("v1")), server("b", "x")),
            ],
        );
        let current = directory.folder.path().join("current");
        symlink("v1", &current).unwrap();
        directory.start();
        directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
        let unrelated = directory.server("b");

        // As git-sync publishes: another work tree, and one rename.
        for (version, command) in [("v2", "w"), ("v3", "z")] {
            directory.write(&format!("{}/a.yaml", at(version)), &server("a", command));
            directory.write(&format!("{}/b.yaml", at(version)), &server("b", "x"));
            let next = directory.folder.path().join("next");
            symlink(version, &next).unwrap();
            fs::rename(&next, &current).unwrap();
            let generation = if version == "v2" { 2 } else { 3 };
            directory.wait_for_servers(&[&format!("a/{generation} {command}"), "b/1 x"]).await;
        }
        assert!(
            Arc::ptr_eq(&unrelated, &directory.server("b")),
            "the working directory is derived from the path as given"
        );
        // The new tree is watched, not the old one.
        directory.write(&format!("{}/c.yaml", at("v3")), &server("c", "x"));
        directory.wait_for_servers(&["a/3 z", "b/1 x", "c/1 x"]).await;
        directory.stop().await;
    }
}

#[tokio::test]
async fn deleted_and_recreated_root_keeps_its_servers() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let unrelated = directory.server("b");
    let unavailable = |desired: &Desired| {
        desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::SourceUnavailable)
    };
    fs::remove_dir_all(directory.path("")).unwrap();
    let missing = directory.wait_for(unavailable).await;
    assert_eq!(describe_servers(&missing), ["a/1 x", "b/1 x"], "nothing is removed");

    fs::create_dir(directory.path("")).unwrap();
    let is_held = |desired: &Desired| {
        desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::RemovalHeld)
    };
    let empty = directory.wait_for(is_held).await;
    assert_eq!(describe_servers(&empty), ["a/1 x", "b/1 x"], "an empty directory removes nothing either");
    for (name, text) in two_servers() {
        directory.write(name, &text);
    }
    let restored = directory.wait_for(|desired| desired.source.problems.is_empty()).await;
    assert_eq!(describe_servers(&restored), ["a/1 x", "b/1 x"]);
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    directory.write("c.yaml", &server("c", "x"));
    directory.wait_for_servers(&["a/1 x", "b/1 x", "c/1 x"]).await;
    directory.stop().await;
}

#[tokio::test]
async fn empty_directory_applies_only_after_confirmation() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    // A confirmation while nothing is held does not apply later.
    directory.confirm_removal();
    let is_held = |desired: &Desired| {
        desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::RemovalHeld)
    };
    for (name, _) in two_servers() {
        directory.remove(name);
    }
    let empty = directory.wait_for(is_held).await;
    assert_eq!(describe_servers(&empty), ["a/1 x", "b/1 x"]);
    directory.confirm_removal();
    let pruned = directory.wait_for_servers(&[]).await;
    assert_eq!(pruned.source.problems, []);

    directory.write("c.yaml", &server("c", "x"));
    directory.wait_for_servers(&["c/1 x"]).await;
    directory.remove("c.yaml");
    let again = directory.wait_for(is_held).await;
    assert_eq!(describe_servers(&again), ["c/1 x"], "the confirmation applied to the earlier removal");
    directory.stop().await;
}

#[tokio::test]
async fn missing_root_is_read_once_created() {
    let mut directory = TestDirectory::with_root("fleet/deep/er", &[]);
    directory.start();
    let waiting = directory.wait_for(|desired| !desired.source.problems.is_empty()).await;
    assert!(!waiting.source.synced);
    assert!(
        waiting.source.problems[0].problem.message.contains("waiting for it to be created"),
        "{:?}",
        waiting.source.problems
    );
    directory.write("deep/er/a.yaml", &server("a", "x"));
    let created = directory.wait_for_servers(&["a/1 x"]).await;
    assert_eq!(created.source.problems, []);
    directory.stop().await;
}

#[tokio::test]
async fn special_files_do_not_affect_servers() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    fs::write(directory.folder.path().join("outside.yaml"), server("o", "x")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path("fifo.yaml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    symlink("../outside.yaml", directory.path("link.yaml")).unwrap();
    symlink("..", directory.path("up")).unwrap();
    directory.write("huge.yaml", &"#".repeat(2 << 20));
    fs::write(directory.path("junk.yaml"), [0xff, 0xfe, 0, 0x80]).unwrap();
    directory.write("bad\u{1b}[2Jname.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: [");
    directory.write("c.yaml", &server("c", "x"));
    let desired =
        directory.wait_for(|desired| desired.servers.len() == 3 && desired.source.problems.len() == 5).await;
    assert_eq!(desired.source.foreign_documents, 1, "the junk");
    assert_eq!(describe_servers(&desired), ["a/1 x", "b/1 x", "c/1 x"]);
    directory.stop().await;
}

#[tokio::test]
async fn changed_env_file_changes_only_its_server() {
    let mut directory = TestDirectory::new(&[
        ("a.yaml", server("a", "x\n    envFile: .conf/.env")),
        ("b.yaml", server("b", "x")),
    ]);
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    assert_eq!(directory.server("a").endpoint.clone().unwrap().unwrap_err().reason, Reason::EnvFileNotFound);
    let unrelated = directory.server("b");
    // The folder is hidden, so no walk visits it.
    let mut last = None;
    for text in ["TOKEN=one\n", "TOKEN=two\n"] {
        directory.write(".conf/.env", text);
        let digest = |desired: &Desired| {
            let server = desired.servers.values().find(|server| &*server.meta.key.name == "a")?;
            server.endpoint.as_ref()?.as_ref().ok().map(|endpoint| endpoint.digest())
        };
        let before = last;
        let desired =
            directory.wait_for(|desired| digest(desired).is_some() && digest(desired) != before).await;
        last = digest(&desired);
        assert!(!format!("{desired:?}").contains("TOKEN"));
    }
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    directory.stop().await;
}

#[tokio::test]
async fn rotated_secret_changes_only_its_server() {
    let spec = "x\n    env:\n      - { name: T, valueFrom: { secretKeyRef: { name: s, key: k } } }\n      - { name: P, valueFrom: { env: PROXY } }";
    let mut directory = TestDirectory::new(&[("a.yaml", server("a", spec)), ("b.yaml", server("b", "x"))]);
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let missing = directory.server("a").endpoint.clone().unwrap().unwrap_err();
    assert_eq!(missing.reason, Reason::SecretNotFound);
    let unrelated = directory.server("b");

    // As Kubernetes mounts a secret, and rotates it.
    let secret = directory.folder.path().join("secrets/s");
    for (version, value) in [("..1", "hunter2"), ("..2", "hunter3")] {
        fs::create_dir_all(secret.join(version)).unwrap();
        fs::write(secret.join(version).join("k"), value).unwrap();
        symlink(version, secret.join("..tmp")).unwrap();
        fs::rename(secret.join("..tmp"), secret.join("..data")).unwrap();
        let _ = symlink("..data/k", secret.join("k"));
        let last = directory.server("a").endpoint.clone().unwrap().map(|endpoint| endpoint.digest());
        directory
            .wait_for(|desired| {
                let endpoint = desired.servers.values().next().unwrap().endpoint.as_ref().unwrap().as_ref();
                endpoint.is_ok_and(|endpoint| Ok(endpoint.digest()) != last)
            })
            .await;
        assert!(!format!("{:?}", directory.desired()).contains("hunter"));
    }
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    assert_eq!(describe_servers(&directory.desired()), ["a/1 x", "b/1 x"]);
    directory.stop().await;
}

#[tokio::test]
async fn moved_deleted_and_recreated_folder_is_followed() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let unrelated = directory.server("b");
    for (from, to) in [("team", "crew"), ("crew", "team"), ("team", "crew")] {
        directory.rename(from, to);
        let place = format!("{to}/b.yaml:2");
        directory
            .wait_for(|desired| {
                desired.servers.values().any(|server| server.meta.origin.to_string() == place)
            })
            .await;
        // A file that is written there later is reported by an event, not only found by a periodic scan.
        directory.write(&format!("{to}/c.yaml"), &server("c", to));
        directory.wait_for(|desired| describe_servers(desired).iter().any(|line| line.ends_with(to))).await;
    }
    assert_eq!(directory.server("b").meta.uid, unrelated.meta.uid);
    fs::remove_dir_all(directory.path("crew")).unwrap();
    directory.wait_for_servers(&["a/1 x"]).await;
    directory.write("crew/d.yaml", &server("d", "x"));
    directory.wait_for_servers(&["a/1 x", "d/1 x"]).await;
    directory.stop().await;
}
