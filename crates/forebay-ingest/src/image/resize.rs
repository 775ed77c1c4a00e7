//! Resizing, in two ways: as fast as the processor can, or exactly as Pillow.
//!
//! Both compute only the part of the result that is kept, from levels of 8 bits to levels of 8 bits.

use std::fmt;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::exact::{self, Exact, Kernel};
use super::geometry::Rect;

/// The filter of a resize; numbers are those of Pillow and of `resample` in a preprocessor_config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// 0: the nearest pixel.
    Nearest,
    /// 1: a windowed sinc over three pixels each way.
    Lanczos,
    /// 2: a triangle.
    Bilinear,
    /// 3: a cubic with a = -0.5.
    Bicubic,
    /// 4: the average of the pixels covered.
    Box,
    /// 5: a windowed sinc over one pixel each way.
    Hamming,
}

impl Filter {
    /// The filter of Pillow's number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        let filters = [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];
        filters.get(usize::try_from(number).ok()?).copied()
    }

    /// The filter of Pillow's name, in lower case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "nearest" => Self::Nearest,
            "lanczos" => Self::Lanczos,
            "bilinear" => Self::Bilinear,
            "bicubic" => Self::Bicubic,
            "box" => Self::Box,
            "hamming" => Self::Hamming,
            _ => return None,
        })
    }
}

/// How a resize is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resampling {
    /// Every level is that of Pillow 13.
    #[default]
    Exact,
    /// By `fast_image_resize`, in 16-bit fixed point. Bilinear and Hamming differ from Pillow by at most one level;
    /// bicubic and Lanczos by a few at hard edges, by more where an image grows.
    Fast,
}

impl fmt::Display for Resampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Exact => "exact",
        })
    }
}

impl std::str::FromStr for Resampling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "exact" => Ok(Self::Exact),
            _ => Err(format!("resampling is {text:?}, expected \"fast\" or \"exact\"; change the option")),
        }
    }
}

/// Memory that one resize after the other works in.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    fast: Resizer,
    exact: Exact,
}

impl Workspace {
    /// Resizes `from`, RGB of `size` (width, height), to `to`, and writes the part `window` of that into `out`.
    ///
    /// `out` has exactly the bytes of the window. Nothing is computed if `from` has the size asked for.
    pub(super) fn resize(
        &mut self,
        how: (Resampling, Filter),
        from: &[u8],
        size: (u32, u32),
        to: (u32, u32),
        window: Rect,
        out: &mut [u8],
    ) {
        if size == to {
            return copy(from, size.0, window, out);
        }
        let (resampling, filter) = how;
        let (kernel, fast) = match filter {
            Filter::Nearest => return exact::nearest(from, size, to, window, out),
            Filter::Lanczos => (exact::LANCZOS, FilterType::Lanczos3),
            Filter::Bilinear => (exact::BILINEAR, FilterType::Bilinear),
            Filter::Bicubic => (exact::BICUBIC, FilterType::CatmullRom),
            Filter::Box => (exact::BOX, FilterType::Box),
            Filter::Hamming => (exact::HAMMING, FilterType::Hamming),
        };
        match resampling {
            Resampling::Exact => self.exact.resize(kernel, from, size, to, window, out),
            Resampling::Fast => self.resize_fast((fast, kernel), from, size, to, window, out),
        }
    }

    fn resize_fast(
        &mut self,
        (filter, kernel): (FilterType, Kernel),
        from: &[u8],
        size: (u32, u32),
        to: (u32, u32),
        window: Rect,
        out: &mut [u8],
    ) {
        let scale = (f64::from(size.0) / f64::from(to.0), f64::from(size.1) / f64::from(to.1));
        let (left, top) = (f64::from(window.left) * scale.0, f64::from(window.top) * scale.1);
        // Rounding must not put the far edge outside of the image.
        let width = (f64::from(window.width) * scale.0).min(f64::from(size.0) - left);
        let height = (f64::from(window.height) * scale.1).min(f64::from(size.1) - top);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(left, top, width, height);
        let source = ImageRef::new(size.0, size.1, from, PixelType::U8x3);
        let target = Image::from_slice_u8(window.width, window.height, out, PixelType::U8x3);
        let done = match (source, target) {
            (Ok(source), Ok(mut target)) => self.fast.resize(&source, &mut target, &options).is_ok(),
            _ => false,
        };
        if !done {
            // What it refuses (a window of less than a source pixel, say) the other way takes.
            self.exact.resize(kernel, from, size, to, window, out);
        }
    }

    /// Gives back what an unusually large image took.
    pub(super) fn trim(&mut self) {
        if self.fast.size_of_internal_buffers() > 16 << 20 {
            self.fast.reset_internal_buffers();
        }
        self.exact.trim();
    }
}

/// The part `window` of an image of this `width`.
fn copy(from: &[u8], width: u32, window: Rect, out: &mut [u8]) {
    let (stride, left) = (width as usize * 3, window.left as usize * 3);
    let out_stride = window.width as usize * 3;
    let rows = from.chunks_exact(stride).skip(window.top as usize);
    for (out, row) in out.chunks_exact_mut(out_stride).zip(rows) {
        out.copy_from_slice(&row[left..left + out_stride]);
    }
}
