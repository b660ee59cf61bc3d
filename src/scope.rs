//! Which events a projection wants, and where it begins.

mod metadata;

use serde_json::Value;

use crate::event::Event;

/// The events that a projection wants: those that match all of its conditions. The server filters:
/// it does not send the other events.
///
/// ```
/// use pupsourcing_orchestrator::{Event, EventParts, Scope};
///
/// let scope = Scope::all().aggregate_types(["Order", "Invoice"]).bounded_contexts(["shop"]);
/// let of = |aggregate_type: &str| {
///     Event::from(EventParts {
///         bounded_context: "shop".into(),
///         aggregate_type: aggregate_type.into(),
///         ..EventParts::default()
///     })
/// };
/// assert!(scope.contains(&of("Order")));
/// assert!(!scope.contains(&of("Customer")));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "the methods return the changed scope"]
pub struct Scope {
    pub(crate) bounded_contexts: Option<Vec<String>>,
    pub(crate) aggregate_types: Option<Vec<String>>,
    pub(crate) event_types: Option<Vec<String>>,
    pub(crate) metadata: Vec<(String, String)>,
}

impl Scope {
    /// Returns a scope that contains every event.
    pub fn all() -> Self {
        Self::default()
    }

    /// Restricts the scope to events of these bounded contexts. Defaults to every context.
    pub fn bounded_contexts(mut self, contexts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.bounded_contexts = Some(contexts.into_iter().map(Into::into).collect());
        self
    }

    /// Restricts the scope to events of these aggregate types. Defaults to every type.
    pub fn aggregate_types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.aggregate_types = Some(types.into_iter().map(Into::into).collect());
        self
    }

    /// Restricts the scope to events of these types. Defaults to every type.
    pub fn event_types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.event_types = Some(types.into_iter().map(Into::into).collect());
        self
    }

    /// Restricts the scope to events whose metadata is a JSON object with this string under this
    /// key. Further calls add conditions, and all of them have to hold. The column `metadata` has
    /// to be of type `jsonb`, as the migrations create it. Defaults to any metadata, and to none.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// Whether the scope contains this event.
    pub fn contains(&self, event: &Event) -> bool {
        let among = |list: &Option<Vec<String>>, name: &str| list.as_ref().is_none_or(|l| l.iter().any(|x| x == name));
        among(&self.bounded_contexts, event.bounded_context())
            && among(&self.aggregate_types, event.aggregate_type())
            && among(&self.event_types, event.event_type())
            && metadata::has(event.metadata_json(), &self.metadata)
    }

    /// What the metadata has to contain, as a JSON object; `None` if it may be anything.
    pub(crate) fn metadata_object(&self) -> Option<Value> {
        if self.metadata.is_empty() {
            return None;
        }
        let pairs = self.metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
        Some(Value::Object(pairs.collect()))
    }

    /// The scope as JSON text, for everyone who can read the database: a missing member does not
    /// restrict anything.
    pub(crate) fn to_json(&self) -> String {
        let lists = [
            ("bounded_contexts", &self.bounded_contexts),
            ("aggregate_types", &self.aggregate_types),
            ("event_types", &self.event_types),
        ];
        let lists = lists.into_iter().filter_map(|(name, list)| Some((name.to_owned(), list.clone()?.into())));
        let mut members: serde_json::Map<String, Value> = lists.collect();
        if let Some(metadata) = self.metadata_object() {
            members.insert("metadata".to_owned(), metadata);
        }
        Value::Object(members).to_string()
    }

    /// Returns a scope that contains everything that any of these contains, and possibly more.
    pub(crate) fn union(scopes: impl Iterator<Item = Self>) -> Self {
        let join = |a: Option<Vec<String>>, b: Option<Vec<String>>| {
            a.zip(b).map(|(a, b)| {
                let mut all = [a, b].concat();
                all.sort();
                all.dedup();
                all
            })
        };
        scopes
            .reduce(|a, b| Self {
                bounded_contexts: join(a.bounded_contexts, b.bounded_contexts),
                aggregate_types: join(a.aggregate_types, b.aggregate_types),
                event_types: join(a.event_types, b.event_types),
                metadata: a.metadata.into_iter().filter(|pair| b.metadata.contains(pair)).collect(),
            })
            .unwrap_or_default()
    }

    /// Returns what is wrong with the scope, if anything is.
    pub(crate) fn problem(&self) -> Option<String> {
        let lists = [
            ("bounded_contexts", &self.bounded_contexts),
            ("aggregate_types", &self.aggregate_types),
            ("event_types", &self.event_types),
        ];
        for (list, names) in lists {
            let names = names.iter().flatten();
            for name in names {
                if name.is_empty() || name.contains('\0') {
                    return Some(format!(
                        "{list} has {name:?}: no event has a name that is empty or has a NUL character"
                    ));
                }
            }
        }
        for (index, (key, value)) in self.metadata.iter().enumerate() {
            if key.contains('\0') || value.contains('\0') {
                return Some(format!("metadata has {:?}: PostgreSQL stores no NUL character", (key, value)));
            }
            let other = self.metadata.iter().take(index).find(|(before, other)| before == key && other != value);
            if let Some((_, other)) = other {
                return Some(format!("metadata has both {other:?} and {value:?} under {key:?}: no event has both"));
            }
        }
        None
    }
}

