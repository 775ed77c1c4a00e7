//! Mean and variance of columns in one pass over memory.
//!
//! ```text
//!   array ── jobs (rows; on any thread) ── blocks (in the first-level cache, gone over twice) ── lanes ── columns
//! ```
//!
//! Within a block the mean is taken first and the squared distances from it second, while the block is in the cache: the
//! two-pass algorithm, with one pass over memory. Blocks are put together by Chan's formula, in an order that depends on
//! the shape alone. A narrow array is taken as one of wider rows, several rows side by side, whose lanes are added up at
//! the end: vectors are full and no sum is long.

use std::ops::Range;

use multiversion::multiversion;

use super::error::NumericError;
use super::float::Float;
use crate::work::Work;

/// Lanes of a narrow array, and the least of any.
const LANES: usize = 32;
/// Columns that are worked on together in a wide array.
const TILE: usize = 1024;
/// Elements of a block.
const BLOCK: usize = 8192;
/// Least number of elements in a job, and the most jobs.
const JOB: usize = 1 << 16;
const MOST_JOBS: usize = 64;

/// Count, mean and sum of squared distances from it, of each lane or column.
///
/// The mean is a sum of two numbers, because means of blocks are subtracted from each other: a mean of 10⁹ has an error of
/// 10⁻⁷, which would be much beside a small variance.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Moments {
    pub(crate) count: Vec<f64>,
    pub(crate) mean: Vec<f64>,
    low: Vec<f64>,
    pub(crate) distance: Vec<f64>,
}

/// The lanes of a block: mean, what it is too small by, squared distances.
type Lanes<'a> = (&'a [f64], &'a [f64], &'a [f64]);

/// The sum of two numbers as the nearest one and what is left.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_there = sum - a;
    (sum, (a - (sum - b_there)) + (b - b_there))
}

impl Moments {
    fn new(columns: usize) -> Self {
        let zeros = || vec![0.0; columns];
        Self { count: zeros(), mean: zeros(), low: zeros(), distance: zeros() }
    }

    /// Adds what `other` says of lane `from` to column `to`.
    fn add(&mut self, to: usize, other: &Self, from: usize) {
        let (here, there) = (self.count[to], other.count[from]);
        if here == 0.0 {
            (self.count[to], self.mean[to]) = (there, other.mean[from]);
            (self.low[to], self.distance[to]) = (other.low[from], other.distance[from]);
        } else if there > 0.0 {
            let total = here + there;
            let apart = (other.mean[from] - self.mean[to]) + (other.low[from] - self.low[to]);
            (self.mean[to], self.low[to]) = two_sum(self.mean[to], self.low[to] + apart * (there / total));
            self.distance[to] += other.distance[from] + apart * apart * (here * there / total);
            self.count[to] = total;
        }
    }
}

/// An infinite element: its offset in the rows looked at.
struct Infinite(usize);

/// The moments of each column of `data`, NaN left out.
pub(crate) fn moments<T: Float>(data: &[T], columns: usize, work: &Work<'_>) -> Result<Moments, NumericError> {
    let rows = super::error::rows("the array", data.len(), columns)?;
    if rows == 0 {
        return Err(NumericError::Empty);
    }
    // A multiple of what lies side by side, so that only the last job has rows left over.
    let beside = LANES.div_ceil(columns);
    let job_rows = JOB.div_ceil(columns).max(rows.div_ceil(MOST_JOBS)).next_multiple_of(beside);
    let parts = work.map(data.chunks(job_rows.saturating_mul(columns)).enumerate(), |(job, part)| {
        job_moments(part, columns).map_err(|at| job * job_rows * columns + at.0)
    });
    let mut total = Moments::new(columns);
    for part in parts? {
        let part = part.map_err(|at| NumericError::Infinite { row: at / columns, column: at % columns })?;
        for column in 0..columns {
            total.add(column, &part, column);
        }
    }
    for column in 0..columns {
        if total.count[column] == 0.0 {
            total.mean[column] = f64::NAN;
            total.distance[column] = f64::NAN;
        }
    }
    Ok(total)
}

/// The moments of some rows.
fn job_moments<T: Float>(part: &[T], columns: usize) -> Result<Moments, Infinite> {
    let beside = LANES.div_ceil(columns);
    let lanes = beside * columns;
    let whole = part.len() / lanes * lanes;
    let mut wide = Moments::new(lanes);
    for first in (0..lanes).step_by(TILE) {
        let tile = first..lanes.min(first + TILE);
        let rows = (BLOCK / tile.len()).max(1);
        for (block, data) in part[..whole].chunks(rows * lanes).enumerate() {
            block_moments(data, lanes, tile.clone(), &mut wide).map_err(|at| Infinite(block * rows * lanes + at.0))?;
        }
    }
    let mut narrow = Moments::new(columns);
    for lane in 0..lanes {
        narrow.add(lane % columns, &wide, lane);
    }
    if whole < part.len() {
        let mut rest = Moments::new(columns);
        for first in (0..columns).step_by(TILE) {
            let tile = first..columns.min(first + TILE);
            block_moments(&part[whole..], columns, tile, &mut rest).map_err(|at| Infinite(whole + at.0))?;
        }
        for column in 0..columns {
            narrow.add(column, &rest, column);
        }
    }
    Ok(narrow)
}

