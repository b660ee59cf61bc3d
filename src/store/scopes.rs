//! The scope that a worker has recorded of a projection, in SQL.
//! [`Scope::contains`](crate::Scope::contains) decides the same in memory.

/// Whether the scope of projection `p` contains event `e`, in SQL: true or false, never NULL if
/// there are both. `p` is an alias of the table of projections, `e` one of the table of events.
///
/// The statement may be executed on a connection of the application, so each function and operator
/// is qualified.
pub(super) fn contains_sql(p: &str, e: &str) -> String {
    let lists = ["bounded_context", "aggregate_type", "event_type"].map(|column| {
        let list = format!("{p}.scope OPERATOR(pg_catalog.->) '{column}s'");
        format!("(({list}) IS NULL OR ({list}) OPERATOR(pg_catalog.?) {e}.{column})")
    });
    let metadata = format!("{p}.scope OPERATOR(pg_catalog.->) 'metadata'");
    // The column may be of type `json`, which has no such operator.
    let contains = format!("{e}.metadata::pg_catalog.jsonb OPERATOR(pg_catalog.@>) ({metadata})");
    format!("({} AND (({metadata}) IS NULL OR coalesce({contains}, false)))", lists.join(" AND "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::{Event, EventParts};
    use crate::scope::Scope;
    use crate::store::names::Names;
    use crate::store::testing;

    #[test]
    fn the_server_decides_as_the_library_does() {
        let mut client = testing::connect_with_projection();
        client.batch_execute("SET search_path = pg_temp").unwrap();
        let names = Names::default();
        let scopes = [
            Scope::all(),
            Scope::all().bounded_contexts(["shop", "other"]),
            Scope::all().bounded_contexts(["other"]),
            Scope::all().aggregate_types(["Order"]).event_types(["OrderPlaced"]),
            Scope::all().aggregate_types(["Invoice"]),
            Scope::all().event_types(["Placed"]),
            Scope::all().event_types([""; 0]),
            Scope::all().metadata("tenant", "a"),
            Scope::all().metadata("tenant", "a").metadata("user", "u"),
            Scope::all().metadata("n", "1"),
        ];
        let metadata = [
            None,
            Some(json!({"tenant": "a", "user": "u"})),
            Some(json!({"tenant": "b", "n": 1})),
            Some(json!([{"tenant": "a"}])),
            Some(json!("tenant")),
        ];
        for kind in ["jsonb", "json"] {
            let sql = format!(
                "SELECT {} FROM public.orchestrator_projections p
                 CROSS JOIN (VALUES ('shop', 'Order', 'OrderPlaced', $1::text::{kind}))
                     AS e (bounded_context, aggregate_type, event_type, metadata)",
                contains_sql("p", "e")
            );
            for scope in &scopes {
                let set = names.sql("UPDATE {projections} SET scope = $1::text::jsonb");
                client.execute(&set, &[&scope.to_json()]).unwrap();
                for metadata in &metadata {
                    let event = Event::from(EventParts {
                        bounded_context: "shop".into(),
                        aggregate_type: "Order".into(),
                        event_type: "OrderPlaced".into(),
                        metadata: metadata.as_ref().map(|value| serde_json::value::to_raw_value(value).unwrap()),
                        ..EventParts::default()
                    });
                    let text = metadata.as_ref().map(ToString::to_string);
                    let found: Option<bool> = client.query_one(&sql, &[&text]).unwrap().get(0);
                    assert_eq!(found, Some(scope.contains(&event)), "{kind} {text:?} {scope:?}");
                }
            }
        }
    }
}
