//! What the element types of tensors made here are called in a ring. All that this crate knows of rings.

use forebay_layout::DType;

macro_rules! called {
    ($($type:ty { $($own:ident => $ring:ident),* $(,)? })*) => {$(
        impl From<$type> for DType {
            fn from(own: $type) -> Self {
                match own {
                    $(<$type>::$own => Self::$ring),*
                }
            }
        }
    )*};
}

#[cfg(feature = "images")]
called! {
    crate::image::Dtype { U8 => U8, F16 => F16, Bf16 => BF16, F32 => F32 }
}

#[cfg(feature = "tables")]
called! {
    crate::table::NumberType {
        F32 => F32, F64 => F64,
        I8 => I8, I16 => I16, I32 => I32, I64 => I64,
        U8 => U8, U16 => U16, U32 => U32, U64 => U64,
    }
    crate::table::IndexType { I32 => I32, I64 => I64 }
}
