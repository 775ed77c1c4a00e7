//! JPEG, by `zune-jpeg`.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::{DecodeErrors, UnsupportedSchemes};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Buffers, Damage, sized, spread_gray};
use crate::image::error::ImageError;
use crate::image::exif;
use crate::image::header::{ImageFormat, ImageHeader, ImageLimits};

const FORMAT: ImageFormat = ImageFormat::Jpeg;

pub(super) struct Jpeg<'a> {
    decoder: JpegDecoder<ZCursor<&'a [u8]>>,
    gray: bool,
}

fn error(error: DecodeErrors) -> ImageError {
    let instead = "save it as a baseline or progressive JPEG of 8 bits";
    let unsupported = |what| ImageError::Unsupported { format: FORMAT, what, instead };
    match error {
        DecodeErrors::Unsupported(UnsupportedSchemes::LosslessHuffman | UnsupportedSchemes::LosslessArithmetic) => {
            unsupported("is lossless")
        }
        DecodeErrors::Unsupported(
            UnsupportedSchemes::ExtendedSequentialDctArithmetic | UnsupportedSchemes::ProgressiveDctArithmetic,
        ) => unsupported("is coded arithmetically"),
        DecodeErrors::Unsupported(_) => unsupported("is of a kind that is not decoded"),
        other => ImageError::Damaged { format: FORMAT, detail: format!("{other:?}") },
    }
}

/// Whether an end marker stands behind the beginning of the first scan.
///
/// The decoder alone does not notice every cut in the last rows. Segments before the scan are stepped over, as a preview
/// in one of them has an end of its own; in a scan these two bytes cannot be anything else.
fn has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let [0xff, marker, tail @ ..] = rest {
        rest = match marker {
            // From behind, where it stands in files that are whole.
            0xda => return tail.windows(2).rev().any(|pair| pair == [0xff, 0xd9]),
            // Fill bytes, and markers without a segment.
            0xff => &rest[1..],
            0x01 | 0xd0..=0xd7 => tail,
            _ => {
                let [high, low, ..] = tail else { return false };
                tail.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default()
            }
        };
    }
    // Something odd before the scan: the decoder will say so.
    !rest.is_empty()
}

impl<'a> Jpeg<'a> {
    pub(super) fn open(
        bytes: &'a [u8],
        limits: &ImageLimits,
        damage: Damage,
    ) -> Result<(Self, ImageHeader), ImageError> {
        let side = limits.max_side as usize;
        let options = DecoderOptions::new_fast()
            .set_max_width(side)
            .set_max_height(side)
            .set_strict_mode(damage == Damage::Refuse)
            .jpeg_set_out_colorspace(ColorSpace::RGB);
        if damage == Damage::Refuse && !has_end(bytes) {
            return Err(ImageError::Damaged {
                format: FORMAT,
                detail: "it is cut off: its end marker is missing".into(),
            });
        }
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder.decode_headers().map_err(error)?;
        let Some(info) = decoder.info() else {
            return Err(ImageError::Damaged { format: FORMAT, detail: "it has no header".into() });
        };
        let (width, height) = (u32::from(info.width), u32::from(info.height));
        limits.check_size(FORMAT, width, height)?;
        let gray = match info.components {
            1 => true,
            3 => false,
            4 => {
                let what = "is CMYK or YCCK, whose colours depend on a profile that is not applied here";
                let instead = "convert it to RGB with the profile it was made for";
                return Err(ImageError::Unsupported { format: FORMAT, what, instead });
            }
            count => {
                let detail = format!("it has {count} colour components, expected 1 or 3");
                return Err(ImageError::Damaged { format: FORMAT, detail });
            }
        };
        if gray {
            decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::Luma));
        }
        let orientation = decoder.exif().map_or_else(Default::default, |exif| exif::orientation(exif));
        Ok((Self { decoder, gray }, ImageHeader { format: FORMAT, width, height, orientation }))
    }

    pub(super) fn pixels(mut self, width: usize, height: usize, buffers: &mut Buffers) -> Result<(), ImageError> {
        let rgb = sized(&mut buffers.pixels, width * height * 3);
        if self.gray {
            let gray = sized(&mut buffers.raw, width * height);
            self.decoder.decode_into(gray).map_err(error)?;
            spread_gray(gray, rgb);
            return Ok(());
        }
        self.decoder.decode_into(rgb).map_err(error)
    }
}
