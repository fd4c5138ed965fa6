//! How long a change takes to become what is desired. Prints the table of docs/directory.md:
//! `cargo test --test directory_source measure -- --ignored --nocapture`.

use std::process::Command;

use super::*;

impl Rig {
    fn run(&self, program: &str, args: &[&str]) {
        let output = Command::new(program)
            .args(args)
            .current_dir(self.path(""))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs(
                ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"]
                    .map(|name| (name, "x")),
            )
            .output()
            .unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Does something, and prints how long after its end the named servers have this command, and how many others
    /// are other connections than before.
    async fn time(&mut self, what: &str, names: &[String], command: &str, act: impl FnOnce(&Self)) {
        self.all_seen().await;
        let before = self.now();
        act(self);
        let begun = Instant::now();
        let done = |desired: &Desired| {
            let has = |name: &String| {
                let server = desired.servers.get(&ObjectKey::new("default", name.as_str()));
                server.and_then(|server| command_of(server)) == Some(command)
            };
            names.iter().all(has)
        };
        let after = self.until_that(done).await;
        let took = begun.elapsed();
        let digest =
            |server: &DeclaredObject<McpServerSpec>| Some(server.endpoint.as_ref()?.as_ref().ok()?.digest());
        let peers = before.servers.iter().filter(|(key, _)| !names.iter().any(|name| **name == *key.name));
        let reconnects = peers
            .filter(|(key, server)| {
                after.servers.get(*key).and_then(|server| digest(server)) != digest(server)
            })
            .count();
        println!("| {what} | {} ms | {reconnects} |", took.as_millis());
    }
}

fn named(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn ways_to_change_a_directory() {
    let mut rig = Rig::at("link", &[]);
    symlink("fleet", rig.folder.path().join("link")).unwrap();
    for name in named("s", 200).into_iter().chain(named("peer", 100)) {
        rig.write(&format!("{name}.yaml"), &server(&name, "x"));
    }
    rig.run("git", &["init", "-q", "-b", "main"]);
    rig.run("git", &["add", "-A"]);
    rig.run("git", &["commit", "-q", "-m", "one"]);
    rig.start();
    rig.until_that(|desired| desired.servers.len() == 300).await;
    println!("| change | time to effect | peers reconnected |\n|---|---|---|");
    let one = named("s", 1);
    rig.time("a new file, renamed into place", &named("new", 1), "x", |rig| {
        rig.write("incoming", &server("new0", "x"));
        rig.rename("incoming", "new0.yaml");
    })
    .await;
    rig.time("a new file, written and closed", &named("fresh", 1), "x", |rig| {
        rig.write("fresh0.yaml", &server("fresh0", "x"));
    })
    .await;
    rig.time("vim: a backup by rename, a new file", &one, "vim", |rig| {
        rig.run(
            "vim",
            &[
                "-es",
                "-u",
                "NONE",
                "-c",
                "set backup backupcopy=no",
                "-c",
                "%s/command: .*/command: vim/",
                "-c",
                "wq",
                "s0.yaml",
            ],
        );
        let _ = fs::remove_file(rig.path("s0.yaml~"));
    })
    .await;
    rig.time("VS Code: truncated and written", &one, "code", |rig| {
        rig.write("s0.yaml", &server("s0", "code"));
    })
    .await;
    rig.time("sed -i", &one, "sed", |rig| rig.run("sed", &["-i", "s/command: .*/command: sed/", "s0.yaml"]))
        .await;
    rig.time("rsync: a hidden file, renamed into place", &one, "rsync", |rig| {
        rig.write(".s0.yaml.Xy12", &server("s0", "rsync"));
        rig.rename(".s0.yaml.Xy12", "s0.yaml");
    })
    .await;
    let all = named("s", 200);
    rig.run("git", &["checkout", "-q", "-f", "main"]);
    rig.run("git", &["checkout", "-q", "-b", "other"]);
    for name in &all {
        rig.write(&format!("{name}.yaml"), &server(name, "other"));
    }
    rig.run("git", &["commit", "-q", "-a", "-m", "two"]);
    rig.time("git checkout of 200 files", &all, "x", |rig| rig.run("git", &["checkout", "-q", "main"])).await;
    rig.write("base.yaml", &server("base", "x"));
    rig.run("git", &["add", "base.yaml"]);
    rig.run("git", &["commit", "-q", "-m", "three"]);
    rig.run("git", &["checkout", "-q", "other"]);
    rig.run("git", &["checkout", "-q", "main"]);
    rig.time("git rebase of 200 files", &all, "other", |rig| {
        rig.run("git", &["rebase", "-q", "main", "other"]);
    })
    .await;
    rig.time("a root that is a link, flipped", &one, "flipped", |rig| {
        let parent = rig.folder.path();
        rig.run("cp", &["-r", parent.join("fleet").to_str().unwrap(), parent.join("v2").to_str().unwrap()]);
        fs::write(parent.join("v2/s0.yaml"), server("s0", "flipped")).unwrap();
        symlink("v2", parent.join("tmp")).unwrap();
        fs::rename(parent.join("tmp"), parent.join("link")).unwrap();
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn volumes_and_roots() {
    let names = named("s", 100);
    let mut rig = Rig::new(&[]);
    for name in &names {
        rig.write(&format!("..v1/{name}.yaml"), &server(name, "x"));
        symlink(format!("..data/{name}.yaml"), rig.path(&format!("{name}.yaml"))).unwrap();
    }
    symlink("..v1", rig.path("..data")).unwrap();
    rig.start();
    rig.until_that(|desired| desired.servers.len() == 100).await;
    rig.time("a volume of Kubernetes: ..data flipped", &named("s", 1), "flipped", |rig| {
        rig.run("cp", &["-r", "..v1", "..v2"]);
        rig.write("..v2/s0.yaml", &server("s0", "flipped"));
        symlink("..v2", rig.path("..tmp")).unwrap();
        rig.rename("..tmp", "..data");
    })
    .await;
    rig.time("the root deleted and made again", &named("s", 1), "again", |rig| {
        fs::remove_dir_all(rig.path("")).unwrap();
        for name in &names {
            rig.write(&format!("{name}.yaml"), &server(name, if name == "s0" { "again" } else { "x" }));
        }
    })
    .await;
    rig.stop().await;
}

/// Bytes that this process has read so far.
fn read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn ten_thousand_files() {
    let mut rig = Rig::new(&[]);
    let names = named("s", 10_000);
    for name in &names {
        rig.write(&format!("{}/{name}.yaml", name.len()), &server(name, "x"));
    }
    let (begun, before) = (Instant::now(), read());
    rig.start();
    rig.until_that(|desired| desired.source.synced && desired.servers.len() == 10_000).await;
    println!("first look: {} ms, {} KiB read", begun.elapsed().as_millis(), (read() - before) >> 10);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (begun, before) = (Instant::now(), read());
    rig.write("2/s0.yaml", &server("s0", "w"));
    rig.until_that(|desired| {
        desired.servers.values().next().and_then(|server| command_of(server)) == Some("w")
    })
    .await;
    println!("one changed: {} ms, {} KiB read", begun.elapsed().as_millis(), (read() - before) >> 10);
    rig.stop().await;
}
