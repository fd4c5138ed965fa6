use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use crate::resource::{InheritedVariables, VariableKind};

/// The variables that child processes inherit from evenkeel, as they were when evenkeel started. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ChildEnvironment(Arc<Inner>);

#[derive(Default)]
struct Inner {
    variables: Vec<(OsString, OsString)>,
    /// The values that the operator passes on, which may be secret.
    passed: Vec<SecretString>,
    /// The URLs of proxies, which may contain a password.
    proxies: Vec<Url>,
}

/// Prints the names alone.
impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.iter().map(|(name, _)| name)).finish()
    }
}

impl ChildEnvironment {
    /// Selects the variables that children inherit from evenkeel's environment.
    pub fn select(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        rules: &InheritedVariables,
    ) -> Self {
        let mut inner = Inner::default();
        for (name, value) in variables {
            let text = value.to_string_lossy();
            match name.to_str().map_or(VariableKind::NotInherited, |name| rules.kind(name)) {
                VariableKind::NotInherited => continue,
                VariableKind::Inherited => {}
                VariableKind::Proxy => inner.proxies.extend(parse_proxy(&text)),
                VariableKind::Passed => inner.passed.push(text.as_ref().into()),
            }
            inner.variables.push((name, value));
        }
        Self(Arc::new(inner))
    }

    /// Returns the names and values.
    pub(in crate::wire) fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// Returns the values that the operator passes on, which may be secret.
    pub(in crate::wire) fn passed_values(&self) -> &[SecretString] {
        &self.0.passed
    }

    /// Returns the URLs of proxies, which may contain a password.
    pub(in crate::wire) fn proxies(&self) -> &[Url] {
        &self.0.proxies
    }
}

/// Parses the URL of a proxy. One without a scheme is one of `http`, as with curl.
fn parse_proxy(proxy: &str) -> Option<Url> {
    let with_scheme = if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") };
    Url::parse(&with_scheme).ok()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn proxies_and_passed_values_are_recorded() {
        let rules = InheritedVariables::new(false, &["GITHUB_*".to_owned()]).unwrap();
        let variables = [
            ("PATH", "/bin"),
            ("HTTPS_PROXY", "http://name:p%40ss@proxy:3128"),
            ("http_proxy", "user:word@proxy"),
            ("NO_PROXY", "localhost,.example.org"),
            ("GITHUB_TOKEN", "ghp_1"),
            ("OTHER", "x"),
        ];
        let environment =
            ChildEnvironment::select(variables.map(|(name, value)| (name.into(), value.into())), &rules);
        let names: Vec<_> = environment.variables().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["PATH", "HTTPS_PROXY", "http_proxy", "NO_PROXY", "GITHUB_TOKEN"]);
        let passed: Vec<_> = environment.passed_values().iter().map(ExposeSecret::expose_secret).collect();
        assert_eq!(passed, ["ghp_1"]);
        let passwords: Vec<_> = environment.proxies().iter().filter_map(Url::password).collect();
        assert_eq!(passwords, ["p%40ss", "word"]);
        assert!(!format!("{environment:?}").contains("ghp_1"));
    }
}
