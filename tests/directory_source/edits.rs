//! Files that come, change and go.

use super::*;

#[tokio::test]
async fn added_edited_renamed_broken_and_deleted_files_are_followed() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    let first = rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    assert_eq!(first.source.watch_method, WatchMethod::Events);
    let peer = rig.server("b");

    rig.write("c.yaml", &server("c", "x"));
    rig.wait_for_servers(&["a/1 x", "b/1 x", "c/1 x"]).await;
    rig.write("a.yaml", &server("a", "w"));
    rig.wait_for_servers(&["a/2 w", "b/1 x", "c/1 x"]).await;
    let uid = rig.server("c").meta.uid.clone();
    rig.rename("c.yaml", "team/d.yaml");
    rig.wait_for(|desired| {
        desired.servers.values().any(|server| server.meta.origin.to_string() == "team/d.yaml:2")
    })
    .await;
    assert_eq!(rig.server("c").meta.uid, uid);

    rig.write("a.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {\n");
    let broken = rig.wait_for_servers(&["a/2 w ParseError", "b/1 x", "c/1 x"]).await;
    assert_eq!(broken.source.problems.len(), 1, "{:?}", broken.source.problems);
    let refused = rig.server("a").rejected.clone().unwrap().message;
    assert!(
        refused.starts_with("a.yaml:") && refused.ends_with("the last good declaration stays in force"),
        "{refused}"
    );
    rig.write("a.yaml", &server("a", "{}"));
    rig.wait_for_servers(&["a/2 w InvalidSpec", "b/1 x", "c/1 x"]).await;
    rig.write("a.yaml", &server("a", "z"));
    let mended = rig.wait_for_servers(&["a/3 z", "b/1 x", "c/1 x"]).await;
    assert_eq!(mended.source.problems, []);

    rig.remove("a.yaml");
    rig.wait_for_servers(&["b/1 x", "c/1 x"]).await;
    fs::remove_dir_all(rig.path("team")).unwrap();
    rig.write("a.yaml", &server("a", "x"));
    rig.wait_for_servers(&["a/1 x"]).await;
    rig.write("team/b.yaml", &server("b", "x"));
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    assert_ne!(rig.server("b").meta.uid, peer.meta.uid, "it went and came again");
    rig.stop().await;
}

#[tokio::test]
async fn changes_keep_the_arc_of_unrelated_servers() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    rig.write("a.yaml", "]");
    rig.write("team/c.yaml", &server("c", "x"));
    rig.write("team/b.yaml", &(server("b", "x") + &server("d", "x")));
    rig.wait_for_servers(&["a/1 x ParseError", "b/1 x", "c/1 x", "d/1 x"]).await;
    rig.remove("a.yaml");
    rig.remove("team/c.yaml");
    rig.wait_for_servers(&["b/1 x", "d/1 x"]).await;
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    rig.stop().await;
}

#[tokio::test]
async fn every_way_an_editor_saves_is_followed() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let uid = rig.server("a").meta.uid.clone();

    // As vim does: a probe, a backup by rename, a new file, the backup removed.
    rig.write("4913", "");
    rig.remove("4913");
    rig.rename("a.yaml", "a.yaml~");
    rig.write("a.yaml", &server("a", "vim"));
    rig.remove("a.yaml~");
    rig.wait_for_servers(&["a/2 vim", "b/1 x"]).await;

    // As sed -i does: another file, renamed into place.
    rig.write("sedXy12", &server("a", "sed"));
    rig.rename("sedXy12", "a.yaml");
    rig.wait_for_servers(&["a/3 sed", "b/1 x"]).await;

    // As simple programs do: truncated, then written in pieces.
    let text = server("a", "slow");
    let mut file = fs::File::create(rig.path("a.yaml")).unwrap();
    for piece in text.as_bytes().chunks(10) {
        std::io::Write::write_all(&mut file, piece).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(file);
    rig.wait_for_servers(&["a/4 slow", "b/1 x"]).await;
    assert_eq!(rig.server("a").meta.uid, uid);
    rig.stop().await;
}

