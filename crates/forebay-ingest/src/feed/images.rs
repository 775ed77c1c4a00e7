//! Images: samples of files and shards, as an image processor prepares them.

use std::sync::Arc;

use super::batch::Batch;
use super::pipeline::{Batches, PipelineOptions};
use super::samples::{ImageFeed, Samples};
use super::stage::{BatchData, Prepared, Prepares};
use crate::error::{IngestError, ItemError};
use crate::image::{BatchSize, ImageError, ImageProcessor, fill_mask};

/// A pipeline from image files to pixels.
pub type ImagePipeline = Batches<ImageTensors>;

/// A batch of prepared images.
pub type ImageBatch = Batch<ImageTensors>;

impl ImagePipeline {
    /// Starts the threads. Each prepares whole batches, one image after the other. A worker needs the memory of its
    /// batch's tensor besides what [`ImageProcessor`] states; where the images decide its size,
    /// [`ImageLimits::max_batch_bytes`](crate::image::ImageLimits::max_batch_bytes) bounds it.
    ///
    /// # Errors
    /// As [`Pipeline::start`](crate::Pipeline::start).
    pub fn images(
        source: ImageFeed,
        processor: Arc<ImageProcessor>,
        options: PipelineOptions,
    ) -> Result<Self, IngestError> {
        let labels = source.labels();
        Self::run(source, Preparing { processor, labels }, options)
    }
}

/// Prepared images.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageTensors {
    /// The elements of all images, in this machine's byte order: images × the dimensions of one.
    pub pixels: Vec<u8>,
    /// Dimensions of `pixels`, in the processor's order.
    pub shape: [usize; 4],
    /// images × rows × columns, 1 where an image is and 0 where its padding is; if the recipe pads.
    pub mask: Option<Vec<i64>>,
    /// A label an image, if they are read.
    pub labels: Option<Vec<i64>>,
    /// The name of each image, see [`Sample::key`](crate::image::Sample::key).
    pub keys: Vec<String>,
    /// Rows and columns of an image's tensor.
    pub size: (u32, u32),
}

impl ImageTensors {
    /// Dimensions of the mask: images × rows × columns.
    #[must_use]
    pub fn mask_shape(&self) -> [usize; 3] {
        [self.keys.len(), self.size.0 as usize, self.size.1 as usize]
    }
}

impl BatchData for ImageTensors {
    fn rows(&self) -> usize {
        self.keys.len()
    }
}

struct Preparing {
    processor: Arc<ImageProcessor>,
    labels: bool,
}

/// Which images are left, and of which size they are.
struct Left {
    /// Indices in the batch, and for each rows and columns by itself, where they decide the batch's.
    images: Vec<(usize, (u32, u32))>,
    size: (u32, u32),
}

impl Preparing {
    /// The images whose headers are good, and the size of the batch.
    fn plan(&self, raw: &Samples, bad: &mut Vec<(usize, ImageError)>) -> Left {
        let mut images = Vec::with_capacity(raw.samples.len());
        if let Some(size) = self.processor.recipe().fixed_size() {
            images.extend((0..raw.samples.len()).map(|index| (index, size)));
            return Left { images, size };
        }
        let mut together = BatchSize::new(&self.processor, raw.samples.len());
        for (index, (sample, _)) in raw.samples.iter().enumerate() {
            let size = self.processor.header(&sample.image).and_then(|header| self.processor.size(&header));
            match size.and_then(|size| together.add(size).map(|()| size)) {
                Ok(size) => images.push((index, size)),
                Err(error) => bad.push((index, error)),
            }
        }
        Left { images, size: together.size() }
    }

    /// The size that the batch has by the images that are left.
    fn resize(&self, left: &mut Left) {
        let sizes = left.images.iter().map(|&(_, size)| size);
        left.size = if self.processor.recipe().fixed_size().is_some() {
            left.size
        } else if self.processor.recipe().pad.is_some() {
            sizes.fold((0, 0), |largest, size| (largest.0.max(size.0), largest.1.max(size.1)))
        } else {
            // The first good image decides, and others of another size are bad.
            sizes.take(1).fold((0, 0), |_, size| size)
        };
    }
}

impl Prepares for Preparing {
    type Raw = Samples;
    type Data = ImageTensors;

    fn prepare(&self, raw: Samples, first_only: bool, stop: &dyn Fn() -> bool) -> Option<Prepared<ImageTensors>> {
        let mut bad = Vec::new();
        let mut left = self.plan(&raw, &mut bad);
        let (mut pixels, mut mask) = (Vec::new(), self.processor.recipe().pad.map(|_| Vec::new()));
        loop {
            let (height, width) = left.size;
            let bytes = self.processor.tensor_bytes(height, width);
            pixels.clear();
            pixels.resize(bytes * left.images.len(), 0);
            if let Some(mask) = &mut mask {
                mask.clear();
            }
            let mut good = Vec::with_capacity(left.images.len());
            for &(index, size) in &left.images {
                if stop() {
                    return None;
                }
                if first_only && !bad.is_empty() {
                    break;
                }
                let out = &mut pixels[bytes * good.len()..][..bytes];
                match self.processor.prepare(&raw.samples[index].0.image, index, left.size, out) {
                    Ok(inside) => {
                        good.push((index, size));
                        if let Some(mask) = &mut mask {
                            let start = mask.len();
                            mask.resize(start + height as usize * width as usize, 0);
                            fill_mask(&mut mask[start..], width as usize, inside);
                        }
                    }
                    Err(failure) => bad.push((index, failure.error)),
                }
            }
            pixels.truncate(bytes * good.len());
            left.images = good;
            let size = left.size;
            self.resize(&mut left);
            // One that decided the size may be gone: the others are then prepared for theirs.
            if left.size == size || left.images.is_empty() || (first_only && !bad.is_empty()) {
                left.size = size;
                break;
            }
        }
        bad.sort_unstable_by_key(|&(index, _)| index);
        let key = |index: usize| raw.samples[index].0.key.clone();
        let [a, b, c] = self.processor.shape(left.size.0, left.size.1);
        let data = ImageTensors {
            pixels,
            shape: [left.images.len(), a, b, c],
            mask,
            labels: self.labels.then(|| left.images.iter().map(|&(index, _)| raw.samples[index].1).collect()),
            keys: left.images.iter().map(|&(index, _)| key(index)).collect(),
            size: left.size,
        };
        let bad = bad.into_iter().map(|(index, error)| (index, ItemError::Image { key: key(index), error })).collect();
        Some(Prepared { data, bad })
    }
}
