//! Skills: what is written to the directories of agents, what is told, `skill list` and `skill reload`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::rig::{Script, Stdio};
use crate::stage::Stage;
use crate::support::{Agent, Era, eventually};

fn text(name: &str, description: &str) -> String {
    format!("---\nname: {name}\ndescription: {description}\n---\nDo it.\n")
}

fn put(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A skill that needs a server.
fn needs(name: &str, server: &str) -> String {
    let text = text(name, "Needs a server.").replace('\n', "\n    ");
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: {name} }}\nspec:\n  serverRefs: [{{ name: \
         {server} }}]\n  inline: |\n    {text}\n"
    )
}

/// Where agents look.
struct Agents {
    folder: TempDir,
}

impl Agents {
    fn new() -> Self {
        Self { folder: TempDir::with_prefix("agents").unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(".claude/skills")
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path().join(file)).ok()
    }

    async fn holds(&self, file: &str, part: &str) {
        eventually(&format!("{file} holds {part:?}"), async || {
            self.read(file).is_some_and(|text| text.contains(part)).then_some(())
        })
        .await;
    }

    async fn lacks(&self, file: &str) {
        eventually(&format!("{file} is gone"), async || self.read(file).is_none().then_some(())).await;
    }
}

/// Waits until a skill is told to be so, in `skill list`.
async fn told(stage: &Stage, name: &str, words: &[&str]) -> String {
    eventually(&format!("{name}: {words:?}"), async || {
        let list = stage.ok(&["skill", "list"]).await;
        let line = list.lines().find(|line| line.starts_with(name))?.to_owned();
        words.iter().all(|word| line.contains(word)).then_some(line)
    })
    .await
}

#[tokio::test]
async fn what_is_declared_is_where_agents_look_and_no_server_notices() {
    let server = Stdio::new(Script::default());
    let agents = Agents::new();
    let sync = agents.path();
    put(&sync, "theirs/SKILL.md", "theirs");
    let flags = ["--sync-skills", sync.to_str().unwrap()];
    let stage = Stage::start_with(&[("healthy", &server.spec(""))], &flags).await;
    stage.evenkeel.attached("healthy").await;
    let running = server.alive();

    put(stage.path(), "skills/notes/SKILL.md", &text("notes", "Write notes."));
    put(stage.path(), "skills/notes/scripts/run.sh", "#!/bin/sh\n");
    let script = stage.path().join("skills/notes/scripts/run.sh");
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    put(stage.path(), "skills/theirs/SKILL.md", &text("theirs", "Another's name."));
    put(stage.path(), "skills/bad/SKILL.md", "no frontmatter");
    put(stage.path(), "needs.yaml", &needs("needs", "later"));
    agents.holds("notes/SKILL.md", "Write notes.").await;
    agents.holds("notes/scripts/run.sh", "#!/bin/sh").await;
    told(&stage, "notes", &["True", "Available", "path", "Write notes."]).await;
    told(&stage, "bad", &["False", "InvalidSpec", "SKILL.md:1: the frontmatter is missing"]).await;
    told(&stage, "theirs", &["False", "Shadowed", "is left alone"]).await;
    told(&stage, "needs", &["False", "ServerNotFound", "server \"later\" is not declared"]).await;
    assert_eq!(agents.read("theirs/SKILL.md").unwrap(), "theirs");

    // One edited file: that skill is told of, and no other.
    let others = ["bad", "needs", "theirs", "healthy"];
    let versions = async || {
        let all = stage.ok(&["get", "mcp", "-o", "json"]).await;
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let items = all["items"].as_array().unwrap().clone();
        let of = |item: &serde_json::Value| {
            let name = item["metadata"]["name"].as_str()?.to_owned();
            others.contains(&name.as_str()).then(|| (name, item["metadata"]["resourceVersion"].clone()))
        };
        items.iter().filter_map(of).collect::<Vec<_>>()
    };
    let before = versions().await;
    put(stage.path(), "skills/notes/scripts/run.sh", "#!/bin/bash\n");
    agents.holds("notes/scripts/run.sh", "bash").await;
    eventually("it is told", async || {
        stage.ok(&["events"]).await.contains("another content, sha256:").then_some(())
    })
    .await;
    assert_eq!(versions().await, before);

    // The server that one needs comes, and goes.
    stage.declared.server("later", &server.spec(""));
    agents.holds("needs/SKILL.md", "Needs a server.").await;
    told(&stage, "needs", &["True", "Available", "inline"]).await;
    stage.declared.remove("later.yaml");
    agents.lacks("needs/SKILL.md").await;
    told(&stage, "needs", &["ServerNotFound", "is not declared"]).await;

    // A mistake takes nothing away; a removal does.
    put(stage.path(), "skills/notes/SKILL.md", "---\nname: notes\ndescription: Use: it\n---\n");
    told(&stage, "notes", &["False", "InvalidSpec", "SKILL.md:3"]).await;
    agents.holds("notes/SKILL.md", "Write notes.").await;
    fs::remove_dir_all(stage.path().join("skills/notes")).unwrap();
    agents.lacks("notes/SKILL.md").await;
    assert_eq!(agents.read("theirs/SKILL.md").unwrap(), "theirs");
    assert!(running.len() == 1 && running[0].is_alive(), "the healthy server runs as it did");
}

