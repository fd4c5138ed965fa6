//! Lists of objects in place of single files.

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
    let mut directory = TestDirectory::new(&two_servers());
    directory.start();
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;
    let uids = ["a", "b"].map(|name| directory.server(name).meta.uid.clone());
    let origins =
        |directory: &TestDirectory| ["a", "b"].map(|name| directory.server(name).meta.origin.to_string());

    directory.write("all.yaml", &kubectl_list(&[("a", "x"), ("b", "x")]));
    directory.remove("a.yaml");
    directory.remove("team/b.yaml");
    directory
        .wait_for(|desired| {
            desired.source.problems.is_empty()
                && desired.servers.len() == 2
                && desired
                    .servers
                    .values()
                    .all(|server| server.meta.origin.to_string().starts_with("all.yaml"))
        })
        .await;
    assert_eq!(origins(&directory), ["all.yaml:3", "all.yaml:11"]);
    assert_eq!(["a", "b"].map(|name| directory.server(name).meta.uid.clone()), uids);
    directory.wait_for_servers(&["a/1 x", "b/1 x"]).await;

    // Each item is an object: editing, breaking or removing it affects no other.
    directory.write("all.yaml", &kubectl_list(&[("a", "w"), ("b", "x")]));
    directory.wait_for_servers(&["a/2 w", "b/1 x"]).await;
    directory.write("all.yaml", &kubectl_list(&[("a", "{}"), ("b", "x"), ("c", "x")]));
    directory.wait_for_servers(&["a/2 w InvalidSpec", "b/1 x", "c/1 x"]).await;
    directory.stop().await;
    directory.start();
    directory.wait_for_servers(&["a/2 w InvalidSpec", "b/1 x", "c/1 x"]).await;
    directory.write("all.yaml", &kubectl_list(&[("b", "x"), ("c", "x")]));
    directory.wait_for_servers(&["b/1 x", "c/1 x"]).await;
    directory.write("all.yaml", &kubectl_list(&[("b", "x")]).replace("kind: List", "kind: Liste"));
    directory.wait_for_servers(&["b/1 x ParseError", "c/1 x ParseError"]).await;
    directory.stop().await;
}
