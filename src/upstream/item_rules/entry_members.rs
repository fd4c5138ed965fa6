//! The members of tools, prompts, resources and resource templates that SDKs check, and what they accept.

use super::shape::{MemberRule, Shape};
use crate::wire::ListKind;

const fn required(name: &'static str, shape: Shape) -> MemberRule {
    MemberRule { name, shape, required: true }
}

const fn optional(name: &'static str, shape: Shape) -> MemberRule {
    MemberRule { name, shape, required: false }
}

/// Returns the members of an entry of a list.
pub(super) fn entry_shape(list: ListKind) -> &'static [MemberRule] {
    const TOOL: &[MemberRule] = &[
        required("name", Shape::Text),
        optional("title", Shape::Text),
        optional("description", Shape::Text),
        required("inputSchema", Shape::Members(SCHEMA)),
        optional("outputSchema", Shape::Members(MODERN_OUTPUT_SCHEMA)),
        optional("annotations", Shape::Members(TOOL_ANNOTATIONS)),
        optional("execution", Shape::Members(EXECUTION)),
        optional("icons", ICONS),
        optional("_meta", Shape::Object),
    ];
    const PROMPT: &[MemberRule] = &[
        required("name", Shape::Text),
        optional("title", Shape::Text),
        optional("description", Shape::Text),
        optional("arguments", Shape::List(&Shape::Members(PROMPT_ARGUMENT))),
        optional("icons", ICONS),
        optional("_meta", Shape::Object),
    ];
    const RESOURCE: &[MemberRule] = &[
        required("uri", Shape::Url),
        required("name", Shape::Text),
        optional("title", Shape::Text),
        optional("description", Shape::Text),
        optional("mimeType", Shape::Text),
        optional("size", Shape::Integer),
        optional("annotations", Shape::Members(ANNOTATIONS)),
        optional("icons", ICONS),
        optional("_meta", Shape::Object),
    ];
    const TEMPLATE: &[MemberRule] = &[
        required("uriTemplate", Shape::Text),
        required("name", Shape::Text),
        optional("title", Shape::Text),
        optional("description", Shape::Text),
        optional("mimeType", Shape::Text),
        optional("annotations", Shape::Members(ANNOTATIONS)),
        optional("icons", ICONS),
        optional("_meta", Shape::Object),
    ];
    match list {
        ListKind::Tools => TOOL,
        ListKind::Prompts => PROMPT,
        ListKind::Resources => RESOURCE,
        ListKind::Templates => TEMPLATE,
    }
}

/// Returns the members of a schema for arguments, and until 2025-11-25 for results.
pub(super) fn schema_members() -> &'static [MemberRule] {
    SCHEMA
}

const SCHEMA: &[MemberRule] = &[
    required("type", Shape::Choice(&["object"])),
    optional("properties", Shape::Map(&Shape::Schema)),
    optional("required", Shape::List(&Shape::Text)),
    optional("$schema", Shape::Text),
];

/// In the modern era any schema; only the nulls of [`SCHEMA`] are left out.
const MODERN_OUTPUT_SCHEMA: &[MemberRule] =
    &[optional("properties", Shape::Any), optional("required", Shape::Any), optional("$schema", Shape::Text)];

const TOOL_ANNOTATIONS: &[MemberRule] = &[
    optional("title", Shape::Text),
    optional("readOnlyHint", Shape::Flag),
    optional("destructiveHint", Shape::Flag),
    optional("idempotentHint", Shape::Flag),
    optional("openWorldHint", Shape::Flag),
];

const EXECUTION: &[MemberRule] =
    &[optional("taskSupport", Shape::Choice(&["required", "optional", "forbidden"]))];

const ICONS: Shape = Shape::List(&Shape::Members(&[
    required("src", Shape::Text),
    optional("mimeType", Shape::Text),
    optional("sizes", Shape::List(&Shape::Text)),
    optional("theme", Shape::Choice(&["light", "dark"])),
]));

const PROMPT_ARGUMENT: &[MemberRule] = &[
    required("name", Shape::Text),
    optional("title", Shape::Text),
    optional("description", Shape::Text),
    optional("required", Shape::Flag),
];

const ANNOTATIONS: &[MemberRule] = &[
    optional("audience", Shape::List(&Shape::Choice(&["user", "assistant"]))),
    optional("priority", Shape::Fraction),
    optional("lastModified", Shape::Timestamp),
];
