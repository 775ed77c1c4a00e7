//! Resizing as Pillow 13 does it, to the last bit.
//!
//! The same sums in the same order: filter weights in double precision, rounded to 22 bits behind the point; a pass over
//! the rows, rounded to 8 bits; then one over the columns; or the other way round, see [`down_first`]. Only the part of the
//! result that is asked for is computed, with weights as for the whole. All sums are of whole numbers: the result is the
//! same on every processor.

use multiversion::multiversion;

use super::geometry::Rect;

const CHANNELS: usize = 3;
/// Channels, and one that fills up a vector.
const LANES: usize = 4;
/// Bytes behind a row after the pass over the rows, into which the lane goes that is not used.
const SPARE: usize = LANES - CHANNELS;
/// Rows that the pass over the rows works on at a time.
const ROWS: usize = 4;
/// Bytes of a row that are summed up at a time.
const BLOCK: usize = 32;
/// Bits behind the point of a weight: 32, less 8 for the level and 2 for overshoot.
const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

/// A filter: how much a pixel at some distance counts, and from which distance on it does not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    weight: fn(f64) -> f64,
    radius: f64,
}

pub(super) const BOX: Kernel = Kernel { weight: box_weight, radius: 0.5 };
pub(super) const BILINEAR: Kernel = Kernel { weight: triangle, radius: 1.0 };
pub(super) const HAMMING: Kernel = Kernel { weight: hamming, radius: 1.0 };
pub(super) const BICUBIC: Kernel = Kernel { weight: cubic, radius: 2.0 };
pub(super) const LANCZOS: Kernel = Kernel { weight: lanczos, radius: 3.0 };