/// Adds the lanes `tile` of a block of rows to `total`.
fn block_moments<T: Float>(block: &[T], lanes: usize, tile: Range<usize>, total: &mut Moments) -> Result<(), Infinite> {
    if lanes == LANES {
        let (mut mean, mut low, mut distance) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        let finite = sum_and_distance_narrow(block, &mut mean, &mut low, &mut distance);
        take_in(finite, block, lanes, tile, (&mean, &low, &distance), total)
    } else {
        let (mut mean, mut low, mut distance) = ([0.0; TILE], [0.0; TILE], [0.0; TILE]);
        let width = tile.len();
        let (mean, low, distance) = (&mut mean[..width], &mut low[..width], &mut distance[..width]);
        let finite = sum_and_distance(block, lanes, tile.start, mean, low, distance);
        take_in(finite, block, lanes, tile, (mean, low, distance), total)
    }
}

/// Adds what was found of a block to `total`, or looks again if there was more in it than finite numbers.
fn take_in<T: Float>(
    finite: bool,
    block: &[T],
    lanes: usize,
    tile: Range<usize>,
    found: Lanes<'_>,
    total: &mut Moments,
) -> Result<(), Infinite> {
    let part = if finite {
        let rows = (block.len() / lanes) as f64;
        let count = &mut total.count[tile.clone()];
        let here = count[0];
        if here > 0.0 && count.iter().all(|&lane| lane == here) {
            let all = here + rows;
            count.fill(all);
            let (mean, low) = (&mut total.mean[tile.clone()], &mut total.low[tile.clone()]);
            merge((mean, low, &mut total.distance[tile]), found, rows / all, here * rows / all);
            return Ok(());
        }
        let (mean, low, distance) = found;
        let count = vec![rows; tile.len()];
        Moments { count, mean: mean.to_vec(), low: low.to_vec(), distance: distance.to_vec() }
    } else {
        with_missing(block, lanes, tile.clone())?
    };
    for lane in 0..tile.len() {
        total.add(tile.start + lane, &part, lane);
    }
    Ok(())
}

/// Chan's formula over lanes of equal counts, which are not zero.
#[multiversion(targets("x86_64+avx2+fma"))]
fn merge(old: (&mut [f64], &mut [f64], &mut [f64]), new: Lanes<'_>, part: f64, product: f64) {
    let width = new.0.len();
    let (mean, low, distance) = (&mut old.0[..width], &mut old.1[..width], &mut old.2[..width]);
    let (new_mean, new_low, new_distance) = (&new.0[..width], &new.1[..width], &new.2[..width]);
    for lane in 0..width {
        let apart = (new_mean[lane] - mean[lane]) + (new_low[lane] - low[lane]);
        (mean[lane], low[lane]) = two_sum(mean[lane], low[lane] + apart * part);
        distance[lane] += new_distance[lane] + apart * apart * product;
    }
}

/// What two passes found: the sums of distances from the mean say by how much it is too small.
#[inline(always)]
fn correct(count: f64, low: &mut [f64], distance: &mut [f64]) {
    for (low, distance) in low.iter_mut().zip(distance) {
        let sum = *low;
        *low = sum / count;
        *distance -= sum * *low;
    }
}

/// Means and squared distances of 32 lanes, which stay in registers. False if a number is NaN or infinite.
#[multiversion(targets("x86_64+avx2+fma"))]
fn sum_and_distance_narrow<T: Float>(
    block: &[T],
    mean: &mut [f64; LANES],
    low: &mut [f64; LANES],
    distance: &mut [f64; LANES],
) -> bool {
    let (rows, _) = block.as_chunks::<LANES>();
    let mut sum = [0.0; LANES];
    for row in rows {
        for lane in 0..LANES {
            sum[lane] += row[lane].to_f64();
        }
    }
    let count = rows.len() as f64;
    let middle = sum.map(|sum| sum / count);
    // In halves, so that sums and squares fit the registers.
    const HALF: usize = LANES / 2;
    for half in [0, HALF] {
        let (mut sums, mut squares) = ([0.0; HALF], [0.0; HALF]);
        for row in rows {
            for lane in 0..HALF {
                let apart = row[half + lane].to_f64() - middle[half + lane];
                sums[lane] += apart;
                squares[lane] += apart * apart;
            }
        }
        low[half..][..HALF].copy_from_slice(&sums);
        distance[half..][..HALF].copy_from_slice(&squares);
    }
    *mean = middle;
    correct(count, low, distance);
    middle.iter().all(|mean| mean.is_finite())
}

