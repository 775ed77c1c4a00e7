//! From the bytes of a file to RGB pixels of 8 bits, whatever the file holds.
//!
//! ```text
//!   open    format, header, limits, orientation; what is refused on purpose; little memory, nothing decoded
//!   pixels  into a buffer that is used again, turned upright
//! ```
//!
//! Gray becomes three equal channels, 16 bits become their upper 8, palettes their colours, and transparency what
//! [`Transparency`] says. Animations and CMYK are refused. Colour profiles are not applied, as they are not by Pillow.
//!
//! The decoders are libraries. A panic inside of one is caught here and is an error of that image.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::ImageError;
use super::header::{ImageFormat, ImageHeader, ImageLimits};
use super::orient::turn;

mod jpeg;
mod png;
mod webp;

/// What becomes of transparent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transparency {
    /// The image is laid over white, as `do_convert_rgb` of `transformers` 5 does.
    #[default]
    OverWhite,
    /// The colours stay as they are and the transparency is dropped, as Pillow's `convert("RGB")` does.
    Drop,
}

/// What becomes of an image whose content breaks the rules of its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Damage {
    /// It is an error of that image.
    #[default]
    Refuse,
    /// A JPEG gives what could be decoded, the rest of it is gray; other formats are refused all the same.
    Accept,
}

/// How images are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DecodeOptions {
    pub(super) limits: ImageLimits,
    pub(super) transparency: Transparency,
    pub(super) damage: Damage,
    /// Whether EXIF orientation is followed.
    pub(super) upright: bool,
}

enum Decoder<'a> {
    Jpeg(Box<jpeg::Jpeg<'a>>),
    Png(Box<png::Png<'a>>),
    WebP(webp::WebP<'a>),
}

/// An image whose header was read and found acceptable.
pub(super) struct Opened<'a> {
    decoder: Decoder<'a>,
    header: ImageHeader,
    transparency: Transparency,
}

/// Memory that one image after the other is decoded in.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// RGB, upright.
    pub(super) pixels: Vec<u8>,
    /// What a decoder gives where that is not RGB, or not upright.
    raw: Vec<u8>,
}

/// A buffer that stays behind is at most this large; a larger one is given back.
const KEEP_BYTES: usize = 16 << 20;

impl Buffers {
    /// Gives back what an unusually large image took.
    pub(super) fn trim(&mut self) {
        for buffer in [&mut self.pixels, &mut self.raw] {
            if buffer.capacity() > KEEP_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

/// Reads the header of an image.
pub(super) fn open<'a>(bytes: &'a [u8], options: &DecodeOptions) -> Result<Opened<'a>, ImageError> {
    let format = ImageFormat::of(bytes)?;
    options.limits.check_bytes(format, bytes.len())?;
    guarded(format, || {
        let (decoder, mut header) = match format {
            ImageFormat::Jpeg => {
                let (jpeg, header) = jpeg::Jpeg::open(bytes, &options.limits, options.damage)?;
                (Decoder::Jpeg(Box::new(jpeg)), header)
            }
            ImageFormat::Png => {
                let (png, header) = png::Png::open(bytes, &options.limits)?;
                (Decoder::Png(Box::new(png)), header)
            }
            ImageFormat::WebP => {
                let (webp, header) = webp::WebP::open(bytes, &options.limits)?;
                (Decoder::WebP(webp), header)
            }
        };
        if !options.upright {
            header.orientation = Default::default();
        }
        Ok(Opened { decoder, header, transparency: options.transparency })
    })
}

impl Opened<'_> {
    pub(super) fn header(&self) -> &ImageHeader {
        &self.header
    }

    /// Decodes the image into `buffers.pixels`: rows of RGB, upright, of the size that the header's `upright` tells.
    pub(super) fn pixels(self, buffers: &mut Buffers) -> Result<(), ImageError> {
        let ImageHeader { format, width, height, orientation } = self.header;
        let (width, height) = (width as usize, height as usize);
        guarded(format, || match self.decoder {
            Decoder::Jpeg(jpeg) => jpeg.pixels(width, height, buffers),
            Decoder::Png(png) => png.pixels(width, height, self.transparency, buffers),
            Decoder::WebP(webp) => webp.pixels(width, height, self.transparency, buffers),
        })?;
        if orientation != Default::default() {
            std::mem::swap(&mut buffers.pixels, &mut buffers.raw);
            buffers.pixels.resize(buffers.raw.len(), 0);
            turn(&buffers.raw, width, height, orientation, &mut buffers.pixels);
        }
        Ok(())
    }
}

/// Runs a decoder; a panic inside of it is an error. What it was writing into is written anew for the next image.
fn guarded<T>(format: ImageFormat, decode: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let detail = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(ImageError::DecoderFailed { format, detail: detail.unwrap_or_else(|| "no reason given".into()) })
    })
}

/// Makes `buffer` exactly `len` bytes, all of them zero.
fn sized(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    // What stood there is an earlier image: a decoder that accepts a damaged file does not write every pixel.
    buffer.clear();
    buffer.resize(len, 0);
    buffer
}

/// Gray to three equal channels.
fn spread_gray(gray: &[u8], rgb: &mut [u8]) {
    for (rgb, &level) in rgb.chunks_exact_mut(3).zip(gray) {
        rgb.fill(level);
    }
}

/// Colours with transparency to colours. `colours` is how many channels stand before the transparency: 1 or 3.
fn flatten<const COLOURS: usize>(from: &[u8], rgb: &mut [u8], transparency: Transparency) {
    let pixel_bytes = COLOURS + 1;
    for (rgb, from) in rgb.chunks_exact_mut(3).zip(from.chunks_exact(pixel_bytes)) {
        let alpha = from[COLOURS];
        for (channel, level) in rgb.iter_mut().enumerate() {
            let colour = from[channel.min(COLOURS - 1)];
            *level = match transparency {
                Transparency::OverWhite => over_white(colour, alpha),
                Transparency::Drop => colour,
            };
        }
    }
}

/// A colour over white, in the fixed-point arithmetic of Pillow's `alpha_composite` with an opaque background.
fn over_white(colour: u8, alpha: u8) -> u8 {
    const BITS: u32 = 7;
    let weight = u32::from(alpha) << BITS;
    let sum = u32::from(colour) * weight + 255 * ((255 << BITS) - weight) + (0x80 << BITS);
    ((((sum >> 8) + sum) >> 8) >> BITS) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_white_is_the_rounded_blend() {
        for alpha in 0..=255u8 {
            for colour in 0..=255u8 {
                let (a, c) = (f64::from(alpha) / 255.0, f64::from(colour));
                let exact = c * a + 255.0 * (1.0 - a);
                assert!((f64::from(over_white(colour, alpha)) - exact).abs() <= 0.51, "{colour} {alpha}");
            }
            assert_eq!(over_white(alpha, 255), alpha);
            assert_eq!(over_white(alpha, 0), 255);
        }
    }

    #[test]
    fn a_panic_of_a_decoder_is_an_error() {
        let caught = guarded(ImageFormat::Png, || -> Result<(), _> { panic!("index {} of 3", 4) });
        let why = caught.unwrap_err().to_string();
        assert!(why.contains("PNG") && why.contains("index 4 of 3"), "{why}");
    }

    #[test]
    fn large_buffers_are_given_back() {
        let mut buffers = Buffers { pixels: vec![0; KEEP_BYTES + 1], raw: vec![0; 5] };
        buffers.trim();
        assert_eq!((buffers.pixels.capacity(), buffers.raw.len()), (0, 5));
    }
}