#[tokio::test]
async fn new_file_renamed_into_place_applies_before_the_tree_is_quiet() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    rig.wait_for_earlier_changes().await;
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
    // An edit waits for quiet, and the new file that comes after it does not: three times, of as many rounds as a
    // machine needs that stands still between the two.
    let (mut round, mut ahead) = (0, 0);
    while ahead < 3 {
        round += 1;
        assert!(round <= 30, "a new file was ahead of an edit {ahead} times of 30");
        let edit = format!("w{round}");
        rig.write("a.yaml", &server("a", &edit));
        rig.write("incoming", &server(&format!("n{round}"), "x"));
        rig.rename("incoming", &format!("n{round}.yaml"));
        let seen = rig
            .wait_for(|desired| desired.servers.contains_key(&ObjectKey::new("default", format!("n{round}"))))
            .await;
        let edited = &seen.servers[&ObjectKey::new("default", "a")];
        ahead += usize::from(command_of(edited) != Some(&edit));
    }
    noisy.cancel();
    noise.await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn identity_and_last_good_declaration_survive_a_restart() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    rig.write("a.yaml", &server("a", "w"));
    rig.wait_for_servers(&["a/2 w", "b/1 x"]).await;
    let before = [rig.server("a"), rig.server("b")];
    rig.stop().await;

    rig.write("team/b.yaml", "broken: [");
    rig.start();
    rig.wait_for_servers(&["a/2 w", "b/1 x ParseError"]).await;
    for server in before {
        let after = rig.server(&server.meta.key.name);
        assert_eq!(after.meta.uid, server.meta.uid);
        assert_eq!(after.meta.created_at, server.meta.created_at);
        assert_eq!(after.spec_digest, server.spec_digest);
    }
    rig.stop().await;

    rig.remove("a.yaml");
    rig.rename("team/b.yaml", "b.yaml");
    rig.write("b.yaml", &server("b", "z"));
    rig.start();
    let first = rig.wait_for(|desired| desired.source.synced).await;
    assert_eq!(describe_servers(&first), ["b/2 z"], "what is gone is never seen as desired");
    rig.stop().await;
}

#[tokio::test]
async fn polling_detects_changes_without_events() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.args.poll_interval = Some(Duration::from_millis(50));
    rig.start();
    let first = rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    assert_eq!(first.source.watch_method, WatchMethod::Polling);
    rig.write("a.yaml", &server("a", "w"));
    rig.write("c.yaml", &server("c", "x"));
    rig.remove("team/b.yaml");
    rig.wait_for_servers(&["a/2 w", "c/1 x"]).await;
    rig.stop().await;
}

#[tokio::test]
async fn unrelated_files_in_the_tree_change_nothing() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    rig.wait_for_earlier_changes().await;
    let before = rig.desired();
    for number in 0..200 {
        rig.write("team/data.db-journal", &number.to_string());
        rig.rename("team/data.db-journal", "team/data.db");
    }
    rig.write("c.yaml", &server("c", "x"));
    let after = rig.wait_for_servers(&["a/1 x", "b/1 x", "c/1 x"]).await;
    for (key, server) in &before.servers {
        assert!(Arc::ptr_eq(server, &after.servers[key]));
    }
    rig.stop().await;
}

#[tokio::test]
async fn many_simultaneous_changes_are_applied() {
    let name = |number: usize| format!("many/{number}.yaml");
    let mut rig = TestDirectory::new(&two_servers());
    for number in 0..200 {
        rig.write(&name(number), &server(&format!("s{number}"), "x"));
    }
    rig.start();
    rig.wait_for(|desired| desired.source.synced && desired.servers.len() == 202).await;
    let peer = rig.server("b");
    // As git checkout does.
    for number in 0..200 {
        rig.remove(&name(number));
        rig.write(&name(number), &server(&format!("s{number}"), if number % 2 == 0 { "w" } else { "x" }));
    }
    let changed =
        |desired: &Desired| desired.servers.values().filter(|server| command_of(server) == Some("w")).count();
    let found = rig.wait_for(|desired| changed(desired) == 100).await;
    assert_eq!(found.servers.len(), 202, "none went on the way");
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    assert!(found.servers.values().all(|server| server.meta.generation <= 2));
    rig.stop().await;
}

