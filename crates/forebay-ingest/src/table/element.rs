//! The numbers that tensors of a table are made of, and which JSON numbers fit them.

use serde::{Deserialize, Serialize};

mod sealed {
    pub trait Sealed {}
}

/// A number as it stood in the JSON.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl Number {
    pub(crate) fn to_f64(self) -> f64 {
        match self {
            Self::Unsigned(x) => x as f64,
            Self::Signed(x) => x as f64,
            Self::Float(x) => x,
        }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsigned(x) => x.fmt(f),
            Self::Signed(x) => x.fmt(f),
            Self::Float(x) => write!(f, "{x:?}"),
        }
    }
}

/// An element type of a tensor.
pub trait Element: sealed::Sealed + Copy + Send + Sync + Default + std::fmt::Debug + 'static {
    /// Its name in the schema.
    const TYPE: NumberType;
    #[doc(hidden)]
    fn convert(number: Number) -> Option<Self>;
    #[doc(hidden)]
    fn values(stored: &Values) -> Option<&Vec<Self>>;
}

macro_rules! elements {
    ($($type:ident $variant:ident $name:literal $class:ident),* $(,)?) => {
        /// Element types of dense tensors.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum NumberType {
            $($variant),*
        }

        impl NumberType {
            /// Its name: `"f32"`, `"i64"`, ….
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Bytes of an element.
            #[must_use]
            pub const fn size(self) -> usize {
                match self { $(Self::$variant => size_of::<$type>()),* }
            }

            pub(crate) fn fits(self, number: Number) -> bool {
                match self { $(Self::$variant => <$type as Element>::convert(number).is_some()),* }
            }
        }

        /// Elements of one of the types.
        #[doc(hidden)]
        #[derive(Debug, Clone, PartialEq)]
        pub enum Values {
            $($variant(Vec<$type>)),*
        }

        impl Values {
            pub(crate) fn new(of: NumberType) -> Self {
                match of { $(NumberType::$variant => Self::$variant(Vec::new())),* }
            }

            pub(crate) fn drop_last(&mut self, count: usize) {
                match self { $(Self::$variant(values) => values.truncate(values.len() - count)),* }
            }
        }

        /// Runs code with the vector inside, whatever it is of.
        macro_rules! with_values {
            ($values:expr, $vector:ident => $code:expr) => {
                match $values { $($crate::table::element::Values::$variant($vector) => $code),* }
            };
        }
        pub(crate) use with_values;

        $(
            impl sealed::Sealed for $type {}
            impl Element for $type {
                const TYPE: NumberType = NumberType::$variant;
                #[inline]
                fn convert(number: Number) -> Option<Self> {
                    elements!(@convert $class $type number)
                }
                fn values(stored: &Values) -> Option<&Vec<Self>> {
                    match stored {
                        Values::$variant(values) => Some(values),
                        _ => None,
                    }
                }
            }
        )*
    };
    // Rounded to the nearest; what would become infinite does not fit. NaN can only come from a rule for missing values.
    (@convert float $type:ident $number:ident) => {{
        let wide = $number.to_f64();
        let value = wide as $type;
        (value.is_finite() || wide.is_nan()).then_some(value)
    }};
    // Whole numbers, also when written as 3.0 or 1e3.
    (@convert whole $type:ident $number:ident) => {
        match $number {
            Number::Unsigned(x) => x.try_into().ok(),
            Number::Signed(x) => x.try_into().ok(),
            // Beyond 2^53 a float no longer says which whole number was meant.
            Number::Float(x) if x.trunc() == x && x.abs() <= 9_007_199_254_740_992.0 => (x as i64).try_into().ok(),
            Number::Float(_) => None,
        }
    };
}

elements!(
    f32 F32 "f32" float,
    f64 F64 "f64" float,
    i8 I8 "i8" whole,
    i16 I16 "i16" whole,
    i32 I32 "i32" whole,
    i64 I64 "i64" whole,
    u8 U8 "u8" whole,
    u16 U16 "u16" whole,
    u32 U32 "u32" whole,
    u64 U64 "u64" whole,
);

impl NumberType {
    /// Whether it has NaN and fractions.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

impl std::fmt::Display for NumberType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Element types of row offsets and column numbers of sparse tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexType {
    /// 32 bits: what scipy and scikit-learn use.
    I32,
    /// 64 bits: what torch uses.
    #[default]
    I64,
}

/// `i32` or `i64`.
pub trait IndexElement:
    sealed::Sealed + Copy + Send + Sync + Default + std::fmt::Debug + TryFrom<usize> + 'static
{
    /// Its name in the schema.
    const TYPE: IndexType;
}

impl IndexElement for i32 {
    const TYPE: IndexType = IndexType::I32;
}

impl IndexElement for i64 {
    const TYPE: IndexType = IndexType::I64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_fit_exactly_or_not_at_all() {
        assert_eq!(u8::convert(Number::Unsigned(255)), Some(255));
        assert_eq!(u8::convert(Number::Unsigned(256)), None);
        assert_eq!(u8::convert(Number::Signed(-1)), None);
        assert_eq!(i64::convert(Number::Float(1e3)), Some(1000));
        assert_eq!(i64::convert(Number::Float(-0.0)), Some(0));
        assert_eq!(i64::convert(Number::Float(0.5)), None);
        assert_eq!(i64::convert(Number::Float(1e16)), None);
        assert_eq!(i64::convert(Number::Unsigned(u64::MAX)), None);
        assert_eq!(u64::convert(Number::Unsigned(u64::MAX)), Some(u64::MAX));
        assert_eq!(i64::convert(Number::Float(f64::NAN)), None);
    }

    #[test]
    fn floats_are_rounded_and_never_infinite() {
        assert_eq!(f32::convert(Number::Float(0.1)), Some(0.1));
        assert_eq!(f32::convert(Number::Float(3.5e38)), None);
        assert_eq!(f32::convert(Number::Signed(-16_777_217)), Some(-16_777_216.0));
        assert_eq!(f64::convert(Number::Float(1e308)), Some(1e308));
        assert!(f32::convert(Number::Float(f64::NAN)).unwrap().is_nan());
    }
}
