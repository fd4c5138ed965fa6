//! Processes that take their time to start, as `npx` and `uvx` do when they download a server first.

use std::time::Duration;

use crate::rig::{Era as RigEra, Rule, Script, Stdio};
use crate::stage::{NEVER, Stage};
use crate::support::Era;

fn late(ms: u64) -> Script {
    let mut script = Script::new("late", RigEra::Dual);
    script.stdio.start_delay_ms = ms;
    script.stdio.stderr = vec!["downloading a server".into()];
    script
}

#[tokio::test]
async fn a_process_is_not_ended_while_it_downloads() {
    for era in [RigEra::Legacy, RigEra::Modern, RigEra::Dual] {
        let rig = Stdio::new(Script { era, ..late(3_500) });
        let stage =
            Stage::start(&[("late", &format!("{}\ntimeouts: {{ connect: 1s }}\n{NEVER}", rig.spec("")))])
                .await;
        let ready = stage.evenkeel.wait_for("late", "Ready", "False", "Connecting").await;
        assert!(!ready.message.is_empty());
        let said = crate::support::eventually("what it waits for is said", async || {
            let ready = stage.evenkeel.condition("late", "Ready").await?;
            ready.message.contains("has not answered").then_some(ready.message)
        })
        .await;
        assert!(said.contains("downloading a server") && said.contains("spec.timeouts.start"), "{said}");
        stage.evenkeel.attached("late").await;
        assert_eq!(rig.processes().len(), 1, "{era:?}: it was started once");
        stage.agent(Era::Legacy).await.text("late_echo", "{}").await;
    }
}

#[tokio::test]
async fn the_limit_that_was_exceeded_is_named() {
    let silent = Stdio::new(late(60_000));
    let slow = Stdio::new(Script::new("slow", RigEra::Dual).on("tools/list", Rule::delay(60_000)));
    let limits = "timeouts: { start: 2s, connect: 1s }";
    let stage = Stage::start(&[
        ("silent", &format!("{}\n{limits}\n{NEVER}", silent.spec(""))),
        ("slow", &format!("{}\n{limits}\n{NEVER}", slow.spec(""))),
    ])
    .await;
    let ready = stage.evenkeel.wait_for("silent", "Ready", "False", "Timeout").await;
    assert!(ready.message.contains("within 2 s of its start (spec.timeouts.start)"), "{ready:?}");
    assert!(ready.message.contains("downloading a server"), "{ready:?}");
    let ready = stage.evenkeel.wait_for("slow", "Ready", "False", "Timeout").await;
    assert!(ready.message.contains("within 1 s (spec.timeouts.connect)"), "{ready:?}");
    for rig in [&silent, &slow] {
        for process in rig.processes() {
            crate::support::within("no process is left", process.gone()).await;
        }
    }
}

/// A runner that downloads takes no slot of other servers, however many there are.
#[tokio::test]
async fn nobody_waits_for_downloads() {
    let rigs: Vec<_> = (0..12).map(|_| Stdio::new(late(60_000))).collect();
    let directory = tempfile::tempdir().unwrap();
    let runner = directory.path().join("npx");
    std::os::unix::fs::symlink(rigs[0].command().0, &runner).unwrap();
    let stage = Stage::start(&[]).await;
    for (number, rig) in rigs.iter().enumerate() {
        let (_, script) = rig.command();
        let spec =
            format!("stdio: {{ command: \"{}\", args: [\"{}\"] }}", runner.display(), script.display());
        stage.declared.server(&format!("late{number}"), &spec);
    }
    crate::support::eventually("some are downloading", async || {
        (rigs.iter().filter(|rig| !rig.processes().is_empty()).count() == 4).then_some(())
    })
    .await;
    let other = Stdio::new(Script::new("other", RigEra::Dual));
    let begun = std::time::Instant::now();
    stage.attach("other", &other.spec("")).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "it waited for {:?}", begun.elapsed());
    let downloading = rigs.iter().filter(|rig| !rig.processes().is_empty()).count();
    assert_eq!(downloading, 4, "a few at a time");
}
