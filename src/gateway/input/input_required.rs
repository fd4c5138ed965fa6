//! Results that ask an agent for input (2026-07-28, Multi Round-Trip Requests). Pure.

use bytes::Bytes;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::wire::{InputMethod, InputRequest, JsonEdit, Members, json_string, parse_members};

/// The code of the error with which a server of 2025-11-25 asks for URLs to be opened before the request is repeated.
const URL_ELICITATION_REQUIRED: i64 = -32042;
/// The maximum number of requests in one result.
const MAX_REQUESTS: usize = 16;

/// A result of a modern server that asks for input.
#[derive(Debug)]
pub(in crate::gateway) struct InputRequired<'a> {
    members: Members<'a>,
    /// The requests with their keys; `None` for one that evenkeel does not know.
    pub(in crate::gateway) requests: Vec<(String, Option<InputRequest>)>,
    /// The server's state, which the next request must repeat.
    pub(in crate::gateway) state: Option<String>,
}

impl<'a> InputRequired<'a> {
    /// Reads a result; `None` if it is a complete one.
    pub(in crate::gateway) fn from_result(result: &'a [u8]) -> Option<Self> {
        // Nearly all results are complete and need no parsing.
        memmem::find(result, br#""input_required""#)?;
        let members = parse_members(std::str::from_utf8(result).ok()?).ok()?;
        if members.get_string("resultType").as_deref() != Some("input_required") {
            return None;
        }
        let requests = members.get("inputRequests").and_then(|requests| parse_members(requests.get()).ok());
        let requests = requests.iter().flatten().take(MAX_REQUESTS);
        let requests =
            requests.map(|(key, json)| (key.clone().into_owned(), InputRequest::from_json(json.get())));
        let (requests, state) = (requests.collect(), members.get_string("requestState"));
        Some(Self { requests, state: state.map(Into::into), members })
    }

    /// Returns the result with another state.
    pub(in crate::gateway) fn with_state(&self, state: &str) -> Bytes {
        self.members.rewrite(&[JsonEdit::Set("requestState", &json_string(state))]).into()
    }

    /// Returns true if the agent is asked for its roots.
    pub(in crate::gateway) fn asks_for_roots(&self) -> bool {
        self.asks(InputMethod::Roots)
    }

    /// Returns true if a person has to respond.
    pub(in crate::gateway) fn asks_a_person(&self) -> bool {
        self.asks(InputMethod::Elicitation)
    }

    fn asks(&self, method: InputMethod) -> bool {
        self.requests
            .iter()
            .any(|(_, request)| request.as_ref().is_some_and(|request| request.method == method))
    }
}

/// Builds a result that asks for input.
pub(in crate::gateway) fn input_required_result(requests: &[(&str, &InputRequest)], state: &str) -> Bytes {
    let requests: Vec<_> =
        requests.iter().map(|(key, request)| format!("{}:{}", json_string(key), request.to_json())).collect();
    let (requests, state) = (requests.join(","), json_string(state));
    format!(r#"{{"resultType":"input_required","inputRequests":{{{requests}}},"requestState":{state}}}"#)
        .into()
}

/// Returns the elicitations in a [`URL_ELICITATION_REQUIRED`] error; `None` for any other error.
pub(in crate::gateway) fn required_url_elicitations(error: &[u8]) -> Option<Vec<InputRequest>> {
    #[derive(Deserialize)]
    struct UrlElicitationError<'a> {
        code: i64,
        #[serde(borrow)]
        data: ErrorData<'a>,
    }
    #[derive(Deserialize)]
    struct ErrorData<'a> {
        #[serde(borrow)]
        elicitations: Vec<&'a RawValue>,
    }
    let UrlElicitationError { code, data } = serde_json::from_slice(error).ok()?;
    let elicitations = data.elicitations.into_iter().take(MAX_REQUESTS);
    let elicitations = elicitations.map(|params| {
        InputRequest::new(InputMethod::Elicitation, Bytes::copy_from_slice(params.get().as_bytes()))
    });
    (code == URL_ELICITATION_REQUIRED).then(|| elicitations.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_that_asks_for_input_is_told_from_a_complete_one() {
        for complete in [
            r#"{"resultType":"complete","content":[]}"#,
            r#"{"content":[{"type":"text","text":"\"input_required\""}]}"#,
            r#"{"structuredContent":{"resultType":"input_required"}}"#,
            r#"{"x":"input_required"}"#,
        ] {
            assert!(InputRequired::from_result(complete.as_bytes()).is_none(), "{complete}");
        }
        let result = r#"{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list"},"b":{"method":"x"}},"requestState":"s","x":1.0e+2}"#;
        let parsed = InputRequired::from_result(result.as_bytes()).unwrap();
        let requests: Vec<_> = parsed
            .requests
            .iter()
            .map(|(key, request)| (&**key, request.as_ref().map(|request| request.method.as_str())))
            .collect();
        assert_eq!(requests, [("a", Some("roots/list")), ("b", None)]);
        assert_eq!((parsed.state.as_deref(), parsed.asks_a_person()), (Some("s"), false));
        assert!(parsed.asks_for_roots());
        assert_eq!(parsed.with_state("t"), result.replace(r#""s""#, r#""t""#));
    }

    #[test]
    fn built_result_is_read_back() {
        let request = r#"{"method":"elicitation/create","params":{"message":"\"?\""}}"#;
        let parsed = InputRequest::from_json(request).unwrap();
        let result = input_required_result(&[("1", &parsed)], "st\"ate");
        let read = InputRequired::from_result(&result).unwrap();
        assert_eq!(read.state.as_deref(), Some("st\"ate"));
        assert_eq!(read.requests[0].1.as_ref().unwrap().to_json(), request);
        assert!(read.asks_a_person());
    }

    #[test]
    fn url_elicitations_are_read_from_their_error() {
        let error = r#"{"code":-32042,"message":"open","data":{"elicitations":[{"mode":"url","url":"https://x","elicitationId":"1"}]}}"#;
        let elicitations = required_url_elicitations(error.as_bytes()).unwrap();
        assert!(elicitations.len() == 1 && elicitations[0].is_url_elicitation());
        for other in [r#"{"code":-32042,"message":"open"}"#, &error.replace("-32042", "-32602"), "7"] {
            assert!(required_url_elicitations(other.as_bytes()).is_none(), "{other}");
        }
    }
}
