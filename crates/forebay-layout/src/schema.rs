//! Names, dtypes, ranks and maximal dims of a ring's fields: typed, versioned, compared at attach.
//!
//! ```text
//!   bytes   "FBSC", format 1 u8, fields u8, name bytes u8, 0, major u16, minor u16, name
//!           per field: dtype u8, rank u8, name bytes u8, 0, dims rank × u64, name
//! ```

use arrayvec::ArrayVec;
use core::fmt;

use crate::{
    ANY, DType, Defect, FieldName, MAX_FIELDS, MAX_RANK, NameError, RingName, check_field_name, check_ring_name,
};

const MARK: &[u8; 4] = b"FBSC";
const FORMAT: u8 = 1;
/// Longest encoded schema, in bytes.
pub const MAX_BYTES: usize = 12 + 64 + MAX_FIELDS * (4 + 8 * MAX_RANK + 40);

/// One field of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: FieldName,
    /// Its element type.
    pub dtype: DType,
    rank: u8,
    dims: [u64; MAX_RANK],
}

impl Field {
    /// A field; each of `max_dims` is the largest value that dim may have ([`ANY`] for no bound).
    ///
    /// # Errors
    /// The name or the rank is out of its range.
    pub fn new(name: &str, dtype: DType, max_dims: &[u64]) -> Result<Self, SchemaError> {
        let name = check_field_name(name).map_err(SchemaError::Name)?;
        let mut dims = [0; MAX_RANK];
        dims.get_mut(..max_dims.len()).ok_or(SchemaError::Rank(max_dims.len()))?.copy_from_slice(max_dims);
        let rank = u8::try_from(max_dims.len()).map_err(|_| SchemaError::Rank(max_dims.len()))?;
        Ok(Self { name, dtype, rank, dims })
    }

    /// The largest value of each dim, outermost first; [`ANY`] for no bound.
    #[must_use]
    pub fn max_dims(&self) -> &[u64] {
        self.dims.get(..usize::from(self.rank)).unwrap_or_default()
    }

    /// Bytes of the largest tensor of this field, `None` if it has no bound (or a bound beyond 64 bits).
    #[must_use]
    pub fn max_bytes(&self) -> Option<u64> {
        self.max_dims()
            .iter()
            .try_fold(self.dtype.size() as u64, |bytes, &dim| if dim == ANY { None } else { bytes.checked_mul(dim) })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}[", self.name, self.dtype)?;
        for (i, &dim) in self.max_dims().iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            if dim == ANY { f.write_str("any")? } else { write!(f, "{dim}")? }
        }
        f.write_str("]")
    }
}

/// A schema that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaError {
    /// A name is not one.
    Name(NameError),
    /// A field has more dims than there may be.
    Rank(usize),
    /// More fields than there may be.
    TooManyFields,
    /// There is no field.
    NoFields,
    /// Two fields have this name.
    Duplicate(FieldName),
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(e) => write!(f, "schema: {e}"),
            Self::Rank(rank) => write!(f, "schema: a field has {rank} dims, at most {MAX_RANK} are allowed"),
            Self::TooManyFields => {
                write!(f, "schema: more than {MAX_FIELDS} fields; put several values into one tensor")
            }
            Self::NoFields => f.write_str("schema: no field; leave the schema out if messages name their own fields"),
            Self::Duplicate(name) => write!(f, "schema: two fields are named {name:?}; names must differ"),
        }
    }
}

impl core::error::Error for SchemaError {}

/// The fields that every message of a ring has, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    name: RingName,
    version: (u16, u16),
    fields: ArrayVec<Field, MAX_FIELDS>,
}

