//! Key sets on the wire: PostgreSQL's binary form of `int4multirange`.
//!
//! A count, then for each range its length in bytes and its own binary form: a flags byte, then
//! each finite bound as a length and a value. The server always sends canonical ranges: lower bound
//! inclusive, upper exclusive, both finite within the key space. Source: `multirange_send` and
//! `range_send` in PostgreSQL's `multirangetypes.c` and `rangetypes.c`.

use bytes::{BufMut, BytesMut};
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::error::BoxError;
use crate::plan::KeySet;

const LOWER_INCLUSIVE: u8 = 0x02;
const RANGE_BYTES: i32 = 1 + 2 * (4 + 4);

impl ToSql for KeySet {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_i32(i32::try_from(self.ranges().len())?);
        for (low, high) in self.ranges() {
            out.put_i32(RANGE_BYTES);
            out.put_u8(LOWER_INCLUSIVE);
            for bound in [low, high] {
                out.put_i32(4);
                out.put_i32(*bound);
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::INT4MULTI_RANGE
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for KeySet {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        let mut words = Reader(raw);
        let count = words.int()?;
        let mut ranges = Vec::new();
        for _ in 0..count {
            let (length, flags) = (words.int()?, words.byte()?);
            if length != RANGE_BYTES || flags != LOWER_INCLUSIVE {
                return Err(
                    format!("a key range of {length} bytes with flags {flags:#x} is not of the form [a,b)").into()
                );
            }
            let (_, low, _, high) = (words.int()?, words.int()?, words.int()?, words.int()?);
            ranges.push((low, high));
        }
        Ok(Self::from_ranges(ranges))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::INT4MULTI_RANGE
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn int(&mut self) -> Result<i32, BoxError> {
        let (head, rest) = self.0.split_first_chunk::<4>().ok_or("a key set ends too early")?;
        self.0 = rest;
        Ok(i32::from_be_bytes(*head))
    }

    fn byte(&mut self) -> Result<u8, BoxError> {
        let (head, rest) = self.0.split_first().ok_or("a key set ends too early")?;
        self.0 = rest;
        Ok(*head)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::store::testing;

    #[test]
    fn the_wire_form_round_trips() {
        for keys in [KeySet::default(), KeySet::all(), KeySet::from_ranges([(0, 5), (7, 9), (65_535, 65_536)])] {
            let mut wire = BytesMut::new();
            keys.to_sql(&Type::INT4MULTI_RANGE, &mut wire).unwrap();
            assert_eq!(KeySet::from_sql(&Type::INT4MULTI_RANGE, &wire).unwrap(), keys);
        }
    }

    #[test]
    fn malformed_bytes_are_an_error() {
        for wire in [&[0, 0][..], &[0, 0, 0, 1], &[0, 0, 0, 1, 0, 0, 0, 17, 1, 0]] {
            assert!(KeySet::from_sql(&Type::INT4MULTI_RANGE, wire).is_err());
        }
    }

    fn key_sets() -> impl Strategy<Value = KeySet> {
        let bound = || prop_oneof![0..50, 65_500..65_537];
        prop::collection::vec((bound(), bound()), 0..12).prop_map(KeySet::from_ranges)
    }

    fn written(keys: &KeySet) -> BytesMut {
        let mut wire = BytesMut::new();
        keys.to_sql(&Type::INT4MULTI_RANGE, &mut wire).unwrap();
        wire
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_set_round_trips(keys in key_sets()) {
            prop_assert_eq!(KeySet::from_sql(&Type::INT4MULTI_RANGE, &written(&keys)).unwrap(), keys);
        }

        #[test]
        fn random_bytes_cause_no_panic(wire in prop::collection::vec(any::<u8>(), 0..80)) {
            let _: Result<KeySet, _> = KeySet::from_sql(&Type::INT4MULTI_RANGE, &wire);
        }

        /// A changed byte gives an error or another set, but no panic. A truncated value is always
        /// an error.
        #[test]
        fn damaged_bytes_cause_no_panic(keys in key_sets(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut wire = written(&keys);
            let at = at.index(wire.len());
            prop_assert!(KeySet::from_sql(&Type::INT4MULTI_RANGE, &wire[..at]).is_err());
            wire[at] = byte;
            let _: Result<KeySet, _> = KeySet::from_sql(&Type::INT4MULTI_RANGE, &wire);
        }
    }

    #[test]
    fn the_server_reads_and_writes_the_same_sets() {
        let client = RefCell::new(testing::connect());
        let config = ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() };
        let outcome = TestRunner::new(config).run(&(key_sets(), key_sets()), |(a, b)| {
            let sql = "SELECT $1::int4multirange, $1::text, $2::text::int4multirange, $1 + $3, $1 * $3";
            let types = [Type::INT4MULTI_RANGE, Type::TEXT, Type::INT4MULTI_RANGE];
            let mut client = client.borrow_mut();
            let statement = client.prepare_typed(sql, &types).unwrap();
            let row = client.query_one(&statement, &[&a, &a.to_string(), &b]).unwrap();
            prop_assert_eq!(row.get::<_, KeySet>(0), a.clone());
            prop_assert_eq!(row.get::<_, String>(1), a.to_string());
            prop_assert_eq!(row.get::<_, KeySet>(2), a.clone());
            prop_assert_eq!(row.get::<_, KeySet>(3), a.union(&b));
            prop_assert_eq!(row.get::<_, KeySet>(4), a.intersection(&b));
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}
