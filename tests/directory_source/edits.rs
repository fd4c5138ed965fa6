//! Files that are added, changed and removed.

use super::*;

#[tokio::test]
async fn added_edited_renamed_broken_and_deleted_files_are_followed() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    let first = directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    assert_eq!(first.source.watch_method, WatchMethod::Events);
    let unrelated = directory.server("b");

    directory.write("c.yaml", &server("c", "x"));
    directory.wait_for_servers(&["a/1 x", "b/1 x", "c/1 x"]).await;
    directory.write("a.yaml", &server("a", "w"));
    directory.wait_for_servers(&["a/2 w", "b/1 x", "c/1 x"]).await;
    let uid = directory.server("c").meta.uid.clone();
    directory.rename("c.yaml", "team/d.yaml");
    directory
        .wait_for(|desired| {
            desired.servers.values().any(|server| server.meta.origin.to_string() == "team/d.yaml:2")
        })
        .await;
    assert_eq!(directory.server("c").meta.uid, uid);

    directory.write("a.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {\n");
    let broken = directory.wait_for_servers(&["a/2 w ParseError", "b/1 x", "c/1 x"]).await;
    assert_eq!(broken.source.problems.len(), 1, "{:?}", broken.source.problems);
    let refused = directory.server("a").rejected.clone().unwrap().message;
    assert!(
        refused.starts_with("a.yaml:") && refused.ends_with("the last good declaration stays in force"),
        "{refused}"
    );
    directory.write("a.yaml", &server("a", "{}"));
    directory.wait_for_servers(&["a/2 w InvalidSpec", "b/1 x", "c/1 x"]).await;
    directory.write("a.yaml", &server("a", "z"));
    let fixed = directory.wait_for_servers(&["a/3 z", "b/1 x", "c/1 x"]).await;
    assert_eq!(fixed.source.problems, []);

    directory.remove("a.yaml");
    directory.wait_for_servers(&["b/1 x", "c/1 x"]).await;
    fs::remove_dir_all(directory.path("team")).unwrap();
    directory.write("a.yaml", &server("a", "x"));
    directory.wait_for_servers(&["a/1 x"]).await;
    directory.write("team/b.yaml", &server("b", "x"));
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    assert_ne!(directory.server("b").meta.uid, unrelated.meta.uid, "it was removed and added again");
    directory.stop().await;
}

#[tokio::test]
async fn changes_keep_the_arc_of_unrelated_servers() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let unrelated = directory.server("b");
    directory.write("a.yaml", "]");
    directory.write("team/c.yaml", &server("c", "x"));
    directory.write("team/b.yaml", &(server("b", "x") + &server("d", "x")));
    directory.wait_for_servers(&["a/1 x ParseError", "b/1 x", "c/1 x", "d/1 x"]).await;
    directory.remove("a.yaml");
    directory.remove("team/c.yaml");
    directory.wait_for_servers(&["b/1 x", "d/1 x"]).await;
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    directory.stop().await;
}

#[tokio::test]
async fn every_way_an_editor_saves_is_followed() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let uid = directory.server("a").meta.uid.clone();

    // As vim saves: a probe file, a backup by rename, a new file, and the removal of the backup.
    directory.write("4913", "");
    directory.remove("4913");
    directory.rename("a.yaml", "a.yaml~");
    directory.write("a.yaml", &server("a", "vim"));
    directory.remove("a.yaml~");
    directory.wait_for_servers(&["a/2 vim", "b/1 x"]).await;

    // As `sed -i` saves: a temporary file, renamed into place.
    directory.write("sedXy12", &server("a", "sed"));
    directory.rename("sedXy12", "a.yaml");
    directory.wait_for_servers(&["a/3 sed", "b/1 x"]).await;

    // As simple programs save: truncated, then written in pieces.
    let text = server("a", "slow");
    let mut file = fs::File::create(directory.path("a.yaml")).unwrap();
    for piece in text.as_bytes().chunks(10) {
        std::io::Write::write_all(&mut file, piece).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(file);
    directory.wait_for_servers(&["a/4 slow", "b/1 x"]).await;
    assert_eq!(directory.server("a").meta.uid, uid);
    directory.stop().await;
}

