//! Lists of objects in the place of single files.

use super::*;

fn kubectl_list(servers: &[(&str, &str)]) -> String {
    let item = |(name, command): &(&str, &str)| {
        format!(
            "- apiVersion: evenkeel.dev/v1alpha1\n  kind: McpServer\n  metadata:\n    name: {name}\n    resourceVersion: \"7\"\n  spec:\n    stdio:\n      command: {command}\n"
        )
    };
    let items: String = servers.iter().map(item).collect();
    format!("apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n")
}

#[tokio::test]
async fn list_replaces_single_files_and_is_edited_like_them() {
    let mut rig = TestDirectory::new(&two_servers());
    rig.start();
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let uids = ["a", "b"].map(|name| rig.server(name).meta.uid.clone());
    let from = |rig: &TestDirectory| ["a", "b"].map(|name| rig.server(name).meta.origin.to_string());

    rig.write("all.yaml", &kubectl_list(&[("a", "x"), ("b", "x")]));
    rig.remove("a.yaml");
    rig.remove("team/b.yaml");
    rig.wait_for(|desired| {
        desired.source.problems.is_empty()
            && desired.servers.len() == 2
            && desired.servers.values().all(|server| server.meta.origin.to_string().starts_with("all.yaml"))
    })
    .await;
    assert_eq!(from(&rig), ["all.yaml:3", "all.yaml:11"]);
    assert_eq!(["a", "b"].map(|name| rig.server(name).meta.uid.clone()), uids);
    rig.wait_for_servers(&["a/1 x", "b/1 x"]).await;

    // An item is an object: edited, broken and taken out, it costs no other.
    rig.write("all.yaml", &kubectl_list(&[("a", "w"), ("b", "x")]));
    rig.wait_for_servers(&["a/2 w", "b/1 x"]).await;
    rig.write("all.yaml", &kubectl_list(&[("a", "{}"), ("b", "x"), ("c", "x")]));
    rig.wait_for_servers(&["a/2 w InvalidSpec", "b/1 x", "c/1 x"]).await;
    rig.stop().await;
    rig.start();
    rig.wait_for_servers(&["a/2 w InvalidSpec", "b/1 x", "c/1 x"]).await;
    rig.write("all.yaml", &kubectl_list(&[("b", "x"), ("c", "x")]));
    rig.wait_for_servers(&["b/1 x", "c/1 x"]).await;
    rig.write("all.yaml", &kubectl_list(&[("b", "x")]).replace("kind: List", "kind: Liste"));
    rig.wait_for_servers(&["b/1 x ParseError", "c/1 x ParseError"]).await;
    rig.stop().await;
}
