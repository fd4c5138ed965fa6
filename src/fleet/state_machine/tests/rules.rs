use super::fixture::TestEvent::*;
use super::fixture::{
    EARLY_EXIT, HTTP, LATE_EXIT, MOVED, ON_DEMAND, ON_DEMAND_WITHOUT_PROMPTS, OTHER_STDIO, RECREATED,
    RECREATED_OTHER, Rule, STDIO, TestMachine,
};
use super::list_rules::LIST_RULES;
use super::retry_rules::RETRY_RULES;
use crate::resource::Reason;
use crate::wire::{FailureSource, ListKind};

const RULES: &[Rule] = &[
    // Attach
    Rule {
        text: "a server is published only once its lists were read",
        spec: HTTP,
        given: &[],
        when: Succeed(1),
        then: &[
            "set lists",
            "calls to 1",
            "store",
            "publish echo",
            "startup ended",
            "report Attached, live 1",
        ],
    },
    Rule {
        text: "a failed first attempt publishes nothing, ends what it opened, and is retried",
        spec: HTTP,
        given: &[],
        when: Fail(1, Reason::ListFailed),
        then: &["startup ended", "end attempt 1", "calls fail, ListFailed", "report ListFailed then 2 at 1"],
    },
    Rule {
        text: "a list that could not be read is missing alone, and is read again",
        spec: HTTP,
        given: &[SucceedWithoutPrompts(1)],
        when: Pass(1),
        then: &["read Prompts of 1"],
    },
    Rule {
        text: "a violation of the protocol that was tolerated is reported, and changes nothing else",
        spec: HTTP,
        given: &[Succeed(1)],
        when: ViolateProtocol(1),
        then: &["report Attached, live 1, degraded"],
    },
    Rule {
        text: "a violation of a connection that is no longer in use is ignored",
        spec: HTTP,
        given: &[Succeed(1), Apply(MOVED), Succeed(2)],
        when: ViolateProtocol(1),
        then: &[],
    },
    Rule {
        text: "list changes that are not heard are reported",
        spec: HTTP,
        given: &[Succeed(1)],
        when: ChangesHeard(1, false),
        then: &["report Attached, live 1, degraded"],
    },
    Rule {
        text: "list changes that are heard again end the report",
        spec: HTTP,
        given: &[Succeed(1), ChangesHeard(1, false)],
        when: ChangesHeard(1, true),
        then: &["report Attached, live 1"],
    },
    Rule {
        text: "a new description of the live server is stored and reported",
        spec: HTTP,
        given: &[Succeed(1)],
        when: DescribeOtherwise(1),
        then: &["store", "read Tools of 1", "report Attached, live 1"],
    },
    // Latest wins
    Rule {
        text: "a changed declaration cancels the attempt in flight",
        spec: HTTP,
        given: &[],
        when: Apply(MOVED),
        then: &["reset Retry-After", "end attempt 1", "attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "the result of a cancelled attempt changes nothing",
        spec: HTTP,
        given: &[Apply(MOVED)],
        when: Succeed(1),
        then: &[],
    },
    Rule {
        text: "the failure of a cancelled attempt changes nothing",
        spec: HTTP,
        given: &[Apply(MOVED)],
        when: Fail(1, Reason::Timeout),
        then: &[],
    },
    Rule {
        text: "the end of a replaced connection changes nothing",
        spec: HTTP,
        given: &[Succeed(1), Apply(MOVED), Succeed(2)],
        when: Lose(1, Reason::Exited),
        then: &[],
    },
    Rule {
        text: "a doubled result changes nothing",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Succeed(1),
        then: &[],
    },
    Rule {
        text: "an attempt at a process waits until the process of a cancelled one has exited",
        spec: STDIO,
        given: &[],
        when: Apply(OTHER_STDIO),
        then: &["reset Retry-After", "end attempt 1", "report Connecting 1"],
    },
    Rule {
        text: "the waiting attempt starts when the process has exited",
        spec: STDIO,
        given: &[Apply(OTHER_STDIO)],
        when: Closed(1),
        then: &["attempt 2"],
    },
    // Healthy connections
    Rule {
        text: "an equal declaration keeps the connection",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Apply(HTTP),
        then: &["store", "report Attached, live 2"],
    },
    Rule {
        text: "an equal declaration keeps the connection also with Recreate",
        spec: RECREATED,
        given: &[Succeed(1)],
        when: Apply(RECREATED),
        then: &["store", "report Attached, live 2"],
    },
    Rule {
        text: "an equal declaration does not disturb the attempt in flight",
        spec: HTTP,
        given: &[],
        when: Apply(HTTP),
        then: &["report Connecting 1"],
    },
    Rule {
        text: "a filter applies to the live connection",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Apply(r#""http": {"url": "http://a"}, "expose": {"tools": {"deny": ["echo"]}}"#),
        then: &["store", "publish ", "report Attached, live 2"],
    },
    Rule {
        text: "health settings apply to the live connection",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Apply(r#""http": {"url": "http://a"}, "health": {"interval": "5s"}"#),
        then: &["restart health checks", "store", "report Attached, live 2"],
    },
    Rule {
        text: "a reverted declaration keeps the healthy connection and cancels its replacement",
        spec: HTTP,
        given: &[Succeed(1), Apply(MOVED)],
        when: Apply(HTTP),
        then: &["reset Retry-After", "end attempt 2", "store", "report Attached, live 3"],
    },
    // Reconcile requests
    Rule {
        text: "a reconcile request reads the lists of a healthy server again",
        spec: HTTP,
        given: &[Succeed(1)],
        when: RequestReconcile,
        then: &["store", "read Tools of 1"],
    },
    Rule {
        text: "a reconcile request retries a failed server at once",
        spec: HTTP,
        given: &[Fail(1, Reason::ConnectFailed), Pass(1), Fail(2, Reason::ConnectFailed)],
        when: RequestReconcile,
        then: &["attempt 3", "report Connecting 1"],
    },
    Rule {
        text: "a reconcile request is tried at once even if a user had to act",
        spec: HTTP,
        given: &[Fail(1, Reason::AuthRequired)],
        when: RequestReconcile,
        then: &["attempt 2", "report Connecting 1"],
    },
    Rule {
        text: "a reconnect request replaces a healthy connection",
        spec: HTTP,
        given: &[Succeed(1)],
        when: RequestReconnect,
        then: &["reset Retry-After", "attempt 2", "report Connecting 1, live 1"],
    },
    Rule {
        text: "a reconnect request that is withdrawn in time keeps the healthy connection",
        spec: HTTP,
        given: &[Succeed(1), RequestReconnect],
        when: WithdrawReconnect,
        then: &["end attempt 2", "store", "report Attached, live 1"],
    },
    Rule {
        text: "a reconnect request that was carried out does not replace the connection again",
        spec: HTTP,
        given: &[Succeed(1), RequestReconnect, Succeed(2)],
        when: Apply(HTTP),
        then: &["store", "report Attached, live 2"],
    },
    Rule {
        text: "a rotated secret replaces the connection",
        spec: HTTP,
        given: &[Succeed(1)],
        when: RotateSecret,
        then: &["reset Retry-After", "attempt 2", "report Connecting 1, live 1"],
    },
    // Loss
    Rule {
        text: "after a loss the tools stay listed, and calls fail until the next attempt",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Lose(1, Reason::Exited),
        then: &["calls fail, Exited; drain 1 0 s", "calls fail, Exited", "report Exited then 2 at 1"],
    },
    Rule {
        text: "a call in the grace period waits for the attempt in progress",
        spec: HTTP,
        given: &[Succeed(1), Lose(1, Reason::Exited)],
        when: Pass(1),
        then: &["calls wait 30 s, Exited", "attempt 2", "report Connecting 2"],
    },
    Rule {
        text: "a call waits no longer than the grace period lasts",
        spec: r#""http": {"url": "http://a"}, "gracePeriod": "3s""#,
        given: &[Succeed(1), Lose(1, Reason::Exited)],
        when: Pass(1),
        then: &["calls wait 2 s, Exited", "attempt 2", "report Connecting 2"],
    },
    Rule {
        text: "after the grace period the tools are withdrawn",
        spec: HTTP,
        given: &[Succeed(1), Lose(1, Reason::Exited), Pass(1)],
        when: Pass(59),
        then: &["withdraw, Exited"],
    },
    Rule {
        text: "repeated failures do not extend the grace period",
        spec: HTTP,
        given: &[Succeed(1), Lose(1, Reason::Exited), Pass(40), Fail(2, Reason::Timeout)],
        when: Pass(20),
        then: &["calls wait 18 s, Timeout", "attempt 3", "report Connecting 3", "withdraw, Timeout"],
    },
    Rule {
        text: "a stable connection that is lost is replaced without delay, and calls wait",
        spec: HTTP,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::Exited),
        then: &[
            "calls wait 30 s, Exited; drain 1 0 s",
            "calls wait 30 s, Exited",
            "attempt 2",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "a lost session is replaced without delay",
        spec: HTTP,
        given: &[Succeed(1)],
        when: LoseWith(1, FailureSource::Session),
        then: &[
            "calls wait 30 s, Exited; drain 1 0 s",
            "calls wait 30 s, Exited",
            "attempt 2",
            "report Connecting 2",
        ],
    },
    Rule {
        text: "a session that is lost again at once backs off",
        spec: HTTP,
        given: &[Succeed(1), LoseWith(1, FailureSource::Session), Succeed(2)],
        when: LoseWith(2, FailureSource::Session),
        then: &["calls fail, Exited; drain 2 0 s", "calls fail, Exited", "report Exited then 3 at 2"],
    },
    Rule {
        text: "the next attempt at a process waits until the lost one has exited",
        spec: STDIO,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::Exited),
        then: &["calls wait 30 s, Exited; drain 1 0 s", "calls wait 30 s, Exited", "report Connecting 1"],
    },
    Rule {
        text: "a connection that is lost while it is replaced makes calls wait for the replacement",
        spec: HTTP,
        given: &[Succeed(1), Apply(MOVED)],
        when: Lose(1, Reason::Exited),
        then: &["calls wait 30 s, Exited; drain 1 0 s", "report Connecting 1"],
    },
    Rule {
        text: "a connection that is refused after it had worked is made again at once",
        spec: HTTP,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::AuthRequired),
        then: &[
            "calls wait 30 s, AuthRequired; drain 1 0 s",
            "calls wait 30 s, AuthRequired",
            "attempt 2",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "a connection that is refused soon after the start is retried slowly",
        spec: HTTP,
        given: &[Succeed(1), Pass(10)],
        when: Lose(1, Reason::AuthRequired),
        then: &[
            "calls fail, AuthRequired; drain 1 0 s",
            "calls fail, AuthRequired",
            "report AuthRequired then 2 at 310",
        ],
    },
    Rule {
        text: "a server that is refused as a loop is withdrawn without a grace period",
        spec: HTTP,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::PolicyDenied),
        then: &[
            "calls fail, PolicyDenied; drain 1 0 s",
            "withdraw, PolicyDenied",
            "calls fail, PolicyDenied",
            "report PolicyDenied then 2 at never",
        ],
    },
    // Replacement
    Rule {
        text: "MakeBeforeBreak connects beside the connection that serves",
        spec: STDIO,
        given: &[Succeed(1)],
        when: Apply(OTHER_STDIO),
        then: &["reset Retry-After", "attempt 2", "report Connecting 1, live 1"],
    },
    Rule {
        text: "a verified replacement takes over, and calls in flight end on the old connection",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO)],
        when: Succeed(2),
        then: &["set lists", "calls to 2; drain 1 600 s", "store", "report Attached, live 2"],
    },
    Rule {
        text: "a failed replacement leaves the old connection serving",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO)],
        when: Fail(2, Reason::ConnectFailed),
        then: &["end attempt 2", "report ConnectFailed then 2 at 1, live 1"],
    },
    Rule {
        text: "a replacement that fails beside the live connection is made after its end once Recreate is declared",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO), Fail(2, Reason::ConnectFailed), Closed(2)],
        when: Apply(RECREATED_OTHER),
        then: &[
            "withdraw, Connecting",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "Recreate that is declared during such an attempt ends the attempt as well",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO)],
        when: Apply(RECREATED_OTHER),
        then: &[
            "withdraw, Connecting",
            "end attempt 2",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "Recreate stops the old connection first",
        spec: RECREATED,
        given: &[Succeed(1)],
        when: Apply(RECREATED_OTHER),
        then: &[
            "reset Retry-After",
            "withdraw, Connecting",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "Recreate connects when the old connection has closed",
        spec: RECREATED,
        given: &[Succeed(1), Apply(RECREATED_OTHER)],
        when: Closed(1),
        then: &["attempt 2"],
    },
    Rule {
        text: "an object that was deleted and created again is not replaced beside the old one",
        spec: STDIO,
        given: &[Succeed(1)],
        when: Recreate,
        then: &[
            "withdraw, Connecting",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
    // Detach
    Rule {
        text: "a detach unpublishes at once, and drains the calls in flight",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Detach(Reason::Removed),
        then: &[
            "withdraw, Removed",
            "drains end within 30 s",
            "calls fail for good; drain 1 30 s",
            "report Draining(Removed)",
        ],
    },
    Rule {
        text: "a detach is over when everything has closed",
        spec: HTTP,
        given: &[Succeed(1), Detach(Reason::Removed)],
        when: Closed(1),
        then: &["report Detached(Removed)"],
    },
    Rule {
        text: "a detach cancels the attempt in flight",
        spec: HTTP,
        given: &[],
        when: Detach(Reason::Suspended),
        then: &[
            "end attempt 1",
            "drains end within 30 s",
            "calls fail for good",
            "report Draining(Suspended)",
        ],
    },
    Rule {
        text: "a shutdown shortens the drain and keeps the reason of an earlier removal",
        spec: HTTP,
        given: &[Succeed(1), Detach(Reason::Removed)],
        when: Detach(Reason::Detached),
        then: &["drains end within 3 s", "calls fail for good"],
    },
    Rule {
        text: "a server that is declared again is connected once its old process has exited",
        spec: STDIO,
        given: &[Succeed(1), Detach(Reason::Removed)],
        when: Apply(STDIO),
        then: &["report Connecting 1"],
    },
    Rule {
        text: "a detached server ignores what comes late",
        spec: HTTP,
        given: &[Succeed(1), Detach(Reason::Removed)],
        when: ListChanged(1, ListKind::Tools),
        then: &[],
    },
    // OnDemand
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
    // Slow starts
    Rule {
        text: "a slow start is reported",
        spec: STDIO,
        given: &[],
        when: Slow(1),
        then: &["report Connecting 1"],
    },
];

#[test]
fn each_rule_has_its_effects() {
    let mut failures = Vec::new();
    let rules: Vec<_> = RULES.iter().chain(RETRY_RULES).chain(LIST_RULES).collect();
    for Rule { text, spec, given, when, then } in &rules {
        let (mut machine, _) = TestMachine::start(spec, None);
        machine.apply_all(given);
        let effects = machine.apply(*when);
        if effects != *then {
            failures.push(format!("{text}\n  expected {then:?}\n  found    {effects:?}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} rules:\n{}", failures.len(), rules.len(), failures.join("\n"));
}

#[test]
fn catalog_of_an_earlier_run_is_offered_at_once() {
    let (mut machine, effects) = TestMachine::start(HTTP, Some(&["echo"]));
    assert_eq!(
        effects,
        ["set lists", "publish echo", "calls wait 30 s, Connecting", "attempt 1", "report Connecting 1"]
    );
    // It stays for the grace period after the first attempt has failed.
    machine.apply(Fail(1, Reason::ConnectFailed));
    let effects = machine.apply(Pass(60));
    assert!(effects.contains(&"withdraw, ConnectFailed".to_owned()), "{effects:?}");
    let (_, effects) = TestMachine::start(ON_DEMAND, Some(&["echo"]));
    assert_eq!(
        effects,
        [
            "set lists",
            "store",
            "publish echo",
            "calls connect within 30 s",
            "startup ended",
            "report Idle, live 1"
        ]
    );
}

#[test]
fn messages_say_what_serves_and_what_helps() {
    let (mut machine, _) = TestMachine::start(STDIO, None);
    let second = [Succeed(1), Apply(OTHER_STDIO), Fail(2, Reason::ConnectFailed)];
    machine.apply_all(&second);
    assert_eq!(machine.reported_message(), "it failed; the previous generation keeps serving");
    let fourth = [Closed(2), Pass(1), Fail(3, Reason::Timeout), Closed(3), Pass(2), Fail(4, Reason::Timeout)];
    machine.apply_all(&fourth);
    assert!(
        machine.reported_message().ends_with("set spec.update to Recreate"),
        "{}",
        machine.reported_message()
    );

    let (mut machine, _) = TestMachine::start(STDIO, None);
    machine.apply(Slow(1));
    assert_eq!(machine.reported_message(), "not answered");
    for number in [1, 2, 3] {
        machine.apply(FailWith(number, EARLY_EXIT));
        machine.apply(Closed(number));
        machine.apply(Pass(10));
    }
    assert_eq!(machine.reported_message(), "3 times in a row: it failed");
}

#[test]
fn callers_are_told_why_a_server_is_detached() {
    for (reason, expected) in [
        (Reason::Suspended, "s was suspended; do not retry"),
        (Reason::Removed, "s was removed; do not retry"),
        (Reason::Detached, "evenkeel is shutting down and detached s"),
    ] {
        let (mut machine, _) = TestMachine::start(HTTP, None);
        assert_eq!(machine.detach_message(reason).as_deref(), Some(expected));
    }
}
