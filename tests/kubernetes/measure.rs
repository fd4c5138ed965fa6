//! Measurements of latency, takeover time and memory. With a release build, named by `EVENKEEL_BIN`:
//! `EVENKEEL_BIN=target/release/evenkeel cargo test --test kubernetes measure -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, eventually, http};
use crate::test_namespace::{TestNamespace, server_yaml};

async fn start_server() -> FakeHttpServer {
    FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await
}

fn print_percentiles(label: &str, times: &mut [Duration]) {
    times.sort();
    let percentile =
        |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!(
        "{label}: p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
        percentile(50),
        percentile(99),
        percentile(100)
    );
}

/// Returns the resident memory in MiB: the total (`VmRSS`), and without file-backed pages (`RssAnon`).
fn memory_mib(evenkeel: &Evenkeel) -> [f64; 2] {
    let status = std::fs::read_to_string(format!("/proc/{}/status", evenkeel.pid())).unwrap();
    ["VmRSS:", "RssAnon:"].map(|field| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    })
}

#[tokio::test]
#[ignore = "a measurement"]
async fn latency_from_apply_to_visible_tool() {
    const SERVERS: usize = 100;
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let evenkeel = ns.run(&[]).await;
    // One server first, as a warm-up.
    ns.apply_http_server("first", &rig).await;
    ns.wait_until_attached("first").await;
    let writes_before = ns.status_writes("");
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    let mut stream = agent.notifications().await;
    let (mut from_start, mut from_end) = (Vec::new(), Vec::new());
    for index in 0..SERVERS {
        let tool = format!("s{index}_echo");
        let visible = async {
            while !agent.tool_names().await.contains(&tool) {
                stream.wait_for_tools_changed().await;
            }
            Instant::now()
        };
        let start = Instant::now();
        let name = format!("s{index}");
        let apply = async {
            ns.apply_http_server(&name, &rig).await;
            Instant::now()
        };
        let (applied, visible) = tokio::join!(apply, visible);
        from_start.push(visible - start);
        from_end.push(visible.saturating_duration_since(applied));
    }
    print_percentiles("from the start of kubectl apply to the tool in a session", &mut from_start);
    print_percentiles("from the end of kubectl apply to the tool in a session", &mut from_end);
    ns.wait_until_attached(&format!("s{}", SERVERS - 1)).await;
    eventually("all statuses are written", async || {
        let table = ns.kubectl(&["get", "mcps", "--no-headers"]).await;
        (table.matches(" True ").count() > SERVERS).then_some(())
    })
    .await;
    println!("status writes for {SERVERS} attached servers: {}", ns.status_writes("") - writes_before);
}

#[tokio::test]
#[ignore = "a measurement"]
async fn memory_of_1000_servers() {
    const SERVERS: usize = 1_000;
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let evenkeel = ns.run(&[]).await;
    // One server first, as a warm-up.
    ns.apply_http_server("first", &rig).await;
    ns.wait_until_attached("first").await;
    let base = memory_mib(&evenkeel);
    let start = Instant::now();
    for chunk in 0..10 {
        let names = (0..SERVERS / 10).map(|index| format!("s{:03}", chunk * SERVERS / 10 + index));
        let yaml: String = names
            .map(|name| server_yaml(&name, &format!("{}\nhealth: {{ interval: 0s }}", rig.spec())))
            .collect();
        ns.apply(&yaml).await;
    }
    println!("{SERVERS} servers applied: {:.1} s", start.elapsed().as_secs_f64());
    loop {
        let table = ns.kubectl(&["get", "mcps", "--no-headers"]).await;
        if table.matches(" True ").count() > SERVERS {
            break;
        }
    }
    println!("{SERVERS} servers attached, with status: {:.1} s", start.elapsed().as_secs_f64());
    let full = memory_mib(&evenkeel);
    for (label, base, full) in [("resident", base[0], full[0]), ("anonymous", base[1], full[1])] {
        let each = (full - base) * 1024.0 / 1e3;
        println!(
            "{label}: {base:.1} MiB with 1 server, {full:.1} MiB with {}: {each:.1} KiB each",
            SERVERS + 1
        );
    }
    println!("status writes: {}", ns.status_writes(""));
}

#[tokio::test]
#[ignore = "a measurement"]
async fn lease_takeover_time() {
    const ROUNDS: usize = 5;
    let ns = TestNamespace::create_shared().await;
    let holds_lease = |replica: &Evenkeel| replica.stderr().contains("holds the Lease");
    for kill in [true, false] {
        let mut times = Vec::new();
        let mut leader = ns.run(&[]).await;
        eventually("the first replica holds the Lease", async || holds_lease(&leader).then_some(())).await;
        for _ in 0..ROUNDS {
            let next = ns.run(&[]).await;
            // The next replica must have observed the holder.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let start = Instant::now();
            if kill {
                leader.kill();
            } else {
                leader.terminate().await;
            }
            eventually("the next replica holds the Lease", async || holds_lease(&next).then_some(())).await;
            times.push(start.elapsed());
            leader = next;
        }
        print_percentiles(if kill { "takeover after kill -9" } else { "takeover after SIGTERM" }, &mut times);
        leader.terminate().await;
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn memory_of_300_secrets() {
    const SERVERS: u16 = 300;
    let ns = TestNamespace::create_shared().await;
    let rig = start_server().await;
    let secrets = (0..SERVERS).map(|index| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{ name: s{index} }}\nstringData: {{ key: x }}\n---\n"
        )
    });
    ns.apply(&secrets.collect::<String>()).await;
    let mut measured = Vec::new();
    for one_for_each in [false, true] {
        let servers = (0..SERVERS).map(|index| {
            let secret = if one_for_each { index } else { 0 };
            let from = format!("{{ secretKeyRef: {{ name: s{secret}, key: key }} }}");
            let headers = format!("[{{ name: x-key, valueFrom: {from} }}]");
            let http = format!("http: {{ url: \"{}\", headers: {headers} }}", rig.url());
            server_yaml(&format!("s{index}"), &format!("{http}\nhealth: {{ interval: 0s }}"))
        });
        ns.apply(&servers.collect::<String>()).await;
        let mut evenkeel = ns.run(&[]).await;
        eventually("all are attached", async || {
            let metrics = http::get(&evenkeel.admin("/metrics")).await.ok()?;
            metrics.contains(&format!("ready=\"True\",reason=\"Attached\"}} {SERVERS}")).then_some(())
        })
        .await;
        measured.push(memory_mib(&evenkeel)[0]);
        evenkeel.terminate().await;
    }
    let each = (measured[1] - measured[0]) * 1024.0 / f64::from(SERVERS - 1);
    println!(
        "{SERVERS} servers: {:.1} MiB with one Secret, {:.1} MiB with one for each: {each:.1} KiB each",
        measured[0], measured[1]
    );
}
