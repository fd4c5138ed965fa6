//! Resolves the target of a request, and sends it.

use std::time::Duration;

use tokio::time::{timeout, timeout_at};

use super::super::Gateway;
use super::super::deadline::CallDeadline;
use super::super::response::{self, RouteError};
use super::super::route_target::RouteTarget;
use super::super::routed_method::RoutedMethod;
use super::agent::CallAgent;
use super::end::CallEnd;
use super::own_connection::begin_own_call;
use crate::upstream::{CallGuard, Responder, ViewName};
use crate::wire::{JsonEdit, RequestParams, UpstreamExchange, UpstreamRequest};

/// The maximum time for which a call waits for an unknown item during startup.
const TARGET_TIMEOUT: Duration = Duration::from_secs(10);

/// A request at its server, and the guard that keeps the connection open.
pub(super) type DispatchedRequest = (UpstreamExchange, CallGuard);

/// A request to be sent.
pub(super) struct Dispatch<'a> {
    pub(super) agent: &'a CallAgent,
    pub(super) target: &'a RouteTarget,
    pub(super) deadline: CallDeadline,
    pub(super) params: &'a RequestParams<'a>,
    /// The edits of the params besides that of the name.
    pub(super) edits: &'a [JsonEdit<'a>],
}

/// Sends the request once its server has a connection. After a wait it is sent only if its name still resolves to the
/// item that was exposed to the agent.
pub(super) async fn dispatch(gateway: &Gateway, request: Dispatch<'_>) -> Result<DispatchedRequest, CallEnd> {
    let Dispatch { agent, target, deadline, params, edits } = request;
    let section = target.section();
    let own_handle;
    let (handle, guard) = match &section.responder {
        Responder::Server(handle) => {
            let refused = |refusal| CallEnd::Refused(response::refusal_text(&section.key, &refusal));
            (handle, handle.begin_call().await.map_err(refused)?)
        }
        Responder::Isolated { catalog, .. } => {
            let (handle, guard) = Box::pin(begin_own_call(gateway, agent, section, catalog)).await?;
            own_handle = handle;
            (&own_handle, guard)
        }
        // It responds without a server.
        Responder::Local(_) => return Err(CallEnd::Cancelled),
    };
    if guard.waited() {
        let resolved = resolve_target(gateway, &agent.view, target.method, params);
        let is_unchanged = match (resolved, target.listed_item()) {
            (Err(route_error), _) => return Err(CallEnd::Refused(route_error.text())),
            (Ok(_), Some((list, item))) => handle.lists_item(list, item),
            (Ok(_), None) => true,
        };
        if let (false, Some((list, item))) = (is_unchanged, target.listed_item()) {
            return Err(CallEnd::Refused(response::changed_item_text(&section.key, list, item.name())));
        }
    }
    let name_edit = [target.params_edit()];
    let all_edits;
    let request = UpstreamRequest {
        method: target.method.as_str(),
        params,
        edits: if edits.is_empty() {
            &name_edit
        } else {
            all_edits = [&name_edit, edits].concat();
            &all_edits
        },
        name: target.upstream_name(),
        log_level: agent.log_level,
        agent: Some(agent.capabilities),
    };
    match timeout_at(deadline.expires_at(), guard.connection().call(request)).await {
        Ok(Ok(exchange)) => Ok((exchange, guard)),
        Ok(Err(error)) => Err(CallEnd::Failed(error)),
        Err(_) => Err(CallEnd::TimedOut(deadline.timeout_reason())),
    }
}

pub(super) fn resolve_target(
    gateway: &Gateway,
    view: &ViewName,
    method: RoutedMethod,
    params: &RequestParams<'_>,
) -> Result<RouteTarget, RouteError> {
    RouteTarget::resolve(gateway.catalog.load().view(view), method, &params.members)
}

/// Waits for an unknown item while an initial server that can have an item with its name is connecting: an agent whose
/// session is older than this process may call before its server is attached again.
pub(super) async fn wait_for_target(
    gateway: &Gateway,
    view: &ViewName,
    method: RoutedMethod,
    params: &RequestParams<'_>,
) -> Result<RouteTarget, RouteError> {
    let (mut changes, mut settled) = (gateway.catalog.changes(), gateway.catalog.settled());
    let wait = async {
        loop {
            // Read before the name is resolved: once this is true, all items of the initial servers are published.
            let is_settled = *settled.borrow_and_update();
            {
                let generation = gateway.catalog.load();
                let target = RouteTarget::resolve(generation.view(view), method, &params.members);
                let may_appear = match &target {
                    Err(RouteError::Unknown(list, name)) => generation.may_appear(view, *list, name),
                    _ => false,
                };
                if is_settled || !may_appear {
                    return target;
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = settled.changed() => {}
            }
        }
    };
    // After the timeout the current catalog decides.
    timeout(TARGET_TIMEOUT, wait).await.unwrap_or_else(|_| resolve_target(gateway, view, method, params))
}
