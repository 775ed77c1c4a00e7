//! Standard scaling: mean 0 and variance 1 for every column.

use super::error::{self, NumericError};
use super::float::{Affine, Float, JOB_ELEMENTS, affine, affine_in_place, widened};
use super::moments::moments;
use crate::work::Work;

/// What a fit found of each column. Variances are of the population (divided by n), as in scikit-learn.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StandardFit {
    /// Numbers that were not NaN.
    pub count: Vec<f64>,
    /// Their mean.
    pub mean: Vec<f64>,
    /// Their variance.
    pub variance: Vec<f64>,
}

impl StandardFit {
    /// Goes over `data` once and gives count, mean and variance of each column, in double precision.
    ///
    /// # Errors
    /// [`NumericError`] if `data` is not whole rows, has none, holds infinity, or the work was stopped.
    pub fn new<T: Float>(data: &[T], columns: usize, work: &Work<'_>) -> Result<Self, NumericError> {
        let found = moments(data, columns, work)?;
        // Rounding can leave less than nothing of the distances; NaN stays NaN.
        let positive = |distance: f64| if distance < 0.0 { 0.0 } else { distance };
        let variance = found.distance.iter().zip(&found.count).map(|(&apart, count)| positive(apart) / count).collect();
        Ok(Self { count: found.count, mean: found.mean, variance })
    }

    /// What a column is divided by: its standard deviation, or 1 if that is zero but for rounding.
    ///
    /// The bound is scikit-learn's: n·ε·variance + (n·mean·ε)².
    #[must_use]
    pub fn scale(&self) -> Vec<f64> {
        let columns = self.variance.iter().zip(&self.mean).zip(&self.count);
        columns
            .map(|((&variance, mean), count)| {
                let rounding = count * mean * f64::EPSILON;
                let bound = count * f64::EPSILON * variance + rounding * rounding;
                if variance <= bound { 1.0 } else { variance.sqrt() }
            })
            .collect()
    }
}

/// Subtracts the mean of each column and divides by its standard deviation.
///
/// NaN stays NaN. Memory: two numbers a column, nothing of the size of the array.
#[derive(Debug, Clone, PartialEq)]
pub struct StandardScaler {
    mean: Vec<f64>,
    scale: Vec<f64>,
}

impl StandardScaler {
    /// Fits to `data`, rows of `columns` elements.
    ///
    /// # Errors
    /// As [`StandardFit::new`].
    pub fn fit<T: Float>(data: &[T], columns: usize, work: &Work<'_>) -> Result<Self, NumericError> {
        let fit = StandardFit::new(data, columns, work)?;
        Ok(Self { scale: fit.scale(), mean: fit.mean })
    }

    /// A scaler of given means and standard deviations, one of each for every column.
    ///
    /// # Errors
    /// [`NumericError::Length`] if they are not equally many, [`NumericError::Empty`] if there are none.
    pub fn from_parts(mean: Vec<f64>, scale: Vec<f64>) -> Result<Self, NumericError> {
        error::same("scale", scale.len(), mean.len())?;
        if mean.is_empty() { Err(NumericError::Empty) } else { Ok(Self { mean, scale }) }
    }

    /// Number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.mean.len()
    }

    /// What is subtracted from each column.
    #[must_use]
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// What each column is divided by.
    #[must_use]
    pub fn scale(&self) -> &[f64] {
        &self.scale
    }

    fn parts<T: Float>(&self) -> (Vec<T>, Vec<T>) {
        let cast = |row: &[f64]| widened(&row.iter().map(|&x| T::of(x)).collect::<Vec<T>>());
        (cast(&self.mean), cast(&self.scale))
    }

    /// Writes `data` scaled into `out`, which is as long; computed in the precision of the elements.
    ///
    /// # Errors
    /// [`NumericError`] if the lengths do not fit, or the work was stopped.
    pub fn transform<T: Float>(&self, data: &[T], out: &mut [T], work: &Work<'_>) -> Result<(), NumericError> {
        error::rows("the array", data.len(), self.columns())?;
        let (mean, scale) = self.parts();
        each(Affine::ShiftThenDivide, data, out, (&mean, &scale), work)
    }

    /// Scales `data` where it is.
    ///
    /// # Errors
    /// As [`transform`](Self::transform).
    pub fn transform_in_place<T: Float>(&self, data: &mut [T], work: &Work<'_>) -> Result<(), NumericError> {
        error::rows("the array", data.len(), self.columns())?;
        let (mean, scale) = self.parts();
        each_in_place(Affine::ShiftThenDivide, data, (&mean, &scale), work)
    }
}

/// Runs an element-wise loop in jobs that end with a row of `a`.
pub(super) fn each<T: Float>(
    how: Affine,
    data: &[T],
    out: &mut [T],
    (a, b): (&[T], &[T]),
    work: &Work<'_>,
) -> Result<(), NumericError> {
    error::same("the output", out.len(), data.len())?;
    let job = JOB_ELEMENTS.next_multiple_of(a.len());
    work.map(data.chunks(job).zip(out.chunks_mut(job)), |(data, out)| affine(how, data, out, a, b))?;
    Ok(())
}

/// The same in place.
pub(super) fn each_in_place<T: Float>(
    how: Affine,
    data: &mut [T],
    (a, b): (&[T], &[T]),
    work: &Work<'_>,
) -> Result<(), NumericError> {
    let job = JOB_ELEMENTS.next_multiple_of(a.len());
    work.map(data.chunks_mut(job), |data| affine_in_place(how, data, a, b))?;
    Ok(())
}
