//! Decodes an event: an enum's variant from the event type, and the variant's fields from the
//! payload.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};
use serde_path_to_error::Track;

use crate::error::BoxError;

/// A payload: as stored, or after an upcast.
pub(super) enum Payload<'a> {
    Text(&'a [u8]),
    Json(Value),
}

/// Why a payload was not decoded.
pub(super) struct Failed {
    /// Where in the payload the problem is; empty if it has no single place.
    pub(super) path: String,
    pub(super) error: BoxError,
}

impl Failed {
    pub(super) fn of(error: impl Into<BoxError>) -> Self {
        Self { path: String::new(), error: error.into() }
    }
}

/// Decodes the payload, regardless of the event's type.
pub(super) fn json<T: DeserializeOwned>(payload: Payload<'_>) -> Result<T, Failed> {
    let mut path = String::new();
    payload.read(&mut path, std::marker::PhantomData::<T>).map_err(|error| Failed { path, error: error.into() })
}

/// Decodes the variant of an enum.
pub(super) fn variant<T: DeserializeOwned>(name: &str, payload: Payload<'_>) -> Result<T, Failed> {
    let mut path = String::new();
    T::deserialize(Variant { name, payload, path: &mut path }).map_err(|error| Failed { path, error: error.into() })
}

impl<'a> Payload<'a> {
    /// Reads the whole payload. If that fails, `path` is set to the place of the problem.
    fn read<S: DeserializeSeed<'a>>(self, path: &mut String, seed: S) -> Result<S::Value, Error> {
        let mut track = Track::new();
        let outcome = match self {
            Self::Text(text) => {
                let mut json = serde_json::Deserializer::from_slice(text);
                let value = seed.deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track));
                value.and_then(|value| json.end().map(|()| value))
            }
            Self::Json(value) => seed.deserialize(serde_path_to_error::Deserializer::new(value, &mut track)),
        };
        outcome.inspect_err(|_| {
            let found = track.path().to_string();
            // `serde_path_to_error` writes "." for the payload as a whole.
            if found != "." {
                *path = found;
            }
        })
    }
}

/// The name of a variant, and the payload that holds its fields.
struct Variant<'de, 'p> {
    name: &'de str,
    payload: Payload<'de>,
    path: &'p mut String,
}

impl<'de> Deserializer<'de> for Variant<'de, '_> {
    type Error = Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    /// Accepts a type that wraps an enum.
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("only an enum in serde's default representation can be decoded"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for Variant<'de, '_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.payload.read(self.path, seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, fields: usize, visitor: V) -> Result<V::Value, Error> {
        self.payload.read(self.path, Tuple { fields, visitor })
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.payload.read(self.path, Struct { fields, visitor })
    }
}

/// The fields of a variant with unnamed fields.
struct Tuple<V> {
    fields: usize,
    visitor: V,
}

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Tuple<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<V::Value, D::Error> {
        json.deserialize_tuple(self.fields, self.visitor)
    }
}

/// The fields of a variant with named fields.
struct Struct<V> {
    fields: &'static [&'static str],
    visitor: V,
}

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Struct<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<V::Value, D::Error> {
        json.deserialize_struct("", self.fields, self.visitor)
    }
}
