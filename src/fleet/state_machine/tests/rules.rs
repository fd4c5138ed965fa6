//! When a server connects, keeps its connection and detaches; and the test of all tables.

use super::fixture::TestEvent::*;
use super::fixture::{EARLY_EXIT, HTTP, MOVED, ON_DEMAND, OTHER_STDIO, RECREATED, Rule, STDIO, TestMachine};
use super::list_rules::LIST_RULES;
use super::loss_rules::LOSS_RULES;
use super::on_demand_rules::ON_DEMAND_RULES;
use super::replacement_rules::REPLACEMENT_RULES;
use super::retry_rules::RETRY_RULES;
use crate::resource::Reason;
use crate::wire::ListKind;

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
    let rules: Vec<_> = [RULES, LOSS_RULES, REPLACEMENT_RULES, ON_DEMAND_RULES, RETRY_RULES, LIST_RULES]
        .into_iter()
        .flatten()
        .collect();
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
