//! Turning decoded pixels upright.
//!
//! Before the resize and not after it, so that the result is that of resizing the upright image, to the last bit.

use super::header::Orientation;

const CHANNELS: usize = 3;
/// Rows and columns that are turned at a time: both sides of a block of this size stay in the nearest cache.
const BLOCK: usize = 32;

/// Writes `from`, of `width` × `height` RGB pixels, into `to`, turned upright. Both have the same length.
pub(super) fn turn(from: &[u8], width: usize, height: usize, orientation: Orientation, to: &mut [u8]) {
    debug_assert_eq!(from.len(), width * height * CHANNELS);
    debug_assert_eq!(from.len(), to.len());
    match orientation {
        Orientation::Upright => to.copy_from_slice(from),
        Orientation::FlipHorizontal => {
            for (to, from) in rows(to, width).zip(from.chunks_exact(width * CHANNELS)) {
                reverse(from, to);
            }
        }
        Orientation::Rotate180 => reverse(from, to),
        Orientation::FlipVertical => {
            for (to, from) in rows(to, width).zip(from.chunks_exact(width * CHANNELS).rev()) {
                to.copy_from_slice(from);
            }
        }
        Orientation::Transpose => exchange(from, width, height, false, false, to),
        Orientation::Rotate90 => exchange(from, width, height, true, false, to),
        Orientation::Transverse => exchange(from, width, height, true, true, to),
        Orientation::Rotate270 => exchange(from, width, height, false, true, to),
    }
}

fn rows(pixels: &mut [u8], width: usize) -> impl Iterator<Item = &mut [u8]> {
    pixels.chunks_exact_mut(width * CHANNELS)
}

/// The pixels in reverse order.
fn reverse(from: &[u8], to: &mut [u8]) {
    for (to, from) in to.chunks_exact_mut(CHANNELS).zip(from.chunks_exact(CHANNELS).rev()) {
        to.copy_from_slice(from);
    }
}

/// Pixel (x, y) goes to column y, row x, each counted from the other end if so wished.
fn exchange(from: &[u8], width: usize, height: usize, flip_columns: bool, flip_rows: bool, to: &mut [u8]) {
    for block_y in (0..height).step_by(BLOCK) {
        for block_x in (0..width).step_by(BLOCK) {
            for y in block_y..(block_y + BLOCK).min(height) {
                let column = if flip_columns { height - 1 - y } else { y };
                for x in block_x..(block_x + BLOCK).min(width) {
                    let row = if flip_rows { width - 1 - x } else { x };
                    let (source, target) = ((y * width + x) * CHANNELS, (row * height + column) * CHANNELS);
                    to[target..target + CHANNELS].copy_from_slice(&from[source..source + CHANNELS]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels of 3 × 2, named by their red value, turned.
    fn turned(orientation: Orientation) -> Vec<u8> {
        let from: Vec<u8> = (1..=6).flat_map(|value| [value, 100 + value, 200 + value]).collect();
        let mut to = vec![0; from.len()];
        turn(&from, 3, 2, orientation, &mut to);
        assert!(to.chunks_exact(3).all(|pixel| pixel[1] == 100 + pixel[0] && pixel[2] == 200 + pixel[0]));
        to.chunks_exact(3).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn all_eight_orientations() {
        // 1 2 3
        // 4 5 6, as stored
        assert_eq!(turned(Orientation::Upright), [1, 2, 3, 4, 5, 6]);
        assert_eq!(turned(Orientation::FlipHorizontal), [3, 2, 1, 6, 5, 4]);
        assert_eq!(turned(Orientation::Rotate180), [6, 5, 4, 3, 2, 1]);
        assert_eq!(turned(Orientation::FlipVertical), [4, 5, 6, 1, 2, 3]);
        assert_eq!(turned(Orientation::Transpose), [1, 4, 2, 5, 3, 6]);
        assert_eq!(turned(Orientation::Rotate90), [4, 1, 5, 2, 6, 3]);
        assert_eq!(turned(Orientation::Transverse), [6, 3, 5, 2, 4, 1]);
        assert_eq!(turned(Orientation::Rotate270), [3, 6, 2, 5, 1, 4]);
    }

    #[test]
    fn blocks_meet_without_a_seam() {
        let (width, height) = (BLOCK * 2 + 5, BLOCK + 3);
        let from: Vec<u8> = (0..width * height * 3).map(|at| (at * 7 % 251) as u8).collect();
        let (mut quarter, mut back) = (vec![0; from.len()], vec![0; from.len()]);
        turn(&from, width, height, Orientation::Rotate90, &mut quarter);
        turn(&quarter, height, width, Orientation::Rotate270, &mut back);
        assert_eq!(from, back);
    }
}
