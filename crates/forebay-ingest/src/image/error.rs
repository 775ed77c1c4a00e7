//! Why an image became no tensor, and why a batch could not be written.
//!
//! An [`ImageError`] is about one item and never about its neighbours; an [`ImageFailure`] adds which item it was.

use super::header::ImageFormat;
use crate::work::WorkError;

/// Why one image became no tensor. Retrying the same bytes does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There are no bytes at all.
    #[error("the image has 0 bytes, expected a JPEG, PNG or WebP file; look at how it was stored")]
    Empty,
    /// The first bytes are of none of the formats read. The name of a file is never looked at.
    #[error("not an image that is read here: it starts with {start}, expected a JPEG, PNG or WebP file; convert it")]
    UnknownFormat {
        /// The first bytes, in hexadecimal.
        start: String,
    },
    /// More bytes than a file may have.
    #[error("the {format} file has {found_bytes} bytes, at most {limit_bytes} are allowed; raise limits.max_bytes")]
    TooManyBytes {
        /// Its format.
        format: ImageFormat,
        /// Its length.
        found_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The header promises more pixels than an image may have. Nothing was decoded.
    #[error(
        "the {format} image is {width} × {height}, at most {limit_pixels} pixels and {limit_side} a side are allowed; \
         raise limits.max_pixels or limits.max_side if such images are expected"
    )]
    TooLarge {
        /// Its format.
        format: ImageFormat,
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// The limit on width × height.
        limit_pixels: u64,
        /// The limit on each.
        limit_side: u32,
    },
    /// The configuration asks for an intermediate or final image beyond the limit: very long and thin images do that.
    #[error(
        "resizing {width} × {height} would take {pixels} pixels, at most {limit_pixels} are allowed; crop the image \
         first, resize to a fixed size, or raise limits.max_pixels"
    )]
    ResizedTooLarge {
        /// Pixels across, as decoded and turned.
        width: u32,
        /// Pixels down.
        height: u32,
        /// What the resize needs.
        pixels: u64,
        /// The limit.
        limit_pixels: u64,
    },
    /// With this image, its batch would pass the limit: it is so large, or so wide where another one is high. Nothing was
    /// decoded, and the others go without it.
    #[error(
        "with this image, {images} images of {height} × {width} (height × width) need {bytes} bytes, at most {limit_bytes} \
         are allowed; configure a size, prepare fewer at a time, or raise limits.max_batch_bytes"
    )]
    BatchTooLarge {
        /// Images in the batch.
        images: usize,
        /// Rows that each tensor would have.
        height: u32,
        /// Columns.
        width: u32,
        /// What all of them would need, the mask included.
        bytes: u64,
        /// The limit.
        limit_bytes: usize,
    },
    /// A kind of image that is refused on purpose.
    #[error("the {format} image {what}; {instead}")]
    Unsupported {
        /// Its format.
        format: ImageFormat,
        /// What it is.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The file is cut off or its content contradicts itself.
    #[error("the {format} image is damaged: {detail}; fetch it again, or leave it out")]
    Damaged {
        /// Its format.
        format: ImageFormat,
        /// What the decoder said.
        detail: String,
    },
    /// The decoder broke off by a panic, which was caught. A fault in it: please report the file.
    #[error("the decoder of {format} images failed on this file ({detail}); leave it out and report it")]
    DecoderFailed {
        /// Its format.
        format: ImageFormat,
        /// What it said.
        detail: String,
    },
    /// The tensor of this image has another size than the batch, whose images are neither cropped nor padded.
    #[error(
        "the image becomes {found_height} × {found_width} (height × width), the batch has {height} × {width}; \
         configure do_center_crop, do_pad or a size of height and width"
    )]
    OtherSize {
        /// Rows of this image.
        found_height: u32,
        /// Columns of this image.
        found_width: u32,
        /// Rows of the batch.
        height: u32,
        /// Columns of the batch.
        width: u32,
    },
}

/// An image of a batch that became no tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image {index}: {error}")]
pub struct ImageFailure {
    /// Its place among the items given, from 0.
    pub index: usize,
    /// Why.
    pub error: ImageError,
}

/// Why a batch was not done. If it was its buffers, nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageBatchError {
    /// The buffer for the pixels has another length.
    #[error(
        "the pixel buffer has {found_bytes} bytes, expected {expected_bytes}; make it of the plan's shape and dtype"
    )]
    Pixels {
        /// Its length.
        found_bytes: usize,
        /// The length needed.
        expected_bytes: usize,
    },
    /// The buffer for the mask has another length.
    #[error("the mask has {found} elements, expected {expected}; make it of the plan's mask_shape")]
    Mask {
        /// Its length.
        found: usize,
        /// The length needed.
        expected: usize,
    },
    /// The plan was made for other items.
    #[error("the plan is for {planned} images, {given} were given; plan with the same list")]
    Items {
        /// Images planned.
        planned: usize,
        /// Images given.
        given: usize,
    },
    /// The work was stopped, or there are no threads for it.
    #[error(transparent)]
    Work(#[from] WorkError),
}
