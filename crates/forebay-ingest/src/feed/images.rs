//! Images: samples of files and shards, as an image processor prepares them.

use std::sync::Arc;

use super::batch::Batch;
use super::pipeline::{Batches, PipelineOptions};
use super::samples::{ImageFeed, Samples};
use super::stage::{BatchData, Prepared, Prepares};
use crate::error::{IngestError, ItemError};
use crate::image::{ImageError, ImageFailure, ImageProcessor, Sample, fill_mask};

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

impl Preparing {
    /// Rows and columns of each image by itself, where they decide the batch's; `None` if its header is bad.
    fn sizes(&self, raw: &Samples, bad: &mut Vec<(usize, ImageError)>) -> Vec<Option<(u32, u32)>> {
        if let Some(size) = self.processor.recipe().fixed_size() {
            return vec![Some(size); raw.samples.len()];
        }
        let size = |sample: &Sample| self.processor.size(&self.processor.header(&sample.image)?);
        let found = raw.samples.iter().enumerate();
        found.map(|(index, (sample, _))| size(sample).map_err(|error| bad.push((index, error))).ok()).collect()
    }
}

impl Prepares for Preparing {
    type Raw = Samples;
    type Data = ImageTensors;

    fn prepare(&self, raw: Samples, first_only: bool, stop: &dyn Fn() -> bool) -> Option<Prepared<ImageTensors>> {
        let mut bad = Vec::new();
        let mut sizes = self.sizes(&raw, &mut bad);
        let check = |index: usize| self.processor.check(&raw.samples[index].0.image).err();
        let settled = self.processor.settle(
            &mut sizes,
            |index, error| bad.push((index, error)),
            |asked| {
                let go_on = |&index| if stop() { None } else { Some(check(index)) };
                asked.iter().map(go_on).collect::<Option<Vec<_>>>().ok_or(())
            },
        );
        let mut fit = settled.ok()?;
        let (mut pixels, mut mask) = (Vec::new(), self.processor.recipe().pad.map(|_| Vec::new()));
        let mut good = Vec::new();
        loop {
            let (height, width) = fit.size;
            let bytes = self.processor.tensor_bytes(height, width);
            pixels.clear();
            pixels.resize(bytes * fit.images.len(), 0);
            if let Some(mask) = &mut mask {
                mask.clear();
            }
            good.clear();
            let mut others = Vec::new();
            for &index in &fit.images {
                if stop() {
                    return None;
                }
                if first_only && !(bad.is_empty() && others.is_empty() && fit.refused.is_empty()) {
                    break;
                }
                let out = &mut pixels[bytes * good.len()..][..bytes];
                match self.processor.prepare(&raw.samples[index].0.image, index, fit.size, out) {
                    Ok(inside) => {
                        good.push(index);
                        if let Some(mask) = &mut mask {
                            let start = mask.len();
                            mask.resize(start + height as usize * width as usize, 0);
                            fill_mask(&mut mask[start..], width as usize, inside);
                        }
                    }
                    // Good perhaps, and bad only beside what decided the size.
                    Err(ImageFailure { error: error @ ImageError::OtherSize { .. }, .. }) => {
                        others.push((index, error))
                    }
                    Err(failure) => {
                        sizes[index] = None;
                        bad.push((index, failure.error));
                    }
                }
            }
            pixels.truncate(bytes * good.len());
            // What decided the size may be gone: the others are then prepared for theirs, and those that had no place
            // beside it are asked again.
            let again = self.processor.fit(&sizes);
            if again.is_as(&fit) || (first_only && !bad.is_empty()) {
                bad.append(&mut others);
                bad.append(&mut fit.refused);
                break;
            }
            fit = again;
        }
        bad.sort_unstable_by_key(|&(index, _)| index);
        let key = |index: usize| raw.samples[index].0.key.clone();
        let [a, b, c] = self.processor.shape(fit.size.0, fit.size.1);
        let data = ImageTensors {
            pixels,
            shape: [good.len(), a, b, c],
            mask,
            labels: self.labels.then(|| good.iter().map(|&index| raw.samples[index].1).collect()),
            keys: good.iter().map(|&index| key(index)).collect(),
            size: fit.size,
        };
        let bad = bad.into_iter().map(|(index, error)| (index, ItemError::Image { key: key(index), error })).collect();
        Some(Prepared { data, bad })
    }
}
