//! evenkeel ends, in every way there is: open sessions go on with the next one, and no process is left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{Era as RigEra, Http, Script, Stdio};
use crate::stage::Stage;
use crate::support::{Era, eventually, within};

/// A server that ends for nothing but SIGKILL, and has a child like that.
fn stubborn() -> Stdio {
    let mut script = Script::new("stubborn", RigEra::Dual);
    script.stdio.ignore_sigterm = true;
    script.stdio.ignore_eof = true;
    script.stdio.grandchild = true;
    Stdio::new(script)
}

/// Waits until every process that a rig ever was is gone, and its children.
async fn all_gone(rig: &Stdio) {
    for process in rig.processes().into_iter().chain(rig.grandchildren()) {
        within("no process is left", process.gone()).await;
    }
}

#[tokio::test]
async fn an_open_session_goes_on_after_kill_9_and_a_new_start() {
    let (stdio, http) = (Stdio::new(Script::default()), Http::start(Script::new("h", RigEra::Legacy)).await);
    let mut stage = Stage::start(&[("s", &stdio.spec("")), ("h", &http.spec())]).await;
    for name in ["s", "h"] {
        stage.evenkeel.attached(name).await;
    }
    let agent = stage.agent(Era::Legacy).await;
    let tools = agent.tools().await;
    let mut notices = agent.notices().await;
    stage.evenkeel.kill();
    notices.ended().await;
    stage.evenkeel.start_again().await;
    for name in ["s", "h"] {
        stage.evenkeel.attached(name).await;
    }
    // The same session, with no new handshake.
    agent.text("s_echo", "{}").await;
    agent.text("h_echo", "{}").await;
    let mut notices = agent.notices().await;
    notices.tools_changed().await;
    assert_eq!(agent.tools().await, tools);
    assert_eq!(agent.end().await, 204);
    let gone = agent.call("s_echo", "{}").await.unwrap_err();
    assert!(gone.contains("404") || gone.contains("ession"), "{gone}");
}

#[tokio::test]
async fn the_first_call_after_a_new_start_waits_for_its_server() {
    let rig = Stdio::new(Script::default());
    let mut stage = Stage::start(&[("s", &rig.spec(""))]).await;
    stage.evenkeel.attached("s").await;
    let agent = stage.agent(Era::Legacy).await;
    stage.evenkeel.kill();
    rig.edit(|script| script.stdio.start_delay_ms = 1000);
    stage.evenkeel.start_again().await;
    agent.text("s_echo", "{}").await;
}

#[tokio::test]
async fn a_change_made_while_evenkeel_was_down_reaches_the_open_session() {
    let (before, after) = (Stdio::new(Script::default()), Stdio::new(Script::default()));
    let mut stage = Stage::start(&[("old", &before.spec(""))]).await;
    stage.evenkeel.attached("old").await;
    let uid = stage.server("old").await["metadata"]["uid"].clone();
    let agent = stage.agent(Era::Legacy).await;
    assert_eq!(agent.tools().await, ["old_echo", "old_report"]);
    stage.evenkeel.kill();
    stage.declared.server("new", &after.spec(""));
    stage.evenkeel.start_again().await;
    let mut notices = agent.notices().await;
    while agent.tools().await != ["new_echo", "new_report", "old_echo", "old_report"] {
        notices.tools_changed().await;
    }
    assert_eq!(stage.server("old").await["metadata"]["uid"], uid);
}

#[tokio::test]
async fn a_file_that_is_broken_at_the_start_keeps_what_it_declared_before() {
    let rig = Stdio::new(Script::default());
    let mut stage = Stage::start(&[("kept", &rig.spec(""))]).await;
    stage.evenkeel.attached("kept").await;
    stage.evenkeel.kill();
    stage
        .declared
        .write("kept.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: { name: kept\n");
    stage.evenkeel.start_again().await;
    stage.evenkeel.wait_for("kept", "Accepted", "False", "ParseError").await;
    stage.evenkeel.wait_for("kept", "Attached", "True", "ServingPreviousGeneration").await;
    stage.agent(Era::Legacy).await.text("kept_echo", "{}").await;
}

