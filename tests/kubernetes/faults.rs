//! Servers that hang, flood, lie and crash, declared in a cluster; and evenkeel, killed.

use crate::rig::{Era as RigEra, Http, Rule, Script, Stdio, Then};
use crate::site::{Site, condition, server};
use crate::support::{Agent, Era, Evenkeel, eventually, within};

/// Runs evenkeel where these commands may run.
async fn run(site: &Site<'_>, rigs: &[&Stdio]) -> Evenkeel {
    let allowed = rigs.iter().map(|rig| {
        let (program, file) = rig.command();
        format!("--allow-stdio={} {}", program.display(), file.display())
    });
    let allowed: Vec<String> = allowed.collect();
    site.run(&allowed.iter().map(String::as_str).collect::<Vec<_>>()).await
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn a_bad_server_tells_its_own_state_and_disturbs_nobody() {
    let site = Site::open().await;
    let hangs = Script::default()
        .on("server/discover", Rule::always(Then::Hang))
        .on("initialize", Rule::always(Then::Hang));
    let mut flood = Script::new("flood", RigEra::Modern).tools(&["echo"]);
    flood.stdio.stderr_flood = 20_000_000;
    let mut crash = Script::default();
    crash.stdio.exit_at_start = Some(7);
    crash.stdio.stderr = vec!["no such luck".into()];
    let (hung, hung_http) = (Stdio::new(hangs.clone()), Http::start(hangs).await);
    let (flood, crash) = (Stdio::new(flood), Stdio::new(crash));
    let lies = Http::start(Script::default().on("POST", Rule::always(Then::Junk("<html>".into())))).await;
    let rotten =
        Script::default().tools(&["echo"]).on("tools/list", Rule::always(Then::error(-32603, "rotten")));
    let rotten = Http::start(rotten).await;
    let peer = Http::start(Script::new("peer", RigEra::Legacy).tools(&["echo"])).await;

    let evenkeel = run(&site, &[&hung, &flood, &crash]).await;
    site.serve("peer", &peer).await;
    site.attached("peer").await;
    let agent = Agent::open(Era::Legacy, &evenkeel.url()).await;
    let late = "retry: { initial: 1h, max: 1h }";
    let brief = format!("timeouts: {{ start: 2s, connect: 2s }}\n{late}");
    site.apply(
        &(server("hung", &format!("{}\n{brief}", hung.spec("")))
            + &server("hung-http", &format!("{}\n{brief}", hung_http.spec()))
            + &server("flood", &flood.spec(""))
            + &server("crash", &format!("{}\n{late}", crash.spec("")))
            + &server("lies", &format!("{}\n{late}", lies.spec()))
            + &server("rotten", &format!("{}\n{late}", rotten.spec()))),
    )
    .await;
    for (name, expected) in [
        ("hung", "Timeout"),
        ("hung-http", "Timeout"),
        ("crash", "Exited"),
        ("lies", "ConnectFailed"),
        ("rotten", "ListFailed"),
        ("flood", "Attached"),
    ] {
        let reason = eventually(&format!("{name} is told"), async || {
            let (_, reason, _) = condition(&site.get(name).await?, "Ready")?;
            (reason != "Connecting").then_some(reason)
        })
        .await;
        assert_eq!(reason, expected, "{name}");
        agent.text("peer_echo", "{}").await;
    }
    assert_eq!(agent.tools().await, ["flood_echo", "peer_echo"]);
    // What is declared now is attached as if they were not there.
    let another = Http::start(Script::new("another", RigEra::Modern).tools(&["echo"])).await;
    site.serve("another", &another).await;
    site.attached("another").await;
    let message = condition(&site.get("crash").await.unwrap(), "Ready").unwrap().2;
    assert!(message.contains("no such luck"), "{message}");
    let counters = peer.counters();
    assert_eq!((counters.initializes(), counters.sessions_opened, counters.lists()), (1, 1, 1));
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn kill_9_leaves_no_child() {
    let site = Site::open().await;
    let mut script = Script::new("stubborn", RigEra::Dual);
    script.stdio.ignore_sigterm = true;
    script.stdio.ignore_eof = true;
    script.stdio.grandchild = true;
    let rig = Stdio::new(script);
    let mut evenkeel = run(&site, &[&rig]).await;
    site.apply(&server("stubborn", &rig.spec(""))).await;
    site.attached("stubborn").await;
    eventually("it has a child", async || (rig.grandchildren().len() == 1).then_some(())).await;
    evenkeel.kill();
    for process in rig.processes().into_iter().chain(rig.grandchildren()) {
        within("no process is left", process.gone()).await;
    }
}
