//! PNG, by `png`.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Reader, Transformations};

use super::{Buffers, Transparency, flatten, sized, spread_gray};
use crate::image::error::ImageError;
use crate::image::exif;
use crate::image::header::{ImageFormat, ImageHeader, ImageLimits};

const FORMAT: ImageFormat = ImageFormat::Png;

/// What the decoder may take besides the pixels: chunks of metadata, and two rows at a time.
const METADATA_BYTES: usize = 8 << 20;

pub(super) struct Png<'a> {
    reader: Reader<Cursor<&'a [u8]>>,
}

fn error(error: DecodingError) -> ImageError {
    ImageError::Damaged { format: FORMAT, detail: error.to_string() }
}

fn damaged(detail: impl Into<String>) -> ImageError {
    ImageError::Damaged { format: FORMAT, detail: detail.into() }
}

impl<'a> Png<'a> {
    pub(super) fn open(bytes: &'a [u8], limits: &ImageLimits) -> Result<(Self, ImageHeader), ImageError> {
        // A row of the widest image allowed is 8 bytes a pixel.
        let budget = METADATA_BYTES.saturating_add(limits.max_side as usize * 8 * 2);
        let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: budget });
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
        let first = decoder.read_header_info().map_err(error)?;
        let (width, height) = (first.width, first.height);
        limits.check_size(FORMAT, width, height)?;
        let reader = decoder.read_info().map_err(error)?;
        let info = reader.info();
        if info.animation_control.is_some_and(|animation| animation.num_frames > 1) {
            let what = "is animated";
            let instead = "extract the frame that is meant";
            return Err(ImageError::Unsupported { format: FORMAT, what, instead });
        }
        let orientation = info.exif_metadata.as_deref().map_or_else(Default::default, exif::orientation);
        Ok((Self { reader }, ImageHeader { format: FORMAT, width, height, orientation }))
    }

    pub(super) fn pixels(
        mut self,
        width: usize,
        height: usize,
        transparency: Transparency,
        buffers: &mut Buffers,
    ) -> Result<(), ImageError> {
        let (colour, depth) = self.reader.output_color_type();
        let channels = colour.samples();
        let len = width * height * channels;
        if depth != BitDepth::Eight || self.reader.output_buffer_size() != Some(len) {
            return Err(damaged(format!("it decodes to {colour:?} of {depth:?} bits, expected 8 bits a channel")));
        }
        let rgb = sized(&mut buffers.pixels, width * height * 3);
        if colour == ColorType::Rgb {
            return self.decode(rgb);
        }
        let raw = sized(&mut buffers.raw, len);
        self.decode(raw)?;
        match colour {
            ColorType::Grayscale => spread_gray(raw, rgb),
            ColorType::GrayscaleAlpha => flatten::<1>(raw, rgb, transparency),
            ColorType::Rgba => flatten::<3>(raw, rgb, transparency),
            ColorType::Rgb | ColorType::Indexed => return Err(damaged(format!("it decodes to {colour:?}"))),
        }
        Ok(())
    }

    fn decode(&mut self, out: &mut [u8]) -> Result<(), ImageError> {
        self.reader.next_frame(out).map_err(error)?;
        // The checksums behind the pixels, and that the file has an end.
        self.reader.finish().map_err(error)
    }
}
