//! What is done to every image, in this order: resized, cropped, rescaled, normalized, padded.

use super::geometry::Size;
use super::resize::Filter;
use super::tensor::Normalize;

/// How images of one batch get one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pad {
    /// To the most rows and the most columns in the batch.
    Largest,
    /// To this size, which no image may pass.
    To {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
}

/// What an image processor does. Steps that are `None` are left out; the default leaves out all of them.
///
/// A Hugging Face preprocessor_config.json becomes one by [`Recipe::from_config`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Recipe {
    /// Resized to this, by this filter.
    pub resize: Option<(Size, Filter)>,
    /// Cropped around the centre to (height, width); black is added where the image is smaller.
    pub crop: Option<(u32, u32)>,
    /// Levels are multiplied by this.
    pub rescale: Option<f64>,
    /// Then normalized by this.
    pub normalize: Option<Normalize>,
    /// Zeros to the right and below, after the normalization.
    pub pad: Option<Pad>,
}

impl Recipe {
    /// Rows and columns of every tensor, if they are the same whatever the image.
    #[must_use]
    pub fn fixed_size(&self) -> Option<(u32, u32)> {
        match (self.pad, self.crop, self.resize) {
            (Some(Pad::To { height, width }), ..) => Some((height, width)),
            (Some(Pad::Largest), ..) => None,
            (None, Some(crop), _) => Some(crop),
            (None, None, Some((Size::Fixed { height, width }, _))) => Some((height, width)),
            (None, None, _) => None,
        }
    }

    /// Whether elements are anything but the levels of the image.
    #[must_use]
    pub fn computes(&self) -> bool {
        self.rescale.is_some() || self.normalize.is_some()
    }
}
