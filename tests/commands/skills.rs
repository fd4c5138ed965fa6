//! Tests skills: directories of agents, status, `skill list`, `skill reload` and MCP.

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

/// Returns the manifest of a skill that requires a server.
fn skill_requiring(name: &str, server: &str) -> String {
    let text = skill_md(name, "Needs a server.").replace('\n', "\n    ");
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: {name} }}\nspec:\n  serverRefs: [{{ name: \
         {server} }}]\n  inline: |\n    {text}\n"
    )
}

/// The skills directory of an agent.
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

/// Waits until `skill list` shows a skill with all these words, and returns its line.
async fn wait_for_listing(instance: &TestInstance, name: &str, words: &[&str]) -> String {
    eventually(&format!("{name}: {words:?}"), async || {
        let list = instance.run_ok(&["skill", "list"]).await;
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
    let instance = TestInstance::start_with_flags(&[("healthy", &server.spec(""))], &flags).await;
    instance.evenkeel.wait_until_attached("healthy").await;
    let running = server.live_processes();

    write_file(instance.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
    write_file(instance.path(), "skills/notes/scripts/run.sh", "#!/bin/sh\n");
    let script = instance.path().join("skills/notes/scripts/run.sh");
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    write_file(instance.path(), "skills/theirs/SKILL.md", &skill_md("theirs", "Another's name."));
    write_file(instance.path(), "skills/bad/SKILL.md", "---\nname: bad\n");
    write_file(instance.path(), "needs.yaml", &skill_requiring("needs", "later"));
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    agents.wait_for_text("notes/scripts/run.sh", "#!/bin/sh").await;
    wait_for_listing(&instance, "notes", &["True", "Available", "path", "Write notes."]).await;
    wait_for_listing(
        &instance,
        "bad",
        &["False", "InvalidSpec", "SKILL.md:1: the frontmatter is not closed"],
    )
    .await;
    wait_for_listing(&instance, "theirs", &["False", "Shadowed", "is left unchanged"]).await;
    wait_for_listing(&instance, "needs", &["False", "ServerNotFound", "server \"later\" is not declared"])
        .await;
    assert_eq!(agents.read("theirs/SKILL.md").unwrap(), "theirs");

    // One edited file changes the status of its skill only.
    let others = ["bad", "needs", "theirs", "healthy"];
    let versions = async || {
        let all = instance.run_ok(&["get", "mcp", "-o", "json"]).await;
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let items = all["items"].as_array().unwrap().clone();
        let of = |item: &serde_json::Value| {
            let name = item["metadata"]["name"].as_str()?.to_owned();
            others.contains(&name.as_str()).then(|| (name, item["metadata"]["resourceVersion"].clone()))
        };
        items.iter().filter_map(of).collect::<Vec<_>>()
    };
    let before = versions().await;
    write_file(instance.path(), "skills/notes/scripts/run.sh", "#!/bin/bash\n");
    agents.wait_for_text("notes/scripts/run.sh", "bash").await;
    eventually("the change has an event", async || {
        instance.run_ok(&["events"]).await.contains("content changed to sha256:").then_some(())
    })
    .await;
    assert_eq!(versions().await, before);

    // The server that a skill requires is added, and removed.
    instance.declared.write_server("later", &server.spec(""));
    agents.wait_for_text("needs/SKILL.md", "Needs a server.").await;
    wait_for_listing(&instance, "needs", &["True", "Available", "inline"]).await;
    instance.declared.remove("later.yaml");
    agents.wait_until_absent("needs/SKILL.md").await;
    wait_for_listing(&instance, "needs", &["ServerNotFound", "is not declared"]).await;

    // A mistake removes nothing; a removal does.
    write_file(instance.path(), "skills/notes/SKILL.md", "---\nname: notes\n---\n");
    wait_for_listing(&instance, "notes", &["False", "InvalidSpec", "SKILL.md:1"]).await;
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    fs::remove_dir_all(instance.path().join("skills/notes")).unwrap();
    agents.wait_until_absent("notes/SKILL.md").await;
    assert_eq!(agents.read("theirs/SKILL.md").unwrap(), "theirs");
    assert!(running.len() == 1 && running[0].is_alive(), "the healthy server is untouched");
}

#[tokio::test]
async fn restart_keeps_and_repairs_synced_skills() {
    let server = FakeStdioServer::new(Script::default());
    let agents = AgentSkillsDir::new();
    let sync = agents.path();
    let mut instance = TestInstance::start_with_flags(
        &[("a", &server.spec("")), ("b", &server.spec("suspend: true"))],
        &["--sync-skills", sync.to_str().unwrap()],
    )
    .await;
    write_file(instance.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
    write_file(instance.path(), "skills/gone/SKILL.md", &skill_md("gone", "Goes."));
    write_file(instance.path(), "needs.yaml", &skill_requiring("needs", "a"));
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    agents.wait_for_text("gone/SKILL.md", "Goes.").await;
    agents.wait_for_text("needs/SKILL.md", "Needs a server.").await;

    instance.evenkeel.kill();
    fs::remove_dir_all(instance.path().join("skills/gone")).unwrap();
    write_file(&sync, "notes/SKILL.md", "edited by somebody");
    // A copy that is recreated has another inode.
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(sync.join("needs/SKILL.md")).unwrap());
    let inode_before = inode();
    instance.evenkeel.restart().await;
    agents.wait_until_absent("gone/SKILL.md").await;
    agents.wait_for_text("notes/SKILL.md", "Write notes.").await;
    wait_for_listing(&instance, "needs", &["True", "Available"]).await;
    assert_eq!(inode(), inode_before, "the skill stays while its server is connecting");
}

#[tokio::test]
async fn skill_reload_reports_changes() {
    let instance = TestInstance::start(&[]).await;
    write_file(instance.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
    write_file(instance.path(), "skills/tests/SKILL.md", &skill_md("tests", "Write tests."));
    wait_for_listing(&instance, "notes", &["True", "Available", "offered over MCP"]).await;
    wait_for_listing(&instance, "tests", &["True", "Available"]).await;
    assert_eq!(instance.run_ok(&["skill", "reload"]).await, "notes: unchanged\ntests: unchanged\n");
    write_file(instance.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write better notes."));
    let out = instance.run_ok(&["skill", "reload", "notes"]).await;
    // The directory watch may have scanned it already.
    assert!(["notes: changed\n", "notes: unchanged\n"].contains(&&*out), "{out}");
    wait_for_listing(&instance, "notes", &["better"]).await;
    write_file(instance.path(), "skills/notes/SKILL.md", "---\n");
    let output = instance.run(&["skill", "reload"]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output.stdout.contains("notes: InvalidSpec: skills/notes/SKILL.md:1: ")
            && output.stdout.contains("tests: unchanged")
    );
    assert!(output.stderr.contains("1 of 2 skills not accepted"), "{output:?}");
    let stderr = instance.run_failing(&["skill", "reload", "note"]).await;
    assert!(
        stderr.contains("there is no Skill \"note\"") && stderr.contains("did you mean notes?"),
        "{stderr}"
    );

    // `plan` and `validate` cover skills too.
    let root = instance.path().to_str().unwrap();
    let stderr = instance.run(&["validate", root]).await;
    assert!(stderr.code == 1 && stderr.stdout.contains("the frontmatter is not closed"), "{stderr:?}");
    write_file(instance.path(), "skills/new/SKILL.md", &skill_md("new", "New."));
    let other = TempDir::with_prefix("copy").unwrap();
    write_file(other.path(), "skills/tests/SKILL.md", &skill_md("tests", "Other tests."));
    write_file(other.path(), "skills/more/SKILL.md", &skill_md("more", "More."));
    write_file(other.path(), "skills/notes/SKILL.md", "---\nstill open\n");
    wait_for_listing(&instance, "new", &["Available"]).await;
    let out = instance.run_ok(&["plan", other.path().to_str().unwrap(), "--against", root]).await;
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
    let instance = TestInstance::start(&[]).await;
    for era in [Era::Legacy, Era::Modern] {
        let agent = Agent::connect(era, &instance.evenkeel.url()).await;
        assert_eq!(agent.tool_names().await, [""; 0], "no tools without skills");
        write_file(instance.path(), "skills/notes/SKILL.md", &skill_md("notes", "Write notes."));
        write_file(instance.path(), "skills/notes/run.sh", "#!/bin/sh\n");
        let listed = async || (agent.tool_names().await == ["list_skills", "read_skill"]).then_some(());
        eventually("the tools are listed", listed).await;
        assert_eq!(agent.call_text("list_skills", "{}").await, "- notes: Write notes.\n");
        let complete = async || {
            let read = agent.call_text("read_skill", r#"{"name":"notes","file":"run.sh"}"#).await;
            (read == "#!/bin/sh\n").then_some(())
        };
        eventually("the whole skill is served", complete).await;

        let json = async |method: &str, params: &str| -> serde_json::Value {
            serde_json::from_str(&agent.request(method, params).await.unwrap()).unwrap()
        };
        let skills = json("skills/list", "{}").await;
        let uri = skills["skills"][0]["uri"].as_str().unwrap();
        assert_eq!(uri, "skill://default/notes/SKILL.md");
        let params = serde_json::json!({ "uri": uri }).to_string();
        assert_eq!(json("skills/get", &params).await["skill"]["resources"][1]["size"], 10);
        let directory = async |uri: &str| {
            let params = serde_json::json!({ "uri": uri }).to_string();
            let read = json("resources/directory/read", &params).await;
            assert_eq!(read.get("resultType").is_some(), era == Era::Modern, "{read}");
            let children = read["resources"].as_array().unwrap().iter();
            children.map(|child| child["uri"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(directory("skill://default").await, ["skill://default/notes"]);
        let files = ["skill://default/notes/SKILL.md", "skill://default/notes/run.sh"];
        assert_eq!(directory("skill://default/notes").await, files);
        for uri in ["skill://default/notes/SKILL.md", "skill://default/notes/", "skill://other", "x:1"] {
            let params = serde_json::json!({ "uri": uri }).to_string();
            let error = agent.request("resources/directory/read", &params).await.unwrap_err();
            assert!(error.contains("-32602") && error.contains("not a directory"), "{uri}: {error}");
        }
        for method in ["skills/list", "resources/directory/read"] {
            let error = agent.request(method, r#"{"uri":"skill://default","cursor":"x"}"#).await.unwrap_err();
            assert!(error.contains("-32602"), "{error}");
        }
        let listed = json("resources/list", "{}").await;
        assert_eq!(
            (&listed["resources"][0]["name"], &listed["resources"][0]["description"]),
            (&"notes".into(), &"Write notes.".into())
        );
        let read = json("resources/read", &params).await;
        assert!(read["contents"][0]["text"].as_str().unwrap().contains("Write notes."), "{read}");
        let prompt = json("prompts/get", r#"{"name":"notes"}"#).await;
        assert_eq!(prompt["messages"][0]["content"]["text"], "Do it.\n");

        write_file(instance.path(), "empty.yaml", "# nothing\n");
        fs::remove_dir_all(instance.path().join("skills")).unwrap();
        eventually("the tools are removed", async || agent.tool_names().await.is_empty().then_some(())).await;
        let removed = agent.call("list_skills", "{}").await.unwrap();
        assert!(removed.contains("no skill is offered any more"), "{removed}");
    }
}

/// Waits until the skill has the condition Degraded with this reason and a message that contains the text.
async fn wait_until_degraded(instance: &TestInstance, name: &str, reason: &str, text: &str) {
    eventually(&format!("{name} is Degraded: {reason} {text:?}"), async || {
        let object = instance.run_ok(&["get", "skill", name, "-o", "json"]).await;
        let object: serde_json::Value = serde_json::from_str(&object).unwrap();
        let conditions = object["status"]["conditions"].as_array()?;
        let degraded = conditions.iter().find(|condition| condition["type"] == "Degraded")?;
        let matches = degraded["status"] == "True"
            && degraded["reason"] == reason
            && degraded["message"].as_str().is_some_and(|message| message.contains(text));
        matches.then_some(())
    })
    .await;
}

#[tokio::test]
async fn skills_as_people_have_them_are_offered() {
    let instance = TestInstance::start(&[]).await;
    let root = instance.path();
    write_file(root, "shared/notes/SKILL.md", &skill_md("notes", "Write notes."));
    write_file(root, "skills/code/SKILL.md", "---\nname: Code\ndescription: Use it: always\n---\nDo it.\n");
    write_file(root, "skills/code/node_modules/x/index.js", "x");
    std::os::unix::fs::symlink("../shared/notes", root.join("skills/notes")).unwrap();
    std::os::unix::fs::symlink("/etc", root.join("skills/way-out")).unwrap();
    wait_for_listing(&instance, "notes", &["True", "Available", "Write notes."]).await;
    wait_for_listing(&instance, "code", &["True", "Available", "Use it: always"]).await;
    wait_until_degraded(&instance, "code", "ItemsLeftOut", "skills/code/node_modules: is a folder").await;
    let checked = instance.run(&["validate", root.to_str().unwrap()]).await;
    for expected in
        ["skills/way-out is a link to a target outside", "skills/code/SKILL.md:3: the frontmatter is not"]
    {
        assert!(checked.stdout.contains(expected), "{expected}: {checked:?}");
    }
    assert!(checked.code == 1, "the link that leaves the directory is an error: {checked:?}");

    fs::remove_dir_all(root.join("skills/code/node_modules")).unwrap();
    wait_until_degraded(&instance, "code", "NonCompliant", "the skill is offered as \"code\"").await;
    write_file(root, "skills/code/SKILL.md", &skill_md("code", "Write code."));
    eventually("code is not Degraded", async || {
        let object = instance.run_ok(&["get", "skill", "code", "-o", "json"]).await;
        (!object.contains("Degraded") && object.contains("Write code.")).then_some(())
    })
    .await;
    write_file(root, "shared/notes/SKILL.md", &skill_md("notes", "Write better notes."));
    wait_for_listing(&instance, "notes", &["better"]).await;
    fs::remove_file(root.join("skills/notes")).unwrap();
    eventually("notes is gone", async || {
        let list = instance.run_ok(&["skill", "list"]).await;
        (!list.contains("notes")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn subscribed_skill_file_is_notified_of_its_own_changes() {
    let instance = TestInstance::start(&[]).await;
    let root = instance.path();
    for name in ["notes", "tests"] {
        write_file(root, &format!("skills/{name}/SKILL.md"), &skill_md(name, "First."));
        write_file(root, &format!("skills/{name}/run.sh"), "#!/bin/sh\n");
        wait_for_listing(&instance, name, &["True", "Available", " 2 "]).await;
    }
    let uri = "skill://default/notes/run.sh";
    for era in Era::ALL {
        let agent = Agent::connect(era, &instance.evenkeel.url()).await;
        let mut notifications = agent.notifications_with_resources(&[uri]).await;
        let text = format!("#!/bin/{era:?}\n");
        // Neither another skill nor another file of this one.
        write_file(root, "skills/tests/run.sh", &text);
        write_file(root, "skills/notes/SKILL.md", &skill_md("notes", &format!("For {era:?}.")));
        wait_for_listing(&instance, "notes", &[&format!("For {era:?}.")]).await;
        let read = async |name: &str| {
            agent.call_text("read_skill", &format!(r#"{{"name":"{name}","file":"run.sh"}}"#)).await
        };
        eventually("the other skill changed", async || (read("tests").await == text).then_some(())).await;
        let earlier = notifications.drain();
        assert!(!earlier.iter().any(|sent| sent.contains("resources/updated")), "{era:?}: {earlier:?}");
        write_file(root, "skills/notes/run.sh", &text);
        let notification = notifications.wait_for("resources/updated").await;
        assert!(notification.contains(&format!(r#""uri":"{uri}""#)), "{era:?}: {notification}");
        assert_eq!(read("notes").await, text, "the new content can be read at once");
    }
}

#[tokio::test]
async fn sync_dir_inside_declarations_is_rejected() {
    let instance = TestInstance::start(&[]).await;
    let inside = instance.path().join("skills");
    let output = instance
        .run(&["run", instance.path().to_str().unwrap(), "--sync-skills", inside.to_str().unwrap()])
        .await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.stderr.contains("is inside the directory of declarations"), "{output:?}");
}
