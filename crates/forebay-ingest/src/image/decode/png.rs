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

/// The name of each whole chunk of a file, and its content.
fn chunks(file: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    // Behind the signature.
    let mut rest = file.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&len, behind) = rest.split_first_chunk::<4>()?;
        let (name, behind) = behind.split_first_chunk::<4>()?;
        let (content, behind) = behind.split_at_checked(u32::from_be_bytes(len) as usize)?;
        // Behind the checksum.
        rest = behind.get(4..)?;
        Some((name, content))
    })
}

/// The EXIF behind the pixels, which the decoder has not come to when it has read what stands before them.
fn late_exif(file: &[u8]) -> Option<&[u8]> {
    let mut behind = chunks(file).skip_while(|(name, _)| *name != b"IDAT").take_while(|(name, _)| *name != b"IEND");
    behind.find_map(|(name, content)| (name == b"eXIf").then_some(content))
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
        let exif = info.exif_metadata.as_deref().or_else(|| late_exif(bytes));
        let orientation = exif.map_or_else(Default::default, exif::orientation);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Damage, DecodeOptions, open};
    use super::*;
    use crate::image::header::Orientation;

    /// 3 × 2 pixels, each of one level.
    const LEVELS: [u8; 6] = [1, 2, 3, 4, 5, 6];

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 3, 2);
        encoder.set_color(ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&LEVELS).unwrap();
        file
    }

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let named = [name, content].concat();
        let sum = named.iter().fold(!0u32, |sum, &byte| {
            (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
        });
        [&(content.len() as u32).to_be_bytes()[..], &named, &(!sum).to_be_bytes()].concat()
    }

    fn exif(orientation: u8) -> Vec<u8> {
        let tiff = [&b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat();
        chunk(b"eXIf", &tiff)
    }

    /// The file with `more` before its end, or before its pixels.
    fn with(more: &[u8], late: bool) -> Vec<u8> {
        let file = file();
        let name: &[u8; 4] = if late { b"IEND" } else { b"IDAT" };
        let at = file.windows(4).position(|window| window == name).unwrap() - 4;
        [&file[..at], more, &file[at..]].concat()
    }

    fn opened(file: &[u8]) -> (ImageHeader, Vec<u8>) {
        let options = DecodeOptions {
            limits: ImageLimits::default(),
            transparency: Transparency::default(),
            damage: Damage::default(),
            upright: true,
        };
        let opened = open(file, &options).unwrap();
        let header = *opened.header();
        let mut buffers = Buffers::default();
        opened.pixels(&mut buffers).unwrap();
        (header, buffers.pixels.chunks_exact(3).map(|pixel| pixel[0]).collect())
    }

    #[test]
    fn exif_counts_before_and_behind_the_pixels() {
        for late in [false, true] {
            let (header, levels) = opened(&with(&exif(6), late));
            assert_eq!((header.orientation, header.upright()), (Orientation::Rotate90, (2, 3)), "late: {late}");
            assert_eq!(levels, [4, 1, 5, 2, 6, 3]);
        }
        // Among other chunks, one that is empty and one that only holds what looks like it.
        let among = [chunk(b"prVt", b""), chunk(b"tEXt", &[b"Comment\0".to_vec(), exif(3)].concat()), exif(8)].concat();
        assert_eq!(opened(&with(&among, true)).0.orientation, Orientation::Rotate270);
    }

    #[test]
    fn what_stands_before_the_pixels_or_behind_the_end_does_not_count_as_late() {
        let upright = (Orientation::Upright, LEVELS.to_vec());
        let found = |file: &[u8]| {
            let (header, levels) = opened(file);
            (header.orientation, levels)
        };
        assert_eq!(found(&file()), upright);
        assert_eq!(found(&[file(), exif(6)].concat()), upright);
        // The first is meant, as only one is allowed.
        let both = with(&exif(6), true);
        let at = both.windows(4).position(|window| window == b"IDAT").unwrap() - 4;
        assert_eq!(late_exif(&[&both[..at], &exif(3), &both[at..]].concat()), Some(&exif(6)[8..exif(6).len() - 4]));
        assert_eq!(late_exif(&with(&exif(3), false)), None);
    }

    #[test]
    fn a_late_chunk_that_is_cut_off_is_none() {
        let whole = with(&exif(6), true);
        let end = whole.len() - 12;
        for cut in 0..end {
            assert_eq!(late_exif(&whole[..cut]), None, "cut to {cut}");
        }
        assert!(late_exif(&whole[..end]).is_some());
        let mut hostile = whole.clone();
        let at = whole.windows(4).position(|window| window == b"eXIf").unwrap() - 4;
        hostile[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(late_exif(&hostile), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_stepped_over_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            late_exif(&bytes);
            late_exif(&[file(), bytes].concat());
        }
    }
}
