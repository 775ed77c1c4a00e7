//! One image at a time: from the bytes of a file to its tensor, in memory that the caller has.

use std::sync::{Mutex, PoisonError};

use super::config::ImageConfigError;
use super::decode::{self, Buffers, Damage, DecodeOptions, Opened, Transparency};
use super::error::{ImageError, ImageFailure};
use super::geometry::Layout;
use super::header::{ImageHeader, ImageLimits};
use super::recipe::Recipe;
use super::resize::{Resampling, Workspace};
use super::tensor::{ChannelOrder, Dtype, Writer};

/// What does not follow from the model's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageOptions {
    /// Type of the elements. Default: single precision.
    pub dtype: Dtype,
    /// Order of the dimensions. Default: channels first.
    pub order: ChannelOrder,
    /// How a resize is computed. Default: exactly as Pillow.
    pub resampling: Resampling,
    /// What becomes of transparent pixels. Default: over white.
    pub transparency: Transparency,
    /// What becomes of JPEGs whose content is damaged. Default: refused.
    pub damage: Damage,
    /// Whether images are turned upright by their EXIF orientation. Default: yes.
    pub upright: bool,
    /// What an image may cost.
    pub limits: ImageLimits,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            dtype: Dtype::default(),
            order: ChannelOrder::default(),
            resampling: Resampling::default(),
            transparency: Transparency::default(),
            damage: Damage::default(),
            upright: true,
            limits: ImageLimits::default(),
        }
    }
}

/// Turns images into tensors of three channels, as a [`Recipe`] says.
///
/// Shared between threads freely; each image is worked on by the thread that asks, in memory that is kept for the next
/// one (up to some 48 MiB a thread that was ever in it at the same time). The tensor of an image depends on its bytes,
/// the recipe and the options alone.
///
/// # Costs
/// A decoded image is held at its full size, 3 bytes a pixel, and [`ImageLimits::max_pixels`] bounds that. JPEGs are
/// not decoded at reduced scale.
#[derive(Debug)]
pub struct ImageProcessor {
    recipe: Recipe,
    options: ImageOptions,
    writer: Writer,
    idle: Mutex<Vec<Memory>>,
}

/// What one image after the other is worked on in.
#[derive(Debug, Default)]
struct Memory {
    buffers: Buffers,
    workspace: Workspace,
    resized: Vec<u8>,
}

impl ImageProcessor {
    /// A processor of this recipe.
    ///
    /// # Errors
    /// [`ImageConfigError::BytesCannotHold`] if `options.dtype` is u8 and the recipe rescales or normalizes.
    pub fn new(recipe: Recipe, options: ImageOptions) -> Result<Self, ImageConfigError> {
        if options.dtype == Dtype::U8 && recipe.computes() {
            return Err(ImageConfigError::BytesCannotHold);
        }
        let writer = Writer::new(options.dtype, options.order, recipe.rescale, recipe.normalize.as_ref());
        Ok(Self { recipe, options, writer, idle: Mutex::default() })
    }

    /// What it does.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// How it does it.
    #[must_use]
    pub fn options(&self) -> &ImageOptions {
        &self.options
    }

    /// The header of an image, checked against the limits. Nothing is decoded.
    ///
    /// # Errors
    /// [`ImageError`] if it is no image, is refused on purpose, or passes a limit.
    pub fn header(&self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.open(bytes).map(|opened| *opened.header())
    }

    /// Rows and columns of an image's tensor by itself, before the padding to the largest of a batch.
    ///
    /// # Errors
    /// As [`header`](Self::header).
    pub fn size(&self, header: &ImageHeader) -> Result<(u32, u32), ImageError> {
        let layout = self.layout(header)?;
        Ok((layout.height, layout.width))
    }

    /// Bytes of a tensor of `height` × `width`.
    #[must_use]
    pub fn tensor_bytes(&self, height: u32, width: u32) -> usize {
        height as usize * width as usize * 3 * self.options.dtype.bytes()
    }

    /// Dimensions of a tensor of `height` × `width`, in the order asked for.
    #[must_use]
    pub fn shape(&self, height: u32, width: u32) -> [usize; 3] {
        let (height, width) = (height as usize, width as usize);
        match self.options.order {
            ChannelOrder::First => [3, height, width],
            ChannelOrder::Last => [height, width, 3],
        }
    }

