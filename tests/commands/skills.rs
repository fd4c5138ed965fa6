//! Skills: what is written to the directories of agents, what is told, `skill list` and `skill reload`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Agent, Era, eventually};
use crate::test_instance::TestInstance;

fn skill_md(name: &str, description: &str) -> String {
    format!("---\nname: {name}\ndescription: {description}\n---\nDo it.\n")
}

fn write_file(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A skill that needs a server.
fn skill_requiring(name: &str, server: &str) -> String {
    let text = skill_md(name, "Needs a server.").replace('\n', "\n    ");
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: {name} }}\nspec:\n  serverRefs: [{{ name: \
         {server} }}]\n  inline: |\n    {text}\n"
    )
}

/// Where agents look.
struct AgentSkillsDir {
    folder: TempDir,
}

impl AgentSkillsDir {
    fn new() -> Self {
        Self { folder: TempDir::with_prefix("agents").unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(".claude/skills")
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path().join(file)).ok()
    }

    async fn wait_for_text(&self, file: &str, part: &str) {
        eventually(&format!("{file} holds {part:?}"), async || {
            self.read(file).is_some_and(|text| text.contains(part)).then_some(())
        })
        .await;
    }

    async fn wait_until_absent(&self, file: &str) {
        eventually(&format!("{file} is gone"), async || self.read(file).is_none().then_some(())).await;
    }
}

/// Waits until a skill is told to be so, in `skill list`.
async fn wait_for_listing(stage: &TestInstance, name: &str, words: &[&str]) -> String {
    eventually(&format!("{name}: {words:?}"), async || {
        let list = stage.run_ok(&["skill", "list"]).await;
        let line = list.lines().find(|line| line.starts_with(name))?.to_owned();
        words.iter().all(|word| line.contains(word)).then_some(line)
    })
    .await
}

