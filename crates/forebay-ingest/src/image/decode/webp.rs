//! WebP, by `image-webp`.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::{Buffers, Transparency, flatten, sized};
use crate::image::error::ImageError;
use crate::image::exif;
use crate::image::header::{ImageFormat, ImageHeader, ImageLimits};

const FORMAT: ImageFormat = ImageFormat::WebP;

/// The most that a chunk of metadata may have.
const METADATA_BYTES: usize = 8 << 20;

pub(super) struct WebP<'a> {
    decoder: WebPDecoder<Cursor<&'a [u8]>>,
}

fn error(error: DecodingError) -> ImageError {
    ImageError::Damaged { format: FORMAT, detail: error.to_string() }
}

impl<'a> WebP<'a> {
    pub(super) fn open(bytes: &'a [u8], limits: &ImageLimits) -> Result<(Self, ImageHeader), ImageError> {
        // What is missing may be the metadata behind the pixels, and with it how the image is to be turned.
        if let Some(&[a, b, c, d]) = bytes.get(4..8).and_then(|size| size.first_chunk())
            && u64::from(u32::from_le_bytes([a, b, c, d])) + 8 > bytes.len() as u64
        {
            return Err(ImageError::Damaged { format: FORMAT, detail: "it is cut off: its length says more".into() });
        }
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(error)?;
        decoder.set_memory_limit(METADATA_BYTES);
        if decoder.is_animated() {
            let what = "is animated";
            let instead = "extract the frame that is meant";
            return Err(ImageError::Unsupported { format: FORMAT, what, instead });
        }
        let (width, height) = decoder.dimensions();
        limits.check_size(FORMAT, width, height)?;
        // Unreadable metadata is no reason to refuse the image.
        let exif = decoder.exif_metadata().ok().flatten();
        let orientation = exif.as_deref().map_or_else(Default::default, exif::orientation);
        Ok((Self { decoder }, ImageHeader { format: FORMAT, width, height, orientation }))
    }

    pub(super) fn pixels(
        mut self,
        width: usize,
        height: usize,
        transparency: Transparency,
        buffers: &mut Buffers,
    ) -> Result<(), ImageError> {
        let rgb = sized(&mut buffers.pixels, width * height * 3);
        if !self.decoder.has_alpha() {
            return self.decoder.read_image(rgb).map_err(error);
        }
        let raw = sized(&mut buffers.raw, width * height * 4);
        self.decoder.read_image(raw).map_err(error)?;
        flatten::<3>(raw, rgb, transparency);
        Ok(())
    }
}
