use crate::resource::is_namespace_name;

/// Parses the name of a namespace. An empty name would select every namespace, and one with a slash another path of
/// the API server.
pub(super) fn parse_namespace(text: &str) -> Result<String, String> {
    if is_namespace_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "invalid namespace {text:?}: expected at most 63 lower-case letters, digits and -, \
         beginning and ending with a letter or digit"
    ))
}
