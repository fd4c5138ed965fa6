mod foreign;
mod lists;
mod mcp_json;

use super::*;
use crate::resource::SourceProblem;

fn parse_yaml(text: &str) -> ParsedFile {
    parse(&Arc::new(PathBuf::from("team/a.yaml")), text.as_bytes())
}

fn server_yaml(name: &str, spec: &str) -> String {
    format!("apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {name}\nspec:\n{spec}\n")
}

/// Returns each object as `kind key line: ok`, or with the reason it is rejected.
fn describe_objects(parsed: &ParsedFile) -> Vec<String> {
    fn describe<S: ObjectSpec>(object: &ParsedObject<S>) -> String {
        let state = object.spec.as_ref().map_or_else(ToString::to_string, |_| "ok".to_owned());
        format!("{} {} {}: {state}", S::KIND, object.key, object.line)
    }
    let servers = parsed.servers.iter().map(describe);
    servers.chain(parsed.skills.iter().map(describe)).collect()
}

fn describe_faults(parsed: &ParsedFile) -> Vec<String> {
    let message = |fault: &SourceProblem| {
        assert!(fault.excerpt.as_ref().is_none_or(|excerpt| excerpt.contains(" | ")));
        format!("{}: {}", fault.location().unwrap(), fault.problem.message)
    };
    parsed.faults.iter().map(message).collect()
}

#[test]
fn file_with_several_documents_declares_each_object() {
    let text = format!(
        "# two servers, a skill and a foreign document\n---\n{}---\n{}---\n{}---\n\
         apiVersion: v1\nkind: ConfigMap\ndata: {{a: b}}\n",
        server_yaml("one", "  stdio: { command: npx, args: [\"-y\", x] }"),
        server_yaml("two.x", "  http: { url: \"https://a/mcp\" }\n  timeouts: { connect: 5s }"),
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: s, namespace: team, labels: { a: b } }\n\
         spec: { inline: hello }\n",
    );
    let parsed = parse_yaml(&text);
    assert_eq!(
        describe_objects(&parsed),
        ["McpServer default/one 3: ok", "McpServer default/two.x 10: ok", "Skill team/s 18: ok"]
    );
    assert_eq!(parsed.foreign_documents, 1);
    assert_eq!(describe_faults(&parsed), [""; 0]);
    assert!(parsed.unidentified.is_none());
    assert_eq!(parsed.skills[0].labels["a"], "b");
}

#[test]
fn cluster_target_applies_the_rules_of_a_cluster() {
    let cluster = TargetMode::Cluster { namespace: "team".to_owned() };
    let skill = |spec: &str| {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: s }}\nspec: {{ {spec} }}\n"
        )
    };
    let json = r#"{ "apiVersion": "evenkeel.dev/v1alpha1", "kind": "McpServer", "metadata": { "name": "a" },
        "spec": { "http": { "url": "http://a" } } }"#;
    for (file, text, in_directory, in_cluster) in [
        (
            "a.yaml",
            server_yaml("a", "  stdio: { command: c, cwd: x }"),
            "McpServer default/a 1: ok",
            "McpServer team/a 1: InvalidSpec: a.yaml:6:24: spec.stdio.cwd: ",
        ),
        (
            "a.yaml",
            server_yaml("a", "  stdio: { command: c, env: [{ name: A, valueFrom: { env: B } }] }"),
            "McpServer default/a 1: ok",
            "McpServer team/a 1: InvalidSpec: a.yaml:6:54: spec.stdio.env[0].valueFrom.env: ",
        ),
        (
            "a.yaml",
            skill("configMapRef: { name: m }"),
            "Skill default/s 1: InvalidSpec: a.yaml:4:9: spec.configMapRef: ",
            "Skill team/s 1: ok",
        ),
        (
            "a.yaml",
            skill("path: x"),
            "Skill default/s 1: ok",
            "Skill team/s 1: InvalidSpec: a.yaml:4:9: spec.path: ",
        ),
        ("a.json", json.to_owned(), "", "McpServer team/a 1: ok"),
        ("skills/s/SKILL.md", String::new(), "Skill default/s 1: ok", ""),
    ] {
        for (target, expected) in [(&TargetMode::Directory, in_directory), (&cluster, in_cluster)] {
            let path = Arc::new(PathBuf::from(file));
            let objects = describe_objects(&parse_for(target, &path, text.as_bytes())).join(", ");
            let ends = expected.ends_with(": ") || objects == expected;
            assert!(objects.starts_with(expected) && ends, "{target:?} {text}: {objects}");
        }
    }
}

