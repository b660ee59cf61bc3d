//! Generates code from a table of options: the struct that holds them, and the setters.

use super::value::Form;
use crate::error::Error;

/// What is declared about an option, besides its value.
pub(crate) struct Declared {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// What `--help` and the tables in the documentation show.
    #[cfg(any(test, feature = "cli"))]
    pub(crate) documented: Documented,
}

#[cfg(any(test, feature = "cli"))]
pub(crate) struct Documented {
    pub(crate) default: &'static str,
    pub(crate) bounds: &'static str,
    /// The lines of the option's documentation.
    pub(crate) about: &'static [&'static str],
}

/// An option of a struct that holds options.
pub(crate) struct OptionOf<C> {
    pub(crate) declared: Declared,
    /// Sets the option. Returns `None`, and changes nothing, if the text does not have the option's
    /// form.
    pub(crate) set: fn(&mut C, &str) -> Option<()>,
    pub(crate) check: fn(&C) -> Result<(), Error>,
}

impl<C> OptionOf<C> {
    /// Sets the option from text. Errors name the option `called`.
    pub(crate) fn set(&self, of: &mut C, called: &str, text: &str) -> Result<(), Error> {
        (self.set)(of, text)
            .ok_or_else(|| Error::config(called, format!("{text:?}"), format!("it must be {}", self.declared.form)))
    }
}

/// Generates a struct with a field for each option and its defaults, and the list of the options.
/// Fields in braces are added unchanged.
macro_rules! declare {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Struct:ident, named $prefix:literal, with { $($field:ident: $Field:ty),* }

        $($(#[doc = $about:literal])+ $name:ident: $Value:ident = ($($default:tt)+), ($($bounds:tt)+);)*
    ) => {
        $(#[$meta])*
        $vis struct $Struct {
            $(pub(crate) $field: $Field,)*
            $(pub(crate) $name: $Value,)*
        }

        impl Default for $Struct {
            fn default() -> Self {
                Self {
                    $($field: <$Field>::default(),)*
                    $($name: <$Value as Value>::given(quantity!($($default)+)),)*
                }
            }
        }

        impl $Struct {
            pub(crate) const OPTIONS: &[OptionOf<Self>] = &[$(OptionOf {
                declared: Declared {
                    name: concat!($prefix, stringify!($name)),
                    form: <$Value as Value>::FORM,
                    #[cfg(any(test, feature = "cli"))]
                    documented: crate::config::declare::Documented {
                        default: stringify!($($default)+),
                        bounds: stringify!($($bounds)+),
                        about: &[$($about),+],
                    },
                },
                set: |of, text| {
                    of.$name = Value::parse(text)?;
                    Some(())
                },
                check: |of| bounds!($($bounds)+).check(concat!($prefix, stringify!($name)), &of.$name),
            }),*];
        }
    };
}

/// A quantity with its unit: `5 s`, `8 MiB`, `5 ms and 250 ms`, `2000`; `on` and `off`. Other words
/// mean `None`.
macro_rules! quantity {
    ($n:literal ms) => { Duration::from_millis($n) };
    ($n:literal s) => { Duration::from_secs($n) };
    ($n:literal min) => { Duration::from_secs($n * 60) };
    ($n:literal h) => { Duration::from_secs($n * 60 * 60) };
    ($n:literal MiB) => { $n << 20 };
    ($n:literal) => { $n };
    (on) => { true };
    (off) => { false };
    ($low:literal $unit:ident and $high:literal $of_high:ident) => { (quantity!($low $unit), quantity!($high $of_high)) };
    ($($word:ident)+) => { None };
}

/// `at least 1`, `1 to 64`, `10 ms to 24 h`, `on or off`, `halt or park at least 1`. A default that
/// depends on other options is a relation.
macro_rules! bounds {
    (on or off) => {
        Bounds { least: (false, "off"), most: None }
    };
    (halt or park at least $least:literal) => {
        Bounds { least: ($least, stringify!($least)), most: None }
    };
    (at least the default) => {
        Bounds { least: (0, "0"), most: None }
    };
    (the default to $most:literal) => {
        Bounds { least: (0, "the default"), most: Some(($most, stringify!($most))) }
    };
    (at least $($least:tt)+) => {
        Bounds { least: (quantity!($($least)+), stringify!($($least)+)), most: None }
    };
    ($least:literal to $most:literal) => {
        Bounds { least: ($least, stringify!($least)), most: Some(($most, stringify!($most))) }
    };
    ($least:literal $unit:ident to $most:literal $of_most:ident) => {
        Bounds {
            least: (quantity!($least $unit), stringify!($least $unit)),
            most: Some((quantity!($most $of_most), stringify!($most $of_most))),
        }
    };
}

/// Generates a setter for each option, for a type that has them in the field in parentheses, or
/// itself.
macro_rules! setters {
    (
        $Type:ident $at:tt

        $($(#[doc = $about:literal])+ $name:ident: $Value:ident = ($($default:tt)+), ($($bounds:tt)+);)*
    ) => {
        impl $Type {
            $(setter! {
                {
                    $(#[doc = $about])+
                    #[doc = ""]
                    #[doc = concat!("Defaults to ", stringify!($($default)+), "; allowed: ", stringify!($($bounds)+), ".")]
                }
                $at $name $Value
            })*
        }
    };
}

/// Generates one setter. Its parameters follow from the kind of value.
macro_rules! setter {
    ($docs:tt $at:tt $name:ident DurationRange) => {
        setter! { @with $docs $at $name (shortest: Duration, longest: Duration) (shortest, longest) }
    };
    ($docs:tt $at:tt $name:ident Duration) => { setter! { @with $docs $at $name (duration: Duration) duration } };
    ($docs:tt $at:tt $name:ident DurationOrOff) => { setter! { @with $docs $at $name (duration: Duration) Some(duration) } };
    ($docs:tt $at:tt $name:ident Count) => { setter! { @with $docs $at $name (number: usize) number } };
    ($docs:tt $at:tt $name:ident Switch) => { setter! { @with $docs $at $name (is_on: bool) is_on } };
    ($docs:tt $at:tt $name:ident Bytes) => { setter! { @with $docs $at $name (bytes: usize) Bytes(bytes) } };
    ($docs:tt $at:tt $name:ident Attempts) => { setter! { @with $docs $at $name (number: u32) number } };
    ($docs:tt $at:tt $name:ident OnFailure) => { setter! { @with $docs $at $name (policy: OnFailure) policy } };
    ($docs:tt $at:tt $name:ident Connections) => { setter! { @with $docs $at $name (number: u32) Some(number) } };
    (@with { $(#[$doc:meta])+ } ($($at:ident)?) $name:ident ($($argument:ident: $Argument:ty),+) $value:expr) => {
        $(#[$doc])+
        pub fn $name(mut self, $($argument: $Argument),+) -> Self {
            self$(.$at)?.$name = $value;
            self
        }
    };
}

pub(crate) use {bounds, declare, quantity, setter, setters};