fn box_weight(x: f64) -> f64 {
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

fn hamming(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x * (0.54 + 0.46 * x.cos())
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// Along one side: for each pixel wanted, which source pixels count and how much.
#[derive(Debug, Default)]
struct Weights {
    /// First source pixel, and where its weights begin and end.
    spans: Vec<(usize, usize, usize)>,
    weights: Vec<i32>,
    exact: Vec<f64>,
}

impl Weights {
    /// For the pixels `from..from + len` of `to` that `size` are resized to.
    fn compute(&mut self, kernel: Kernel, size: u32, to: u32, from: u32, len: u32) {
        self.spans.clear();
        self.weights.clear();
        let scale = f64::from(size) / f64::from(to);
        let filter_scale = scale.max(1.0);
        let radius = kernel.radius * filter_scale;
        let inverse = 1.0 / filter_scale;
        for pixel in from..from + len {
            let centre = 0.0 + (f64::from(pixel) + 0.5) * scale;
            let first = (centre - radius + 0.5).max(0.0) as u32;
            let end = ((centre + radius + 0.5) as u32).min(size);
            self.exact.clear();
            let mut sum = 0.0;
            for source in first..end {
                let offset = f64::from(source - first) + f64::from(first) - centre + 0.5;
                let weight = (kernel.weight)(offset * inverse);
                self.exact.push(weight);
                sum += weight;
            }
            let begin = self.weights.len();
            self.weights.extend(self.exact.iter().map(|&weight| {
                let weight = if sum == 0.0 { weight } else { weight / sum };
                rounded(weight * f64::from(1u32 << PRECISION))
            }));
            self.spans.push((first as usize, begin, self.weights.len()));
        }
    }

    fn of(&self, pixel: usize) -> (usize, &[i32]) {
        let (first, begin, end) = self.spans[pixel];
        (first, &self.weights[begin..end])
    }

    /// The source pixels that count at all.
    fn range(&self) -> (usize, usize) {
        let first = self.spans.iter().map(|span| span.0).min().unwrap_or(0);
        let end = self.spans.iter().map(|&(first, begin, end)| first + (end - begin)).max().unwrap_or(0);
        (first, end.max(first))
    }
}

/// To the nearest whole number, halves away from zero.
fn rounded(weight: f64) -> i32 {
    if weight < 0.0 { (weight - 0.5) as i32 } else { (weight + 0.5) as i32 }
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Whether the columns are worked on first: where the height shrinks by more than twice the pixels that the width does.
///
/// Pillow does so since version 13; older ones always begin with the rows, which differs by a level here and there.
fn down_first(size: (u32, u32), to: (u32, u32)) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    lost(size.1, to.1) > 0 && lost(size.1, to.1) > 2 * lost(size.0, to.0)
}

/// Memory that one resize after the other works in.
#[derive(Debug, Default)]
pub(super) struct Exact {
    across: Weights,
    down: Weights,
    rows: Vec<u8>,
    rows_down: Vec<u8>,
    tiles: Vec<Tile>,
}

impl Exact {
    /// Resizes `from`, RGB of `size` (width, height), to `to`, and writes the part `window` of that into `out`.
    pub(super) fn resize(
        &mut self,
        kernel: Kernel,
        from: &[u8],
        size: (u32, u32),
        to: (u32, u32),
        window: Rect,
        out: &mut [u8],
    ) {
        let stride = size.0 as usize * CHANNELS;
        let out_stride = window.width as usize * CHANNELS;
        // A pass that would change nothing is left out.
        let across = size.0 != to.0 || window.width != to.0;
        let down = size.1 != to.1;
        let columns = if across {
            self.across.compute(kernel, size.0, to.0, window.left, window.width);
            self.across.range()
        } else {
            (0, size.0 as usize)
        };
        let rows = if down {
            self.down.compute(kernel, size.1, to.1, window.top, window.height);
            self.down.range()
        } else {
            (window.top as usize, (window.top + window.height) as usize)
        };
        let from = &from[rows.0 * stride..rows.1 * stride];
        match (across, down) {
            (false, false) => out.copy_from_slice(from),
            (false, true) => pass_down(&self.down, from, stride, rows.0, out, out_stride),
            (true, false) => self.rows_across(from, stride, 0, out_stride).copy_to(out),
            (true, true) if down_first(size, to) => {
                let len = (columns.1 - columns.0) * CHANNELS;
                let mut rows_down = std::mem::take(&mut self.rows_down);
                rows_down.resize(len * window.height as usize, 0);
                pass_down(&self.down, &from[columns.0 * CHANNELS..], stride, rows.0, &mut rows_down, len);
                self.rows_across(&rows_down, len, columns.0, out_stride).copy_to(out);
                self.rows_down = rows_down;
            }
            (true, true) => {
                self.rows_across(from, stride, 0, out_stride);
                pass_down(&self.down, &self.rows, out_stride + SPARE, rows.0, out, out_stride);
            }
        }
    }

    /// The rows `from`, which begin with column `first`, after the pass over the rows.
    fn rows_across(&mut self, from: &[u8], stride: usize, first: usize, out_stride: usize) -> Rows<'_> {
        self.rows.resize(from.len() / stride * (out_stride + SPARE), 0);
        pass_across(&self.across, &mut self.tiles, from, stride, first, &mut self.rows, out_stride + SPARE);
        Rows { bytes: &self.rows, len: out_stride }
    }

    pub(super) fn trim(&mut self) {
        for buffer in [&mut self.rows, &mut self.rows_down] {
            if buffer.capacity() > 16 << 20 {
                *buffer = Vec::new();
            }
        }
    }
}

/// Rows with [`SPARE`] bytes behind each.
struct Rows<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl Rows<'_> {
    /// Without what is between them.
    fn copy_to(&self, out: &mut [u8]) {
        for (row, out) in self.bytes.chunks_exact(self.len + SPARE).zip(out.chunks_exact_mut(self.len)) {
            out.copy_from_slice(&row[..self.len]);
        }
    }
}

/// The pixels of one column in [`ROWS`] rows, each with a lane that is not used.
type Tile = [u8; ROWS * LANES];

