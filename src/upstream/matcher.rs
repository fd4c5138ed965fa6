use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::resource::NameFilter;

/// A compiled [`NameFilter`] that excludes some names.
///
/// ```
/// use evenkeel::resource::NameFilter;
/// use evenkeel::upstream::NameMatcher;
///
/// let filter = NameFilter { allow: vec!["read_*".into()], deny: vec!["*_secret".into()] };
/// let matcher = NameMatcher::from_filter(&filter).expect("the filter excludes names");
/// assert!(matcher.permits("read_file") && !matcher.permits("read_secret") && !matcher.permits("write_file"));
/// ```
#[derive(Clone, Debug)]
pub struct NameMatcher {
    filter: NameFilter,
    allow: GlobSet,
    deny: GlobSet,
}

impl NameMatcher {
    /// Compiles a filter; `None` if it permits every name, as nearly all filters do.
    pub fn from_filter(filter: &NameFilter) -> Option<Self> {
        if *filter == NameFilter::default() {
            return None;
        }
        Some(Self { filter: filter.clone(), allow: glob_set(&filter.allow), deny: glob_set(&filter.deny) })
    }

    /// Returns true if the filter permits this name or URI.
    pub fn permits(&self, name: &str) -> bool {
        self.allow.is_match(name) && !self.deny.is_match(name)
    }
}

impl PartialEq for NameMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.filter == other.filter
    }
}

/// Compiles globs. Specs are validated before, so an invalid glob is simply ignored.
fn glob_set(globs: &[String]) -> GlobSet {
    let mut builder = GlobSetBuilder::new();
    globs.iter().filter_map(|glob| Glob::new(glob).ok()).for_each(|glob| {
        builder.add(glob);
    });
    builder.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_over_allow() {
        for (allow, deny, name, expected) in [
            (&["*"][..], &[][..], "search", true),
            (&["*"], &[], "any\n/thing", true),
            (&["*"], &["delete_*"], "delete_repo", false),
            (&["get_*"], &[], "search", false),
            (&["get_*", "search"], &[], "search", true),
            (&[], &[], "search", false),
        ] {
            let filter = NameFilter {
                allow: allow.iter().map(ToString::to_string).collect(),
                deny: deny.iter().map(ToString::to_string).collect(),
            };
            let permitted = NameMatcher::from_filter(&filter).is_none_or(|matcher| matcher.permits(name));
            assert_eq!(permitted, expected, "{filter:?} {name}");
        }
    }
}
