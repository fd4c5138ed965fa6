//! The methods of the Skills extension (SEP-2640): `skills/list`, `skills/get` and `resources/directory/read`.

use http::Response;
use serde_json::json;

use super::body::ResponseBody;
use super::caller::Caller;
use super::handler::{AgentRequest, ViewHandler, error_response, result_response};
use super::response::{ResponseError, cache_members, invalid_params};
use crate::catalog::Generation;
use crate::upstream::{LocalResponder, Responder, Section, SkillEntry};
use crate::wire::Era;

/// Returns the settings of the extension.
pub(super) fn skills_capability() -> serde_json::Value {
    json!({ "directoryRead": true })
}

impl ViewHandler {
    /// Responds to a method of the extension.
    pub(super) fn handle_skills(
        &self,
        caller: &Caller,
        request: &AgentRequest<'_>,
    ) -> Response<ResponseBody> {
        let generation = self.gateway.catalog.load();
        let uri = request.params.members.get_string("uri");
        let cursor = request.params.members.get("cursor").filter(|cursor| cursor.get() != "null");
        let missing_uri = || invalid_params(format!("{} needs a \"uri\"", request.method));
        let members = match (request.method, uri) {
            // Each result has one page.
            ("skills/list" | "resources/directory/read", _) if cursor.is_some() => {
                Err(invalid_params("unknown cursor"))
            }
            ("skills/list", _) => {
                let entries: Vec<_> = self.skills(&generation).map(|(_, skill)| skill.json.get()).collect();
                Ok(format!("{}\"skills\":[{}]", cache_members(caller.era()), entries.join(",")))
            }
            (_, None) => Err(missing_uri()),
            ("skills/get", Some(uri)) => {
                let skill = self.skills(&generation).find(|(_, skill)| skill.uri == uri);
                skill
                    .map(|(_, skill)| format!("{}\"skill\":{}", cache_members(caller.era()), skill.json))
                    .ok_or_else(|| invalid_params(format!("unknown skill {uri}")))
            }
            (_, Some(uri)) => self.directory_children(&generation, &uri).map(|children| {
                let result_type =
                    if caller.era() == Era::Modern { "\"resultType\":\"complete\"," } else { "" };
                format!("{result_type}\"resources\":[{}]", children.join(","))
            }),
        };
        match members {
            Ok(members) => result_response(&request.id, &format!("{{{members}}}")),
            Err(error) => error_response(&error, Some(&request.id)),
        }
    }

    /// Returns the direct children of a directory of skills: one within a skill, or `skill://NAMESPACE`.
    fn directory_children(&self, generation: &Generation, uri: &str) -> Result<Vec<String>, ResponseError> {
        let within_skill =
            self.local_sections(generation).find_map(|(_, local)| local.directory_children(uri));
        if let Some(children) = within_skill {
            return Ok(children.iter().map(ToString::to_string).collect());
        }
        let is_child = |section: &Section| uri.strip_prefix("skill://") == Some(&section.key.namespace);
        let skills = self.skills(generation).filter(|(section, _)| is_child(section));
        let children: Vec<_> = skills.map(|(_, skill)| skill.directory.get().to_owned()).collect();
        if children.is_empty() {
            return Err(invalid_params(format!("{uri} is not a directory resource")));
        }
        Ok(children)
    }

    /// Returns the skills of this view.
    fn skills<'g>(&self, generation: &'g Generation) -> impl Iterator<Item = (&'g Section, SkillEntry<'g>)> {
        self.local_sections(generation).filter_map(|(section, local)| Some((section, local.skill()?)))
    }

    fn local_sections<'g>(
        &self,
        generation: &'g Generation,
    ) -> impl Iterator<Item = (&'g Section, &'g dyn LocalResponder)> {
        let sections = generation.sections().filter(|section| self.view.shows(&section.key.namespace));
        sections.filter_map(|section| match &section.responder {
            Responder::Local(local) => Some((&**section, &**local)),
            Responder::Server(_) | Responder::Isolated { .. } => None,
        })
    }
}