#[tokio::test]
async fn skills_are_synced_without_touching_servers() {
    let server = FakeStdioServer::new(Script::default());
    let agents = AgentSkillsDir::new();
    let sync = agents.path();
    write_file(&sync, "theirs/SKILL.md", "theirs");
    let flags = ["--sync-skills", sync.to_str().unwrap()];
    let stage = TestInstance::start_with_flags(&[("healthy", &server.spec(""))], &flags).await;
    stage.evenkeel.wait_until_attached("healthy").await;
    let running = server.live_processes();

    write_file(stage.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
    write_file(stage.path(), "skills/notes/scripts/run.sh", "#!/bin/sh\n");
    let script = stage.path().join("skills/notes/scripts/run.sh");
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    write_file(stage.path(), "skills/theirs/SKILL.md", &skill_md("theirs", "Another's name."));
    write_file(stage.path(), "skills/bad/SKILL.md", "no frontmatter");
    write_file(stage.path(), "needs.yaml", &skill_requiring("needs", "later"));
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    agents.wait_for_text("notes/scripts/run.sh", "#!/bin/sh").await;
    wait_for_listing(&stage, "notes", &["True", "Available", "path", "Write notes."]).await;
    wait_for_listing(&stage, "bad", &["False", "InvalidSpec", "SKILL.md:1: the frontmatter is missing"])
        .await;
    wait_for_listing(&stage, "theirs", &["False", "Shadowed", "is left unchanged"]).await;
    wait_for_listing(&stage, "needs", &["False", "ServerNotFound", "server \"later\" is not declared"]).await;
    assert_eq!(agents.read("theirs/SKILL.md").unwrap(), "theirs");

    // One edited file: that skill is told of, and no other.
    let others = ["bad", "needs", "theirs", "healthy"];
    let versions = async || {
        let all = stage.run_ok(&["get", "mcp", "-o", "json"]).await;
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let items = all["items"].as_array().unwrap().clone();
        let of = |item: &serde_json::Value| {
            let name = item["metadata"]["name"].as_str()?.to_owned();
            others.contains(&name.as_str()).then(|| (name, item["metadata"]["resourceVersion"].clone()))
        };
        items.iter().filter_map(of).collect::<Vec<_>>()
    };
    let before = versions().await;
    write_file(stage.path(), "skills/notes/scripts/run.sh", "#!/bin/bash\n");
    agents.wait_for_text("notes/scripts/run.sh", "bash").await;
    eventually("it is told", async || {
        stage.run_ok(&["events"]).await.contains("content changed to sha256:").then_some(())
    })
    .await;
    assert_eq!(versions().await, before);

    // The server that one needs comes, and goes.
    stage.declared.write_server("later", &server.spec(""));
    agents.wait_for_text("needs/SKILL.md", "Needs a server.").await;
    wait_for_listing(&stage, "needs", &["True", "Available", "inline"]).await;
    stage.declared.remove("later.yaml");
    agents.wait_until_absent("needs/SKILL.md").await;
    wait_for_listing(&stage, "needs", &["ServerNotFound", "is not declared"]).await;

    // A mistake takes nothing away; a removal does.
    write_file(stage.path(), "skills/notes/SKILL.md", "---\nname: notes\ndescription: Use: it\n---\n");
    wait_for_listing(&stage, "notes", &["False", "InvalidSpec", "SKILL.md:3"]).await;
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    fs::remove_dir_all(stage.path().join("skills/notes")).unwrap();
    agents.wait_until_absent("notes/SKILL.md").await;
    assert_eq!(agents.read("theirs/SKILL.md").unwrap(), "theirs");
    assert!(running.len() == 1 && running[0].is_alive(), "the healthy server runs as it did");
}

#[tokio::test]
async fn restart_keeps_and_repairs_synced_skills() {
    let server = FakeStdioServer::new(Script::default());
    let agents = AgentSkillsDir::new();
    let sync = agents.path();
    let mut stage = TestInstance::start_with_flags(
        &[("a", &server.spec("")), ("b", &server.spec("suspend: true"))],
        &["--sync-skills", sync.to_str().unwrap()],
    )
    .await;
    write_file(stage.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
    write_file(stage.path(), "skills/gone/SKILL.md", &skill_md("gone", "Goes."));
    write_file(stage.path(), "needs.yaml", &skill_requiring("needs", "a"));
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    agents.wait_for_text("gone/SKILL.md", "Goes.").await;
    agents.wait_for_text("needs/SKILL.md", "Needs a server.").await;

    stage.evenkeel.kill();
    fs::remove_dir_all(stage.path().join("skills/gone")).unwrap();
    write_file(&sync, "notes/SKILL.md", "edited by somebody");
    // A copy that is made anew, or taken away for a moment, is another file.
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(sync.join("needs/SKILL.md")).unwrap());
    let kept = inode();
    stage.evenkeel.restart().await;
    agents.wait_until_absent("gone/SKILL.md").await;
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    wait_for_listing(&stage, "needs", &["True", "Available"]).await;
    assert_eq!(inode(), kept, "it stays while its server is connecting");
}

#[tokio::test]
async fn skill_reload_reports_changes() {
    let stage = TestInstance::start(&[]).await;
    write_file(stage.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
    write_file(stage.path(), "skills/tests/SKILL.md", &skill_md("tests", "Write tests."));
    wait_for_listing(&stage, "notes", &["True", "Available", "offered over MCP"]).await;
    wait_for_listing(&stage, "tests", &["True", "Available"]).await;
    assert_eq!(stage.run_ok(&["skill", "reload"]).await, "notes: unchanged\ntests: unchanged\n");
    write_file(stage.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write better notes."));
    let out = stage.run_ok(&["skill", "reload", "notes"]).await;
    // The watch may have been faster.
    assert!(["notes: changed\n", "notes: unchanged\n"].contains(&&*out), "{out}");
    wait_for_listing(&stage, "notes", &["better"]).await;
    write_file(stage.path(), "skills/notes/SKILL.md", "nothing");
    let done = stage.run(&["skill", "reload"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stdout.contains("notes: InvalidSpec: skills/notes/SKILL.md:1: ")
            && done.stdout.contains("tests: unchanged")
    );
    assert!(done.stderr.contains("1 not accepted"), "{done:?}");
    let said = stage.run_failing(&["skill", "reload", "note"]).await;
    assert!(said.contains("there is no Skill \"note\"") && said.contains("did you mean notes?"), "{said}");

    // And what plan and validate say of skills.
    let root = stage.path().to_str().unwrap();
    let said = stage.run(&["validate", root]).await;
    assert!(said.code == 1 && said.stdout.contains("the frontmatter is missing"), "{said:?}");
    write_file(stage.path(), "skills/new/SKILL.md", &skill_md("new", "New."));
    let other = TempDir::with_prefix("copy").unwrap();
    write_file(other.path(), "skills/tests/SKILL.md", &skill_md("tests", "Other tests."));
    write_file(other.path(), "skills/more/SKILL.md", &skill_md("more", "More."));
    write_file(other.path(), "skills/notes/SKILL.md", "still nothing");
    wait_for_listing(&stage, "new", &["Available"]).await;
    let out = stage.run_ok(&["plan", other.path().to_str().unwrap(), "--against", root]).await;
    for line in [
        "+ attach   Skill default/more\n",
        "- detach   Skill default/new\n",
        "! hold     Skill default/notes: skills/notes/SKILL.md:1: ",
        "~ refilter Skill default/tests: content\n",
    ] {
        assert!(out.contains(line), "{out}");
    }
}

#[tokio::test]
async fn skills_are_served_over_mcp() {
    let stage = TestInstance::start(&[]).await;
    for era in [Era::Legacy, Era::Modern] {
        let agent = Agent::connect(era, &stage.evenkeel.url()).await;
        assert_eq!(agent.tool_names().await, [""; 0], "nothing is listed for nothing");
        write_file(stage.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
        write_file(stage.path(), "skills/notes/run.sh", "#!/bin/sh\n");
        let listed = async || (agent.tool_names().await == ["list_skills", "read_skill"]).then_some(());
        eventually("the tools are there", listed).await;
        assert_eq!(agent.call_text("list_skills", "{}").await, "- notes: Write notes.\n");
        let complete = async || {
            let read = agent.call_text("read_skill", r#"{"name":"notes","file":"run.sh"}"#).await;
            (read == "#!/bin/sh\n").then_some(())
        };
        eventually("all of it is there", complete).await;

        let json = async |method: &str, params: &str| -> serde_json::Value {
            serde_json::from_str(&agent.request(method, params).await.unwrap()).unwrap()
        };
        let skills = json("skills/list", "{}").await;
        let uri = skills["skills"][0]["uri"].as_str().unwrap();
        assert_eq!(uri, "skill://default/notes/SKILL.md");
        let params = serde_json::json!({ "uri": uri }).to_string();
        assert_eq!(json("skills/get", &params).await["skill"]["resources"][1]["size"], 10);
        let read = json("resources/read", &params).await;
        assert!(read["contents"][0]["text"].as_str().unwrap().contains("Write notes."), "{read}");
        let prompt = json("prompts/get", r#"{"name":"notes"}"#).await;
        assert_eq!(prompt["messages"][0]["content"]["text"], "Do it.\n");

        write_file(stage.path(), "empty.yaml", "# nothing\n");
        fs::remove_dir_all(stage.path().join("skills")).unwrap();
        eventually("they are gone", async || agent.tool_names().await.is_empty().then_some(())).await;
        let gone = agent.call("list_skills", "{}").await.unwrap();
        assert!(gone.contains("no skill is offered any more"), "{gone}");
    }
}

#[tokio::test]
async fn sync_dir_inside_declarations_is_rejected() {
    let stage = TestInstance::start(&[]).await;
    let inside = stage.path().join("skills");
    let done =
        stage.run(&["run", stage.path().to_str().unwrap(), "--sync-skills", inside.to_str().unwrap()]).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("is in the directory of declarations"), "{done:?}");
}
