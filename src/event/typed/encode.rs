//! Encodes an event: an enum's variant as the event type, and the variant's fields as the payload.

use std::fmt;

use serde::ser::{Impossible, Serialize, Serializer};
use serde_json::Error;
use serde_json::ser::to_vec;

/// The payload of a variant without fields.
const NOTHING: &[u8] = b"{}";

/// Encodes the variant of an enum. Returns its name and its payload.
pub(super) fn variant<T: Serialize + ?Sized>(event: &T) -> Result<(String, Vec<u8>), Error> {
    let (name, holds_nothing) = match event.serialize(Tagger) {
        Err(Tag::Variant { name, holds_nothing }) => (name, holds_nothing),
        Err(Tag::Error(message)) => return Err(serde::ser::Error::custom(message)),
        Ok(never) => match never {},
    };
    if holds_nothing {
        return Ok((name.to_owned(), NOTHING.to_vec()));
    }
    // `whole` is {"name":payload}.
    let mut whole = to_vec(event)?;
    let before = to_vec(name)?.len() + 2;
    whole.truncate(whole.len().saturating_sub(1));
    Ok((name.to_owned(), whole.split_off(before.min(whole.len()))))
}

/// Finds the variant of an enum in serde's default representation, the only one that tells a
/// serializer the variant's name. It examines nothing else, and returns what it found as the error.
struct Tagger;

/// What [`Tagger`] found.
#[derive(Debug)]
enum Tag {
    Variant { name: &'static str, holds_nothing: bool },
    Error(String),
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variant { name, .. } => f.write_str(name),
            Self::Error(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Tag {}

impl serde::ser::Error for Tag {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Error(message.to_string())
    }
}

/// A type without values.
enum Never {}

fn no_enum<T>() -> Result<T, Tag> {
    Err(Tag::Error("it is no enum in serde's default representation".to_owned()))
}

macro_rules! no_enum {
    ($($method:ident($($argument:ty),*) -> $result:ty;)+) => {$(
        fn $method(self, $(_: $argument),*) -> Result<$result, Tag> {
            no_enum()
        }
    )+};
}

impl Serializer for Tagger {
    type Ok = Never;
    type Error = Tag;
    type SerializeSeq = Impossible<Never, Tag>;
    type SerializeTuple = Impossible<Never, Tag>;
    type SerializeTupleStruct = Impossible<Never, Tag>;
    type SerializeTupleVariant = Impossible<Never, Tag>;
    type SerializeMap = Impossible<Never, Tag>;
    type SerializeStruct = Impossible<Never, Tag>;
    type SerializeStructVariant = Impossible<Never, Tag>;

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Never, Tag> {
        Err(Tag::Variant { name, holds_nothing: true })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: &T,
    ) -> Result<Never, Tag> {
        Err(Tag::Variant { name, holds_nothing: false })
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Tag> {
        Err(Tag::Variant { name, holds_nothing: false })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Tag> {
        Err(Tag::Variant { name, holds_nothing: false })
    }

    /// Accepts a type that wraps an enum.
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Never, Tag> {
        value.serialize(self)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Never, Tag> {
        no_enum()
    }

    no_enum! {
        serialize_bool(bool) -> Never;
        serialize_i8(i8) -> Never;
        serialize_i16(i16) -> Never;
        serialize_i32(i32) -> Never;
        serialize_i64(i64) -> Never;
        serialize_u8(u8) -> Never;
        serialize_u16(u16) -> Never;
        serialize_u32(u32) -> Never;
        serialize_u64(u64) -> Never;
        serialize_f32(f32) -> Never;
        serialize_f64(f64) -> Never;
        serialize_char(char) -> Never;
        serialize_str(&str) -> Never;
        serialize_bytes(&[u8]) -> Never;
        serialize_none() -> Never;
        serialize_unit() -> Never;
        serialize_unit_struct(&'static str) -> Never;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
    }
}
