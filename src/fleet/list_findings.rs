//! The faults of a list that could be read, and the problem that reports them. Pure.

use crate::resource::{Problem, Reason};
use crate::upstream::LeftOutItem;
use crate::wire::ListKind;

/// The most items that a message names.
const MAX_NAMED_ITEMS: usize = 5;
/// The most items that are kept with their reasons, for the log.
const MAX_LOGGED_ITEMS: usize = 20;
/// The longest name in a message, in characters.
const MAX_NAME_CHARS: usize = 80;
/// The longest reason in a message, in characters.
const MAX_REASON_CHARS: usize = 200;

/// The items of a list that agents do not get. Bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOutItems {
    /// The first of them, without secrets.
    pub(super) first: Vec<LeftOutItem>,
    /// The number of all.
    pub(super) count: usize,
}

/// Everything that was wrong with a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListFindings {
    pub(super) left_out: LeftOutItems,
    /// The first items in which optional members were null.
    items_with_nulls: Vec<String>,
    /// The first items whose output schema the server's revision does not permit.
    items_with_modern_output_schema: Vec<String>,
    /// The other faults that were tolerated, each as a sentence.
    tolerated: Vec<String>,
}

/// Removes secrets from a text, and bounds its length.
pub(super) type Redact<'a> = &'a (dyn Fn(&str, usize) -> String + Sync);

impl ListFindings {
    /// Adds an item that agents do not get.
    pub(super) fn add_left_out(&mut self, item: &LeftOutItem, redact: Redact<'_>) {
        self.left_out.count += 1;
        if self.left_out.first.len() < MAX_LOGGED_ITEMS {
            self.left_out.first.push(LeftOutItem {
                name: item.name.as_ref().map(|name| redact(name, MAX_NAME_CHARS)),
                why: redact(&item.why, MAX_REASON_CHARS),
            });
        }
    }

    /// Adds an item in which optional members were null.
    pub(super) fn add_nulls(&mut self, name: &str, redact: Redact<'_>) {
        push_name(&mut self.items_with_nulls, name, redact);
    }

    /// Adds an item whose output schema the server's revision does not permit.
    pub(super) fn add_modern_output_schema(&mut self, name: &str, redact: Redact<'_>) {
        push_name(&mut self.items_with_modern_output_schema, name, redact);
    }

    /// Adds something that was tolerated.
    pub(super) fn tolerate(&mut self, what: String) {
        self.tolerated.push(what);
    }

    /// Returns the problem that tells all findings; `None` if there are none.
    pub(super) fn problem(&self, list: ListKind) -> Option<Problem> {
        let method = list.method();
        let mut sentences = Vec::new();
        if self.left_out.count > 0 {
            let named =
                self.left_out.first.iter().take(MAX_NAMED_ITEMS).map(
                    |LeftOutItem { name, why }| match name {
                        Some(name) => format!("{name:?} ({why})"),
                        None => format!("one without a name ({why})"),
                    },
                );
            let named = join_bounded(named.collect(), self.left_out.count);
            let noun = counted(self.left_out.count, list);
            let are = if self.left_out.count == 1 { "is" } else { "are" };
            sentences.push(format!("{noun} {are} left out: {named}; the others are offered"));
        }
        let names = |names: &[String]| {
            let named = names.iter().take(MAX_NAMED_ITEMS).map(|name| format!("{name:?}")).collect();
            join_bounded(named, names.len())
        };
        if !self.items_with_nulls.is_empty() {
            let named = names(&self.items_with_nulls);
            sentences.push(format!("optional members of {named} are null; they are treated as absent"));
        }
        if !self.items_with_modern_output_schema.is_empty() {
            let named = names(&self.items_with_modern_output_schema);
            sentences.push(format!(
                "the outputSchema of {named} describes no object, which its protocol version does not permit; agents of \
                 that version do not get it"
            ));
        }
        sentences.extend(self.tolerated.iter().cloned());
        if sentences.is_empty() {
            return None;
        }
        let reason = if self.left_out.count > 0 { Reason::ItemsLeftOut } else { Reason::NonCompliant };
        let message = format!("{method}: {}; report this to the server's author", sentences.join("; "));
        Some(Problem::new(reason, message))
    }
}

fn push_name(names: &mut Vec<String>, name: &str, redact: Redact<'_>) {
    // One more than is named, so that the message can say that there are more.
    if names.len() <= MAX_NAMED_ITEMS {
        names.push(redact(name, MAX_NAME_CHARS));
    }
}

fn counted(count: usize, list: ListKind) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {}{plural}", list.item_noun())
}

fn join_bounded(mut named: Vec<String>, count: usize) -> String {
    if count > named.len() {
        named.push("more".to_owned());
    }
    match named.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => named.join(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(text: &str, limit: usize) -> String {
        text.chars().take(limit).collect()
    }

    #[test]
    fn message_names_the_list_the_items_and_the_reasons() {
        let left_out = |name: Option<&str>, why: &str| LeftOutItem {
            name: name.map(str::to_owned),
            why: why.to_owned(),
        };
        let mut findings = ListFindings::default();
        assert_eq!(findings.problem(ListKind::Tools), None);
        findings.add_nulls("b", &bounded);
        let problem = findings.problem(ListKind::Prompts).unwrap();
        assert_eq!(
            (problem.reason, &*problem.message),
            (
                Reason::NonCompliant,
                "prompts/list: optional members of \"b\" are null; they are treated as absent; report this to the \
                 server's author"
            )
        );
        findings.add_left_out(&left_out(Some("a"), "inputSchema is missing"), &bounded);
        let problem = findings.problem(ListKind::Tools).unwrap();
        assert_eq!(problem.reason, Reason::ItemsLeftOut);
        assert!(
            problem.message.starts_with(
                "tools/list: 1 tool is left out: \"a\" (inputSchema is missing); the others are offered; optional"
            ),
            "{problem}"
        );
        for number in 0..1_000 {
            let name = "x".repeat(number);
            findings.add_left_out(
                &left_out(Some(&name).filter(|_| number > 0).map(|name| &**name), "bad"),
                &bounded,
            );
            findings.add_nulls(&name, &bounded);
            findings.add_modern_output_schema(&name, &bounded);
        }
        let problem = findings.problem(ListKind::Tools).unwrap();
        assert!(problem.message.contains(
            "1001 tools are left out: \"a\" (inputSchema is missing), one without a name (bad), \"x\" (bad), "
        ));
        assert!(problem.message.contains(" and more; the others are offered"), "{problem}");
        assert!(problem.message.len() < 2_000, "{}", problem.message.len());
    }
}
