//! Rows of length 1.

use multiversion::multiversion;

use super::error::{self, NumericError};
use super::float::{Float, JOB_ELEMENTS};
use crate::work::Work;

/// Divides every row by its Euclidean length, where it is; a row of zeros stays one.
///
/// Lengths are taken in double precision and do not overflow. scikit-learn's `normalize` leaves also rows shorter than
/// 10 ε as they are; here those become length 1 like all others.
///
/// # Errors
/// [`NumericError`] if `data` is not whole rows of `columns`, a row holds NaN or infinity (it and rows near it are
/// then unchanged or changed), or the work was stopped.
pub fn l2_normalize<T: Float>(data: &mut [T], columns: usize, work: &Work<'_>) -> Result<(), NumericError> {
    error::rows("the array", data.len(), columns)?;
    let job = JOB_ELEMENTS.next_multiple_of(columns);
    let bad = work.map(data.chunks_mut(job), |rows| {
        let mut bad = None;
        for (index, row) in rows.chunks_exact_mut(columns).enumerate() {
            if !normalize(row) && bad.is_none() {
                bad = Some(index);
            }
        }
        bad
    })?;
    let first = bad.into_iter().enumerate().find_map(|(index, bad)| bad.map(|row| index * (job / columns) + row));
    first.map_or(Ok(()), |row| Err(NumericError::NotFinite { row }))
}

/// Scales one row. False, and nothing changed, if it holds NaN or infinity.
fn normalize<T: Float>(row: &mut [T]) -> bool {
    let squares = sum_of_squares(row, 1.0);
    if squares.is_normal() {
        divide(row, squares.sqrt());
        return true;
    }
    // Zero, so small or large that squares leave the range of f64, or no numbers.
    let largest = row.iter().fold(0.0f64, |most, x| {
        let x = x.to_f64().abs();
        if x > most || x.is_nan() { x } else { most }
    });
    if row.iter().any(|x| !x.to_f64().is_finite()) {
        return false;
    }
    if largest > 0.0 {
        let length = sum_of_squares(row, largest).sqrt();
        for x in row {
            *x = T::of(x.to_f64() / largest / length);
        }
    }
    true
}

const LANES: usize = 16;

/// Sum of the squares of the elements, each divided by `unit` before.
#[multiversion(targets("x86_64+avx2+fma"))]
fn sum_of_squares<T: Float>(row: &[T], unit: f64) -> f64 {
    let (wide, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    if unit == 1.0 {
        for chunk in wide {
            for lane in 0..LANES {
                let x = chunk[lane].to_f64();
                sums[lane] += x * x;
            }
        }
    } else {
        for chunk in wide {
            for lane in 0..LANES {
                let x = chunk[lane].to_f64() / unit;
                sums[lane] += x * x;
            }
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        let x = x.to_f64() / unit;
        *sum += x * x;
    }
    sums.iter().sum()
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn divide<T: Float>(row: &mut [T], length: f64) {
    for x in row {
        *x = T::of(x.to_f64() / length);
    }
}
