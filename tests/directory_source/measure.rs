//! Measures how long a change takes until it is published. Prints the table of docs/directory.md: `cargo test --test
//! directory_source measure -- --ignored --nocapture`.

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

    /// Runs `act`, and prints the time from its end until the named servers have this command, and the number of other
    /// servers whose connection digest changed.
    async fn measure(&mut self, change: &str, names: &[String], command: &str, act: impl FnOnce(&Self)) {
        self.wait_for_earlier_changes().await;
        let before = self.desired();
        act(self);
        let started_at = Instant::now();
        let is_done = |desired: &Desired| {
            let has_command = |name: &String| {
                let server = desired.servers.get(&ObjectKey::new("default", name.as_str()));
                server.and_then(|server| command_of(server)) == Some(command)
            };
            names.iter().all(has_command)
        };
        let after = self.wait_for(is_done).await;
        let elapsed = started_at.elapsed();
        let digest =
            |server: &DeclaredObject<McpServerSpec>| Some(server.endpoint.as_ref()?.as_ref().ok()?.digest());
        let others = before.servers.iter().filter(|(key, _)| !names.iter().any(|name| **name == *key.name));
        let reconnects = others
            .filter(|(key, server)| {
                after.servers.get(*key).and_then(|server| digest(server)) != digest(server)
            })
            .count();
        println!("| {change} | {} ms | {reconnects} |", elapsed.as_millis());
    }
}

fn numbered_names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_changes_of_a_directory() {
    let mut directory = TestDirectory::with_root("link", &[]);
    symlink("fleet", directory.folder.path().join("link")).unwrap();
    for name in numbered_names("s", 200).into_iter().chain(numbered_names("peer", 100)) {
        directory.write(&format!("{name}.yaml"), &server(&name, "x"));
    }
    directory.run_command("git", &["init", "-q", "-b", "main"]);
    directory.run_command("git", &["add", "-A"]);
    directory.run_command("git", &["commit", "-q", "-m", "one"]);
    directory.start();
    directory.wait_for(|desired| desired.servers.len() == 300).await;
    println!("| change | time to effect | peers reconnected |\n|---|---|---|");
    let one = numbered_names("s", 1);
    directory
        .measure("a new file, renamed into place", &numbered_names("new", 1), "x", |directory| {
            directory.write("incoming", &server("new0", "x"));
            directory.rename("incoming", "new0.yaml");
        })
        .await;
    directory
        .measure("a new file, written and closed", &numbered_names("fresh", 1), "x", |directory| {
            directory.write("fresh0.yaml", &server("fresh0", "x"));
        })
        .await;
    directory
        .measure("vim: a backup by rename, a new file", &one, "vim", |directory| {
            directory.run_command(
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
            let _ = fs::remove_file(directory.path("s0.yaml~"));
        })
        .await;
    directory
        .measure("VS Code: truncated and written", &one, "code", |directory| {
            directory.write("s0.yaml", &server("s0", "code"));
        })
        .await;
    directory
        .measure("sed -i", &one, "sed", |directory| {
            directory.run_command("sed", &["-i", "s/command: .*/command: sed/", "s0.yaml"])
        })
        .await;
    directory
        .measure("rsync: a hidden file, renamed into place", &one, "rsync", |directory| {
            directory.write(".s0.yaml.Xy12", &server("s0", "rsync"));
            directory.rename(".s0.yaml.Xy12", "s0.yaml");
        })
        .await;
    let all = numbered_names("s", 200);
    directory.run_command("git", &["checkout", "-q", "-f", "main"]);
    directory.run_command("git", &["checkout", "-q", "-b", "other"]);
    for name in &all {
        directory.write(&format!("{name}.yaml"), &server(name, "other"));
    }
    directory.run_command("git", &["commit", "-q", "-a", "-m", "two"]);
    directory
        .measure("git checkout of 200 files", &all, "x", |directory| {
            directory.run_command("git", &["checkout", "-q", "main"])
        })
        .await;
    directory.write("base.yaml", &server("base", "x"));
    directory.run_command("git", &["add", "base.yaml"]);
    directory.run_command("git", &["commit", "-q", "-m", "three"]);
    directory.run_command("git", &["checkout", "-q", "other"]);
    directory.run_command("git", &["checkout", "-q", "main"]);
    directory
        .measure("git rebase of 200 files", &all, "other", |directory| {
            directory.run_command("git", &["rebase", "-q", "main", "other"]);
        })
        .await;
    directory
        .measure("a root that is a link, replaced", &one, "replaced", |directory| {
            let parent = directory.folder.path();
            directory.run_command(
                "cp",
                &["-r", parent.join("fleet").to_str().unwrap(), parent.join("v2").to_str().unwrap()],
            );
            fs::write(parent.join("v2/s0.yaml"), server("s0", "replaced")).unwrap();
            symlink("v2", parent.join("tmp")).unwrap();
            fs::rename(parent.join("tmp"), parent.join("link")).unwrap();
        })
        .await;
    directory.stop().await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_changes_of_volumes_and_roots() {
    let names = numbered_names("s", 100);
    let mut directory = TestDirectory::new(&[]);
    for name in &names {
        directory.write(&format!("..v1/{name}.yaml"), &server(name, "x"));
        symlink(format!("..data/{name}.yaml"), directory.path(&format!("{name}.yaml"))).unwrap();
    }
    symlink("..v1", directory.path("..data")).unwrap();
    directory.start();
    directory.wait_for(|desired| desired.servers.len() == 100).await;
    directory
        .measure("a Kubernetes volume: ..data replaced", &numbered_names("s", 1), "replaced", |directory| {
            directory.run_command("cp", &["-r", "..v1", "..v2"]);
            directory.write("..v2/s0.yaml", &server("s0", "replaced"));
            symlink("..v2", directory.path("..tmp")).unwrap();
            directory.rename("..tmp", "..data");
        })
        .await;
    directory
        .measure("the root deleted and created again", &numbered_names("s", 1), "again", |directory| {
            fs::remove_dir_all(directory.path("")).unwrap();
            for name in &names {
                directory
                    .write(&format!("{name}.yaml"), &server(name, if name == "s0" { "again" } else { "x" }));
            }
        })
        .await;
    directory.stop().await;
}

/// Returns the number of bytes that this process has read so far.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_ten_thousand_files() {
    let mut directory = TestDirectory::new(&[]);
    let names = numbered_names("s", 10_000);
    for name in &names {
        directory.write(&format!("{}/{name}.yaml", name.len()), &server(name, "x"));
    }
    let (started_at, before) = (Instant::now(), bytes_read());
    directory.start();
    directory.wait_for(|desired| desired.source.synced && desired.servers.len() == 10_000).await;
    println!(
        "first scan: {} ms, {} KiB read",
        started_at.elapsed().as_millis(),
        (bytes_read() - before) >> 10
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (started_at, before) = (Instant::now(), bytes_read());
    directory.write("2/s0.yaml", &server("s0", "w"));
    directory
        .wait_for(|desired| {
            desired.servers.values().next().and_then(|server| command_of(server)) == Some("w")
        })
        .await;
    println!(
        "one changed: {} ms, {} KiB read",
        started_at.elapsed().as_millis(),
        (bytes_read() - before) >> 10
    );
    directory.stop().await;
}
