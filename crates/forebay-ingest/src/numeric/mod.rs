//! Arrays of numbers: scaling, norms and nearest rows, as a service needs them beside its model.
//!
//! - [`StandardScaler`] and [`MinMaxScaler`] fit and transform rows × columns of `f32` or `f64`; what they compute equals
//!   scikit-learn's classes of the same names.
//! - [`l2_normalize`] gives every row the length 1.
//! - [`top_k`] finds the rows of an embedding matrix nearest to each query, by dot product or cosine.
//!
//! Arrays are slices of rows, one after the other. Every function runs where its [`Work`](crate::Work) says, and its results
//! depend neither on the number of threads nor on whether the processor has AVX2; fused multiply-add, where it exists,
//! changes last digits of dot products.
//!
//! # NaN and infinity
//!
//! NaN means "missing": a fit leaves it out, column by column, and a transform keeps it. A column of nothing but NaN has
//! NaN for its statistics. Infinity is an error of the fit that names row and column. A norm takes neither. In
//! [`top_k`] a score that is NaN ranks behind all others.

mod dot;
mod error;
mod float;
mod minmax;
mod moments;
mod norm;
mod standard;
mod top;

pub use error::NumericError;
pub use float::Float;
pub use minmax::{MinMaxFit, MinMaxScaler};
pub use norm::l2_normalize;
pub use standard::{StandardFit, StandardScaler};
pub use top::{Metric, Neighbors, top_k};
