//! Rust types that stand for the elements of a tensor.

use bytemuck::Pod;
use forebay_layout::DType;

use crate::error::TensorError;

/// A type whose values are the elements of some dtypes, bit for bit.
pub trait Element: Pod {
    /// The dtypes it stands for.
    const DTYPES: &'static [DType];
}

macro_rules! elements {
    ($($rust:ty: $($dtype:ident),+;)*) => {
        $(impl Element for $rust { const DTYPES: &'static [DType] = &[$(DType::$dtype),+]; })*
    };
}

elements! {
    u8: U8, Bool, F8E4M3, F8E5M2;
    u16: U16;
    u32: U32;
    u64: U64;
    i8: I8;
    i16: I16;
    i32: I32;
    i64: I64;
    f32: F32;
    f64: F64;
    half::f16: F16;
    half::bf16: BF16;
    [f32; 2]: C64;
    [f64; 2]: C128;
}

pub(crate) fn check<T: Element>(name: &str, found: DType) -> Result<(), TensorError> {
    if T::DTYPES.contains(&found) {
        return Ok(());
    }
    let expected = T::DTYPES.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(" or ");
    Err(TensorError::DType { name: name.to_owned(), found: found.name(), expected })
}

/// The elements in `bytes`, which start 64-byte aligned and hold whole elements: both follow from the descriptor's
/// checks, so a failure is a broken invariant of this process.
pub(crate) fn slice<T: Element>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(bytes)
}

/// As [`slice`], to write.
pub(crate) fn slice_mut<T: Element>(bytes: &mut [u8]) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes)
}