/// Every row gets the columns wanted, [`ROWS`] rows at a time: their pixels are first laid beside each other, so that a
/// weight counts for all of them. The rows `from` begin with column `column`; those of `to` have [`SPARE`] bytes more.
#[multiversion(targets("x86_64+avx2"))]
fn pass_across(
    weights: &Weights,
    tiles: &mut Vec<Tile>,
    from: &[u8],
    stride: usize,
    column: usize,
    to: &mut [u8],
    to_stride: usize,
) {
    tiles.resize(stride / CHANNELS, [0; ROWS * LANES]);
    for (from, to) in from.chunks(ROWS * stride).zip(to.chunks_mut(ROWS * to_stride)) {
        // Of fewer rows, the last time, the lanes of the others keep what they had, and nobody looks at them.
        for (lanes, row) in from.chunks_exact(stride).enumerate() {
            for (tile, pixel) in tiles.iter_mut().zip(row.chunks_exact(CHANNELS)) {
                tile[lanes * LANES..][..CHANNELS].copy_from_slice(pixel);
            }
        }
        for x in 0..weights.spans.len() {
            let (first, weights) = weights.of(x);
            let mut sums = [HALF; ROWS * LANES];
            for (tile, &weight) in tiles[first - column..].iter().zip(weights) {
                for (sum, &level) in sums.iter_mut().zip(tile) {
                    *sum = sum.wrapping_add(i32::from(level).wrapping_mul(weight));
                }
            }
            let levels = sums.map(level);
            for (pixel, row) in levels.chunks_exact(LANES).zip(to.chunks_exact_mut(to_stride)) {
                // All lanes, or the compiler takes the vectors apart; the next pixel is written over the last one.
                row[x * CHANNELS..][..LANES].copy_from_slice(pixel);
            }
        }
    }
}

/// Every row of the result from the rows that count, of which `rows` begins with `first_row`. In blocks whose sums stay
/// in registers.
#[multiversion(targets("x86_64+avx2"))]
fn pass_down(weights: &Weights, rows: &[u8], stride: usize, first_row: usize, out: &mut [u8], out_stride: usize) {
    for (pixel, out) in out.chunks_exact_mut(out_stride).enumerate() {
        let (first, weights) = weights.of(pixel);
        let rows = &rows[(first - first_row) * stride..];
        let mut blocks = out.chunks_exact_mut(BLOCK);
        let mut at = 0;
        for block in &mut blocks {
            let mut sums = [HALF; BLOCK];
            for (row, &weight) in weights.iter().enumerate() {
                let from = &rows[row * stride + at..][..BLOCK];
                for (sum, &level) in sums.iter_mut().zip(from) {
                    *sum = sum.wrapping_add(i32::from(level).wrapping_mul(weight));
                }
            }
            for (out, sum) in block.iter_mut().zip(sums) {
                *out = level(sum);
            }
            at += BLOCK;
        }
        for (column, out) in blocks.into_remainder().iter_mut().enumerate() {
            let sum = weights.iter().enumerate().fold(HALF, |sum, (row, &weight)| {
                sum.wrapping_add(i32::from(rows[row * stride + at + column]).wrapping_mul(weight))
            });
            *out = level(sum);
        }
    }
}

/// The nearest source pixel, without weights: the part `window` of `to`.
pub(super) fn nearest(from: &[u8], size: (u32, u32), to: (u32, u32), window: Rect, out: &mut [u8]) {
    let columns = nearest_indices(size.0, to.0, window.left, window.width);
    let rows = nearest_indices(size.1, to.1, window.top, window.height);
    let stride = size.0 as usize * CHANNELS;
    for (out, row) in out.chunks_exact_mut(window.width as usize * CHANNELS).zip(rows) {
        let from = &from[row * stride..(row + 1) * stride];
        for (out, &column) in out.chunks_exact_mut(CHANNELS).zip(&columns) {
            out.copy_from_slice(&from[column * CHANNELS..(column + 1) * CHANNELS]);
        }
    }
}

/// Positions are summed up step by step in double precision, as Pillow does it, rounding errors included.
fn nearest_indices(size: u32, to: u32, from: u32, len: u32) -> Vec<usize> {
    let step = f64::from(size) / f64::from(to);
    let mut position = step * 0.5;
    let mut indices = Vec::with_capacity(len as usize);
    for pixel in 0..from + len {
        if pixel >= from {
            indices.push((position as usize).min(size as usize - 1));
        }
        position += step;
    }
    indices
}
