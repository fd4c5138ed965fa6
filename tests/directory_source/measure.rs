//! How long a change takes to become what is desired. Prints the table of docs/directory.md:
//! `cargo test --test directory_source measure -- --ignored --nocapture`.

use std::process::Command;

use super::*;

impl TestDirectory {
    fn run_command(&self, program: &str, args: &[&str]) {
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
    async fn measure(&mut self, what: &str, names: &[String], command: &str, act: impl FnOnce(&Self)) {
        self.wait_for_earlier_changes().await;
        let before = self.desired();
        act(self);
        let begun = Instant::now();
        let done = |desired: &Desired| {
            let has = |name: &String| {
                let server = desired.servers.get(&ObjectKey::new("default", name.as_str()));
                server.and_then(|server| command_of(server)) == Some(command)
            };
            names.iter().all(has)
        };
        let after = self.wait_for(done).await;
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

fn numbered_names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_changes_of_a_directory() {
    let mut rig = TestDirectory::with_root("link", &[]);
    symlink("fleet", rig.folder.path().join("link")).unwrap();
    for name in numbered_names("s", 200).into_iter().chain(numbered_names("peer", 100)) {
        rig.write(&format!("{name}.yaml"), &server(&name, "x"));
    }
    rig.run_command("git", &["init", "-q", "-b", "main"]);
    rig.run_command("git", &["add", "-A"]);
    rig.run_command("git", &["commit", "-q", "-m", "one"]);
    rig.start();
    rig.wait_for(|desired| desired.servers.len() == 300).await;
    println!("| change | time to effect | peers reconnected |\n|---|---|---|");
    let one = numbered_names("s", 1);
    rig.measure("a new file, renamed into place", &numbered_names("new", 1), "x", |rig| {
        rig.write("incoming", &server("new0", "x"));
        rig.rename("incoming", "new0.yaml");
    })
    .await;
    rig.measure("a new file, written and closed", &numbered_names("fresh", 1), "x", |rig| {
        rig.write("fresh0.yaml", &server("fresh0", "x"));
    })
    .await;
    rig.measure("vim: a backup by rename, a new file", &one, "vim", |rig| {
        rig.run_command(
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
    rig.measure("VS Code: truncated and written", &one, "code", |rig| {
        rig.write("s0.yaml", &server("s0", "code"));
    })
    .await;
    rig.measure("sed -i", &one, "sed", |rig| {
        rig.run_command("sed", &["-i", "s/command: .*/command: sed/", "s0.yaml"])
    })
    .await;
    rig.measure("rsync: a hidden file, renamed into place", &one, "rsync", |rig| {
        rig.write(".s0.yaml.Xy12", &server("s0", "rsync"));
        rig.rename(".s0.yaml.Xy12", "s0.yaml");
    })
    .await;
    let all = numbered_names("s", 200);
    rig.run_command("git", &["checkout", "-q", "-f", "main"]);
    rig.run_command("git", &["checkout", "-q", "-b", "other"]);
    for name in &all {
        rig.write(&format!("{name}.yaml"), &server(name, "other"));
    }
    rig.run_command("git", &["commit", "-q", "-a", "-m", "two"]);
    rig.measure("git checkout of 200 files", &all, "x", |rig| {
        rig.run_command("git", &["checkout", "-q", "main"])
    })
    .await;
    rig.write("base.yaml", &server("base", "x"));
    rig.run_command("git", &["add", "base.yaml"]);
    rig.run_command("git", &["commit", "-q", "-m", "three"]);
    rig.run_command("git", &["checkout", "-q", "other"]);
    rig.run_command("git", &["checkout", "-q", "main"]);
    rig.measure("git rebase of 200 files", &all, "other", |rig| {
        rig.run_command("git", &["rebase", "-q", "main", "other"]);
    })
    .await;
    rig.measure("a root that is a link, flipped", &one, "flipped", |rig| {
        let parent = rig.folder.path();
        rig.run_command(
            "cp",
            &["-r", parent.join("fleet").to_str().unwrap(), parent.join("v2").to_str().unwrap()],
        );
        fs::write(parent.join("v2/s0.yaml"), server("s0", "flipped")).unwrap();
        symlink("v2", parent.join("tmp")).unwrap();
        fs::rename(parent.join("tmp"), parent.join("link")).unwrap();
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_changes_of_volumes_and_roots() {
    let names = numbered_names("s", 100);
    let mut rig = TestDirectory::new(&[]);
    for name in &names {
        rig.write(&format!("..v1/{name}.yaml"), &server(name, "x"));
        symlink(format!("..data/{name}.yaml"), rig.path(&format!("{name}.yaml"))).unwrap();
    }
    symlink("..v1", rig.path("..data")).unwrap();
    rig.start();
    rig.wait_for(|desired| desired.servers.len() == 100).await;
    rig.measure("a volume of Kubernetes: ..data flipped", &numbered_names("s", 1), "flipped", |rig| {
        rig.run_command("cp", &["-r", "..v1", "..v2"]);
        rig.write("..v2/s0.yaml", &server("s0", "flipped"));
        symlink("..v2", rig.path("..tmp")).unwrap();
        rig.rename("..tmp", "..data");
    })
    .await;
    rig.measure("the root deleted and made again", &numbered_names("s", 1), "again", |rig| {
        fs::remove_dir_all(rig.path("")).unwrap();
        for name in &names {
            rig.write(&format!("{name}.yaml"), &server(name, if name == "s0" { "again" } else { "x" }));
        }
    })
    .await;
    rig.stop().await;
}

/// Bytes that this process has read so far.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_ten_thousand_files() {
    let mut rig = TestDirectory::new(&[]);
    let names = numbered_names("s", 10_000);
    for name in &names {
        rig.write(&format!("{}/{name}.yaml", name.len()), &server(name, "x"));
    }
    let (begun, before) = (Instant::now(), bytes_read());
    rig.start();
    rig.wait_for(|desired| desired.source.synced && desired.servers.len() == 10_000).await;
    println!("first look: {} ms, {} KiB read", begun.elapsed().as_millis(), (bytes_read() - before) >> 10);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (begun, before) = (Instant::now(), bytes_read());
    rig.write("2/s0.yaml", &server("s0", "w"));
    rig.wait_for(|desired| {
        desired.servers.values().next().and_then(|server| command_of(server)) == Some("w")
    })
    .await;
    println!("one changed: {} ms, {} KiB read", begun.elapsed().as_millis(), (bytes_read() - before) >> 10);
    rig.stop().await;
}
