//! What an image is, before anything of it is decoded: its format, and the limits that its header must keep.
//!
//! The format is told by the first bytes alone; names and types that came with the file are not asked.

use std::fmt;

use super::error::ImageError;

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// Baseline and progressive JPEG of 8 bits, gray or colour.
    Jpeg,
    /// PNG of any colour type and depth, one frame.
    Png,
    /// WebP, lossy and lossless, one frame.
    WebP,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
        })
    }
}

impl ImageFormat {
    /// The format that `bytes` start like.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        if bytes.starts_with(b"\xff\xd8\xff") {
            return Ok(Self::Jpeg);
        }
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Ok(Self::Png);
        }
        if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            return Ok(Self::WebP);
        }
        let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Err(ImageError::UnknownFormat { start: start.join(" ") })
    }
}

/// What an image may cost, and all of a batch. Everything is looked at in the header, before memory is asked for.
///
/// A decoded pixel takes 3 bytes, 4 with transparency; a progressive JPEG takes up to 9 more while it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageLimits {
    /// Most bytes of a file. Default: 64 MiB.
    pub max_bytes: usize,
    /// Most pixels, as stored and as resized. Default: 64 Mi, which is 192 MiB decoded.
    pub max_pixels: u64,
    /// Most pixels across and down, as stored. Default: 65,535, the most that a JPEG can have.
    pub max_side: u32,
    /// Most bytes of a batch whose images decide its size: their tensors, and the mask if they are padded. The image that would
    /// make them more is refused, see [`ImageError::BatchTooLarge`]. Default: 2 GiB.
    ///
    /// Not asked where the recipe alone decides the size: there the number of images does the rest.
    pub max_batch_bytes: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, max_pixels: 64 << 20, max_side: 65_535, max_batch_bytes: 2 << 30 }
    }
}

impl ImageLimits {
    pub(super) fn check_bytes(&self, format: ImageFormat, found_bytes: usize) -> Result<(), ImageError> {
        let limit_bytes = self.max_bytes;
        if found_bytes > limit_bytes {
            return Err(ImageError::TooManyBytes { format, found_bytes, limit_bytes });
        }
        Ok(())
    }

    pub(super) fn check_size(&self, format: ImageFormat, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Damaged { format, detail: format!("its size is {width} × {height}") });
        }
        let (limit_pixels, limit_side) = (self.max_pixels, self.max_side);
        if u64::from(width) * u64::from(height) > limit_pixels || width.max(height) > limit_side {
            return Err(ImageError::TooLarge { format, width, height, limit_pixels, limit_side });
        }
        Ok(())
    }
}

/// What the header of an image says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageHeader {
    /// Its format.
    pub format: ImageFormat,
    /// Pixels across, as it is stored.
    pub width: u32,
    /// Pixels down, as it is stored.
    pub height: u32,
    /// How it has to be turned to be seen upright.
    pub orientation: Orientation,
}

impl ImageHeader {
    /// Width and height once turned upright.
    #[must_use]
    pub fn upright(&self) -> (u32, u32) {
        if self.orientation.swaps_sides() { (self.height, self.width) } else { (self.width, self.height) }
    }
}

/// The EXIF orientation of an image: how to get from the stored pixels to the upright image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orientation {
    /// 1: as stored.
    #[default]
    Upright,
    /// 2: left and right are exchanged.
    FlipHorizontal,
    /// 3: turned by half.
    Rotate180,
    /// 4: top and bottom are exchanged.
    FlipVertical,
    /// 5: rows and columns are exchanged.
    Transpose,
    /// 6: to be turned clockwise by a quarter.
    Rotate90,
    /// 7: rows and columns are exchanged, over the other diagonal.
    Transverse,
    /// 8: to be turned counter-clockwise by a quarter.
    Rotate270,
}

impl Orientation {
    /// The orientation of an EXIF tag's value; anything but 2 to 8 is upright.
    #[must_use]
    pub fn from_exif(value: u16) -> Self {
        match value {
            2 => Self::FlipHorizontal,
            3 => Self::Rotate180,
            4 => Self::FlipVertical,
            5 => Self::Transpose,
            6 => Self::Rotate90,
            7 => Self::Transverse,
            8 => Self::Rotate270,
            _ => Self::Upright,
        }
    }

    /// Whether width and height change places.
    #[must_use]
    pub fn swaps_sides(self) -> bool {
        matches!(self, Self::Transpose | Self::Rotate90 | Self::Transverse | Self::Rotate270)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_format() {
        assert_eq!(ImageFormat::of(b"\xff\xd8\xff\xe0"), Ok(ImageFormat::Jpeg));
        assert_eq!(ImageFormat::of(b"\x89PNG\r\n\x1a\n"), Ok(ImageFormat::Png));
        assert_eq!(ImageFormat::of(b"RIFF\0\0\0\0WEBPVP8 "), Ok(ImageFormat::WebP));
        assert_eq!(ImageFormat::of(b""), Err(ImageError::Empty));
        for other in [&b"RIFF\0\0\0\0WAVE"[..], b"RIFF", b"GIF89a", b"\xff\xd8", b"<svg"] {
            assert!(matches!(ImageFormat::of(other), Err(ImageError::UnknownFormat { .. })), "{other:?}");
        }
        let why = ImageFormat::of(b"GIF89a__and more").unwrap_err().to_string();
        assert!(why.contains("47 49 46 38 39 61 5f 5f,"), "{why}");
    }

    #[test]
    fn a_header_beyond_the_limits_names_both() {
        let limits = ImageLimits { max_pixels: 100, max_side: 20, ..ImageLimits::default() };
        assert_eq!(limits.check_size(ImageFormat::Png, 10, 10), Ok(()));
        let why = limits.check_size(ImageFormat::Png, 10, 11).unwrap_err().to_string();
        assert!(why.contains("10 × 11") && why.contains("100 pixels") && why.contains("20 a side"), "{why}");
        assert!(limits.check_size(ImageFormat::Png, 21, 1).is_err());
        assert!(limits.check_size(ImageFormat::Png, u32::MAX, u32::MAX).is_err());
        assert!(matches!(limits.check_size(ImageFormat::Png, 0, 5), Err(ImageError::Damaged { .. })));
    }
}
