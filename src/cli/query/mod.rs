//! The commands that query a running instance for objects, their status, events and logs.
//!
//! Promises that they change nothing, that a table has the columns that kubectl shows, since both come from the status
//! API, and that JSON is the API's own. An unknown name is an error that suggests the nearest one.

mod describe;
mod events;
mod get;
mod logs;
mod object_arg;
mod text_table;
mod wait;
mod watch_cache;

pub(super) use describe::{Args as DescribeArgs, describe};
pub(super) use events::{Args as EventsArgs, events};
pub(super) use get::{Args as GetArgs, ListArgs, get};
pub(super) use logs::{Args as LogsArgs, logs};
pub(super) use object_arg::{
    KindArg, ListQuery, Selection, condition, is_current, items, object_name, report_unknown_name, text_at,
    unknown_name_error, value_at,
};
pub(super) use text_table::wrap;
pub(super) use wait::{Args as WaitArgs, wait};
pub(super) use watch_cache::WatchCache;
