//! Events as Rust types: an enum that serde serializes, whose variants are the event types.

mod decode;
mod encode;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use self::decode::{Failed, Payload};
use super::new_event::NewEvent;
use super::stored::Event;
use crate::error::BoxError;

/// # Typed events
///
/// A set of events is an enum with serde's derives, in serde's default representation. The variant
/// is the event type, and its fields are the payload, as JSON.
///
/// ```
/// use pupsourcing_orchestrator::{Event, EventParts, NewEvent};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// enum OrderEvent {
///     OrderPlaced { total: i64 },
///     #[serde(rename = "order-paid")]
///     Paid,
///     /// Every other type, including types that a later version of the program writes.
///     #[serde(other)]
///     Other,
/// }
///
/// let new = NewEvent::encode(&OrderEvent::OrderPlaced { total: 12 })?;
/// assert_eq!(new.event_type(), "OrderPlaced");
///
/// let stored = Event::from(EventParts {
///     event_type: "OrderPlaced".into(),
///     payload: new.payload().into(),
///     ..EventParts::default()
/// });
/// assert_eq!(stored.decode::<OrderEvent>()?, OrderEvent::OrderPlaced { total: 12 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl Event {
    /// Decodes the event: its type selects the variant, and the payload is that variant's JSON. The
    /// payload of a variant without fields is ignored.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the enum has no such variant, or the payload does not match the variant's
    /// fields.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        decode::variant(self.event_type(), Payload::Text(self.payload())).map_err(|failed| self.not_decoded(failed))
    }

    /// Decodes the event after `upcast` has converted its JSON to the current format. `upcast` is
    /// called with every event whose payload is JSON. It examines the type and the
    /// [version](Self::event_version) of the event, so writers of a new format must set its
    /// [version](NewEvent::event_version). Numbers pass through [`Value`], which represents 64-bit
    /// numbers exactly.
    ///
    /// ```
    /// use pupsourcing_orchestrator::{BoxError, Event, EventParts};
    /// use serde_json::{Value, json};
    ///
    /// #[derive(Debug, PartialEq, serde::Deserialize)]
    /// enum OrderEvent {
    ///     OrderPlaced { cents: i64 },
    /// }
    ///
    /// /// Version 1 had whole euros.
    /// fn upcast(event: &Event, json: Value) -> Result<Value, BoxError> {
    ///     Ok(match (event.event_type(), event.event_version()) {
    ///         ("OrderPlaced", 1) => {
    ///             let euros = json["euros"].as_i64().ok_or("no euros")?;
    ///             json!({"cents": euros * 100})
    ///         }
    ///         _ => json,
    ///     })
    /// }
    ///
    /// let old = Event::from(EventParts {
    ///     event_type: "OrderPlaced".into(),
    ///     payload: br#"{"euros":3}"#.into(),
    ///     ..EventParts::default()
    /// });
    /// assert_eq!(old.decode_with::<OrderEvent>(upcast)?, OrderEvent::OrderPlaced { cents: 300 });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the payload is not JSON, `upcast` fails, the enum has no such variant, or
    /// the new JSON does not match the variant's fields.
    pub fn decode_with<T: DeserializeOwned>(
        &self,
        upcast: impl FnOnce(&Self, Value) -> Result<Value, BoxError>,
    ) -> Result<T, DecodeError> {
        // The payload is not JSON, so there is nothing to upcast. A variant without fields ignores
        // it.
        let Ok(json) = self.json() else { return self.decode() };
        let json = upcast(self, json).map_err(|error| self.not_decoded(Failed::of(error)))?;
        decode::variant(self.event_type(), Payload::Json(json)).map_err(|failed| self.not_decoded(failed))
    }

    /// Parses the payload as JSON, regardless of the event's type.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the payload is not JSON, or does not match `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        decode::json(Payload::Text(self.payload())).map_err(|failed| self.not_decoded(failed))
    }

    fn not_decoded(&self, Failed { path, error }: Failed) -> DecodeError {
        DecodeError {
            position: self.global_position(),
            event_id: self.event_id(),
            event_type: self.event_type().to_owned(),
            event_version: self.event_version(),
            path,
            source: error,
        }
    }
}

