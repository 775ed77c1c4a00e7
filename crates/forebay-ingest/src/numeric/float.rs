//! The two element types of arrays, and the loops that are compiled twice: for any processor, and for one with AVX2.

use multiversion::multiversion;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// `f32` or `f64`.
pub trait Float:
    sealed::Sealed
    + Copy
    + Send
    + Sync
    + PartialOrd
    + std::fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + 'static
{
    #[doc(hidden)]
    const NAN: Self;
    #[doc(hidden)]
    const ONE: Self;
    #[doc(hidden)]
    const INFINITY: Self;
    #[doc(hidden)]
    const NEG_INFINITY: Self;
    /// Ranges below this are taken for none, as scikit-learn does.
    #[doc(hidden)]
    const NO_RANGE: Self;
    #[doc(hidden)]
    fn to_f64(self) -> f64;
    #[doc(hidden)]
    fn of(value: f64) -> Self;
}

macro_rules! float {
    ($type:ident) => {
        impl Float for $type {
            const NAN: Self = $type::NAN;
            const ONE: Self = 1.0;
            const INFINITY: Self = $type::INFINITY;
            const NEG_INFINITY: Self = $type::NEG_INFINITY;
            const NO_RANGE: Self = 10.0 * $type::EPSILON;
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn of(value: f64) -> Self {
                value as $type
            }
        }
    };
}

float!(f32);
float!(f64);

/// Elements in a job of an element-wise loop: large enough to be worth a thread, small enough to stay in its cache.
pub(crate) const JOB_ELEMENTS: usize = 1 << 16;

/// Repeats a row until the loops over it are long enough for vectors.
pub(crate) fn widened<T: Copy>(row: &[T]) -> Vec<T> {
    let times = 64usize.div_ceil(row.len().max(1));
    row.repeat(times)
}

/// What is done to each element, with two numbers of its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Affine {
    /// (x - a) / b.
    ShiftThenDivide,
    /// x · a + b.
    MultiplyThenShift,
}

/// Writes `input` transformed into `output`; `a` and `b` are one or several rows long, see [`widened`].
#[multiversion(targets("x86_64+avx2+fma"))]
pub(crate) fn affine<T: Float>(how: Affine, input: &[T], output: &mut [T], a: &[T], b: &[T]) {
    let width = a.len();
    for (input, output) in input.chunks(width).zip(output.chunks_mut(width)) {
        let columns = output.iter_mut().zip(input).zip(a.iter().zip(b));
        match how {
            Affine::ShiftThenDivide => columns.for_each(|((out, &x), (&a, &b))| *out = (x - a) / b),
            Affine::MultiplyThenShift => columns.for_each(|((out, &x), (&a, &b))| *out = x * a + b),
        }
    }
}

/// The same in place.
#[multiversion(targets("x86_64+avx2+fma"))]
pub(crate) fn affine_in_place<T: Float>(how: Affine, data: &mut [T], a: &[T], b: &[T]) {
    for data in data.chunks_mut(a.len()) {
        let columns = data.iter_mut().zip(a.iter().zip(b));
        match how {
            Affine::ShiftThenDivide => columns.for_each(|(x, (&a, &b))| *x = (*x - a) / b),
            Affine::MultiplyThenShift => columns.for_each(|(x, (&a, &b))| *x = *x * a + b),
        }
    }
}