#[tokio::test]
async fn new_file_renamed_into_place_applies_before_the_tree_is_quiet() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    directory.wait_for_earlier_changes().await;
    // Constant events, so that only the rename can be the reason for the early application.
    let stop_writer = CancellationToken::new();
    let writer = tokio::spawn({
        let (path, stop_writer) = (directory.path("noise.yaml"), stop_writer.clone());
        async move {
            while !stop_writer.is_cancelled() {
                fs::write(&path, format!("# {:?}\n", Instant::now())).unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    // An edit waits for the quiet period, and the new file that is written after it does not: three times, within as
    // many rounds as a machine needs that stalls between the two.
    let (mut round, mut early) = (0, 0);
    while early < 3 {
        round += 1;
        assert!(round <= 30, "a new file was applied before an edit {early} times of 30");
        let edit = format!("w{round}");
        directory.write("a.yaml", &server("a", &edit));
        directory.write("incoming", &server(&format!("n{round}"), "x"));
        directory.rename("incoming", &format!("n{round}.yaml"));
        let desired = directory
            .wait_for(|desired| desired.servers.contains_key(&ObjectKey::new("default", format!("n{round}"))))
            .await;
        let edited = &desired.servers[&ObjectKey::new("default", "a")];
        early += usize::from(command_of(edited) != Some(&edit));
    }
    stop_writer.cancel();
    writer.await.unwrap();
    directory.stop().await;
}

#[tokio::test]
async fn identity_and_last_good_declaration_survive_a_restart() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    directory.write("a.yaml", &server("a", "w"));
    directory.wait_for_servers(&["a/2 w", "b/1 x"]).await;
    let before = [directory.server("a"), directory.server("b")];
    directory.stop().await;

    directory.write("team/b.yaml", "broken: [");
    directory.start();
    directory.wait_for_servers(&["a/2 w", "b/1 x ParseError"]).await;
    for server in before {
        let after = directory.server(&server.meta.key.name);
        assert_eq!(after.meta.uid, server.meta.uid);
        assert_eq!(after.meta.created_at, server.meta.created_at);
        assert_eq!(after.spec_digest, server.spec_digest);
    }
    directory.stop().await;

    directory.remove("a.yaml");
    directory.rename("team/b.yaml", "b.yaml");
    directory.write("b.yaml", &server("b", "z"));
    directory.start();
    let first = directory.wait_for(|desired| desired.source.synced).await;
    assert_eq!(describe_servers(&first), ["b/2 z"], "a removed server is never published");
    directory.stop().await;
}

#[tokio::test]
async fn polling_detects_changes_without_events() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.args.poll_interval = Some(Duration::from_millis(50));
    directory.start();
    let first = directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    assert_eq!(first.source.watch_method, WatchMethod::Polling);
    directory.write("a.yaml", &server("a", "w"));
    directory.write("c.yaml", &server("c", "x"));
    directory.remove("team/b.yaml");
    directory.wait_for_servers(&["a/2 w", "c/1 x"]).await;
    directory.stop().await;
}

#[tokio::test]
async fn unrelated_files_in_the_tree_change_nothing() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    directory.wait_for_earlier_changes().await;
    let before = directory.desired();
    for number in 0..200 {
        directory.write("team/data.db-journal", &number.to_string());
        directory.rename("team/data.db-journal", "team/data.db");
    }
    directory.write("c.yaml", &server("c", "x"));
    let after = directory.wait_for_servers(&["a/1 x", "b/1 x", "c/1 x"]).await;
    for (key, server) in &before.servers {
        assert!(Arc::ptr_eq(server, &after.servers[key]));
    }
    directory.stop().await;
}

#[tokio::test]
async fn many_simultaneous_changes_are_applied() {
    let name = |number: usize| format!("many/{number}.yaml");
    let mut directory = TestDirectory::new(&two_servers());
    for number in 0..200 {
        directory.write(&name(number), &server(&format!("s{number}"), "x"));
    }
    directory.start();
    directory.wait_for(|desired| desired.source.synced && desired.servers.len() == 202).await;
    let unrelated = directory.server("b");
    // As `git checkout` replaces files.
    for number in 0..200 {
        directory.remove(&name(number));
        directory
            .write(&name(number), &server(&format!("s{number}"), if number % 2 == 0 { "w" } else { "x" }));
    }
    let changed =
        |desired: &Desired| desired.servers.values().filter(|server| command_of(server) == Some("w")).count();
    let desired = directory.wait_for(|desired| changed(desired) == 100).await;
    assert_eq!(desired.servers.len(), 202, "no server was removed meanwhile");
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    assert!(desired.servers.values().all(|server| server.meta.generation <= 2));
    directory.stop().await;
}