impl Schema {
    /// Starts a schema: its name and version. Readers need the same major version; a higher minor one may only
    /// widen bounds.
    pub fn builder(name: &str, major: u16, minor: u16) -> SchemaBuilder {
        let start = check_ring_name(name).map_err(SchemaError::Name);
        SchemaBuilder(start.map(|name| Self { name, version: (major, minor), fields: ArrayVec::new() }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Major and minor version.
    #[must_use]
    pub fn version(&self) -> (u16, u16) {
        self.version
    }

    /// The fields, in order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The place of the field with this name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name.as_str() == name)
    }

    /// Bytes of the largest message, each tensor rounded up to 64; `None` if a field has no bound.
    #[must_use]
    pub fn max_bytes(&self) -> Option<u64> {
        self.fields
            .iter()
            .try_fold(0u64, |sum, field| sum.checked_add(crate::round_up(field.max_bytes()?, crate::ALIGN)?))
    }

    /// Writes the schema into `out` and returns its length.
    #[must_use]
    pub fn encode(&self, out: &mut [u8; MAX_BYTES]) -> usize {
        let mut w = Writer { out, at: 0 };
        w.put(MARK);
        w.put(&[FORMAT, self.fields.len() as u8, self.name.len() as u8, 0]);
        w.put(&self.version.0.to_le_bytes());
        w.put(&self.version.1.to_le_bytes());
        w.put(self.name.as_bytes());
        for field in &self.fields {
            w.put(&[field.dtype.code(), field.rank, field.name.len() as u8, 0]);
            for dim in field.max_dims() {
                w.put(&dim.to_le_bytes());
            }
            w.put(field.name.as_bytes());
        }
        w.at
    }

    /// Reads a copy of an encoded schema.
    ///
    /// # Errors
    /// The first byte that cannot be right.
    pub fn decode(bytes: &[u8]) -> Result<Self, Defect> {
        let mut r = Reader(bytes);
        if r.take(4)? != MARK {
            return Err(Defect::new("schema.mark", 0, "FBSC"));
        }
        let [format, count, name_len, zero] = r.array()?;
        if format != FORMAT || zero != 0 {
            return Err(Defect::bounded("schema.format", format.into(), "format", FORMAT.into()));
        }
        let version = (u16::from_le_bytes(r.array()?), u16::from_le_bytes(r.array()?));
        let name = r.text(name_len, "schema.name")?;
        let mut builder = Self::builder(name, version.0, version.1);
        for _ in 0..count {
            let [code, rank, name_len, zero] = r.array()?;
            let dtype =
                DType::from_code(code).ok_or(Defect::new("schema.dtype", code.into(), "a dtype code, 1 to 17"))?;
            if zero != 0 {
                return Err(Defect::new("schema.reserved", zero.into(), "0"));
            }
            let mut dims = ArrayVec::<u64, MAX_RANK>::new();
            for _ in 0..rank {
                let dim = u64::from_le_bytes(r.array()?);
                dims.try_push(dim)
                    .map_err(|_| Defect::bounded("schema.rank", rank.into(), "at most", MAX_RANK as u64))?;
            }
            builder = builder.field(r.text(name_len, "schema.field_name")?, dtype, &dims);
        }
        if !r.0.is_empty() {
            return Err(Defect::new("schema.bytes", r.0.len() as u64, "nothing after the last field"));
        }
        builder.build().map_err(|_| Defect::new("schema", count.into(), "distinct, well-formed fields"))
    }

    /// Whether a reader that expects `self` can read messages of `theirs`: same name, major version, fields, dtypes,
    /// ranks, and no bound of theirs above ours. `None` if it can.
    #[must_use]
    pub fn mismatch<'a>(&'a self, theirs: &'a Self) -> Option<Mismatch<'a>> {
        let differs = self.name != theirs.name
            || self.version.0 != theirs.version.0
            || self.fields.len() != theirs.fields.len()
            || self.fields.iter().zip(&theirs.fields).any(|(a, b)| !a.accepts(b));
        differs.then_some(Mismatch { ours: self, theirs })
    }
}

impl Field {
    fn accepts(&self, theirs: &Self) -> bool {
        self.name == theirs.name
            && self.dtype == theirs.dtype
            && self.rank == theirs.rank
            && self.max_dims().iter().zip(theirs.max_dims()).all(|(ours, theirs)| theirs <= ours)
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{} {{", self.name, self.version.0, self.version.1)?;
        for (i, field) in self.fields.iter().enumerate() {
            write!(f, "{}{field}", if i == 0 { " " } else { ", " })?;
        }
        f.write_str(" }")
    }
}

/// How two schemas differ, line by line: `-` is what this side expects, `+` what the ring has.
#[derive(Debug, Clone, Copy)]
pub struct Mismatch<'a> {
    ours: &'a Schema,
    theirs: &'a Schema,
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = (self.ours, self.theirs);
        let title = |s: &Schema| (s.name, s.version.0);
        if title(ours) == title(theirs) {
            writeln!(f, "  schema {} {}.{}", theirs.name, theirs.version.0, theirs.version.1)?;
        } else {
            writeln!(f, "- schema {} {}.{}", ours.name, ours.version.0, ours.version.1)?;
            writeln!(f, "+ schema {} {}.{}", theirs.name, theirs.version.0, theirs.version.1)?;
        }
        for i in 0..ours.fields.len().max(theirs.fields.len()) {
            match (ours.fields.get(i), theirs.fields.get(i)) {
                (Some(a), Some(b)) if a.accepts(b) => writeln!(f, "  {b}")?,
                (a, b) => {
                    if let Some(a) = a {
                        writeln!(f, "- {a}")?;
                    }
                    if let Some(b) = b {
                        writeln!(f, "+ {b}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Collects fields; the first error is kept until [`build`](Self::build).
#[derive(Debug, Clone)]
pub struct SchemaBuilder(Result<Schema, SchemaError>);

impl SchemaBuilder {
    /// Adds a field; each of `max_dims` is the largest value that dim may have ([`ANY`] for no bound).
    #[must_use]
    pub fn field(mut self, name: &str, dtype: DType, max_dims: &[u64]) -> Self {
        let added = self.0.as_mut().map_err(|e| *e).and_then(|schema| {
            let field = Field::new(name, dtype, max_dims)?;
            if schema.index_of(name).is_some() {
                return Err(SchemaError::Duplicate(field.name));
            }
            schema.fields.try_push(field).map_err(|_| SchemaError::TooManyFields)
        });
        if let Err(e) = added {
            self.0 = Err(e);
        }
        self
    }

    /// The schema.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn build(self) -> Result<Schema, SchemaError> {
        self.0.and_then(|schema| if schema.fields.is_empty() { Err(SchemaError::NoFields) } else { Ok(schema) })
    }
}

struct Writer<'a> {
    out: &'a mut [u8; MAX_BYTES],
    at: usize,
}

impl Writer<'_> {
    /// `MAX_BYTES` is the sum of the largest parts, so nothing is ever cut.
    fn put(&mut self, bytes: &[u8]) {
        let end = self.at.saturating_add(bytes.len());
        if let Some(to) = self.out.get_mut(self.at..end) {
            to.copy_from_slice(bytes);
            self.at = end;
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Defect> {
        let short = Defect::bounded("schema.bytes", self.0.len() as u64, "at least", n as u64);
        let (head, rest) = self.0.split_at_checked(n).ok_or(short)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Defect> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn text(&mut self, len: u8, field: &'static str) -> Result<&'a str, Defect> {
        core::str::from_utf8(self.take(len.into())?).map_err(|_| Defect::new(field, len.into(), "UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    fn schema() -> Schema {
        Schema::builder("tokens", 1, 2)
            .field("input_ids", DType::I64, &[32, 128])
            .field("mask", DType::Bool, &[ANY])
            .build()
            .unwrap()
    }

    #[test]
    fn a_schema_reads_back_as_it_was_written() {
        let mut bytes = [0; MAX_BYTES];
        let len = schema().encode(&mut bytes);
        assert_eq!(Schema::decode(&bytes[..len]), Ok(schema()));
        for cut in 0..len {
            assert!(Schema::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_mismatch_reads_like_a_diff() {
        let theirs = Schema::builder("tokens", 1, 3)
            .field("input_ids", DType::I32, &[32, 128])
            .field("mask", DType::Bool, &[7])
            .build()
            .unwrap();
        let text = schema().mismatch(&theirs).unwrap().to_string();
        assert_eq!(
            text,
            "  schema tokens 1.3\n- input_ids: int64[32, 128]\n+ input_ids: int32[32, 128]\n  mask: bool[7]\n"
        );
        assert!(schema().mismatch(&schema()).is_none());
    }

    #[test]
    fn the_builder_reports_the_first_error() {
        let twice = Schema::builder("a", 1, 0).field("x", DType::U8, &[]).field("x", DType::U8, &[]);
        assert!(matches!(twice.build(), Err(SchemaError::Duplicate(_))));
        assert_eq!(Schema::builder("a", 1, 0).build(), Err(SchemaError::NoFields));
    }

    #[test]
    fn what_a_schema_says_of_itself() {
        let schema = schema();
        assert_eq!((schema.name(), schema.version(), schema.index_of("mask")), ("tokens", (1, 2), Some(1)));
        assert_eq!(schema.fields()[0].max_bytes(), Some(8 * 32 * 128));
        assert_eq!((schema.fields()[1].max_bytes(), schema.max_bytes()), (None, None), "one has no bound");
        let bounded = Schema::builder("a", 0, 0).field("x", DType::F32, &[3, 5]).field("y", DType::U8, &[65]);
        assert_eq!(bounded.build().unwrap().max_bytes(), Some(64 + 128));
        let huge = Field::new("x", DType::F64, &[u64::MAX - 1]).unwrap();
        assert_eq!(huge.max_bytes(), None, "beyond 64 bits");
        assert_eq!(schema.to_string(), "tokens 1.2 { input_ids: int64[32, 128], mask: bool[any] }");
    }

    #[test]
    fn the_longest_schema_is_encoded_whole() {
        assert_eq!(MAX_BYTES, 12 + 64 + 32 * 108);
        let mut builder = Schema::builder(core::str::from_utf8(&[b'n'; 64]).unwrap(), u16::MAX, 7);
        for i in 0..MAX_FIELDS as u8 {
            let mut name = [b'f'; 40];
            name[0] = b'A' + i;
            builder = builder.field(core::str::from_utf8(&name).unwrap(), DType::C128, &[u64::from(i); MAX_RANK]);
        }
        let schema = builder.clone().build().unwrap();
        let mut bytes = [0; MAX_BYTES];
        assert_eq!(schema.encode(&mut bytes), MAX_BYTES);
        assert_eq!(Schema::decode(&bytes), Ok(schema));
        assert_eq!(builder.field("more", DType::U8, &[]).build(), Err(SchemaError::TooManyFields));
    }

    #[test]
    fn every_byte_of_a_schema_that_lies_is_named() {
        let mut good = [0; MAX_BYTES];
        let len = schema().encode(&mut good);
        let name = 12 + 6;
        let cases = [
            (0, b'X', "schema.mark"),
            (4, 2, "schema.format"),
            (5, 0, "schema.bytes"),
            (7, 1, "schema.format"),
            (12, 0xff, "schema.name"),
            (name, 18, "schema.dtype"),
            (name + 3, 1, "schema.reserved"),
            (name + 4 + 16, 0xff, "schema.field_name"),
            (name + 4 + 16, 7, "schema"),
        ];
        for (at, value, field) in cases {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(Schema::decode(&bytes[..len]).unwrap_err().field, field, "byte {at} = {value}");
        }
        let mut bytes = good;
        bytes[name + 1] = 9;
        assert_eq!(Schema::decode(&bytes).unwrap_err().field, "schema.rank");
        assert_eq!(Schema::decode(&good[..=len]).unwrap_err().field, "schema.bytes", "one byte more");
    }

    #[test]
    fn every_difference_that_matters_is_a_mismatch() {
        let ours = || Schema::builder("tokens", 1, 2).field("x", DType::U8, &[4, 4]);
        let with = |name, major, field, dtype, dims: &[u64]| {
            Schema::builder(name, major, 9).field(field, dtype, dims).build().unwrap()
        };
        let ours = ours().build().unwrap();
        assert!(ours.mismatch(&with("tokens", 1, "x", DType::U8, &[4, 4])).is_none(), "another minor version");
        assert!(ours.mismatch(&with("tokens", 1, "x", DType::U8, &[3, 4])).is_none(), "a narrower bound");
        for theirs in [
            with("other", 1, "x", DType::U8, &[4, 4]),
            with("tokens", 2, "x", DType::U8, &[4, 4]),
            with("tokens", 1, "y", DType::U8, &[4, 4]),
            with("tokens", 1, "x", DType::I8, &[4, 4]),
            with("tokens", 1, "x", DType::U8, &[4, 5]),
            with("tokens", 1, "x", DType::U8, &[4]),
            Schema::builder("tokens", 1, 2).field("x", DType::U8, &[4, 4]).field("y", DType::U8, &[]).build().unwrap(),
        ] {
            assert!(ours.mismatch(&theirs).is_some(), "{theirs}");
        }
        let theirs = Schema::builder("other", 3, 0).field("x", DType::U8, &[4, 4]).field("y", DType::U8, &[]);
        let theirs = theirs.build().unwrap();
        assert_eq!(
            ours.mismatch(&theirs).unwrap().to_string(),
            "- schema tokens 1.2\n+ schema other 3.0\n  x: uint8[4, 4]\n+ y: uint8[]\n"
        );
        assert_eq!(
            theirs.mismatch(&ours).unwrap().to_string(),
            "- schema other 3.0\n+ schema tokens 1.2\n  x: uint8[4, 4]\n- y: uint8[]\n"
        );
    }

    #[test]
    fn every_error_of_the_builder_says_what_to_do() {
        let text = |error: SchemaError| error.to_string();
        assert_eq!(text(Field::new("", DType::U8, &[]).unwrap_err()), "schema: the name is empty");
        let rank = Field::new("x", DType::U8, &[1; 9]).unwrap_err();
        assert_eq!(text(rank), "schema: a field has 9 dims, at most 8 are allowed");
        assert!(text(SchemaError::TooManyFields).contains("more than 32 fields"));
        assert!(text(SchemaError::NoFields).contains("leave the schema out"));
        let twice = SchemaError::Duplicate(check_field_name("x").unwrap());
        assert_eq!(text(twice), "schema: two fields are named \"x\"; names must differ");
    }
}