/// Each spec is rejected; its problem ends with the expected text.
#[test]
fn invalid_spec_is_reported_on_its_object() {
    for (spec, expected) in [
        (
            "  stdio:\n    comand: npx",
            "InvalidSpec: team/a.yaml:7:5: unknown field \"spec.stdio.comand\"; did you mean \"command\"?",
        ),
        (
            "  stdio: { command: npx }\n  activation: always",
            "InvalidSpec: team/a.yaml:7:15: spec.activation: \"always\" is not one of Always, OnDemand; did you mean \"Always\"?",
        ),
        ("  stdio: { command: npx }\n  suspend: yes", "team/a.yaml:7:12: spec.suspend: write true or false"),
        (
            "  stdio:\n    command: npx\n    args: [8080]",
            "team/a.yaml:8:12: spec.stdio.args[0]: expected a string; quote numbers, true and false to use them as strings",
        ),
        ("  stdio: { command: npx }\n  stdio: { command: npx }", "team/a.yaml:7:3: duplicate key \"stdio\""),
        (
            "  stdio: { command: npx }\n  timeouts: { connect: 5 }",
            "team/a.yaml:7:24: spec.timeouts.connect: write a duration, such as 30s",
        ),
        (
            "  stdio: { command: npx }\n  timeouts:\n    call: [30s]",
            "team/a.yaml:8:11: spec.timeouts.call: write a duration, such as 30s",
        ),
        (
            "  stdio: { command: npx }\n  gracePeriod: {}",
            "team/a.yaml:7:16: spec.gracePeriod: write a duration, such as 30s",
        ),
        (
            "  stdio: { command: npx }\n  timeouts: 30s",
            "team/a.yaml:7:13: spec.timeouts: expected fields, each as `key: value`",
        ),
        ("  stdio: { command: npx, args: x }", "team/a.yaml:6:32: spec.stdio.args: expected a list"),
        (
            "  stdio: { command: npx }\n  health: { failures: many }",
            "team/a.yaml:7:23: spec.health.failures: write a whole number",
        ),
        (
            "  stdio: { command: npx }\n  timeouts:\n    connect: 2h",
            "team/a.yaml:8:14: spec.timeouts.connect: \"2h\" is out of range; must be from 1s to 10m",
        ),
        ("  stdio: { args: [] }", "spec.stdio: command is missing"),
        ("  stdio: npx", "team/a.yaml:6:10: spec.stdio: expected fields, each as `key: value`"),
        ("  {}", "InvalidSpec: team/a.yaml:5:1: spec: exactly one of stdio and http must be set"),
        (
            "  http: { url: \"ftp://a\" }",
            "team/a.yaml:6:11: spec.http.url: url must start with http:// or https://",
        ),
        (
            "  stdio: { command: npx }\n  retry: { initial: 2m, max: 1m }",
            "team/a.yaml:7:12: spec.retry.initial: initial must not be longer than max",
        ),
        (
            "  stdio: { command: npx, args: [-y, no, \"no\"] }",
            "team/a.yaml:6:37: spec.stdio.args[1]: quote y, n, yes, no, on and off to use them as strings",
        ),
        (
            "  stdio: { command: npx, args: [010] }",
            "team/a.yaml:6:33: spec.stdio.args[0]: expected a string; quote numbers, true and false to use them as strings",
        ),
        (
            "  stdio:\n    command: npx\n    env: [{ name: A, value: Off }]",
            "team/a.yaml:8:22: spec.stdio.env[0].value: quote y, n, yes, no, on and off to use them as strings",
        ),
    ] {
        let parsed = parse_yaml(&server_yaml("one", spec));
        let objects = describe_objects(&parsed);
        assert_eq!(objects.len(), 1, "{spec}: {objects:?}");
        assert!(objects[0].ends_with(expected), "{spec}: {objects:?}");
        assert_eq!(parsed.faults.len(), 1, "{spec}");
        assert!(describe_faults(&parsed)[0].contains("McpServer default/one: "), "{spec}");
        assert!(parsed.unidentified.is_none(), "{spec}");
    }
}