impl NewEvent {
    /// Encodes an event of an enum with serde's derives, as [`Event::decode`] reads it: the variant
    /// is the event type, and its fields are the payload, as JSON. A variant without fields has the
    /// payload `{}`, so that fields may be added later. JSON has no NaN and no infinity: these
    /// become `null`, which only an `Option` decodes.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if `event` is not an enum in serde's default representation, or cannot be
    /// JSON: for example, a map with keys that are not strings.
    pub fn encode<T: Serialize + ?Sized>(event: &T) -> Result<Self, EncodeError> {
        match encode::variant(event) {
            Ok((event_type, payload)) => Ok(Self::new(event_type, payload)),
            Err(error) => Err(EncodeError::new(std::any::type_name::<T>(), error)),
        }
    }

    /// Creates an event with this payload as JSON.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if the payload cannot be JSON.
    pub fn json<T: Serialize + ?Sized>(event_type: impl Into<String>, payload: &T) -> Result<Self, EncodeError> {
        let event_type = event_type.into();
        match serde_json::to_vec(payload) {
            Ok(payload) => Ok(Self::new(event_type, payload)),
            Err(error) => Err(EncodeError::new(event_type, error)),
        }
    }
}

/// Why an event was not decoded. Returned by a handler, it counts like any other failure: the
/// projection is retried, and halts when its attempts are used up.
#[derive(Debug)]
pub struct DecodeError {
    position: i64,
    event_id: Uuid,
    event_type: String,
    event_version: i32,
    path: String,
    source: BoxError,
}

impl DecodeError {
    /// The event's global position.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// The event's identifier.
    pub fn event_id(&self) -> Uuid {
        self.event_id
    }

    /// The event's type.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The version of the payload's format.
    pub fn event_version(&self) -> i32 {
        self.event_version
    }