    /// Prepares one image: writes its tensor of `height` × `width` into `out`, and gives the rows and columns that it
    /// takes there; the rest is padding.
    ///
    /// `index` is only what an error will call the image. `out` has exactly [`tensor_bytes`](Self::tensor_bytes) bytes
    /// and may be at any alignment; elements are in this machine's byte order. After an error its content is arbitrary.
    /// Blocks for as long as the work takes, on this thread alone.
    ///
    /// # Errors
    /// [`ImageFailure`] if the image cannot be decoded, or its tensor does not fit into `height` × `width` (and, without
    /// padding in the recipe, if it is smaller).
    ///
    /// # Panics
    /// If `out` has another length: it is the caller's own.
    pub fn prepare(
        &self,
        bytes: &[u8],
        index: usize,
        (height, width): (u32, u32),
        out: &mut [u8],
    ) -> Result<(u32, u32), ImageFailure> {
        assert_eq!(out.len(), self.tensor_bytes(height, width), "out is not of height × width");
        self.work(bytes, (height, width), out).map_err(|error| ImageFailure { index, error })
    }

    /// Whether the image can be decoded, which its header does not tell.
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<(), ImageError> {
        let opened = self.open(bytes)?;
        let mut memory = self.memory();
        let done = opened.pixels(&mut memory.buffers);
        self.keep(memory);
        done
    }

    fn open<'a>(&self, bytes: &'a [u8]) -> Result<Opened<'a>, ImageError> {
        let ImageOptions { limits, transparency, damage, upright, .. } = self.options;
        decode::open(bytes, &DecodeOptions { limits, transparency, damage, upright })
    }

    fn layout(&self, header: &ImageHeader) -> Result<Layout, ImageError> {
        let (width, height) = header.upright();
        let layout = Layout::new(width, height, self.recipe.resize.map(|(size, _)| size), self.recipe.crop);
        // Between its two passes a resize holds the window's width by the source's height, or the other way round.
        let area = |width: u32, height: u32| u64::from(width) * u64::from(height);
        let window = layout.window;
        let pixels =
            area(layout.width, layout.height).max(area(window.width, height) / 4).max(area(width, window.height) / 4);
        let limit_pixels = self.options.limits.max_pixels;
        if pixels > limit_pixels {
            return Err(ImageError::ResizedTooLarge { width, height, pixels, limit_pixels });
        }
        Ok(layout)
    }

    fn work(&self, bytes: &[u8], (height, width): (u32, u32), out: &mut [u8]) -> Result<(u32, u32), ImageError> {
        let opened = self.open(bytes)?;
        let size = opened.header().upright();
        let layout = self.layout(opened.header())?;
        let found = (layout.height, layout.width);
        let fits = found == (height, width) || (self.recipe.pad.is_some() && found.0 <= height && found.1 <= width);
        if !fits {
            return Err(ImageError::OtherSize { found_height: found.0, found_width: found.1, height, width });
        }
        let mut memory = self.memory();
        let done = opened.pixels(&mut memory.buffers);
        if done.is_ok() {
            let Memory { buffers, workspace, resized } = &mut memory;
            let window = layout.window;
            let whole = layout.resized == size && (window.width, window.height) == size;
            let pixels: &[u8] = match self.recipe.resize {
                _ if whole => &buffers.pixels,
                resize => {
                    let filter = resize.map_or(super::resize::Filter::Nearest, |(_, filter)| filter);
                    resized.resize(window.width as usize * window.height as usize * 3, 0);
                    let how = (self.options.resampling, filter);
                    workspace.resize(how, &buffers.pixels, size, layout.resized, window, resized);
                    resized
                }
            };
            self.writer.write(pixels, &layout, height, width, out);
        }
        self.keep(memory);
        done.map(|()| found)
    }

    fn memory(&self) -> Memory {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn keep(&self, mut memory: Memory) {
        memory.buffers.trim();
        memory.workspace.trim();
        if memory.resized.capacity() > 16 << 20 {
            memory.resized = Vec::new();
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}
