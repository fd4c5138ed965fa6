//! Which variables of evenkeel's environment its child processes inherit. Others may contain credentials and are not
//! passed on unless the operator names them. Pure.

use globset::{Glob, GlobSet, GlobSetBuilder};

/// The variables that every child process inherits, in addition to `LC_*`.
const BASIC_VARIABLES: [&str; 9] =
    ["HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "TZ", "TMPDIR"];
/// The files and directories with certificates to trust.
const CERTIFICATE_VARIABLES: [&str; 5] =
    ["SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
/// The proxies for outgoing requests, in upper or lower case.
const PROXY_VARIABLES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"];

/// The rules for the variables that child processes inherit.
#[derive(Clone, Debug, Default)]
pub struct InheritedVariables {
    /// True if only the basic variables are inherited, because commands are restricted: the proxies, the certificates
    /// and the directories of configuration change what a command does.
    restricted: bool,
    passed: GlobSet,
}

/// How a variable of evenkeel's environment is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableKind {
    /// A child inherits it. Its value is no secret.
    Inherited,
    /// A child inherits it. Its value is the URL of a proxy, whose user name and password are secret.
    Proxy,
    /// A child inherits it because the operator named it. Its value may be secret.
    Passed,
    /// A child does not inherit it.
    NotInherited,
}

impl InheritedVariables {
    /// Creates the rules. `restricted` is true if the operator restricts commands; `passed` are globs of the names that
    /// are passed on in addition (`--pass-env`).
    ///
    /// # Errors
    ///
    /// Returns an error if a glob is invalid.
    pub fn new(restricted: bool, passed: &[String]) -> Result<Self, globset::Error> {
        let mut globs = GlobSetBuilder::new();
        for glob in passed {
            globs.add(Glob::new(glob)?);
        }
        Ok(Self { restricted, passed: globs.build()? })
    }

    /// Returns how a variable is treated.
    pub fn kind(&self, name: &str) -> VariableKind {
        if is_basic(name) || (!self.restricted && is_public_variable(name)) {
            VariableKind::Inherited
        } else if !self.restricted && is_proxy_variable(name) {
            VariableKind::Proxy
        } else if self.passed.is_match(name) {
            VariableKind::Passed
        } else {
            VariableKind::NotInherited
        }
    }
}

/// Returns true if the value of a variable of evenkeel's environment is no secret: those that children inherit, but for
/// the proxies, whose URL may contain a password.
pub fn is_public_variable(name: &str) -> bool {
    is_basic(name) || name.starts_with("XDG_") || CERTIFICATE_VARIABLES.contains(&name)
}

/// Returns true for the variables that name the proxies.
fn is_proxy_variable(name: &str) -> bool {
    let is_lower = name.chars().all(|character| !character.is_ascii_uppercase());
    let is_upper = name.chars().all(|character| !character.is_ascii_lowercase());
    (is_lower || is_upper) && PROXY_VARIABLES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

fn is_basic(name: &str) -> bool {
    BASIC_VARIABLES.contains(&name) || name.starts_with("LC_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_inherit_the_usual_variables_and_those_that_the_operator_names() {
        use VariableKind::*;
        let passed = ["GITHUB_*".to_owned(), "HTTP_PROXY".to_owned()];
        let open = InheritedVariables::new(false, &passed).unwrap();
        let restricted = InheritedVariables::new(true, &passed).unwrap();
        for (name, when_open, when_restricted) in [
            ("PATH", Inherited, Inherited),
            ("LC_ALL", Inherited, Inherited),
            ("TMPDIR", Inherited, Inherited),
            ("XDG_CONFIG_HOME", Inherited, NotInherited),
            ("NODE_EXTRA_CA_CERTS", Inherited, NotInherited),
            ("HTTPS_PROXY", Proxy, NotInherited),
            ("https_proxy", Proxy, NotInherited),
            ("Https_Proxy", NotInherited, NotInherited),
            ("HTTP_PROXY", Proxy, Passed),
            ("GITHUB_TOKEN", Passed, Passed),
            ("AWS_SECRET_ACCESS_KEY", NotInherited, NotInherited),
            ("LD_PRELOAD", NotInherited, NotInherited),
            ("EVENKEEL_TOKEN", NotInherited, NotInherited),
            ("", NotInherited, NotInherited),
        ] {
            assert_eq!((open.kind(name), restricted.kind(name)), (when_open, when_restricted), "{name}");
        }
        assert_eq!(InheritedVariables::default().kind("GITHUB_TOKEN"), NotInherited);
        assert!(InheritedVariables::new(false, &["[".to_owned()]).is_err());
    }

    #[test]
    fn proxies_are_not_public() {
        for (name, public) in [("HOME", true), ("XDG_DATA_HOME", true), ("HTTPS_PROXY", false), ("A", false)]
        {
            assert_eq!(is_public_variable(name), public, "{name}");
        }
    }
}
