//! Prepared statements whose parameters have types.

use std::marker::PhantomData;

use postgres::types::{ToSql, Type};
use postgres::{Error, GenericClient, Row, RowIter, Statement};
use uuid::Uuid;

use crate::plan::KeySet;

/// A statement prepared on one connection, and only for that one. `P` is the types of its
/// parameters: a `Prepared<(String, i64)>` is executed with a `(&str, i64)`, and with nothing else.
pub(crate) struct Prepared<P> {
    statement: Statement,
    parameters: PhantomData<fn(P)>,
}

impl<P: Parameters> Prepared<P> {
    /// Prepares the statement.
    pub(crate) fn on(client: &mut impl GenericClient, sql: &str) -> Result<Self, Error> {
        Ok(Self { statement: client.prepare_typed(sql, P::TYPES)?, parameters: PhantomData })
    }

    /// Executes it and returns how many rows it changed.
    pub(crate) fn execute(&self, client: &mut impl GenericClient, values: P::Values<'_>) -> Result<u64, Error> {
        client.execute(&self.statement, &P::all(&values))
    }

    /// Executes it and returns its rows.
    pub(crate) fn query(&self, client: &mut impl GenericClient, values: P::Values<'_>) -> Result<Vec<Row>, Error> {
        client.query(&self.statement, &P::all(&values))
    }

    /// Executes it and returns its only row.
    pub(crate) fn query_one(&self, client: &mut impl GenericClient, values: P::Values<'_>) -> Result<Row, Error> {
        client.query_one(&self.statement, &P::all(&values))
    }

    /// Executes it and returns its rows as they come in.
    pub(crate) fn stream<'c>(
        &self,
        client: &'c mut impl GenericClient,
        values: P::Values<'_>,
    ) -> Result<RowIter<'c>, Error> {
        client.query_raw(&self.statement, P::all(&values))
    }
}

/// The types of a statement's parameters: a tuple of [`Parameter`]s.
pub(crate) trait Parameters {
    const TYPES: &'static [Type];
    /// The values of the parameters.
    type Values<'a>: Copy;

    fn all<'v>(values: &'v Self::Values<'_>) -> Vec<&'v (dyn ToSql + Sync)>;
}

/// A type that a parameter may have.
pub(crate) trait Parameter {
    const TYPE: Type;
    /// The value of one parameter, borrowed where it is large.
    type Value<'a>: ToSql + Sync + Copy;
}

macro_rules! parameter {
    ($($name:ty as $value:ty: $ty:ident),+ $(,)?) => {$(
        impl Parameter for $name {
            const TYPE: Type = Type::$ty;
            type Value<'a> = $value;
        }
    )+};
}

parameter! {
    bool as bool: BOOL,
    i32 as i32: INT4,
    i64 as i64: INT8,
    Uuid as Uuid: UUID,
    String as &'a str: TEXT,
    Vec<String> as &'a [String]: TEXT_ARRAY,
    KeySet as &'a KeySet: INT4MULTI_RANGE,
}

/// A parameter that may be NULL.
impl<P: Parameter> Parameter for Option<P> {
    const TYPE: Type = P::TYPE;
    type Value<'a> = Option<P::Value<'a>>;
}

macro_rules! parameters {
    ($($name:ident),+) => {
        impl<$($name: Parameter),+> Parameters for ($($name,)+) {
            const TYPES: &'static [Type] = &[$($name::TYPE),+];
            type Values<'a> = ($($name::Value<'a>,)+);

            #[allow(non_snake_case, reason = "each value is named after its type")]
            fn all<'v>(($($name,)+): &'v Self::Values<'_>) -> Vec<&'v (dyn ToSql + Sync)> {
                vec![$($name),+]
            }
        }
    };
}

parameters!(A);
parameters!(A, B);
parameters!(A, B, C);
parameters!(A, B, C, D);
parameters!(A, B, C, D, E);
parameters!(A, B, C, D, E, F, G, H);
parameters!(A, B, C, D, E, F, G, H, I);
parameters!(A, B, C, D, E, F, G, H, I, J);

#[cfg(test)]
mod tests {
    use postgres::fallible_iterator::FallibleIterator as _;

    use super::*;
    use crate::store::testing;

    #[test]
    fn the_server_gets_the_values_with_their_types() {
        type All = (i32, i64, Uuid, String, Vec<String>, KeySet, Option<i64>, Option<String>);
        let mut client = testing::connect();
        let statement = Prepared::<All>::on(&mut client, "SELECT $1, $2, $3, $4, $5, $6, $7, $8").unwrap();
        let (id, texts, keys) = (Uuid::from_u128(7), vec!["a".to_owned(), "b".to_owned()], KeySet::all());
        let values = (1, 2, id, "text", texts.as_slice(), &keys, Some(3), None);
        let is_right = |row: &Row| {
            assert_eq!((row.get::<_, i32>(0), row.get::<_, i64>(1), row.get::<_, Uuid>(2)), (1, 2, id));
            assert_eq!((row.get::<_, &str>(3), row.get::<_, Vec<String>>(4)), ("text", texts.clone()));
            assert_eq!(row.get::<_, KeySet>(5), keys);
            assert_eq!((row.get::<_, Option<i64>>(6), row.get::<_, Option<&str>>(7)), (Some(3), None));
        };
        is_right(&statement.query_one(&mut client, values).unwrap());
        is_right(&statement.query(&mut client, values).unwrap()[0]);
        is_right(&statement.stream(&mut client, values).unwrap().next().unwrap().unwrap());
    }
}
