use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::resource::ObjectKey;
use crate::wire::AccessToken;

/// The access tokens of all servers. Cheap to clone. The default has none, for a process without OAuth.
#[derive(Clone, Debug, Default)]
pub struct AccessTokens(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    by_server: Mutex<HashMap<ObjectKey, AccessToken>>,
    login_command: LoginCommand,
    rejected: Arc<Notify>,
}

/// The command with which a person logs in to a server.
#[derive(Clone, Debug)]
pub(super) struct LoginCommand {
    /// The namespace that the command need not name.
    pub(super) home_namespace: Option<Arc<str>>,
    /// True for servers that are declared in a cluster.
    pub(super) in_cluster: bool,
}

impl LoginCommand {
    pub(super) fn for_server(&self, server: &ObjectKey) -> String {
        let ObjectKey { namespace, name } = server;
        let kubernetes = if self.in_cluster { "--kubernetes " } else { "" };
        if self.in_cluster || self.home_namespace.as_ref() != Some(namespace) {
            format!("evenkeel login {kubernetes}-n {namespace} {name}")
        } else {
            format!("evenkeel login {kubernetes}{name}")
        }
    }
}

impl AccessTokens {
    pub(super) fn new(login_command: LoginCommand) -> Self {
        let (by_server, rejected) = (Mutex::default(), Arc::default());
        Self(Some(Arc::new(Inner { by_server, login_command, rejected })))
    }

    /// Returns the token of a server. Its state is set once the declaration of the server is known.
    pub fn get_or_create(&self, server: &ObjectKey) -> AccessToken {
        let Some(inner) = &self.0 else { return AccessToken::default() };
        let mut by_server = inner.by_server.lock();
        let create = || AccessToken::new(inner.login_command.for_server(server), inner.rejected.clone());
        by_server.entry(server.clone()).or_insert_with(create).clone()
    }

    /// Removes the tokens of servers that are not declared any more, unless a connection still has it.
    pub(super) fn retain(&self, is_declared: impl Fn(&ObjectKey) -> bool) {
        if let Some(inner) = &self.0 {
            inner.by_server.lock().retain(|server, token| is_declared(server) || token.is_shared());
        }
    }

    /// Returns the command with which a person logs in to a server.
    pub(super) fn login_command(&self, server: &ObjectKey) -> String {
        self.0.as_ref().map(|inner| inner.login_command.for_server(server)).unwrap_or_default()
    }

    /// Waits until a server rejects a token. Cancel safe; only one task may wait.
    pub(super) async fn wait_for_rejection(&self) {
        match &self.0 {
            Some(inner) => inner.rejected.notified().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_names_what_is_needed_to_find_the_server() {
        for (home, in_cluster, namespace, expected) in [
            (Some("default"), false, "default", "evenkeel login github"),
            (Some("default"), false, "team-a", "evenkeel login -n team-a github"),
            (None, true, "team-a", "evenkeel login --kubernetes -n team-a github"),
            (Some("team-a"), true, "team-a", "evenkeel login --kubernetes -n team-a github"),
        ] {
            let command = LoginCommand { home_namespace: home.map(Into::into), in_cluster };
            assert_eq!(command.for_server(&ObjectKey::new(namespace, "github")), expected);
        }
    }
}
