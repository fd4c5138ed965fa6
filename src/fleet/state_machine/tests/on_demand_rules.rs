//! Rules for the connections of `OnDemand` servers.

use super::fixture::TestEvent::*;
use super::fixture::{EARLY_EXIT, LATE_EXIT, ON_DEMAND, ON_DEMAND_WITHOUT_PROMPTS, Rule, STDIO};
use crate::resource::Reason;

const ISOLATED: &str = r#""stdio": {"command": "a"}, "isolation": "Session""#;

pub(super) const ON_DEMAND_RULES: &[Rule] = &[
    Rule {
        text: "the connection from which the lists of an isolated server are read is closed at once",
        spec: ISOLATED,
        given: &[Succeed(1)],
        when: Pass(0),
        then: &["close 1 if unused 0 s"],
    },
    Rule {
        text: "an isolated server whose lists were read is idle",
        spec: ISOLATED,
        given: &[Succeed(1), Pass(0)],
        when: Unused(1),
        then: &["report Idle, live 1"],
    },
    Rule {
        text: "a reconcile request reads the lists of an isolated server again",
        spec: ISOLATED,
        given: &[Succeed(1), Pass(0), Unused(1), Closed(1)],
        when: RequestReconcile,
        then: &["store", "calls wait 30 s, Connecting", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "a changed isolated server connects to learn its lists",
        spec: ISOLATED,
        given: &[Succeed(1), Pass(0), Unused(1), Closed(1)],
        when: Apply(r#""stdio": {"command": "b"}, "isolation": "Session""#),
        then: &["reset Retry-After", "calls wait 30 s, Connecting", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "a caller whose connection has ended is not told that the server was removed",
        spec: ON_DEMAND,
        given: &[Succeed(1)],
        when: Detach(Reason::Idle),
        then: &[
            "withdraw, Idle",
            "drains end within 30 s",
            "calls fail, Idle; drain 1 30 s",
            "report Draining(Idle)",
        ],
    },
    Rule {
        text: "an unused OnDemand connection is closed after timeouts.idle",
        spec: ON_DEMAND,
        given: &[Succeed(1)],
        when: Pass(15 * 60),
        then: &["close 1 if unused 900 s"],
    },
    Rule {
        text: "an OnDemand connection in use is checked again later",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Used(1)],
        when: Pass(5),
        then: &["close 1 if unused 900 s"],
    },
    Rule {
        text: "an OnDemand connection in use is not checked earlier",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Used(1)],
        when: Pass(4),
        then: &[],
    },
    Rule {
        text: "an OnDemand connection is not checked before its time",
        spec: ON_DEMAND,
        given: &[SucceedWithoutPrompts(1)],
        when: Pass(1),
        then: &["read Prompts of 1"],
    },
    Rule {
        text: "an OnDemand connection is not closed while it is replaced",
        spec: ON_DEMAND,
        given: &[Succeed(1), Apply(r#""stdio": {"command": "b"}, "activation": "OnDemand""#)],
        when: Pass(15 * 60),
        then: &[],
    },
    Rule {
        text: "an unused OnDemand server is idle",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60)],
        when: Unused(1),
        then: &["report Idle, live 1"],
    },
    Rule {
        text: "a call connects an idle server, and waits for its last process to exit",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Unused(1)],
        when: Call,
        then: &["calls wait 30 s, Connecting", "report Connecting 1"],
    },
    Rule {
        text: "a call connects an idle server",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Unused(1), Closed(1)],
        when: Call,
        then: &["calls wait 30 s, Connecting", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "a lost OnDemand connection is idle",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(10)],
        when: LoseWith(1, LATE_EXIT),
        then: &["calls connect within 30 s; drain 1 0 s", "report Idle, live 1"],
    },
    Rule {
        text: "an OnDemand process that exits early backs off",
        spec: ON_DEMAND,
        given: &[Succeed(1)],
        when: LoseWith(1, EARLY_EXIT),
        then: &["calls fail, Exited; drain 1 0 s", "calls fail, Exited", "report Exited then 2 at 1"],
    },
    Rule {
        text: "an idle server that is no longer OnDemand connects",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Unused(1), Closed(1)],
        when: Apply(STDIO),
        then: &["store", "calls wait 30 s, Connecting", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "a changed idle server connects to learn its lists",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Unused(1), Closed(1)],
        when: Apply(r#""stdio": {"command": "b"}, "activation": "OnDemand""#),
        then: &["reset Retry-After", "calls wait 30 s, Connecting", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "an idle server that is declared again stays idle",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Unused(1), Closed(1)],
        when: Apply(ON_DEMAND),
        then: &["store", "report Idle, live 2"],
    },
    Rule {
        text: "an idle server connects when its declaration adds lists",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Unused(1), Closed(1)],
        when: Apply(
            r#""stdio": {"command": "a"}, "activation": "OnDemand", "capabilities": {"resources": true}"#,
        ),
        then: &["store", "calls wait 30 s, Connecting", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "an idle server connects when its filter no longer hides a list",
        spec: ON_DEMAND_WITHOUT_PROMPTS,
        given: &[Succeed(1), Pass(15 * 60), Unused(1), Closed(1)],
        when: Apply(ON_DEMAND),
        then: &["store", "calls wait 30 s, Connecting", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "an idle server stays idle when its filter hides a list",
        spec: ON_DEMAND,
        given: &[Succeed(1), Pass(15 * 60), Unused(1), Closed(1)],
        when: Apply(ON_DEMAND_WITHOUT_PROMPTS),
        then: &["store", "report Idle, live 2"],
    },
];
