use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::report::SourceResource;
use crate::resource::{GROUP, McpServer, Skill, VERSION, finalize_crd};

/// A resource type that this API serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    McpServers,
    Skills,
    Sources,
    /// Events in `events.k8s.io/v1`.
    Events,
    /// Events in the core group (`v1`), which `kubectl describe` reads.
    CoreEvents,
    Namespaces,
}

/// Names, columns and schema of a kind, from its CRD. They are defined nowhere else.
struct CrdDefinition {
    short_names: Vec<String>,
    categories: Vec<String>,
    version: CustomResourceDefinitionVersion,
}

static MCP_SERVERS: LazyLock<Option<CrdDefinition>> =
    LazyLock::new(|| CrdDefinition::from_crd(McpServer::crd()));
static SKILLS: LazyLock<Option<CrdDefinition>> = LazyLock::new(|| CrdDefinition::from_crd(Skill::crd()));
static SOURCES: LazyLock<Option<CrdDefinition>> =
    LazyLock::new(|| CrdDefinition::from_crd(SourceResource::crd()));

impl CrdDefinition {
    fn from_crd(crd: CustomResourceDefinition) -> Option<Self> {
        let crd: CustomResourceDefinition = serde_json::from_value(finalize_crd(crd)).ok()?;
        let names = crd.spec.names;
        Some(Self {
            short_names: names.short_names.unwrap_or_default(),
            categories: names.categories.unwrap_or_default(),
            version: crd.spec.versions.into_iter().next()?,
        })
    }
}

impl Resource {
    /// All resource types.
    pub const ALL: [Self; 6] =
        [Self::McpServers, Self::Skills, Self::Sources, Self::Events, Self::CoreEvents, Self::Namespaces];

    /// Returns the API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::McpServers | Self::Skills | Self::Sources => GROUP,
            Self::Events => "events.k8s.io",
            Self::CoreEvents | Self::Namespaces => "",
        }
    }

    pub fn version(self) -> &'static str {
        match self {
            Self::McpServers | Self::Skills | Self::Sources => VERSION,
            Self::Events | Self::CoreEvents | Self::Namespaces => "v1",
        }
    }

    pub fn api_version(self) -> String {
        if self.group().is_empty() {
            self.version().to_owned()
        } else {
            format!("{}/{}", self.group(), self.version())
        }
    }

    pub fn kind(self) -> &'static str {
        match self {
            Self::McpServers => "McpServer",
            Self::Skills => "Skill",
            Self::Sources => "Source",
            Self::Events | Self::CoreEvents => "Event",
            Self::Namespaces => "Namespace",
        }
    }

    pub fn plural(self) -> &'static str {
        match self {
            Self::McpServers => "mcpservers",
            Self::Skills => "skills",
            Self::Sources => "sources",
            Self::Events | Self::CoreEvents => "events",
            Self::Namespaces => "namespaces",
        }
    }

    pub fn singular(self) -> String {
        self.kind().to_lowercase()
    }

    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Sources | Self::Namespaces)
    }

    /// True if its objects accept the annotations that request work.
    pub fn accepts_reconcile_requests(self) -> bool {
        self == Self::McpServers
    }

    pub fn verbs(self) -> &'static [&'static str] {
        if self.accepts_reconcile_requests() {
            &["get", "list", "patch", "watch"]
        } else {
            &["get", "list", "watch"]
        }
    }

    pub fn short_names(self) -> Vec<String> {
        match self {
            Self::Events | Self::CoreEvents => vec!["ev".into()],
            Self::Namespaces => vec!["ns".into()],
            _ => self.definition().map(|definition| definition.short_names.clone()).unwrap_or_default(),
        }
    }

    pub fn categories(self) -> Vec<String> {
        self.definition().map(|definition| definition.categories.clone()).unwrap_or_default()
    }

    /// Returns the printer columns of the CRD. Kinds without a CRD have theirs in `table.rs`.
    pub fn columns(self) -> &'static [CustomResourceColumnDefinition] {
        let columns =
            self.definition().and_then(|definition| definition.version.additional_printer_columns.as_ref());
        columns.map_or(&[], |columns| columns)
    }

    /// Returns the schema of the CRD, without the fields that every object has.
    pub fn schema(self) -> Option<Value> {
        let schema = self.definition()?.version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
        Some(json!(schema))
    }

    fn definition(self) -> Option<&'static CrdDefinition> {
        match self {
            Self::McpServers => MCP_SERVERS.as_ref(),
            Self::Skills => SKILLS.as_ref(),
            Self::Sources => SOURCES.as_ref(),
            Self::Events | Self::CoreEvents | Self::Namespaces => None,
        }
    }
}