#[tokio::test]
async fn a_restart_keeps_what_is_there_and_mends_it() {
    let server = Stdio::new(Script::default());
    let agents = Agents::new();
    let sync = agents.path();
    let mut stage = Stage::start_with(
        &[("a", &server.spec("")), ("b", &server.spec("suspend: true"))],
        &["--sync-skills", sync.to_str().unwrap()],
    )
    .await;
    put(stage.path(), "skills/notes/SKILL.md", &text("notes", "Write notes."));
    put(stage.path(), "skills/gone/SKILL.md", &text("gone", "Goes."));
    put(stage.path(), "needs.yaml", &needs("needs", "a"));
    agents.holds("notes/SKILL.md", "Write notes.").await;
    agents.holds("gone/SKILL.md", "Goes.").await;
    agents.holds("needs/SKILL.md", "Needs a server.").await;

    stage.evenkeel.kill();
    fs::remove_dir_all(stage.path().join("skills/gone")).unwrap();
    put(&sync, "notes/SKILL.md", "edited by somebody");
    // A copy that is made anew, or taken away for a moment, is another file.
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(sync.join("needs/SKILL.md")).unwrap());
    let kept = inode();
    stage.evenkeel.start_again().await;
    agents.lacks("gone/SKILL.md").await;
    agents.holds("notes/SKILL.md", "Write notes.").await;
    told(&stage, "needs", &["True", "Available"]).await;
    assert_eq!(inode(), kept, "it stays while its server is connecting");
}

#[tokio::test]
async fn reload_says_what_changed() {
    let stage = Stage::start(&[]).await;
    put(stage.path(), "skills/notes/SKILL.md", &text("notes", "Write notes."));
    put(stage.path(), "skills/tests/SKILL.md", &text("tests", "Write tests."));
    told(&stage, "notes", &["True", "Available", "offered over MCP"]).await;
    told(&stage, "tests", &["True", "Available"]).await;
    assert_eq!(stage.ok(&["skill", "reload"]).await, "notes: unchanged\ntests: unchanged\n");
    put(stage.path(), "skills/notes/SKILL.md", &text("notes", "Write better notes."));
    let out = stage.ok(&["skill", "reload", "notes"]).await;
    // The watch may have been faster.
    assert!(["notes: changed\n", "notes: unchanged\n"].contains(&&*out), "{out}");
    told(&stage, "notes", &["better"]).await;
    put(stage.path(), "skills/notes/SKILL.md", "nothing");
    let done = stage.run(&["skill", "reload"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.out.contains("notes: InvalidSpec: skills/notes/SKILL.md:1: ")
            && done.out.contains("tests: unchanged")
    );
    assert!(done.err.contains("1 not accepted"), "{done:?}");
    let said = stage.fails(&["skill", "reload", "note"]).await;
    assert!(said.contains("there is no Skill \"note\"") && said.contains("did you mean notes?"), "{said}");

    // And what plan and validate say of skills.
    let root = stage.path().to_str().unwrap();
    let said = stage.run(&["validate", root]).await;
    assert!(said.code == 1 && said.out.contains("the frontmatter is missing"), "{said:?}");
    put(stage.path(), "skills/new/SKILL.md", &text("new", "New."));
    let other = TempDir::with_prefix("copy").unwrap();
    put(other.path(), "skills/tests/SKILL.md", &text("tests", "Other tests."));
    put(other.path(), "skills/more/SKILL.md", &text("more", "More."));
    put(other.path(), "skills/notes/SKILL.md", "still nothing");
    told(&stage, "new", &["Available"]).await;
    let out = stage.ok(&["plan", other.path().to_str().unwrap(), "--against", root]).await;
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
async fn agents_without_directories_have_them_over_mcp() {
    let stage = Stage::start(&[]).await;
    for era in [Era::Legacy, Era::Modern] {
        let agent = Agent::open(era, &stage.evenkeel.url()).await;
        assert_eq!(agent.tools().await, [""; 0], "nothing is listed for nothing");
        put(stage.path(), "skills/notes/SKILL.md", &text("notes", "Write notes."));
        put(stage.path(), "skills/notes/run.sh", "#!/bin/sh\n");
        let listed = async || (agent.tools().await == ["list_skills", "read_skill"]).then_some(());
        eventually("the tools are there", listed).await;
        assert_eq!(agent.text("list_skills", "{}").await, "- notes: Write notes.\n");
        let complete = async || {
            let read = agent.text("read_skill", r#"{"name":"notes","file":"run.sh"}"#).await;
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

        put(stage.path(), "empty.yaml", "# nothing\n");
        fs::remove_dir_all(stage.path().join("skills")).unwrap();
        eventually("they are gone", async || agent.tools().await.is_empty().then_some(())).await;
        let gone = agent.call("list_skills", "{}").await.unwrap();
        assert!(gone.contains("no skill is offered any more"), "{gone}");
    }
}

#[tokio::test]
async fn a_directory_among_the_declarations_is_refused() {
    let stage = Stage::start(&[]).await;
    let inside = stage.path().join("skills");
    let done =
        stage.run(&["run", stage.path().to_str().unwrap(), "--sync-skills", inside.to_str().unwrap()]).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.err.contains("is in the directory of declarations"), "{done:?}");
}