#[tokio::test]
async fn mcp_json_files_declare_servers() {
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let unrelated = directory.server("b");
    directory.write("node_modules/pkg/n.yaml", &server("n", "x"));
    directory.write("node_modules/pkg/mcp.json", r#"{ "mcpServers": { "m": { "command": "x" } } }"#);
    directory.write(".vscode/mcp.json", r#"{ "servers": { "v": { "command": "x" } } }"#);
    directory.write(
        "team/.mcp.json",
        r#"{ "mcpServers": {
            "Claude's": { "command": "${CMD:-c}", "args": ["${PROXY}"], "env": { "T": "${PROXY}" } },
            "unset": { "url": "https://a/", "headers": { "Authorization": "Bearer ${NO_SUCH}" } },
            "a": { "command": "late" },
            "socket": { "type": "ws", "url": "wss://a/" },
            "prompted": { "command": "c", "env": { "T": "${input:token}" } },
            "off": null
        } }"#,
    );
    let desired = directory
        .wait_for_servers(&[
            "a/1 x",
            "b/1 x",
            "claude-s/1 ${CMD:-c}",
            "prompted/1 - InvalidSpec",
            "socket/1 - UnsupportedTransport",
            "unset/1 -",
        ])
        .await;
    assert!(Arc::ptr_eq(&unrelated, &directory.server("b")));
    let endpoint = directory.server("claude-s").endpoint.clone().unwrap().unwrap();
    let Transport::Stdio(stdio) = &endpoint.transport else { panic!("{endpoint:?}") };
    assert_eq!((stdio.command.as_str(), stdio.args.as_slice()), ("c", &["http://proxy".to_owned()][..]));
    assert!(stdio.cwd.as_ref().unwrap().ends_with("fleet/team"));
    assert!(!format!("{desired:?}").contains("http://proxy"));
    let unset = directory.server("unset").endpoint.clone().unwrap().unwrap_err();
    assert_eq!(unset.reason, Reason::VariableNotFound);
    let prompted = directory.server("prompted").rejected.clone().unwrap();
    assert!(prompted.message.contains("write ${TOKEN} and set"), "{prompted}");
    // The file of an agent is no fault of the source; each entry has its own status.
    assert_eq!(desired.source.problems, []);
    let reasons: Vec<_> = desired.source.warnings.iter().map(|fault| fault.problem.reason).collect();
    assert_eq!(reasons, [Reason::DuplicateName]);

    // An invalid edit keeps the earlier servers; an edit that drops an entry removes its server.
    directory.write(
        "team/.mcp.json",
        r#"{ "mcpServers": { "Claude's": { "command": {} }, "more": { "command": "m" } "#,
    );
    directory
        .wait_for(|desired| {
            desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::ParseError)
        })
        .await;
    assert_eq!(command_of(&directory.server("claude-s")), Some("${CMD:-c}"));
    directory.write(
        "team/.mcp.json",
        r#"{ "mcpServers": { "Claude's": { "command": {} }, "more": { "command": "m" } } }"#,
    );
    directory.wait_for_servers(&["a/1 x", "b/1 x", "claude-s/1 ${CMD:-c} InvalidSpec", "more/1 m"]).await;
    let uid = directory.server("claude-s").meta.uid.clone();
    directory.stop().await;
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x", "claude-s/1 ${CMD:-c} InvalidSpec", "more/1 m"]).await;
    assert_eq!(directory.server("claude-s").meta.uid, uid);
    directory.stop().await;
}

#[tokio::test]
async fn yaml_takes_precedence_over_json_only_at_first_start() {
    let json = r#"{ "mcpServers": { "a": { "command": "json" } } }"#;
    let mut directory =
        TestDirectory::new(&[(".mcp.json", json.to_owned()), ("z.yaml", server("a", "yaml"))]);
    directory.start();
    let desired = directory.wait_for_servers(&["a/1 yaml"]).await;
    assert_eq!(desired.source.warnings[0].location().unwrap(), ".mcp.json:1");
    directory.remove("z.yaml");
    directory.wait_for_servers(&["a/2 json"]).await;
    directory.write("a.yaml", &server("a", "late"));
    directory.wait_for(|desired| desired.source.problems.len() == 1).await;
    assert_eq!(describe_servers(&directory.desired()), ["a/2 json"]);
    directory.stop().await;
}