#[tokio::test]
async fn kill_9_leaves_no_child_and_no_grandchild() {
    let rigs: Vec<_> = (0..5).map(|_| stubborn()).collect();
    let mut stage = Stage::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        stage.attach(&format!("s{number}"), &rig.spec("")).await;
    }
    eventually("the grandchildren are counted", async || {
        rigs.iter().all(|rig| rig.grandchildren().len() == 1).then_some(())
    })
    .await;
    stage.evenkeel.kill();
    for rig in &rigs {
        all_gone(rig).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_left_its_session_does_not_outlive_evenkeel() {
    let mut script = Script::new("runaway", RigEra::Dual);
    (script.stdio.grandchild, script.stdio.runaway) = (true, true);
    for kill in [true, false] {
        let rig = Stdio::new(script.clone());
        let mut stage = Stage::start(&[("s", &rig.spec(""))]).await;
        stage.evenkeel.attached("s").await;
        eventually("the grandchild is counted", async || rig.grandchildren().pop()).await;
        if kill {
            stage.evenkeel.kill();
        } else {
            stage.evenkeel.terminate().await;
        }
        all_gone(&rig).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_left_its_session_does_not_outlive_its_server() {
    let mut script = Script::new("runaway", RigEra::Dual);
    (script.stdio.grandchild, script.stdio.runaway) = (true, true);
    let (rig, peer) = (Stdio::new(script.clone()), Stdio::new(script));
    let stage = Stage::start(&[("peer", &peer.spec(""))]).await;
    let spec = format!("{}\nretry: {{ initial: 100ms, max: 100ms }}", rig.spec(""));
    stage.attach("s", &spec).await;
    for (number, what) in ["crashed", "replaced", "detached"].into_iter().enumerate() {
        let runaway =
            eventually("the grandchild is counted", async || rig.grandchildren().get(number).cloned()).await;
        stage.evenkeel.attached("s").await;
        assert!(runaway.is_alive());
        match what {
            "crashed" => rig.alive().pop().unwrap().kill(),
            "replaced" => {
                stage.declared.server("s", &spec.replace("args: [", "env: [{ name: A, value: b }], args: ["));
            }
            _ => stage.declared.remove("s.yaml"),
        }
        within(&format!("nothing is left of what {what}"), runaway.gone()).await;
    }
    let runaway = eventually("the other's is counted", async || peer.grandchildren().pop()).await;
    assert!(runaway.is_alive(), "another server's process is none of its business");
}

#[tokio::test]
async fn kill_9_while_fifty_children_start_leaves_none() {
    let mut script = Script::new("starting", RigEra::Dual);
    script.stdio.ignore_eof = true;
    let rig = Stdio::new(script);
    let spec = rig.spec("");
    let names: Vec<_> = (0..50).map(|number| format!("s{number}")).collect();
    let declared: Vec<_> = names.iter().map(|name| (name.as_str(), spec.as_str())).collect();
    let mut stage = Stage::start(&declared).await;
    // Some are there, some on their way, some not begun.
    eventually("twenty have come", async || (rig.processes().len() >= 20).then_some(())).await;
    stage.evenkeel.kill();
    eventually("none is left", async || {
        let said = std::process::Command::new("ps").args(["-A", "-o", "args="]).output().unwrap();
        let script = rig.command().1.display().to_string();
        (!String::from_utf8_lossy(&said.stdout).contains(&script)).then_some(())
    })
    .await;
    all_gone(&rig).await;
}

#[tokio::test]
async fn kill_9_of_the_guard_disturbs_nobody_and_another_takes_its_place() {
    let rig = stubborn();
    let mut stage = Stage::start(&[]).await;
    stage.attach("s", &rig.spec("")).await;
    eventually("the grandchild is counted", async || rig.grandchildren().pop()).await;
    let evenkeel = stage.evenkeel.pid();
    let first = guard_of(evenkeel).expect("a guard");
    kill_process(first, Signal::KILL).unwrap();
    eventually("another guard is there", async || guard_of(evenkeel).filter(|guard| *guard != first)).await;
    assert!(rig.alive().len() == 1 && rig.grandchildren()[0].is_alive());
    stage.agent(Era::Modern).await.text("s_echo", "{}").await;
    stage.evenkeel.kill();
    all_gone(&rig).await;
}

#[tokio::test]
async fn sigterm_ends_everything_within_its_bound() {
    let rigs: Vec<_> = (0..5).map(|_| stubborn()).collect();
    let http = Http::start(Script::new("h", RigEra::Legacy).tools(&["sleep"])).await;
    let mut stage = Stage::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        stage.attach(&format!("s{number}"), &rig.spec("")).await;
    }
    stage.attach("h", &http.spec()).await;
    let guard = guard_of(stage.evenkeel.pid());
    // A call in flight and open streams are no reason to stay.
    let agent = stage.agent(Era::Legacy).await;
    let mut notices = agent.notices().await;
    let call = tokio::spawn(async move { agent.call("h_sleep", r#"{"ms":600000}"#).await });
    eventually("the call is at work", async || (http.counters().in_flight == 1).then_some(())).await;

    let begun = Instant::now();
    let status = stage.evenkeel.terminate().await;
    assert!(status.success(), "{status}");
    // The servers have 10 s and everything together 15 s; who needs longer says so.
    assert!(!stage.evenkeel.said().contains("did not end within"));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    for rig in &rigs {
        all_gone(rig).await;
    }
    assert_eq!((http.counters().sessions, http.counters().of("DELETE")), (0, 1));
    notices.ended().await;
    within("the call ends", call).await.unwrap().ok();
    eventually("the guard ends too", async || {
        guard.is_none_or(|guard| rustix::process::test_kill_process(guard).is_err()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let http =
        Http::start(Script::new("h", RigEra::Legacy).on("DELETE", crate::rig::Rule::delay(600_000))).await;
    let rig = stubborn();
    let mut stage = Stage::start(&[("h", &http.spec()), ("s", &rig.spec(""))]).await;
    stage.evenkeel.attached("h").await;
    stage.evenkeel.attached("s").await;
    let pid = Pid::from_raw(i32::try_from(stage.evenkeel.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the shutdown has begun", async || {
        stage.evenkeel.said().contains("a second signal ends it at once").then_some(())
    })
    .await;
    let begun = Instant::now();
    let status = stage.evenkeel.terminate().await;
    assert_eq!(status.code(), Some(1), "{status}");
    // The session that does not end would have kept it for longer.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    all_gone(&rig).await;
}

/// The guard process of this evenkeel, as the system tells it.
fn guard_of(evenkeel: u32) -> Option<Pid> {
    let said = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid=,args="]).output().unwrap();
    String::from_utf8_lossy(&said.stdout).lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse::<u32>().ok()?);
        let program = Path::new(words.next()?).file_name()?.to_owned();
        (parent == evenkeel && program == "evenkeel" && words.next() == Some("guard"))
            .then(|| Pid::from_raw(pid))?
    })
}
