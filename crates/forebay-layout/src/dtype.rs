//! Element types: their codes on the wire, sizes and names.

use core::{fmt, str::FromStr};

/// The element type of a tensor. Names are NumPy's and torch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// One byte, 0 or 1.
    Bool = 1,
    /// Unsigned 8-bit integer.
    U8 = 2,
    /// Unsigned 16-bit integer.
    U16 = 3,
    /// Unsigned 32-bit integer.
    U32 = 4,
    /// Unsigned 64-bit integer.
    U64 = 5,
    /// Signed 8-bit integer.
    I8 = 6,
    /// Signed 16-bit integer.
    I16 = 7,
    /// Signed 32-bit integer.
    I32 = 8,
    /// Signed 64-bit integer.
    I64 = 9,
    /// IEEE 754 half precision.
    F16 = 10,
    /// bfloat16: the upper half of a 32-bit float.
    BF16 = 11,
    /// IEEE 754 single precision.
    F32 = 12,
    /// IEEE 754 double precision.
    F64 = 13,
    /// 8-bit float, 4 exponent bits, finite only (`float8_e4m3fn`).
    F8E4M3 = 14,
    /// 8-bit float, 5 exponent bits (`float8_e5m2`).
    F8E5M2 = 15,
    /// Two `f32`: `complex64`.
    C64 = 16,
    /// Two `f64`: `complex128`.
    C128 = 17,
}

impl DType {
    /// Every element type, in the order of their codes.
    pub const ALL: [Self; 17] = [
        Self::Bool,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::C64,
        Self::C128,
    ];

    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The element type with this code, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// Bytes per element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::C64 => 8,
            Self::C128 => 16,
        }
    }

    /// The name, as NumPy and torch spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::F8E5M2 => "float8_e5m2",
            Self::C64 => "complex64",
            Self::C128 => "complex128",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No element type has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownDType;

impl fmt::Display for UnknownDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown dtype; expected one of")?;
        for (i, dtype) in DType::ALL.iter().enumerate() {
            write!(f, "{} {dtype}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownDType {}

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or(UnknownDType)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn codes_and_names_lead_back_to_the_same_dtype() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype.code()), Some(dtype));
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert_eq!(DType::from_code(0), None);
        assert_eq!(DType::from_code(18), None);
        assert_eq!("float31".parse::<DType>(), Err(UnknownDType));
    }

    #[test]
    fn an_unknown_name_is_answered_with_all_there_are() {
        let text = UnknownDType.to_string();
        assert!(text.starts_with("unknown dtype; expected one of bool, uint8, uint16,"), "{text}");
        assert!(text.ends_with(" complex64, complex128"), "{text}");
        assert_eq!(std::format!("{:>6}|", DType::U8), " uint8|");
    }
}
