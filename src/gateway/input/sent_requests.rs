use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::process_ref::OwnProcess;
use crate::gateway::seal::SealError;
use crate::wire::{InputRequest, JsonEdit, JsonRpcId, RpcResponse, json_string, parse_members};

/// The requests for input that wait for a response of the agent of one session. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct SentInputRequests(Arc<Mutex<HashMap<u64, oneshot::Sender<RpcResponse>>>>);

/// A request to the agent of a session. Dropping it discards a later response.
#[derive(Debug)]
pub(in crate::gateway) struct SentInputRequest {
    requests: SentInputRequests,
    number: u64,
    /// The id that the agent sees.
    pub(super) id: JsonRpcId,
    pub(super) response: oneshot::Receiver<RpcResponse>,
}

impl SentInputRequests {
    /// Opens a request. Returns it and its message for an agent of this revision.
    pub(in crate::gateway) fn open(
        &self,
        process: &OwnProcess,
        request: &InputRequest,
        protocol_version: &str,
    ) -> Result<(SentInputRequest, Bytes), SealError> {
        let (number, id) = process.new_request_id()?;
        let (sender, response) = oneshot::channel();
        self.0.lock().insert(number, sender);
        let message = request_message(&id, request, protocol_version);
        Ok((SentInputRequest { requests: self.clone(), number, id, response }, message))
    }

    /// Gives the agent's response to the request with this number. Returns false if there is none.
    pub(in crate::gateway) fn respond(&self, number: u64, response: RpcResponse) -> bool {
        let request = self.0.lock().remove(&number);
        request.is_some_and(|request| request.send(response).is_ok())
    }
}

impl SentInputRequest {
    /// Returns the notification that cancels the request.
    pub(super) fn cancellation(&self) -> Bytes {
        let id = String::from_utf8_lossy(self.id.as_bytes());
        let params = format!(r#"{{"requestId":{id},"reason":"no response is needed any more"}}"#);
        format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}"#).into()
    }
}

impl Drop for SentInputRequest {
    fn drop(&mut self) {
        self.requests.0.lock().remove(&self.number);
    }
}

/// Returns the whole message of a request to a legacy agent.
fn request_message(id: &JsonRpcId, request: &InputRequest, protocol_version: &str) -> Bytes {
    let mut params = request.params().to_owned();
    // 2025-11-25 requires an id, which later revisions do not have.
    if request.is_url_elicitation()
        && protocol_version == "2025-11-25"
        && let Ok(members) = parse_members(request.params())
        && members.get("elicitationId").is_none()
    {
        let elicitation_id = json_string(&uuid::Uuid::new_v4().to_string());
        params = members.rewrite(&[JsonEdit::Set("elicitationId", &elicitation_id)]);
    }
    let (id, method) = (String::from_utf8_lossy(id.as_bytes()), request.method.as_str());
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_elicitation_has_an_id_in_the_revision_that_requires_one() {
        let modern =
            r#"{"method":"elicitation/create","params":{"mode":"url","url":"https://x","message":"?"}}"#;
        let form = r#"{"method":"elicitation/create","params":{"message":"?","requestedSchema":{}}}"#;
        for (request, version, has_id) in
            [(modern, "2025-11-25", true), (modern, "2025-06-18", false), (form, "2025-11-25", false)]
        {
            let parsed = InputRequest::from_json(request).unwrap();
            let message = request_message(&JsonRpcId::from_number(1), &parsed, version);
            let text = String::from_utf8(message.to_vec()).unwrap();
            assert_eq!(text.contains("elicitationId"), has_id, "{text}");
            let unchanged = request.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
            assert_eq!(text == format!(r#"{{"jsonrpc":"2.0","id":1,{unchanged}}}"#), !has_id, "{text}");
        }
    }
}
