//! Runs the commands of docs/kubernetes.md and the README, in their order.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::deployment::container_flags;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Cluster, Era, Evenkeel, eventually, free_port, http};

/// Returns the kubectl commands of a page, or of its section with this heading.
fn kubectl_commands(page: &str, heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let section = text.split_once(heading).unwrap().1;
    let section = section.split("\n## ").next().filter(|_| !heading.is_empty()).unwrap_or(section);
    // A command may be continued on the next line.
    section
        .replace(" \\\n    ", " ")
        .lines()
        .filter_map(|line| line.strip_prefix("$ kubectl "))
        .map(|rest| format!("kubectl {rest}"))
        .collect()
}

/// Returns a copy of the repository's manifests and examples, with the kustomization of the page and the URL of a
/// running server.
fn clone_repository(server: &str) -> TempDir {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = TempDir::with_prefix("clone").unwrap();
    for part in ["manifests", "examples"] {
        assert!(
            Command::new("cp").arg("-R").arg(root.join(part)).arg(copy.path()).status().unwrap().success()
        );
    }
    let page = std::fs::read_to_string(root.join("docs/kubernetes.md")).unwrap();
    let yaml = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let remote = "https://github.com/evenkeel/evenkeel//manifests/overlays/cluster?ref=v0.1.0";
    assert!(yaml.contains(remote), "{yaml}");
    std::fs::write(
        copy.path().join("kustomization.yaml"),
        yaml.replace(remote, "manifests/overlays/cluster"),
    )
    .unwrap();
    let search = copy.path().join("examples/kubernetes/declarations/search.yaml");
    let text = std::fs::read_to_string(&search).unwrap();
    std::fs::write(&search, text.replace("https://mcp.example.com/mcp", server)).unwrap();
    copy
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn documented_commands_work_as_written() {
    let cluster = Cluster::start().await;
    let rig =
        FakeHttpServer::start(Script::new("search", ServerEra::Legacy).tools(&["find", "delete_all"])).await;
    let clone = clone_repository(&rig.url());
    // Argo CD is not installed; only its ConfigMap exists, which one command patches.
    cluster.kubectl(&["create", "namespace", "argocd"]).await;
    cluster.kubectl(&["create", "configmap", "argocd-cm", "-n", "argocd"]).await;
    let kubectl = cluster.kubectl_command(&[]);
    let programs = Path::new(kubectl.as_std().get_program()).parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());

    // Without kubelets there are no containers, and commands that need one are left out.
    let needs_kubelet =
        |command: &String| ["kubectl exec", "kubectl logs"].iter().any(|prefix| command.starts_with(prefix));
    let page_commands: Vec<_> = kubectl_commands("docs/kubernetes.md", "")
        .into_iter()
        .filter(|command| !needs_kubelet(command))
        .collect();
    assert!(page_commands.len() >= 9, "{page_commands:?}");
    let mut evenkeel = None;
    for command in &page_commands {
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", command]).env("PATH", &path).env("KUBECONFIG", cluster.kubeconfig());
        let output = shell.env("HOME", clone.path()).current_dir(clone.path()).output().await.unwrap();
        let output_text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output_text));
        if evenkeel.is_none() {
            // Starts the program with the flags of the Deployment, which exists now.
            let probes = free_port();
            let flags = container_flags(&cluster, "evenkeel", probes).await;
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let kubeconfig = cluster.kubeconfig_for("evenkeel", "evenkeel").await;
            evenkeel = Some(Evenkeel::run_in_cluster(&kubeconfig, &flags).await);
        }
    }
    let evenkeel = evenkeel.unwrap();
    eventually("the instance is ready", async || http::get(&evenkeel.admin("/readyz")).await.ok()).await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    // The examples have a skill too.
    let expected = ["team-a_list_skills", "team-a_read_skill", "team-a_search_find"];
    eventually("the tools of the examples are listed", async || {
        (agent.tool_names().await == expected).then_some(())
    })
    .await;

    for command in kubectl_commands("README.md", "\n## Kubernetes\n") {
        assert!(
            page_commands.contains(&command),
            "this command of the README is not in docs/kubernetes.md: {command}"
        );
    }
}
