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
    /// `None` if nobody can log in.
    login_command: Option<LoginCommand>,
    rejected: Arc<Notify>,
}

/// The command with which a person logs in to a server.
#[derive(Clone, Debug)]
pub(super) struct LoginCommand {
    /// The namespace that the command need not name.
    pub(super) home_namespace: Option<Arc<str>>,
}

impl LoginCommand {
    pub(super) fn for_server(&self, server: &ObjectKey) -> String {
        let ObjectKey { namespace, name } = server;
        if self.home_namespace.as_ref() == Some(namespace) {
            format!("evenkeel login {name}")
        } else {
            format!("evenkeel login -n {namespace} {name}")
        }
    }
}

impl Inner {
    fn login_command(&self, server: &ObjectKey) -> Option<String> {
        self.login_command.as_ref().map(|command| command.for_server(server))
    }
}

impl AccessTokens {
    pub(super) fn new(login_command: Option<LoginCommand>) -> Self {
        let (by_server, rejected) = (Mutex::default(), Arc::default());
        Self(Some(Arc::new(Inner { by_server, login_command, rejected })))
    }

    /// Returns the token of a server. Its state is set once the declaration of the server is known.
    pub fn get_or_create(&self, server: &ObjectKey) -> AccessToken {
        let Some(inner) = &self.0 else { return AccessToken::default() };
        let mut by_server = inner.by_server.lock();
        let create = || AccessToken::new(inner.login_command(server), inner.rejected.clone());
        by_server.entry(server.clone()).or_insert_with(create).clone()
    }

    /// Removes the tokens of servers that are not declared any more, unless a connection still has it.
    pub(super) fn retain(&self, is_declared: impl Fn(&ObjectKey) -> bool) {
        if let Some(inner) = &self.0 {
            inner.by_server.lock().retain(|server, token| is_declared(server) || token.is_shared());
        }
    }

    /// Returns the command with which a person logs in to a server, if anybody can.
    pub(super) fn login_command(&self, server: &ObjectKey) -> Option<String> {
        self.0.as_ref()?.login_command(server)
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
        for (home, namespace, expected) in [
            (Some("default"), "default", "evenkeel login github"),
            (Some("default"), "team-a", "evenkeel login -n team-a github"),
            (None, "default", "evenkeel login -n default github"),
        ] {
            let command = LoginCommand { home_namespace: home.map(Into::into) };
            assert_eq!(command.for_server(&ObjectKey::new(namespace, "github")), expected);
        }
    }
}
