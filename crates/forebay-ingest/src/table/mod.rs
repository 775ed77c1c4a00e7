//! JSON lines become rows of features: numbers, one-hot and hashed columns, dense or sparse.
//!
//! ```text
//!   schema file ── TableSchema ── TableEncoder
//!   lines ── any thread: JSON → cells of a row → columns ──▶ TableBatch ── write_* ──▶ a slot, an array
//! ```
//!
//! - [`TableSchema`] says which tensors there are and what their columns are made of; see there for the file.
//! - [`TableEncoder`] turns lines into a [`TableBatch`], which knows its shapes, so that a caller can make room and then
//!   have the tensors written there.
//! - [`FeatureHasher`] gives the column and the sign of a name, those of scikit-learn's class of that name.
//!
//! # What is an item
//!
//! Every line is one item: a JSON object in UTF-8, at most [`TableOptions::max_line_bytes`] long. Keys that no
//! column asks for are passed over whatever is in them, nested as deeply as they like. A key that is asked for and stands
//! there twice is an error, also below the top level, and so is a value that its column cannot take. Such errors belong
//! to their line: it is left out, reported with its index, and the others are encoded.
//!
//! `null` and an absent key both mean that the value is missing; what then happens is stated for each column.
//!
//! # Limits
//!
//! A batch holds its rows once (dense: all columns, sparse: the nonzero ones) before they are written; at most
//! [`TableOptions::max_batch_bytes`] are begun. While a line is being read it needs a few times its length.

mod batch;
mod cells;
mod element;
mod encoder;
mod error;
mod hash;
mod hashed;
mod plan;
mod read;
mod row;
mod schema;

pub use batch::{BadRow, SparseShape, TableBatch};
pub use element::{Element, IndexElement, IndexType, NumberType};
pub use encoder::{TableEncoder, TableOptions, TensorSpec, split_lines};
pub use error::{RowError, SchemaError, TableError, WriteTableError};
pub use hash::{FeatureHasher, HashInput};
pub use hashed::{HashedRows, HashedValue};
pub use schema::{ColumnSchema, Label, Layout, Missing, MissingLabel, Path, TableSchema, TensorSchema, Unknown};
