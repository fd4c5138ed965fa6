//! The declared kinds `McpServer` and `Skill` of `evenkeel.dev/v1alpha1`.
//!
//! Promises one model for both sources: the CRDs are generated from these types, and the rules that an API server
//! enforces with CEL are enforced here for files. Never does I/O and never reads a clock.

mod advice;
mod annotations;
pub mod bundle;
mod connection;
mod crd;
mod declared;
mod desired;
mod digest;
mod duration;
mod endpoint;
mod field_reference;
mod inherited_variables;
mod key;
mod literal;
mod oauth;
mod reason;
mod rules;
mod secret_key_ref;
mod server;
mod skill;
mod source_state;
mod status;
#[cfg(test)]
pub(crate) mod testing;
mod transport;

pub use advice::{command_line_advice, is_unbraced_variable, server_advice};
pub use annotations::{
    RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT, REQUEST_ANNOTATIONS, RequestedAnnotations, RequestedWork,
};
pub use connection::{ConnectionParts, PartValue, WorkingDirectory};
pub use crd::{crds, finalize_crd};
pub use declared::{Commit, DeclaredMeta, DeclaredObject, Origin, same_endpoint};
pub use desired::{Desired, SkillContent};
pub use digest::{Digest, DigestKey};
pub use duration::{
    BoundedDuration, CallTimeout, ConnectTimeout, DrainTimeout, GracePeriod, HealthInterval, IdleTimeout,
    RetryDelay, StartTimeout, StopTimeout,
};
pub use endpoint::Endpoint;
pub use field_reference::{Field, fields};
pub use inherited_variables::{InheritedVariables, VariableKind, is_public_variable};
pub use key::{ObjectKey, is_namespace_name, is_object_name};
pub use literal::Literal;
pub use oauth::{HttpAuth, OAuthGrant, OAuthSettings, OAuthSpec};
pub use reason::{ConditionType, Problem, Reason};
pub use rules::{
    Violation, check_cluster_server, check_cluster_skill, check_server, check_skill, is_env_var_name,
    is_reserved_header, is_secret_key,
};
pub use secret_key_ref::SecretKeyRef;
pub use server::{
    Activation, EnvVar, Expose, ExtraCapabilities, Header, HealthCheck, HttpTransport, HttpTransportKind,
    Isolation, McpServer, McpServerSpec, NameFilter, ProtocolMode, Retry, StdioTransport, Timeouts, Tls,
    UpdateStrategy, ValueFrom,
};
pub use skill::{ConfigMapRef, ServerRef, Skill, SkillSpec};
pub use source_state::{SourceId, SourceProblem, SourceState, WatchMethod};
pub use status::{AuthStatus, McpServerStatus, ServerInfo, SkillStatus};
pub use transport::{HttpEndpoint, StdioEndpoint, Transport};

/// The API group of all kinds.
pub const GROUP: &str = "evenkeel.dev";
/// The only API version that is currently served.
pub const VERSION: &str = "v1alpha1";
/// The `apiVersion` of a manifest.
pub const API_VERSION: &str = "evenkeel.dev/v1alpha1";