/// Where a projection begins if no replica set has run it yet. Later starts continue from the
/// checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartAt {
    /// With the first event in the table.
    #[default]
    Beginning,
    /// With the first event whose global position is above the highest visible when the projection
    /// is first registered.
    End,
    /// With the first event whose global position is above this one. The event need not exist yet.
    Position(i64),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::EventParts;

    fn event(metadata: Option<Value>) -> Event {
        Event::from(EventParts {
            bounded_context: "shop".into(),
            aggregate_type: "Order".into(),
            event_type: "OrderPlaced".into(),
            metadata: metadata.map(|value| serde_json::value::to_raw_value(&value).unwrap()),
            ..EventParts::default()
        })
    }

    #[test]
    fn all_conditions_have_to_hold() {
        let event = event(Some(json!({"tenant": "a", "user": "u", "retries": 2})));
        for (scope, is_wanted) in [
            (Scope::all(), true),
            (Scope::all().bounded_contexts(["other", "shop"]), true),
            (Scope::all().bounded_contexts(["other"]), false),
            (Scope::all().aggregate_types(["Invoice"]), false),
            (Scope::all().event_types(["OrderPlaced"]), true),
            (Scope::all().event_types(["OrderPaid"]), false),
            (Scope::all().event_types([""; 0]), false),
            (Scope::all().aggregate_types(["Order"]).event_types(["OrderPaid"]), false),
            (Scope::all().metadata("tenant", "a"), true),
            (Scope::all().metadata("tenant", "b"), false),
            (Scope::all().metadata("tenant", "a").metadata("user", "v"), false),
            (Scope::all().metadata("retries", "2"), false),
            (Scope::all().metadata("region", ""), false),
        ] {
            assert_eq!(scope.contains(&event), is_wanted, "{scope:?}");
        }
    }

    #[test]
    fn metadata_that_is_no_object_matches_nothing() {
        for metadata in [None, Some(json!("tenant")), Some(json!([{"tenant": "a"}])), Some(Value::Null)] {
            assert!(!Scope::all().metadata("tenant", "a").contains(&event(metadata.clone())), "{metadata:?}");
        }
    }

    #[test]
    fn a_union_contains_what_any_of_them_contains() {
        let a = Scope::all().aggregate_types(["A"]).event_types(["X"]).metadata("k", "v").metadata("l", "w");
        let b = Scope::all().aggregate_types(["B", "A"]).metadata("k", "v").metadata("l", "x");
        let union = Scope::all().aggregate_types(["A", "B"]).metadata("k", "v");
        assert_eq!(Scope::union([a, b].into_iter()), union);
        assert_eq!(Scope::union(std::iter::empty()), Scope::all());
    }

    #[test]
    fn names_that_no_event_has_are_named() {
        for (scope, part) in [
            (Scope::all().event_types(["a", ""]), "event_types has \"\""),
            (Scope::all().bounded_contexts(["a\0"]), "bounded_contexts has \"a\\0\""),
            (Scope::all().metadata("k", "a").metadata("k", "b"), "both \"a\" and \"b\" under \"k\""),
            (Scope::all().metadata("k", "\0"), "metadata has (\"k\", \"\\0\")"),
        ] {
            let problem = scope.problem().unwrap();
            assert!(problem.contains(part), "{problem}");
        }
        assert_eq!(Scope::all().event_types([""; 0]).metadata("", "").problem(), None);
    }
}
