//! Memory of arrays as slices, over the buffer protocol: nothing is copied on the way in or out.
#![expect(unsafe_code, reason = "a Py_buffer holds a pointer and a length")]

use pyo3::{
    buffer::{ElementType, PyUntypedBuffer},
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
};

/// The memory of an array, held for a call.
pub(crate) struct Array {
    buffer: PyUntypedBuffer,
    name: &'static str,
}

/// An element type of arrays.
///
/// # Safety
/// S1 Every pattern of bits is a value. S2 `KIND` names it, together with its size.
pub(crate) unsafe trait Element: Copy {
    const KIND: Kind;
    const NAME: &'static str;
}

/// What a buffer says of its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Float,
    Signed,
    Unsigned,
}

macro_rules! elements {
    ($($type:ident $kind:ident $name:literal),*) => {
        $(
            // SAFETY: S1: a plain number. S2: the kind is that of the type.
            unsafe impl Element for $type {
                const KIND: Kind = Kind::$kind;
                const NAME: &'static str = $name;
            }
        )*
    };
}

elements!(
    f32 Float "float32", f64 Float "float64", i8 Signed "int8", i16 Signed "int16", i32 Signed "int32",
    i64 Signed "int64", u8 Unsigned "uint8", u16 Unsigned "uint16", u32 Unsigned "uint32", u64 Unsigned "uint64"
);

impl Array {
    /// The memory of `object`, which has to lie row by row.
    pub(crate) fn of(object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)
            .map_err(|e| PyTypeError::new_err(format!("{name} is no array: {e}; pass a NumPy array")))?;
        if !buffer.is_c_contiguous() {
            return Err(PyValueError::new_err(format!(
                "{name} does not lie row by row; pass numpy.ascontiguousarray of it"
            )));
        }
        Ok(Self { buffer, name })
    }

    /// Whether its elements are of type `T`, in the byte order of this machine.
    pub(crate) fn is<T: Element>(&self) -> bool {
        let of = match ElementType::from_format(self.buffer.format()) {
            ElementType::Float { bytes } => Some((Kind::Float, bytes)),
            ElementType::SignedInteger { bytes } => Some((Kind::Signed, bytes)),
            ElementType::UnsignedInteger { bytes } => Some((Kind::Unsigned, bytes)),
            ElementType::Bool | ElementType::Unknown => None,
        };
        let native = !matches!(self.buffer.format().to_bytes().first(), Some(b'>' | b'!'));
        of == Some((T::KIND, size_of::<T>())) && self.buffer.item_size() == size_of::<T>() && native
    }

    fn check<T: Element>(&self) -> PyResult<()> {
        if !self.is::<T>() {
            let (name, found) = (self.name, self.buffer.format().to_string_lossy());
            return Err(PyTypeError::new_err(format!(
                "{name} is of format {found:?}, expected {}; convert it with .astype",
                T::NAME
            )));
        }
        if self.buffer.buf_ptr().align_offset(align_of::<T>()) != 0 {
            return Err(PyValueError::new_err(format!("{} is not aligned; copy it first", self.name)));
        }
        Ok(())
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.buffer.shape()
    }

    fn len(&self) -> usize {
        self.buffer.item_count()
    }

    /// Its elements.
    ///
    /// Python code may write to them from another thread meanwhile, as it may during any call of NumPy that lets go of the
    /// interpreter: the values are then unspecified, and may be others when they are read again. Numbers are computed with as
    /// they come. Whoever relies on what it found in them copies them first, as images and lines of tables are.
    pub(crate) fn elements<T: Element>(&self) -> PyResult<&[T]> {
        self.check::<T>()?;
        if self.len() == 0 {
            return Ok(&[]);
        }
        // SAFETY: `check` found elements of this type, aligned, and `of` that they lie one after the other; the exporter
        // keeps them until the buffer is released, and it is borrowed. S1 of `Element` makes them values.
        Ok(unsafe { std::slice::from_raw_parts(self.buffer.buf_ptr().cast::<T>().cast_const(), self.len()) })
    }

    /// Its elements, to be written.
    pub(crate) fn elements_mut<T: Element>(&mut self) -> PyResult<&mut [T]> {
        self.check::<T>()?;
        if self.buffer.readonly() {
            return Err(PyValueError::new_err(format!(
                "{} is read-only; pass an array or a loan's view that can be written",
                self.name
            )));
        }
        if self.len() == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `elements`, and the exporter says that they may be written. Callers hold no other slice of them:
        // `same_memory` and `apart` see to that.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.buffer.buf_ptr().cast::<T>(), self.len()) })
    }

    fn bytes(&self) -> std::ops::Range<usize> {
        let start = self.buffer.buf_ptr().addr();
        start..start + self.buffer.len_bytes()
    }

    /// Whether `other` is the very same memory.
    pub(crate) fn same_memory(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }

    /// Refuses arrays that share some of their memory.
    pub(crate) fn apart(&self, other: &Self) -> PyResult<()> {
        let (a, b) = (self.bytes(), other.bytes());
        if a.start < b.end && b.start < a.end {
            let (mine, others) = (self.name, other.name);
            return Err(PyValueError::new_err(format!(
                "{mine} and {others} share part of their memory; pass the same array, or one of its own"
            )));
        }
        Ok(())
    }
}
