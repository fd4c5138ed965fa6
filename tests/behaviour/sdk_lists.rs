//! Lists with ill-formed items beside good ones, read by the official SDKs: TypeScript and Python, 1.x and 2.x. One
//! refused item would cost an SDK the whole list.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::fixture::EvenkeelFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::sdks::{python_sdk, typescript_sdks};
use crate::support::{Agent, Era, Evenkeel, http, require_on_path, within};

/// Entries of lists, and what becomes of each: `src/upstream/item_rules/tests.rs` compares them one by one.
const ENTRIES: &str = include_str!("sdk_lists/entries.jsonl");
const LISTS: [(&str, &str, &str, &str); 4] = [
    ("tools", "tools/list", "tools", "name"),
    ("prompts", "prompts/list", "prompts", "name"),
    ("resources", "resources/list", "resources", "uri"),
    ("templates", "resources/templates/list", "resourceTemplates", "uriTemplate"),
];

#[derive(Deserialize)]
struct Case {
    list: String,
    entry: Box<RawValue>,
    left_out: Option<String>,
}

/// The view of a client: the names or URIs of each list, and the texts of a result.
type Seen = BTreeMap<String, Vec<String>>;

/// Servers that offer every entry of the table, and one with good items only.
struct Servers {
    fixture: EvenkeelFixture,
    _rigs: Vec<FakeHttpServer>,
    /// The number of items that agents get, by list.
    kept: BTreeMap<String, usize>,
    /// The number of items that they do not get.
    left_out: BTreeMap<String, usize>,
}

