//! Sizes: what an image is resized to, which part of that is kept, and where it stands in the tensor.
//!
//! The arithmetic is that of `transformers` (and of its truncating Python), so that sizes are equal, not nearly so.
//! Only numbers here; nothing touches a pixel.

/// How the size that an image is resized to follows from its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Exactly this, whatever the aspect ratio.
    Fixed {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
    /// The shorter side becomes `edge`; the longer one follows, and is at most `longest` if that is given (then the
    /// shorter one may become less than `edge`). An image whose shorter side is within half a pixel of its new length
    /// stays as it is, though it be a little longer.
    ShortestEdge {
        /// The shorter side, in pixels.
        edge: u32,
        /// Most that the longer side may become.
        longest: Option<u32>,
    },
    /// The largest size of the same aspect ratio that fits; smaller images grow to it.
    Within {
        /// Most rows.
        height: u32,
        /// Most columns.
        width: u32,
    },
}

impl Size {
    /// What an image of `width` × `height` is resized to, as (width, height); at least 1 × 1.
    #[must_use]
    pub fn of(self, width: u32, height: u32) -> (u32, u32) {
        let (new_width, new_height) = match self {
            Self::Fixed { height, width } => (width, height),
            Self::ShortestEdge { edge, longest: None } => {
                let (short, long) = (width.min(height), width.max(height));
                let new_long = truncate(f64::from(edge) * f64::from(long) / f64::from(short));
                if width <= height { (edge, new_long) } else { (new_long, edge) }
            }
            Self::ShortestEdge { edge, longest: Some(longest) } => shortest_up_to(width, height, edge, longest),
            Self::Within { height: most_rows, width: most_columns } => {
                let scale = (f64::from(most_rows) / f64::from(height)).min(f64::from(most_columns) / f64::from(width));
                (truncate(f64::from(width) * scale), truncate(f64::from(height) * scale))
            }
        };
        (new_width.max(1), new_height.max(1))
    }
}

/// The rule of DETR: the shorter side becomes `edge` unless the longer one would pass `longest`.
fn shortest_up_to(width: u32, height: u32, edge: u32, longest: u32) -> (u32, u32) {
    let (wide, high) = (f64::from(width), f64::from(height));
    let (short, long) = (wide.min(high), wide.max(high));
    let mut edge = edge;
    let mut exact = f64::from(edge);
    if long / short * exact > f64::from(longest) {
        exact = f64::from(longest) * short / long;
        edge = truncate(exact.round_ties_even());
    }
    if (height <= width && height == edge) || (width <= height && width == edge) {
        (width, height)
    } else if width < height {
        (edge, truncate(exact * high / wide))
    } else {
        (truncate(exact * wide / high), edge)
    }
}

/// Python's `int` of a number that is not negative.
fn truncate(value: f64) -> u32 {
    value as u32
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// From the image to the tensor: resized to `resized`, of which `window` is computed and stands at `left`, `top` of an
/// area of `width` × `height`; what it does not cover there is black.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) resized: (u32, u32),
    pub(super) window: Rect,
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Layout {
    /// For an image of `width` × `height`, upright.
    pub(super) fn new(width: u32, height: u32, size: Option<Size>, crop: Option<(u32, u32)>) -> Self {
        let resized = size.map_or((width, height), |size| size.of(width, height));
        let (crop_width, crop_height) = crop.map_or(resized, |(height, width)| (width, height));
        let across = Span::centred(resized.0, crop_width);
        let down = Span::centred(resized.1, crop_height);
        Self {
            resized,
            window: Rect { left: across.from, top: down.from, width: across.len, height: down.len },
            left: across.at,
            top: down.at,
            width: crop_width,
            height: crop_height,
        }
    }
}

/// Along one side: `len` pixels of the image, beginning at its pixel `from`, stand at `at` of the crop.
struct Span {
    from: u32,
    at: u32,
    len: u32,
}

impl Span {
    fn centred(image: u32, crop: u32) -> Self {
        if crop <= image {
            Self { from: (image - crop) / 2, at: 0, len: crop }
        } else {
            // The odd pixel of padding stands before the image, as in the PIL processors of transformers.
            Self { from: 0, at: (crop - image).div_ceil(2), len: image }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortest_edge_keeps_the_ratio_and_truncates() {
        let rule = Size::ShortestEdge { edge: 224, longest: None };
        assert_eq!(rule.of(500, 375), (298, 224));
        assert_eq!(rule.of(375, 500), (224, 298));
        assert_eq!(rule.of(224, 224), (224, 224));
        assert_eq!(rule.of(1, 20_000), (224, 4_480_000));
    }

    #[test]
    fn shortest_edge_gives_way_to_the_longest() {
        let rule = Size::ShortestEdge { edge: 800, longest: Some(1333) };
        assert_eq!(rule.of(640, 480), (1066, 800));
        assert_eq!(rule.of(480, 640), (800, 1066));
        assert_eq!(rule.of(2000, 500), (1333, 333));
        assert_eq!(rule.of(800, 800), (800, 800));
        assert_eq!(rule.of(1, 20_000), (1, 1333));
    }

    #[test]
    fn within_fits_and_no_size_is_empty() {
        assert_eq!(Size::Within { height: 50, width: 50 }.of(200, 100), (50, 25));
        assert_eq!(Size::Within { height: 200, width: 500 }.of(200, 100), (400, 200));
        assert_eq!(Size::Within { height: 50, width: 50 }.of(20_000, 1), (50, 1));
        assert_eq!(Size::Fixed { height: 3, width: 4 }.of(9, 9), (4, 3));
    }

    #[test]
    fn a_crop_is_centred_and_padded_where_the_image_ends() {
        let layout = Layout::new(500, 375, Some(Size::ShortestEdge { edge: 224, longest: None }), Some((224, 224)));
        assert_eq!(layout.window, Rect { left: 37, top: 0, width: 224, height: 224 });
        let layout = Layout::new(10, 21, None, Some((20, 15)));
        assert_eq!(layout.window, Rect { left: 0, top: 0, width: 10, height: 20 });
        assert_eq!((layout.left, layout.top, layout.width, layout.height), (3, 0, 15, 20));
    }
}
