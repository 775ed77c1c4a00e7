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

/// The name of each chunk of a file, and the bytes behind its header.
fn chunks(file: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    // Behind "RIFF", the length and "WEBP".
    let mut at = 12usize;
    std::iter::from_fn(move || {
        let (name, rest) = file.get(at..)?.split_first_chunk::<4>()?;
        let (&len, content) = rest.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(len) as usize;
        at = at.saturating_add(8).saturating_add(len).saturating_add(len & 1);
        Some((name, content))
    })
}

/// Width and height that a frame says of itself, if the chunk is one.
fn size_of_frame(name: &[u8; 4], content: &[u8]) -> Option<(u32, u32)> {
    match name {
        b"VP8 " => {
            // Behind a tag and a start code of 3 bytes each. The upper two bits are of a scale that nobody applies.
            let &[a, b, c, d] = content.get(6..)?.first_chunk()?;
            Some((u32::from(u16::from_le_bytes([a, b]) & 0x3fff), u32::from(u16::from_le_bytes([c, d]) & 0x3fff)))
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes(*content.get(1..)?.first_chunk()?);
            Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
        }
        _ => None,
    }
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
        // The limits have seen the canvas of an extended file. The decoder makes room for the frame before it compares.
        if let Some((found_width, found_height)) =
            chunks(bytes).find_map(|(name, content)| size_of_frame(name, content))
            && (found_width, found_height) != (width, height)
        {
            let detail = format!("its frame is {found_width} × {found_height}, its canvas {width} × {height}");
            return Err(ImageError::Damaged { format: FORMAT, detail });
        }
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