impl Servers {
    async fn start() -> Self {
        let mut script = Script::new("bad", ServerEra::Legacy).prompts_and_resources(&[], &[], &[]);
        script.tools.clear();
        let (mut kept, mut left_out) = (BTreeMap::new(), BTreeMap::new());
        for (number, line) in ENTRIES.lines().enumerate() {
            let case: Case = serde_json::from_str(line).unwrap();
            if case.list == "tools" && case.entry.get().starts_with('"') {
                continue; // The rig would list a tool of this name.
            }
            // Every entry has another name.
            let unique = case
                .entry
                .get()
                .replace(r#""name":"t""#, &format!(r#""name":"t{number}""#))
                .replace(r#""x:t""#, &format!(r#""x:t{number}""#))
                .replace(r#""x:{t}""#, &format!(r#""x:{{t{number}}}""#));
            let items = match case.list.as_str() {
                "tools" => &mut script.tools,
                "prompts" => &mut script.prompts,
                "resources" => &mut script.resources,
                _ => &mut script.templates,
            };
            items.push(RawValue::from_string(unique).unwrap());
            let count = if case.left_out.is_some() { &mut left_out } else { &mut kept };
            *count.entry(case.list).or_insert(0) += 1;
        }
        let mut rigs = Vec::new();
        let fixture = EvenkeelFixture::start(&[]).await;
        for (name, era) in [("legacy", ServerEra::Legacy), ("modern", ServerEra::Modern)] {
            let rig = FakeHttpServer::start(Script { name: name.into(), era, ..script.clone() }).await;
            fixture.attach(name, &rig.spec()).await;
            rigs.push(rig);
        }
        let good = Script::new("good", ServerEra::Dual).tools(&["echo", "reply"]).prompts_and_resources(
            &["ask"],
            &["good:1"],
            &["good:{id}"],
        );
        let rig = FakeHttpServer::start(good).await;
        fixture.attach("good", &rig.spec()).await;
        rigs.push(rig);
        Self { fixture, _rigs: rigs, kept, left_out }
    }

    /// Returns what an agent that checks nothing is sent, and checks that nothing good is missing.
    async fn sent(&self, era: Era) -> Seen {
        let agent = self.fixture.agent(era).await;
        let mut sent = Seen::new();
        for (list, method, member, key) in LISTS {
            let names = names(&agent, method, member, key).await;
            let good = if list == "tools" { 2 } else { 1 };
            assert_eq!(names.len(), 2 * self.kept[list] + good, "{method}: {names:?}");
            sent.insert(list.to_owned(), names);
        }
        sent.insert("called".to_owned(), vec![r#"[1,"x"]"#.to_owned()]);
        sent
    }
}

async fn names(agent: &Agent, method: &str, member: &str, key: &str) -> Vec<String> {
    let page: Value = serde_json::from_str(&agent.request(method, "{}").await.unwrap()).unwrap();
    assert_eq!(page["nextCursor"], Value::Null);
    page[member].as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

/// Runs a client script and returns what it saw.
async fn run_client(program: &Path, args: &[&str]) -> Seen {
    let mut command = tokio::process::Command::new(program);
    command.args(args).current_dir(scripts()).env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    let output = within("the client ends", command.output()).await.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let seen = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
    seen.unwrap_or_else(|| panic!("{args:?}: {}\n{stdout}\n{stderr}", output.status))
}

async fn scrape(evenkeel: &Evenkeel) -> String {
    http::get(&evenkeel.admin("/metrics")).await.unwrap()
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviour/sdk_lists")
}

fn assert_sees(sdk: &str, mut seen: Seen, sent: &Seen, era: Era) {
    // A modern client may get the structured content itself, without a text.
    if era == Era::Modern {
        let called = seen.remove("called").unwrap();
        assert!(called.is_empty() || called == sent["called"], "{sdk}: {called:?}");
        seen.insert("called".to_owned(), sent["called"].clone());
    }
    for (list, names) in sent {
        let mut found = seen[list].clone();
        // The Python SDK 1.x parses URIs, and may write them in another form.
        if sdk == "Python 1" && list == "resources" {
            assert_eq!(found.len(), names.len(), "{sdk}");
            continue;
        }
        let mut names = names.clone();
        found.sort();
        names.sort();
        assert_eq!(found, names, "{sdk} {era:?}: {list}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(without_node, ignore = "needs Node")]
async fn typescript_sdks_read_the_lists_of_ill_formed_servers() {
    let node = require_on_path("node", "the TypeScript SDKs");
    let packages = typescript_sdks();
    let servers = Servers::start().await;
    let url = servers.fixture.evenkeel.url();
    let (legacy, modern) = (servers.sent(Era::Legacy).await, servers.sent(Era::Modern).await);
    let seen = run_client(&node, &["typescript_1.mjs", &packages, &url]).await;
    assert_sees("TypeScript 1", seen, &legacy, Era::Legacy);
    for (era, name, sent) in [(Era::Legacy, "legacy", &legacy), (Era::Modern, "modern", &modern)] {
        let seen = run_client(&node, &["typescript_2.mjs", &packages, &url, name]).await;
        assert_sees("TypeScript 2", seen, sent, era);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(without_python, ignore = "needs Python")]
async fn python_sdks_read_the_lists_of_ill_formed_servers() {
    let (first, second) = (python_sdk("1.30.0"), python_sdk("2.3.0"));
    let servers = Servers::start().await;
    let url = servers.fixture.evenkeel.url();
    let (legacy, modern) = (servers.sent(Era::Legacy).await, servers.sent(Era::Modern).await);
    assert_sees("Python 1", run_client(&first, &["python_1.py", &url]).await, &legacy, Era::Legacy);
    for (era, name, sent) in [(Era::Legacy, "legacy", &legacy), (Era::Modern, "modern", &modern)] {
        let seen = run_client(&second, &["python_2.py", &url, name]).await;
        assert_sees("Python 2", seen, sent, era);
    }
}

#[tokio::test]
async fn ill_formed_items_are_told_in_status_log_and_metrics() {
    let servers = Servers::start().await;
    let evenkeel = &servers.fixture.evenkeel;
    for name in ["legacy", "modern"] {
        let degraded = evenkeel.wait_for(name, "Degraded", "True", "ItemsLeftOut").await;
        for (list, method, ..) in LISTS {
            let count = servers.left_out[list];
            let counted = degraded.message.contains(&format!("{method}: {count} "));
            assert!(counted && degraded.message.contains("are treated as absent"), "{list}: {degraded:?}");
            let metric = format!(
                "evenkeel_items_left_out{{namespace=\"default\",server=\"{name}\",list=\"{method}\"}} {count}"
            );
            let metrics = scrape(evenkeel).await;
            assert!(metrics.contains(&metric), "{metric}\n{metrics}");
        }
        assert!(degraded.message.contains("report this to the server's author"), "{degraded:?}");
        assert!(degraded.message.len() < 8_000, "{}", degraded.message.len());
        evenkeel.wait_for_log(&["a tool is left out", name, "inputSchema is missing"]).await;
    }
    assert!(evenkeel.condition("good", "Degraded").await.is_none());
}
