//! Generates code from a table of metrics: the families, and the handles of each part of a worker.

/// Takes groups of metrics that have their first labels in common. A row is
///
/// ```text
/// field: Handle [further labels] = "name", "HELP sentence.", BUCKETS;
/// ```
///
/// where the labels and the buckets may be omitted, and the handle's type determines the metric's
/// kind. Generates `Families`, with a family for each row, and for each group a struct with a
/// handle for each row.
macro_rules! declare {
    ($(
        $(#[$about:meta])*
        $Group:ident $labels:tt {
            $($field:ident: $Handle:ty $([$($further:ident),+])? = $name:literal, $help:literal $(, $buckets:expr)?;)*
        }
    )*) => {
        /// Every metric.
        pub(super) struct Families {
            $($(pub(super) $field: Family<<$Handle as Handle>::Child>,)*)*
        }

        impl Families {
            pub(super) fn make(registered: &mut Registered) -> Result<Self, Error> {
                Ok(Self {
                    $($($field: registered.family(Declared {
                        name: $name,
                        kind: <<$Handle as Handle>::Child as Child>::KIND,
                        labels: declare!(@labels $labels $($($further)+)?),
                        help: $help,
                        buckets: declare!(@buckets $($buckets)?),
                    })?,)*)*
                })
            }

            pub(super) fn all(&self) -> Vec<&dyn AnyFamily> {
                vec![$($(&self.$field,)*)*]
            }
        }

        $(
            $(#[$about])*
            #[derive(Debug, Clone)]
            pub(crate) struct $Group {
                $(pub(crate) $field: $Handle,)*
            }

            impl $Group {
                pub(super) fn new(of: &Families, values: &[&str]) -> Self {
                    Self { $($field: Handle::new(&of.$field, values),)* }
                }
            }
        )*
    };
    (@labels ($($label:ident),+) $($further:ident)*) => {
        &[$(stringify!($label),)+ $(stringify!($further),)*]
    };
    (@buckets) => {
        &[]
    };
    (@buckets $buckets:expr) => {
        $buckets
    };
}

pub(super) use declare;