/// Each document belongs to evenkeel but has no readable name; the fault contains the expected text.
#[test]
fn document_without_a_valid_name_is_a_fault() {
    let header = "apiVersion: evenkeel.dev/v1alpha1\n";
    for (text, expected) in [
        (
            "# forgotten\nkind: McpServer\nmetadata: { name: a }\n",
            "team/a.yaml:2:1: apiVersion is missing; write apiVersion: evenkeel.dev/v1alpha1",
        ),
        ("kind: Skill\nmetadata: { name: a }\n", "team/a.yaml:1:1: apiVersion is missing; write"),
        (&format!("{header}a: [\n"), "team/a.yaml:"),
        (&format!("{header}a: b: c\n"), "team/a.yaml:2:"),
        (
            "apiVersion: evenkeel.io/v1alpha1\nkind: McpServer\nmetadata: { name: a }\n",
            "team/a.yaml:1:1: unknown apiVersion \"evenkeel.io/v1alpha1\"; write evenkeel.dev/v1alpha1",
        ),
        (
            "apiVersion: evenkeel.dev/v1\nkind: McpServer\n",
            "unknown apiVersion \"evenkeel.dev/v1\"; use evenkeel.dev/v1alpha1",
        ),
        (
            &format!("{header}kind: McpSever\n"),
            "unknown kind \"McpSever\" of evenkeel.dev/v1alpha1; did you mean \"McpServer\"?",
        ),
        (&format!("{header}kind: Skill\n"), "team/a.yaml:1: Skill: metadata.name is missing"),
        (&format!("{header}kind: Skill\nmetadata: {{ name: A_b }}\n"), "metadata.name \"A_b\" must be"),
        (
            &format!("{header}kind: Skill\nmetadata: {{ name: a, namespace: a.b }}\n"),
            "metadata.namespace \"a.b\" must be",
        ),
        (
            &format!("{header}kind: Skill\nmetadata: {{ name: 12 }}\n"),
            "team/a.yaml:3:19: metadata.name: expected a string",
        ),
        (&format!("{header}kind: Skill\nmetadata: []\n"), "team/a.yaml:3:11: metadata: expected"),
    ] {
        let parsed = parse_yaml(text);
        let faults = describe_faults(&parsed);
        assert!(faults.len() == 1 && faults[0].contains(expected), "{text}: {faults:?}");
        assert!(describe_objects(&parsed).is_empty() && parsed.unidentified.is_some(), "{text}");
    }
}

/// Every violated rule is a fault on its own line, and no number is read as a string.
#[test]
fn each_error_has_its_line() {
    let parsed = parse_yaml(&server_yaml(
        "one",
        "  http:\n    url: ftp://a\n    headers:\n      - name: X\n      - { name: \"a b\", value: x }\n  \
         health: { failures: 0 }",
    ));
    let lines: Vec<_> = parsed.faults.iter().map(|fault| fault.location().unwrap()).collect();
    assert_eq!(lines, ["team/a.yaml:7:5", "team/a.yaml:9:9", "team/a.yaml:10:11", "team/a.yaml:11:13"]);
    let message = parsed.servers[0].spec.as_ref().unwrap_err().message.clone();
    assert!(
        message.starts_with("team/a.yaml:7:5: spec.http.url: ") && message.contains("; line 11: "),
        "{message}"
    );
    for number in
        ["010", "0x1F", "0o17", "1_000", "1e3", "+1", ".5", ".inf", "-.INF", ".nan", "0b11", "null", "~"]
    {
        let parsed = parse_yaml(&server_yaml("one", &format!("  stdio: {{ command: c, args: [{number}] }}")));
        assert!(parsed.servers[0].spec.is_err(), "{number}");
    }
}

#[test]
fn invalid_document_does_not_affect_others() {
    let good = server_yaml("good", "  stdio: { command: npx }");
    let parsed = parse_yaml(&format!(
        "{good}---\napiVersion: evenkeel.dev/v1\nkind: [\n---\n{}",
        good.replace("good", "better")
    ));
    assert_eq!(
        describe_objects(&parsed),
        ["McpServer default/good 1: ok", "McpServer default/better 11: ok"]
    );
    assert!(parsed.unidentified.unwrap().message.starts_with("team/a.yaml:"));
}

#[test]
fn reported_problems_of_one_file_are_bounded() {
    let parsed = parse_yaml(&"# evenkeel.dev\na: [\n---\n".repeat(50));
    assert_eq!(parsed.faults.len(), 21);
    assert!(
        parse_yaml(&"a: 1\n---\n".repeat(10_001)).faults[0]
            .problem
            .message
            .contains("more than 10000 documents")
    );
    let long = parse_yaml(&format!("apiVersion: evenkeel.dev/v1alpha1\nkind: {}\n", "x".repeat(100_000)));
    assert!(long.faults[0].problem.message.len() < 1_100);
}