/// The same for any number of lanes, four rows at a time so that sums are fetched and stored less often.
#[multiversion(targets("x86_64+avx2+fma"))]
fn sum_and_distance<T: Float>(
    block: &[T],
    lanes: usize,
    first: usize,
    mean: &mut [f64],
    low: &mut [f64],
    distance: &mut [f64],
) -> bool {
    let width = mean.len();
    let (low, distance) = (&mut low[..width], &mut distance[..width]);
    let count = (block.len() / lanes) as f64;
    let quads = block.chunks_exact(4 * lanes);
    for row in quads.remainder().chunks_exact(lanes) {
        let row = &row[first..first + width];
        for lane in 0..width {
            mean[lane] += row[lane].to_f64();
        }
    }
    for quad in quads.clone() {
        let [a, b, c, d] = [0, 1, 2, 3].map(|r| &quad[r * lanes + first..][..width]);
        for lane in 0..width {
            mean[lane] += (a[lane].to_f64() + b[lane].to_f64()) + (c[lane].to_f64() + d[lane].to_f64());
        }
    }
    for mean in mean.iter_mut() {
        *mean /= count;
    }
    for row in quads.remainder().chunks_exact(lanes) {
        let row = &row[first..first + width];
        for lane in 0..width {
            let apart = row[lane].to_f64() - mean[lane];
            low[lane] += apart;
            distance[lane] += apart * apart;
        }
    }
    for quad in quads {
        let [a, b, c, d] = [0, 1, 2, 3].map(|r| &quad[r * lanes + first..][..width]);
        for lane in 0..width {
            let [a, b, c, d] = [a[lane], b[lane], c[lane], d[lane]].map(|x| x.to_f64() - mean[lane]);
            low[lane] += (a + b) + (c + d);
            distance[lane] += (a * a + b * b) + (c * c + d * d);
        }
    }
    correct(count, low, distance);
    mean.iter().all(|mean| mean.is_finite())
}

/// A block with NaN in it, or with numbers so large that their sum is infinite.
fn with_missing<T: Float>(block: &[T], lanes: usize, tile: Range<usize>) -> Result<Moments, Infinite> {
    let mut found = Moments::new(tile.len());
    for row in block.chunks_exact(lanes) {
        for ((sum, count), x) in found.mean.iter_mut().zip(&mut found.count).zip(&row[tile.clone()]) {
            let x = x.to_f64();
            let missing = x.is_nan();
            *sum += if missing { 0.0 } else { x };
            *count += if missing { 0.0 } else { 1.0 };
        }
    }
    if found.mean.iter().any(|sum| !sum.is_finite()) {
        return step_by_step(block, lanes, tile);
    }
    for (sum, count) in found.mean.iter_mut().zip(&found.count) {
        *sum /= count.max(1.0);
    }
    for row in block.chunks_exact(lanes) {
        let distances = found.low.iter_mut().zip(&mut found.distance);
        for (((low, distance), mean), x) in distances.zip(&found.mean).zip(&row[tile.clone()]) {
            let apart = x.to_f64() - mean;
            let apart = if apart.is_nan() { 0.0 } else { apart };
            *low += apart;
            *distance += apart * apart;
        }
    }
    for ((low, distance), count) in found.low.iter_mut().zip(&mut found.distance).zip(&found.count) {
        let sum = *low;
        *low = sum / count.max(1.0);
        *distance -= sum * *low;
    }
    Ok(found)
}

/// A block in which a sum overflows, or that holds infinity: Welford's steps, which overflow last.
fn step_by_step<T: Float>(block: &[T], lanes: usize, tile: Range<usize>) -> Result<Moments, Infinite> {
    let mut found = Moments::new(tile.len());
    for (row, values) in block.chunks_exact(lanes).enumerate() {
        for (lane, x) in values[tile.clone()].iter().enumerate() {
            let x = x.to_f64();
            if x.is_infinite() {
                return Err(Infinite(row * lanes + tile.start + lane));
            }
            if x.is_nan() {
                continue;
            }
            found.count[lane] += 1.0;
            let apart = x - found.mean[lane];
            found.mean[lane] += apart / found.count[lane];
            found.distance[lane] += apart * (x - found.mean[lane]);
        }
    }
    Ok(found)
}
