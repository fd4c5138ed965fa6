//! When lists are read, and what follows.

use jiff::Timestamp;
use tokio::time::Instant;

use super::super::StepTime;
use super::super::lists::next_lists_check;
use super::fixture::TestEvent::*;
use super::fixture::{HTTP, MOVED, Rule};
use crate::resource::Reason;
use crate::wire::ListKind;

pub(super) const LIST_RULES: &[Rule] = &[
    Rule {
        text: "a list-changed notification reads that list again",
        spec: HTTP,
        given: &[Succeed(1)],
        when: ListChanged(1, ListKind::Tools),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "a list that the server does not have is not read",
        spec: HTTP,
        given: &[Succeed(1)],
        when: ListChanged(1, ListKind::Resources),
        then: &[],
    },
    Rule {
        text: "a list that was read again is published in one step",
        spec: HTTP,
        given: &[Succeed(1), ListChanged(1, ListKind::Tools)],
        when: Read(1, &["a", "b"]),
        then: &["set lists", "store", "publish a,b", "report Attached, live 1"],
    },
    Rule {
        text: "a list without a change is not published again",
        spec: HTTP,
        given: &[Succeed(1), ListChanged(1, ListKind::Tools)],
        when: Read(1, &["echo"]),
        then: &["set lists", "store"],
    },
    Rule {
        text: "a failed refresh keeps the last list",
        spec: HTTP,
        given: &[Succeed(1), ListChanged(1, ListKind::Tools)],
        when: ReadFailed(1, Reason::Timeout),
        then: &["report Attached, live 1, degraded"],
    },
    Rule {
        text: "a refused refresh ends the connection",
        spec: HTTP,
        given: &[Succeed(1), ListChanged(1, ListKind::Tools)],
        when: ReadFailed(1, Reason::PolicyDenied),
        then: &["end connection 1"],
    },
    Rule {
        text: "a list of a connection that was replaced meanwhile changes nothing",
        spec: HTTP,
        given: &[Succeed(1), ListChanged(1, ListKind::Tools), Apply(MOVED), Succeed(2)],
        when: Read(1, &["a", "b"]),
        then: &[],
    },
    Rule {
        text: "a list of a replaced connection does not count as the list that is being read",
        spec: HTTP,
        given: &[
            Succeed(1),
            ListChanged(1, ListKind::Tools),
            Apply(MOVED),
            Succeed(2),
            ListChanged(2, ListKind::Tools),
        ],
        when: Read(1, &["a", "b"]),
        then: &[],
    },
    Rule {
        text: "the read of a list is cancelled with its connection",
        spec: HTTP,
        given: &[Succeed(1), ListChanged(1, ListKind::Tools)],
        when: Detach(Reason::Removed),
        then: &[
            "withdraw, Removed",
            "drains end within 30 s",
            "cancel read",
            "calls fail for good; drain 1 30 s",
            "report Draining(Removed)",
        ],
    },
    // Lists that become wanted or unwanted.
    Rule {
        text: "lists that a new declaration adds are read",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Apply(r#""http": {"url": "http://a"}, "capabilities": {"resources": true}"#),
        then: &["store", "read Resources of 1", "report Attached, live 2"],
    },
    Rule {
        text: "a list that a new filter hides is read, which empties it",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Apply(r#""http": {"url": "http://a"}, "expose": {"prompts": {"deny": ["*"]}}"#),
        then: &["store", "read Prompts of 1", "report Attached, live 2"],
    },
    Rule {
        text: "a list with a problem is read at once when its filter changes",
        spec: HTTP,
        given: &[SucceedWithoutPrompts(1)],
        when: Apply(r#""http": {"url": "http://a"}, "expose": {"prompts": {"deny": ["other"]}}"#),
        then: &["store", "read Prompts of 1", "report Attached, live 2, degraded"],
    },
    Rule {
        text: "a list with a problem is not read at once when the filter of another list changes",
        spec: HTTP,
        given: &[SucceedWithoutPrompts(1)],
        when: Apply(r#""http": {"url": "http://a"}, "expose": {"tools": {"deny": ["other"]}}"#),
        then: &["store", "report Attached, live 2, degraded"],
    },
    // Lists that change without a notification. Without jitter they are checked after 12 minutes.
    Rule {
        text: "the lists of a live server are checked from time to time",
        spec: HTTP,
        given: &[Succeed(1), Pass(719)],
        when: Pass(1),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "all lists are checked, one after the other",
        spec: HTTP,
        given: &[Succeed(1), Pass(720)],
        when: Read(1, &["other"]),
        then: &["set lists", "store", "publish other", "read Prompts of 1", "report Attached, live 1"],
    },
    Rule {
        text: "lists are checked again and again",
        spec: HTTP,
        given: &[Succeed(1), Pass(720), Read(1, &["echo"]), PromptsRead(1), Pass(719)],
        when: Pass(1),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "a failed check keeps the last list and the connection",
        spec: HTTP,
        given: &[Succeed(1), Pass(720)],
        when: ReadFailed(1, Reason::ListFailed),
        then: &["read Prompts of 1", "report Attached, live 1, degraded"],
    },
    Rule {
        text: "a failed check is retried like any other read",
        spec: HTTP,
        given: &[Succeed(1), Pass(720), ReadFailed(1, Reason::ListFailed), PromptsRead(1)],
        when: Pass(1),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "a requested read defers the next check",
        spec: HTTP,
        given: &[Succeed(1), Pass(600), RequestReconcile, Read(1, &["echo"]), PromptsRead(1)],
        when: Pass(719),
        then: &[],
    },
    Rule {
        text: "the lists of an OnDemand server are not checked",
        spec: r#""http": {"url": "http://a"}, "activation": "OnDemand", "timeouts": {"idle": "2h"}"#,
        given: &[Succeed(1)],
        when: Pass(3_600),
        then: &[],
    },
    Rule {
        text: "a list is not read while the connection may be closed because it is unused",
        spec: r#""http": {"url": "http://a"}, "activation": "OnDemand", "timeouts": {"idle": "10s"}"#,
        given: &[SucceedWithoutPrompts(1), RetryAfter(0, 10)],
        when: Pass(10),
        then: &["close 1 if unused 10 s"],
    },
    Rule {
        text: "a list that was due during the check is read once the connection is known to be in use",
        spec: r#""http": {"url": "http://a"}, "activation": "OnDemand", "timeouts": {"idle": "10s"}"#,
        given: &[SucceedWithoutPrompts(1), RetryAfter(0, 10), Pass(10)],
        when: Used(1),
        then: &["read Prompts of 1"],
    },
    Rule {
        text: "the lists of a server that becomes OnDemand are no longer checked",
        spec: HTTP,
        given: &[Succeed(1), Apply(r#""http": {"url": "http://a"}, "activation": "OnDemand""#)],
        when: Pass(3_600),
        then: &["close 1 if unused 900 s"],
    },
    Rule {
        text: "a new declaration does not defer the next check",
        spec: HTTP,
        given: &[Succeed(1), Pass(600), Apply(HTTP)],
        when: Pass(120),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "the lists of a server that is no longer OnDemand are checked",
        spec: r#""http": {"url": "http://a"}, "activation": "OnDemand""#,
        given: &[Succeed(1), Apply(HTTP)],
        when: Pass(720),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "an answer that a tool is unknown starts a check of its list",
        spec: HTTP,
        given: &[Succeed(1)],
        when: UnknownItem(ListKind::Tools),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "unknown tools start no second check within a minute",
        spec: HTTP,
        given: &[
            Succeed(1),
            UnknownItem(ListKind::Tools),
            Read(1, &["echo"]),
            Pass(30),
            UnknownItem(ListKind::Tools),
        ],
        when: Pass(29),
        then: &[],
    },
    Rule {
        text: "a later unknown tool is checked after a minute",
        spec: HTTP,
        given: &[
            Succeed(1),
            UnknownItem(ListKind::Tools),
            Read(1, &["echo"]),
            Pass(30),
            UnknownItem(ListKind::Tools),
        ],
        when: Pass(30),
        then: &["read Tools of 1"],
    },
    Rule {
        text: "an unknown item of a list that the server does not have changes nothing",
        spec: HTTP,
        given: &[Succeed(1)],
        when: UnknownItem(ListKind::Resources),
        then: &[],
    },
    Rule {
        text: "an unknown item of a server without a connection changes nothing",
        spec: HTTP,
        given: &[Succeed(1), Lose(1, Reason::Exited)],
        when: UnknownItem(ListKind::Tools),
        then: &[],
    },
];

#[test]
fn checks_of_lists_differ_by_up_to_a_fifth_of_the_interval() {
    let now = Instant::now();
    for (jitter, minutes) in [(0.0, 12.0), (0.5, 15.0), (1.0, 18.0)] {
        let time = StepTime { now, wall_clock: Timestamp::UNIX_EPOCH, jitter };
        let found = next_lists_check(time).duration_since(now).as_secs_f64() / 60.0;
        assert!((found - minutes).abs() < 1e-6, "{jitter}: {found} minutes");
    }
}