#[tokio::test]
async fn mcp_json_files_declare_servers() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let peer = rig.server("b");
    rig.write("node_modules/pkg/n.yaml", &server("n", "x"));
    rig.write("node_modules/pkg/mcp.json", r#"{ "mcpServers": { "m": { "command": "x" } } }"#);
    rig.write(".vscode/mcp.json", r#"{ "servers": { "v": { "command": "x" } } }"#);
    rig.write(
        "team/.mcp.json",
        r#"{ "mcpServers": {
            "Claude's": { "command": "${CMD:-c}", "args": ["${PROXY}"], "env": { "T": "${PROXY}" } },
            "unset": { "url": "https://a/", "headers": { "Authorization": "Bearer ${NO_SUCH}" } },
            "a": { "command": "late" },
            "sse": { "type": "sse", "url": "https://a/" }
        } }"#,
    );
    let found = rig
        .wait_for_servers(&[
            "a/1 x",
            "b/1 x",
            "claude-s/1 ${CMD:-c}",
            "sse/1 - UnsupportedTransport",
            "unset/1 -",
        ])
        .await;
    assert!(Arc::ptr_eq(&peer, &rig.server("b")));
    let endpoint = rig.server("claude-s").endpoint.clone().unwrap().unwrap();
    let Transport::Stdio(stdio) = &endpoint.transport else { panic!("{endpoint:?}") };
    assert_eq!((stdio.command.as_str(), stdio.args.as_slice()), ("c", &["http://proxy".to_owned()][..]));
    assert!(stdio.cwd.as_ref().unwrap().ends_with("fleet/team"));
    assert!(!format!("{found:?}").contains("http://proxy"));
    let unset = rig.server("unset").endpoint.clone().unwrap().unwrap_err();
    assert_eq!(unset.reason, Reason::VariableNotFound);
    let reasons: Vec<_> = found.source.problems.iter().map(|fault| fault.problem.reason).collect();
    assert_eq!(reasons, [Reason::DuplicateName, Reason::UnsupportedTransport]);

    // One bad edit keeps what was there; one that drops an entry takes it away.
    rig.write(
        "team/.mcp.json",
        r#"{ "mcpServers": { "Claude's": { "command": 1 }, "more": { "command": "m" } "#,
    );
    rig.wait_for(|desired| {
        desired.source.problems.iter().any(|fault| fault.problem.reason == Reason::ParseError)
    })
    .await;
    assert_eq!(command_of(&rig.server("claude-s")), Some("${CMD:-c}"));
    rig.write(
        "team/.mcp.json",
        r#"{ "mcpServers": { "Claude's": { "command": 1 }, "more": { "command": "m" } } }"#,
    );
    rig.wait_for_servers(&["a/1 x", "b/1 x", "claude-s/1 ${CMD:-c} InvalidSpec", "more/1 m"]).await;
    let uid = rig.server("claude-s").meta.uid.clone();
    rig.stop().await;
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x", "claude-s/1 ${CMD:-c} InvalidSpec", "more/1 m"]).await;
    assert_eq!(rig.server("claude-s").meta.uid, uid);
    rig.stop().await;
}

#[tokio::test]
async fn yaml_takes_precedence_over_json_only_at_first_start() {
    let json = r#"{ "mcpServers": { "a": { "command": "json" } } }"#;
    let mut rig = TestDirectory::new(&[(".mcp.json", json.to_owned()), ("z.yaml", server("a", "yaml"))]);
    rig.start();
    let found = rig.wait_for_servers(&["a/1 yaml"]).await;
    assert_eq!(found.source.problems[0].location().unwrap(), ".mcp.json:1");
    rig.remove("z.yaml");
    rig.wait_for_servers(&["a/2 json"]).await;
    rig.write("a.yaml", &server("a", "late"));
    rig.wait_for(|desired| desired.source.problems.len() == 1).await;
    assert_eq!(describe_servers(&rig.desired()), ["a/2 json"]);
    rig.stop().await;
}
