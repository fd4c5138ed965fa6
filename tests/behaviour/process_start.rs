//! Processes that start slowly, as `npx` and `uvx` do when they download a server first.

use std::time::Duration;

use crate::fixture::{EvenkeelFixture, NO_RETRY};
use crate::rig::{Action, FakeServerProcess, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Era, eventually};

fn slow_start_script(ms: u64) -> Script {
    let mut script = Script::new("late", ServerEra::Dual);
    script.stdio.start_delay_ms = ms;
    script.stdio.stderr = vec!["downloading a server".into()];
    script
}

#[tokio::test]
async fn downloading_process_is_not_killed() {
    for era in [ServerEra::Legacy, ServerEra::Modern, ServerEra::Dual] {
        let rig = FakeStdioServer::new(Script { era, ..slow_start_script(3_500) });
        let fixture = EvenkeelFixture::start(&[(
            "late",
            &format!("{}\ntimeouts: {{ connect: 1s }}\n{NO_RETRY}", rig.spec("")),
        )])
        .await;
        let ready = fixture.evenkeel.wait_for("late", "Ready", "False", "Connecting").await;
        assert!(!ready.message.is_empty());
        let message = eventually("the slow start is reported", async || {
            let ready = fixture.evenkeel.condition("late", "Ready").await?;
            ready.message.contains("has not answered").then_some(ready.message)
        })
        .await;
        assert!(
            message.contains("downloading a server") && message.contains("spec.timeouts.start"),
            "{message}"
        );
        fixture.evenkeel.wait_until_attached("late").await;
        assert_eq!(rig.processes().len(), 1, "{era:?}: the process was started once");
        fixture.agent(Era::Legacy).await.call_text("late_echo", "{}").await;
    }
}

#[tokio::test]
async fn timeout_message_names_the_exceeded_limit() {
    let silent = FakeStdioServer::new(slow_start_script(60_000));
    let slow =
        FakeStdioServer::new(Script::new("slow", ServerEra::Dual).on("tools/list", Rule::delay(60_000)));
    let limits = "timeouts: { start: 2s, connect: 1s }";
    let fixture = EvenkeelFixture::start(&[
        ("silent", &format!("{}\n{limits}\n{NO_RETRY}", silent.spec(""))),
        ("slow", &format!("{}\n{limits}\n{NO_RETRY}", slow.spec(""))),
    ])
    .await;
    let ready = fixture.evenkeel.wait_for("silent", "Ready", "False", "Timeout").await;
    assert!(ready.message.contains("within 2 s of its start (spec.timeouts.start)"), "{ready:?}");
    assert!(ready.message.contains("downloading a server"), "{ready:?}");
    let ready = fixture.evenkeel.wait_for("slow", "Ready", "False", "Timeout").await;
    assert!(ready.message.contains("within 1 s (spec.timeouts.connect)"), "{ready:?}");
    for rig in [&silent, &slow] {
        for process in rig.processes() {
            crate::support::within("the process exits", process.wait_for_exit()).await;
        }
    }
}

/// Downloading runners use no slots of other servers, however many there are.
#[tokio::test]
async fn downloads_do_not_delay_other_servers() {
    let rigs: Vec<_> = (0..12).map(|_| FakeStdioServer::new(slow_start_script(60_000))).collect();
    let directory = tempfile::tempdir().unwrap();
    let runner = directory.path().join("npx");
    std::os::unix::fs::symlink(rigs[0].command().0, &runner).unwrap();
    let fixture = EvenkeelFixture::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        let (_, script) = rig.command();
        let spec =
            format!("stdio: {{ command: \"{}\", args: [\"{}\"] }}", runner.display(), script.display());
        fixture.declared.write_server(&format!("late{number}"), &spec);
    }
    eventually("four are downloading", async || {
        (rigs.iter().filter(|rig| !rig.processes().is_empty()).count() == 4).then_some(())
    })
    .await;
    let other = FakeStdioServer::new(Script::new("other", ServerEra::Dual));
    let started_at = std::time::Instant::now();
    fixture.attach("other", &other.spec("")).await;
    assert!(started_at.elapsed() < Duration::from_secs(15), "attached after {:?}", started_at.elapsed());
    let downloading = rigs.iter().filter(|rig| !rig.processes().is_empty()).count();
    assert_eq!(downloading, 4, "four at a time");
}

/// A server may hold a port or a lock, which would make the next attempt fail.
#[tokio::test]
async fn attempt_waits_until_earlier_processes_have_exited() {
    let mut script = Script::new("s", ServerEra::Dual)
        .on("tools/list", Rule::always(Action::error(-32000, "out of order")));
    script.stdio.ignore_sigterm = true;
    script.stdio.ignore_eof = true;
    script.stdio.grandchild = true;
    let rig = FakeStdioServer::new(script);
    let spec =
        format!("{}\ntimeouts: {{ connect: 1s }}\nretry: {{ initial: 100ms, max: 200ms }}", rig.spec(""));
    let fixture = EvenkeelFixture::start(&[("s", &spec)]).await;
    let wait_for_process = async |number: usize| {
        eventually("the next process has started", async || {
            assert!(rig.existing_pids().len() <= 1, "two processes of one server run at the same time");
            (rig.processes().len() >= number).then_some(())
        })
        .await;
    };
    wait_for_process(3).await;
    rig.edit_script(|script| drop(script.on.remove("tools/list")));
    fixture.evenkeel.wait_until_attached("s").await;

    // The child of a crashed server counts as well.
    let server = rig.live_processes().pop().expect("a running server");
    let child = eventually("the child is recorded", async || {
        rig.grandchildren().into_iter().find(FakeServerProcess::is_alive)
    })
    .await;
    let number = rig.processes().len();
    server.kill();
    wait_for_process(number + 1).await;
    assert!(!child.is_alive(), "the child of the crashed server has exited");
    fixture.evenkeel.wait_until_attached("s").await;
}