#[test]
fn valid_specs_that_look_like_a_mistake_are_warned_of() {
    for (spec, expected) in [
        (
            "  stdio:\n    command: npx -y server",
            "team/a.yaml:7:5: McpServer default/one: spec.stdio.command: this is taken as the name of one program; \
             write npx here, and each argument in args",
        ),
        (
            "  stdio:\n    command: npx\n    env: [{ name: T, value: \"${TOKEN}\" }]",
            "team/a.yaml:8:22: McpServer default/one: spec.stdio.env[0].value: ${NAME} and $NAME are not expanded here",
        ),
    ] {
        let parsed = parse_yaml(&server_yaml("one", spec));
        assert!(parsed.servers[0].spec.is_ok() && parsed.faults.is_empty(), "{spec}");
        let warnings: Vec<_> = parsed
            .warnings
            .iter()
            .map(|warning| format!("{}: {}", warning.location().unwrap(), warning.problem.message))
            .collect();
        assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{warnings:?}");
    }
}

#[test]
fn yaml_bombs_are_rejected_quickly() {
    let mut aliases = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        use std::fmt::Write;
        let _ = writeln!(
            aliases,
            "a{level}: &a{level} [{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]",
            format!("*a{}", level - 1)
        );
    }
    for text in [aliases, "[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(5_000)] {
        let started_at = tokio::time::Instant::now();
        let parsed = parse_yaml(&format!("apiVersion: evenkeel.dev/v1alpha1\nbomb:\n  {text}"));
        assert!(parsed.unidentified.is_some());
        let fault = &describe_faults(&parsed)[0];
        assert!(
            fault.len() < 1_000,
            "the message has {} bytes for {} bytes of YAML",
            fault.len(),
            text.len()
        );
        // Expanding it completely would take hours.
        assert!(started_at.elapsed().as_secs() < 60);
    }
}

/// No error of a broken document contains a value of env, headers or a URL.
#[test]
fn errors_never_contain_a_secret() {
    for spec in [
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: hunter2\n       bad: x",
        "  stdio:\n    command: npx\n    env: [{ name: A, value: hunter2, x: y }]",
        "  stdio:\n    command: npx\n    env: A=hunter2",
        "  stdio:\n    command: npx\n    env:\n      A: hunter2",
        "  stdio:\n    command: npx\n    env:\n      - hunter2",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: [hunter2]",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: |\n          hunter2\n        x: y",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: \"hunter2\n    x: y",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: *hunter2",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: !hunter2 x",
        "  stdio:\n    command: npx\n    env:\n      - name: A, value: hunter2",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: \"\\hunter2\"",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: {hunter2: hunter2}",
        "  stdio:\n    command: npx\n    env:\n      - name: A\n        value: hunter2: hunter2",
        "  http:\n    url: http://a/?key=hunter2\n    headers: {Authorization: hunter2}",
        "  http:\n    url: [http://a/?key=hunter2]",
        "  http:\n    url: ftp://hunter2",
    ] {
        let parsed = parse_yaml(&server_yaml("one", spec));
        let text =
            format!("{:?}{:?}{:?}", describe_objects(&parsed), describe_faults(&parsed), parsed.unidentified);
        assert!(!parsed.faults.is_empty(), "{spec}");
        assert!(!text.contains("hunter2"), "{spec}: {text}");
    }
    let number =
        server_yaml("one", "  stdio:\n    command: x\n    env:\n      - name: A\n        value: 20461337");
    let parsed = parse_yaml(&number);
    let text = format!("{:?}{:?}", describe_objects(&parsed), describe_faults(&parsed));
    assert!(text.contains("quote numbers") && !text.contains("20461337"), "{text}");
}

#[test]
fn first_problem_describes_invalid_yaml() {
    let text = |name: &str| {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\n\
             spec: {{ stdio: {{ command: x }} }}\n"
        )
    };
    assert_eq!(first_problem(Path::new("c.yaml"), &text("c")), None);
    let problem = first_problem(Path::new("c.yaml"), &text("No Name")).unwrap();
    assert!(problem.contains("No Name"), "{problem}");
}
