//! Images become `pixel_values`, as the model's preprocessor_config.json says.
//!
//! Where the size of a tensor depends on the image, only images of one size share a batch.

use forebay_ingest::image::{Dtype, ImageError, ImageOptions, ImageProcessor, Recipe};

use super::{Body, IntakeError, invalid};
use crate::{
    backend::{ItemError, TensorInfo},
    config::ImageInput,
    schedule::Size,
};

pub(super) struct Images {
    processor: ImageProcessor,
    fixed: Option<(u32, u32)>,
}

/// The tensor of one image.
#[derive(Debug)]
pub(super) struct Pixels {
    shape: [u64; 3],
    bytes: Vec<u8>,
}

impl Pixels {
    pub(super) fn shape(&self) -> [u64; 3] {
        self.shape
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Images {
    pub(super) fn open(input: &ImageInput) -> Result<Self, IntakeError> {
        let key = "model.input.processor";
        let recipe = Recipe::from_file(&input.processor).map_err(|e| IntakeError::new(key, e))?;
        let mut options = ImageOptions::default();
        if !recipe.computes() {
            options.dtype = Dtype::U8;
        }
        if let Some(pixels) = input.max_pixels {
            options.limits.max_pixels = pixels;
        }
        let fixed = recipe.fixed_size();
        let processor = ImageProcessor::new(recipe, options).map_err(|e| IntakeError::new(key, e))?;
        Ok(Self { processor, fixed })
    }

    /// Bytes of every tensor, if they are the same.
    pub(super) fn fixed_bytes(&self) -> Option<u64> {
        self.fixed.map(|(height, width)| self.processor.tensor_bytes(height, width) as u64)
    }

    /// Bytes that the tensor of an image will take, at most `room`; reads its header if need be.
    pub(super) fn bytes_of(&self, image: &[u8], room: u64) -> u64 {
        let size = self.fixed.or_else(|| self.size(image).ok());
        size.map_or(0, |(height, width)| (self.processor.tensor_bytes(height, width) as u64).min(room))
    }

    pub(super) fn tensors(&self) -> Vec<TensorInfo> {
        let dtype = self.processor.options().dtype.into();
        let shape = match self.fixed {
            Some((height, width)) => vec![Some(3), Some(height.into()), Some(width.into())],
            None => vec![Some(3), None, None],
        };
        vec![TensorInfo { name: "pixel_values".to_owned(), dtype, shape }]
    }

    pub(super) fn prepare(&self, image: &[u8], room: u64) -> Result<Pixels, ItemError> {
        let size = match self.fixed {
            Some(size) => size,
            None => self.size(image).map_err(invalid)?,
        };
        // Before any memory is asked for: what is too large for a batch is not decoded at all.
        let bytes = self.processor.tensor_bytes(size.0, size.1);
        if bytes as u64 > room {
            let (height, width) = size;
            return Err(invalid(format!(
                "the image becomes {height} × {width} (height × width), {bytes} bytes, and a batch has room for {room}; \
                 send a smaller one"
            )));
        }
        let mut out = vec![0; bytes];
        self.processor.prepare(image, 0, size, &mut out).map_err(|failure| invalid(failure.error))?;
        Ok(Pixels { shape: self.processor.shape(size.0, size.1).map(|dim| dim as u64), bytes: out })
    }

    fn size(&self, image: &[u8]) -> Result<(u32, u32), ImageError> {
        self.processor.header(image).and_then(|header| self.processor.size(&header))
    }
}

/// The images of a call, each prepared or with what is wrong with it.
pub(super) fn put_together(
    done: impl IntoIterator<Item = Result<Pixels, ItemError>>,
) -> (Vec<Result<Size, ItemError>>, Body) {
    let (mut sizes, mut images) = (Vec::new(), Vec::new());
    for image in done {
        let (size, pixels) = match image {
            Ok(pixels) => {
                let [_, height, width] = pixels.shape;
                let size = Size { tokens: 0, bytes: pixels.bytes.len() as u64, group: height << 32 | width };
                (Ok(size), Some(pixels))
            }
            Err(error) => (Err(error), None),
        };
        sizes.push(size);
        images.push(pixels);
    }
    (sizes, Body::Images(images))
}
