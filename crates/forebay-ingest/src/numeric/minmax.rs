//! Min-max scaling: every column into one range.

use multiversion::multiversion;

use super::error::{self, NumericError};
use super::float::{Affine, Float, widened};
use super::standard::{each, each_in_place};
use crate::work::Work;

/// Least number of elements in a job of a fit, and the most jobs.
const JOB: usize = 1 << 16;
const MOST_JOBS: usize = 64;

/// Smallest and largest number of each column; NaN for a column of nothing but NaN.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MinMaxFit<T> {
    /// The smallest.
    pub min: Vec<T>,
    /// The largest.
    pub max: Vec<T>,
}

impl<T: Float> MinMaxFit<T> {
    /// Goes over `data` once.
    ///
    /// # Errors
    /// [`NumericError`] if `data` is not whole rows, has none, holds infinity, or the work was stopped.
    pub fn new(data: &[T], columns: usize, work: &Work<'_>) -> Result<Self, NumericError> {
        let rows = error::rows("the array", data.len(), columns)?;
        if rows == 0 {
            return Err(NumericError::Empty);
        }
        let wide = columns * 64usize.div_ceil(columns);
        let job = (JOB.div_ceil(columns).max(rows.div_ceil(MOST_JOBS)).saturating_mul(columns)).next_multiple_of(wide);
        let parts = work.map(data.chunks(job), |part| {
            let (mut min, mut max) = (vec![T::INFINITY; wide], vec![T::NEG_INFINITY; wide]);
            extremes(part, &mut min, &mut max);
            (min, max)
        })?;
        let (mut min, mut max) = (vec![T::INFINITY; columns], vec![T::NEG_INFINITY; columns]);
        for (part_min, part_max) in &parts {
            extremes(part_min, &mut min, &mut [T::NEG_INFINITY].repeat(columns));
            extremes(part_max, &mut [T::INFINITY].repeat(columns), &mut max);
        }
        for (min, max) in min.iter_mut().zip(&mut max) {
            if *min == T::INFINITY && *max == T::NEG_INFINITY {
                // Nothing but NaN.
                (*min, *max) = (T::NAN, T::NAN);
            }
        }
        if min.iter().chain(&max).any(|x| x.to_f64().is_infinite()) {
            let at = data.iter().position(|x| x.to_f64().is_infinite()).unwrap_or(0);
            return Err(NumericError::Infinite { row: at / columns, column: at % columns });
        }
        Ok(Self { min, max })
    }
}

impl<T> MinMaxFit<T> {
    /// What was found elsewhere.
    ///
    /// # Errors
    /// [`NumericError`] if they are not equally many, or none.
    pub fn from_parts(min: Vec<T>, max: Vec<T>) -> Result<Self, NumericError> {
        error::same("max", max.len(), min.len())?;
        if min.is_empty() { Err(NumericError::Empty) } else { Ok(Self { min, max }) }
    }
}

/// Lowers `min` and raises `max` by the rows of `data`; NaN changes nothing.
#[multiversion(targets("x86_64+avx2+fma"))]
fn extremes<T: Float>(data: &[T], min: &mut [T], max: &mut [T]) {
    for row in data.chunks(min.len()) {
        for ((min, max), &x) in min.iter_mut().zip(max.iter_mut()).zip(row) {
            *min = if x < *min { x } else { *min };
            *max = if x > *max { x } else { *max };
        }
    }
}

/// Multiplies each column and adds to it, so that what was fitted lies in the range.
///
/// NaN stays NaN. Computed in the precision of the elements throughout, as scikit-learn does.
#[derive(Debug, Clone, PartialEq)]
pub struct MinMaxScaler<T> {
    fit: MinMaxFit<T>,
    scale: Vec<T>,
    shift: Vec<T>,
}

impl<T: Float> MinMaxScaler<T> {
    /// Fits to `data`, rows of `columns` elements, to scale into `range`.
    ///
    /// A column whose range is zero but for rounding (below 10 ε) is shifted to the lower end and not stretched.
    ///
    /// # Errors
    /// [`NumericError::Range`] for a range that does not grow; else as [`MinMaxFit::new`].
    pub fn fit(data: &[T], columns: usize, range: (f64, f64), work: &Work<'_>) -> Result<Self, NumericError> {
        Self::from_fit(MinMaxFit::new(data, columns, work)?, range)
    }

    /// A scaler of what a fit found.
    ///
    /// # Errors
    /// [`NumericError`] for a range that does not grow, or extremes that are not equally many.
    pub fn from_fit(fit: MinMaxFit<T>, (low, high): (f64, f64)) -> Result<Self, NumericError> {
        if !(low < high && low.is_finite() && high.is_finite()) {
            return Err(NumericError::Range { low, high });
        }
        let fit = MinMaxFit::from_parts(fit.min, fit.max)?;
        let (low, high) = (T::of(low), T::of(high));
        let scale: Vec<T> = fit
            .min
            .iter()
            .zip(&fit.max)
            .map(|(&min, &max)| {
                let range = max - min;
                (high - low) / if range < T::NO_RANGE { T::ONE } else { range }
            })
            .collect();
        let shift = fit.min.iter().zip(&scale).map(|(&min, &scale)| low - min * scale).collect();
        Ok(Self { fit, scale, shift })
    }

    /// Number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.scale.len()
    }

    /// Smallest and largest number of each column.
    #[must_use]
    pub fn extremes(&self) -> &MinMaxFit<T> {
        &self.fit
    }

    /// What each column is multiplied by.
    #[must_use]
    pub fn scale(&self) -> &[T] {
        &self.scale
    }

    /// What is then added to it.
    #[must_use]
    pub fn shift(&self) -> &[T] {
        &self.shift
    }

    /// Writes `data` scaled into `out`, which is as long.
    ///
    /// # Errors
    /// [`NumericError`] if the lengths do not fit, or the work was stopped.
    pub fn transform(&self, data: &[T], out: &mut [T], work: &Work<'_>) -> Result<(), NumericError> {
        error::rows("the array", data.len(), self.columns())?;
        each(Affine::MultiplyThenShift, data, out, (&widened(&self.scale), &widened(&self.shift)), work)
    }

    /// Scales `data` where it is.
    ///
    /// # Errors
    /// As [`transform`](Self::transform).
    pub fn transform_in_place(&self, data: &mut [T], work: &Work<'_>) -> Result<(), NumericError> {
        error::rows("the array", data.len(), self.columns())?;
        each_in_place(Affine::MultiplyThenShift, data, (&widened(&self.scale), &widened(&self.shift)), work)
    }
}