    /// Where in the payload the problem is, such as `items[2].price`; empty if the problem has no
    /// single place.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, event_id, event_type, event_version, path, .. } = self;
        write!(
            f,
            "cannot decode {event_type}, version {event_version}, at global position {position} (event {event_id})"
        )?;
        if path.is_empty() { Ok(()) } else { write!(f, ", at {path} of its payload") }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// Why an event was not encoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode {what} as an event")]
pub struct EncodeError {
    what: String,
    source: serde_json::Error,
}

impl EncodeError {
    fn new(what: impl Into<String>, source: serde_json::Error) -> Self {
        Self { what: what.into(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::error::Error as _;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::event::EventParts;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum OrderEvent {
        Placed {
            items: Vec<Item>,
            note: Option<String>,
        },
        #[serde(rename = "order \"paid\"")]
        Paid(i64),
        Moved(i64, String),
        Sent,
        Empty {},
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Item {
        price: i64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(OrderEvent);

    fn event(event_type: &str, payload: impl Into<Vec<u8>>) -> Event {
        Event::from(EventParts {
            global_position: 7,
            event_type: event_type.into(),
            event_version: 2,
            payload: payload.into(),
            ..EventParts::default()
        })
    }

    fn stored(new: &NewEvent) -> Event {
        event(&new.event_type, new.payload.clone())
    }

    #[test]
    fn every_kind_of_variant_is_encoded_and_decoded() {
        for (typed, event_type, payload) in [
            (
                OrderEvent::Placed { items: vec![Item { price: 5 }], note: None },
                "Placed",
                r#"{"items":[{"price":5}],"note":null}"#,
            ),
            (OrderEvent::Paid(-3), "order \"paid\"", "-3"),
            (OrderEvent::Moved(1, "}".into()), "Moved", r#"[1,"}"]"#),
            (OrderEvent::Sent, "Sent", "{}"),
            (OrderEvent::Empty {}, "Empty", "{}"),
        ] {
            let new = NewEvent::encode(&typed).unwrap();
            assert_eq!((new.event_type.as_str(), std::str::from_utf8(&new.payload).unwrap()), (event_type, payload));
            assert_eq!(stored(&new).decode::<OrderEvent>().unwrap(), typed);
            assert_eq!(stored(&new).decode_with::<OrderEvent>(|_, json| Ok(json)).unwrap(), typed);
            let empty = event("Sent", "").decode_with::<OrderEvent>(|_, json| Ok(json));
            assert_eq!(empty.unwrap(), OrderEvent::Sent);
            let wrapped = Wrapped(typed);
            let new = NewEvent::encode(&wrapped).unwrap();
            assert_eq!(new.event_type, event_type);
            assert_eq!(stored(&new).decode::<Wrapped>().unwrap(), wrapped);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let placed = r#"{"items":[{"price":1},{"price":"x"}]}"#;
        for (event, path, parts) in [
            (
                event("Placed", placed),
                "items[1].price",
                &["cannot decode Placed, version 2, at global position 7", "invalid type: string"][..],
            ),
            (event("Placed", "{}"), "", &["missing field `items`"]),
            (event("Placed", ""), "", &["EOF"]),
            (event("Placed", "{\"items\":[]} x"), "", &["trailing characters"]),
            (event("Moved", "[1]"), "", &["invalid length 1"]),
            (
                event("Returned", "{}"),
                "",
                &["cannot decode Returned", "unknown variant `Returned`, expected one of `Placed`"],
            ),
        ] {
            let error = event.decode::<OrderEvent>().unwrap_err();
            let shown = format!("{error}: {}", error.source().unwrap());
            assert_eq!(error.path(), path, "{shown}");
            assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
            assert_eq!(shown.contains("of its payload"), !path.is_empty(), "{shown}");
        }
        let failing = event("Sent", "{}").decode_with::<OrderEvent>(|_, _| Err("too old".into())).unwrap_err();
        assert_eq!(failing.source().unwrap().to_string(), "too old");
        let error = event("any", r#"{"a":[true]}"#).json::<BTreeMap<String, Vec<i64>>>().unwrap_err();
        assert_eq!(error.path(), "a[0]");
    }

    #[test]
    fn only_enums_in_the_default_representation_are_events() {
        #[derive(Serialize, Deserialize)]
        #[serde(tag = "type")]
        enum Tagged {
            Placed { total: i64 },
        }
        #[derive(Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Placed { total: i64 },
        }
        let refused = |outcome: Result<NewEvent, EncodeError>| {
            let error = outcome.unwrap_err();
            assert_eq!(
                error.source().unwrap().to_string(),
                "it is no enum in serde's default representation",
                "{error}"
            );
        };
        refused(NewEvent::encode(&Tagged::Placed { total: 1 }));
        refused(NewEvent::encode(&Untagged::Placed { total: 1 }));
        refused(NewEvent::encode(&Some(OrderEvent::Sent)));
        refused(NewEvent::encode("Placed"));
        refused(NewEvent::encode(&BTreeMap::from([("Placed", 1)])));
        for error in [
            event("Placed", r#"{"total":1}"#).decode::<Tagged>().map(drop).unwrap_err(),
            event("Placed", r#"{"total":1}"#).decode::<Untagged>().map(drop).unwrap_err(),
            event("Placed", r#"{"total":1}"#).decode::<Item>().map(drop).unwrap_err(),
        ] {
            assert!(error.source().unwrap().to_string().contains("only an enum"), "{error:?}");
        }
    }

    #[test]
    fn what_cannot_be_json_is_refused() {
        let keys = BTreeMap::from([(vec![1], 1)]);
        let error = NewEvent::json("Keys", &keys).unwrap_err();
        assert_eq!(error.to_string(), "cannot encode Keys as an event");
        assert!(error.source().unwrap().to_string().contains("key must be a string"));
        assert_eq!(NewEvent::json("Some", &json!({"a": 1})).unwrap().payload, br#"{"a":1}"#);
    }
}
