//! Requests of servers for input from agents: elicitation, sampling and roots.

use bytes::Bytes;
use serde_json::json;
use serde_json::value::RawValue;

use super::client_capabilities::ClientCapabilities;
use super::json_edit::{Members, parse_members};
use super::response::RpcResponse;

/// A method of a server's request for input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputMethod {
    /// `elicitation/create`
    Elicitation,
    /// `sampling/createMessage`
    Sampling,
    /// `roots/list`
    Roots,
}

impl InputMethod {
    /// Returns the variant for the name of a method.
    pub fn from_method(method: &str) -> Option<Self> {
        [Self::Elicitation, Self::Sampling, Self::Roots].into_iter().find(|input| input.as_str() == method)
    }

    /// Returns the name of the method.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Elicitation => "elicitation/create",
            Self::Sampling => "sampling/createMessage",
            Self::Roots => "roots/list",
        }
    }
}

/// A request of a server for input: a JSON-RPC request in the legacy era, a member of `inputRequests` in the modern
/// one.
#[derive(Clone, Debug)]
pub struct InputRequest {
    /// The method.
    pub method: InputMethod,
    /// The JSON of `params`, an object.
    params: Bytes,
}

impl InputRequest {
    /// Creates a request from the JSON of its `params`. Anything else than an object counts as `{}`.
    pub fn new(method: InputMethod, params: Bytes) -> Self {
        let is_object = params.starts_with(b"{") && std::str::from_utf8(&params).is_ok();
        Self { method, params: if is_object { params } else { Bytes::from_static(b"{}") } }
    }

    /// Reads a value of `inputRequests`; `None` if its method is unknown.
    pub fn from_json(json: &str) -> Option<Self> {
        let members = parse_members(json).ok()?;
        let method = InputMethod::from_method(&members.get_string("method")?)?;
        let params = members.get("params").map_or("{}", RawValue::get);
        Some(Self::new(method, Bytes::copy_from_slice(params.as_bytes())))
    }

    /// Returns the JSON of `params`.
    pub fn params(&self) -> &str {
        std::str::from_utf8(&self.params).unwrap_or("{}")
    }

    /// Returns the JSON of the request as a value of `inputRequests`.
    pub fn to_json(&self) -> String {
        format!(r#"{{"method":"{}","params":{}}}"#, self.method.as_str(), self.params())
    }

    /// Returns true for an elicitation in URL mode.
    pub fn is_url_elicitation(&self) -> bool {
        self.method == InputMethod::Elicitation && self.members().get_string("mode").as_deref() == Some("url")
    }

    /// Returns the id of an elicitation by URL, if it has one.
    pub fn elicitation_id(&self) -> Option<String> {
        self.members().get_string("elicitationId").filter(|_| self.is_url_elicitation()).map(Into::into)
    }

    /// Returns true if an agent with these capabilities can respond.
    pub fn is_supported_by(&self, capabilities: ClientCapabilities) -> bool {
        capabilities.contains(self.required_capabilities())
    }

    /// Returns the capabilities that the agent needs.
    fn required_capabilities(&self) -> ClientCapabilities {
        match self.method {
            InputMethod::Elicitation if self.is_url_elicitation() => ClientCapabilities::URL_ELICITATION,
            InputMethod::Elicitation => ClientCapabilities::FORM_ELICITATION,
            // A client without the capability must return an error (2025-11-25, Sampling).
            InputMethod::Sampling
                if ["tools", "toolChoice"].iter().any(|key| self.members().get(key).is_some()) =>
            {
                ClientCapabilities::SAMPLING_TOOLS
            }
            InputMethod::Sampling => ClientCapabilities::SAMPLING,
            InputMethod::Roots => ClientCapabilities::ROOTS,
        }
    }

    /// Returns the response for an agent that does not support the request.
    pub fn declined(&self) -> RpcResponse {
        match self.method {
            InputMethod::Elicitation => RpcResponse::Result(Bytes::from_static(br#"{"action":"decline"}"#)),
            method => {
                let message = format!("the agent does not support this request ({})", method.as_str());
                RpcResponse::Error(json!({ "code": -32601, "message": message }).to_string().into())
            }
        }
    }

    /// Returns the response for an agent that was asked and gave no answer.
    pub fn cancelled(&self) -> RpcResponse {
        match self.method {
            InputMethod::Elicitation => RpcResponse::Result(Bytes::from_static(br#"{"action":"cancel"}"#)),
            // The code for a request that the user rejected (2025-11-25, Sampling, Error Handling).
            _ => {
                RpcResponse::Error(Bytes::from_static(br#"{"code":-1,"message":"the agent gave no answer"}"#))
            }
        }
    }

    fn members(&self) -> Members<'_> {
        parse_members(self.params()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_keeps_its_params() {
        let json = r#"{"method":"elicitation/create","params":{"message":"\u00e9","x-new":1.0e+2}}"#;
        assert_eq!(InputRequest::from_json(json).unwrap().to_json(), json);
        let bare = InputRequest::from_json(r#"{"method":"roots/list"}"#).unwrap();
        assert_eq!(bare.to_json(), r#"{"method":"roots/list","params":{}}"#);
        for unknown in ["{}", "[]", r#"{"method":"tools/list"}"#] {
            assert!(InputRequest::from_json(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn only_an_elicitation_can_be_declined_by_a_result() {
        for (method, declined, cancelled) in [
            ("elicitation/create", r#"{"action":"decline"}"#, r#"{"action":"cancel"}"#),
            ("sampling/createMessage", "-32601", "-1"),
            ("roots/list", "-32601", "-1"),
        ] {
            let request = InputRequest::new(InputMethod::from_method(method).unwrap(), Bytes::new());
            for (response, expected) in [(request.declined(), declined), (request.cancelled(), cancelled)] {
                let (is_result, text) = match response {
                    RpcResponse::Result(raw) => (true, raw),
                    RpcResponse::Error(raw) => (false, raw),
                };
                assert_eq!(is_result, method == "elicitation/create");
                assert!(String::from_utf8_lossy(&text).contains(expected), "{method}: {text:?}");
            }
        }
    }

    #[test]
    fn request_needs_its_capability() {
        let form = r#"{"method":"elicitation/create","params":{"message":"?","requestedSchema":{}}}"#;
        let url = r#"{"method":"elicitation/create","params":{"mode":"url","url":"https://x"}}"#;
        let sampling = r#"{"method":"sampling/createMessage","params":{"messages":[]}}"#;
        let tools = r#"{"method":"sampling/createMessage","params":{"messages":[],"tools":[]}}"#;
        let roots = r#"{"method":"roots/list"}"#;
        for (capabilities, supported) in [
            ("{}", &[][..]),
            (r#"{"elicitation":{}}"#, &[form]),
            (r#"{"elicitation":{"url":{}}}"#, &[url]),
            (r#"{"sampling":{}}"#, &[sampling]),
            (r#"{"sampling":{"tools":{}}}"#, &[sampling, tools]),
            (r#"{"roots":{}}"#, &[roots]),
        ] {
            let capabilities = ClientCapabilities::from_json(capabilities);
            for request in [form, url, sampling, tools, roots] {
                let parsed = InputRequest::from_json(request).unwrap();
                assert_eq!(parsed.is_supported_by(capabilities), supported.contains(&request), "{request}");
            }
        }
    }
}
