//! Many images at a time: planned from their headers, then written side by side into one buffer, on all cores.

use super::error::{ImageBatchError, ImageError, ImageFailure};
use super::processor::ImageProcessor;
use crate::work::{Work, WorkError};

/// Headers that are read one after the other by one thread.
const HEADERS_A_JOB: usize = 32;

/// The size of a batch, and which images cannot be in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBatchPlan {
    images: usize,
    height: u32,
    width: u32,
    failures: Vec<ImageFailure>,
}

impl ImageBatchPlan {
    /// Images in the batch, those included that cannot be prepared.
    #[must_use]
    pub fn images(&self) -> usize {
        self.images
    }

    /// Rows and columns of each tensor; 0 × 0 if no image decided it.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.height, self.width)
    }

    /// The images whose headers were refused, that would have made the batch pass
    /// [`ImageLimits::max_batch_bytes`](super::ImageLimits::max_batch_bytes), or that were decoded to see whether they may
    /// decide its size, and are bad. Empty where the size is fixed: headers were not looked at.
    #[must_use]
    pub fn failures(&self) -> &[ImageFailure] {
        &self.failures
    }

    /// Why the image at `index` was refused, if it was.
    fn failure(&self, index: usize) -> Option<&ImageFailure> {
        let at = self.failures.binary_search_by_key(&index, |failure| failure.index).ok()?;
        Some(&self.failures[at])
    }

    /// Dimensions of the whole batch, in the processor's order.
    #[must_use]
    pub fn shape(&self, processor: &ImageProcessor) -> [usize; 4] {
        let [a, b, c] = processor.shape(self.height, self.width);
        [self.images, a, b, c]
    }

    /// Dimensions of the mask: images × rows × columns.
    #[must_use]
    pub fn mask_shape(&self) -> [usize; 3] {
        [self.images, self.height as usize, self.width as usize]
    }

    /// Bytes of the whole batch.
    #[must_use]
    pub fn bytes(&self, processor: &ImageProcessor) -> usize {
        processor.tensor_bytes(self.height, self.width) * self.images
    }
}

/// The size of a batch that its images decide, found by adding one after the other.
struct BatchSize<'p> {
    processor: &'p ImageProcessor,
    images: usize,
    size: Option<(u32, u32)>,
}

impl BatchSize<'_> {
    /// Adds an image of these rows and columns. The one that would make the batch pass its limit is left out.
    fn add(&mut self, (height, width): (u32, u32)) -> Result<(), ImageError> {
        let pads = self.processor.recipe().pad.is_some();
        let (height, width) = match self.size {
            // The first one has decided: others of another size will be failures.
            Some(_) if !pads => return Ok(()),
            Some((rows, columns)) => (height.max(rows), width.max(columns)),
            None => (height, width),
        };
        let mask = if pads { size_of::<i64>() } else { 0 };
        let pixel = self.processor.tensor_bytes(1, 1) + mask;
        let bytes = u128::from(height) * u128::from(width) * pixel as u128 * self.images as u128;
        let limit_bytes = self.processor.options().limits.max_batch_bytes;
        if bytes > limit_bytes as u128 {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            return Err(ImageError::BatchTooLarge { images: self.images, height, width, bytes, limit_bytes });
        }
        self.size = Some((height, width));
        Ok(())
    }
}

/// What a batch becomes of these images, if none of them turns out to be bad.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    /// Indices of those that have a place in it.
    pub(crate) images: Vec<usize>,
    /// Rows and columns of each; 0 × 0 if no image decided it.
    pub(crate) size: (u32, u32),
    /// Those that would have made it pass its limit.
    pub(crate) refused: Vec<(usize, ImageError)>,
}

impl Fit {
    /// Whether another one is the same batch, but for images that were bad.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let refused = |fit: &Self| fit.refused.iter().map(|&(index, _)| index).collect::<Vec<_>>();
        self.size == other.size && refused(self) == refused(other)
    }
}

impl ImageProcessor {
    /// The batch of images of these rows and columns by themselves; `None` for those that are bad.
    ///
    /// An image that turns out to be bad may have decided the size, and have taken their place from others. Without it,
    /// they are asked again.
    pub(crate) fn fit(&self, sizes: &[Option<(u32, u32)>]) -> Fit {
        let mut fit = Fit::default();
        let mut together = BatchSize { processor: self, images: sizes.len(), size: self.recipe().fixed_size() };
        for (index, size) in sizes.iter().enumerate().filter_map(|(index, size)| size.map(|size| (index, size))) {
            let added = if self.recipe().fixed_size().is_some() { Ok(()) } else { together.add(size) };
            match added {
                Ok(()) => fit.images.push(index),
                Err(error) => fit.refused.push((index, error)),
            }
        }
        fit.size = together.size.unwrap_or((0, 0));
        fit
    }

    /// Images because of which others fail, and that may be bad themselves: not known to be good by `decoded`. `gone` of
    /// them were bad.
    fn doubtful(&self, fit: &Fit, sizes: &[Option<(u32, u32)>], decoded: &[bool], gone: usize) -> Vec<usize> {
        let other = |&index: &usize| sizes[index] != Some(fit.size);
        let most = match (self.recipe().pad, fit.images.first()) {
            // Any of them may be what leaves no room.
            (Some(_), _) if !fit.refused.is_empty() => fit.images.len(),
            // The first one, and where many were bad those that may have to follow it.
            (None, Some(&first)) if !decoded[first] && fit.images.iter().any(other) => 1 + gone,
            _ => 0,
        };
        fit.images.iter().copied().take(most).filter(|&index| !decoded[index]).collect()
    }

    /// The size of a batch of which the headers say these sizes: bad images that others would fail because of are left out
    /// of it, told to `bad`, and have no size any more. `check` decodes images and says what is wrong with each; it is asked
    /// once at most for each.
    pub(crate) fn settle<E>(
        &self,
        sizes: &mut [Option<(u32, u32)>],
        mut bad: impl FnMut(usize, ImageError),
        mut check: impl FnMut(&[usize]) -> Result<Vec<Option<ImageError>>, E>,
    ) -> Result<Fit, E> {
        let (mut decoded, mut gone) = (vec![false; sizes.len()], 0);
        loop {
            let fit = self.fit(sizes);
            let asked = self.doubtful(&fit, sizes, &decoded, gone);
            let before = gone;
            let found = if asked.is_empty() { Vec::new() } else { check(&asked)? };
            for (index, error) in asked.into_iter().zip(found) {
                decoded[index] = true;
                if let Some(error) = error {
                    (sizes[index], gone) = (None, gone + 1);
                    bad(index, error);
                }
            }
            if gone == before {
                return Ok(fit);
            }
        }
    }

    /// Finds the size of a batch. Headers are read only if it depends on them: without a crop, a fixed size or a padding
    /// to one.
    ///
    /// Without padding the first good image decides, and others of another size will be failures. One that makes the batch
    /// larger than [`ImageLimits::max_batch_bytes`](super::ImageLimits::max_batch_bytes) is not good: nobody is asked for that
    /// memory, and the others are prepared.
    ///
    /// A header does not tell whether the rest is good. Where an image would fail because of others (of several sizes without
    /// padding, or beyond the limit), those are decoded here, to leave out a bad one instead: the first one, or with
    /// padding all.
    ///
    /// # Errors
    /// [`WorkError`] if it was stopped or there are no threads.
    pub fn plan<B: AsRef<[u8]> + Sync>(&self, items: &[B], work: &Work<'_>) -> Result<ImageBatchPlan, WorkError> {
        let images = items.len();
        if let Some((height, width)) = self.recipe().fixed_size() {
            return Ok(ImageBatchPlan { images, height, width, failures: Vec::new() });
        }
        let size_of = |bytes: &[u8]| self.header(bytes).and_then(|header| self.size(&header));
        // A header is read in some 5 µs: a job is many of them.
        let jobs = items.chunks(HEADERS_A_JOB);
        let found = work.map(jobs, |items| items.iter().map(|item| size_of(item.as_ref())).collect::<Vec<_>>())?;
        let mut failures = Vec::new();
        let mut sizes = Vec::with_capacity(images);
        for (index, found) in found.into_iter().flatten().enumerate() {
            sizes.push(found.map_err(|error| failures.push(ImageFailure { index, error })).ok());
        }
        let bad = |index, error| failures.push(ImageFailure { index, error });
        let fit = self.settle(&mut sizes, bad, |asked| {
            // One job asks nobody whether it is to stop, and there may be a round for each image.
            work.go_on()?;
            work.map(asked.iter(), |&index| self.check(items[index].as_ref()).err())
        })?;
        failures.extend(fit.refused.into_iter().map(|(index, error)| ImageFailure { index, error }));
        failures.sort_unstable_by_key(|failure| failure.index);
        let (height, width) = fit.size;
        Ok(ImageBatchPlan { images, height, width, failures })
    }

    /// Prepares the images of a plan into `out`, one after the other in the order given, and says which failed.
    ///
    /// `out` has exactly [`ImageBatchPlan::bytes`] bytes. `mask`, if there is one, has images × rows × columns elements:
    /// 1 where the image is, 0 where its padding is. The place of an image that failed is zero in both. Blocks until all
    /// are done, on the threads of `work`. Images that the plan refused are not looked at again.
    ///
    /// # Errors
    /// [`ImageBatchError`] if a buffer or the list does not fit the plan (then nothing was written), or the work was
    /// stopped. Images that cannot be prepared are no error here.
    pub fn run<B: AsRef<[u8]> + Sync>(
        &self,
        plan: &ImageBatchPlan,
        items: &[B],
        out: &mut [u8],
        mask: Option<&mut [i64]>,
        work: &Work<'_>,
    ) -> Result<Vec<ImageFailure>, ImageBatchError> {
        let &ImageBatchPlan { images, height, width, .. } = plan;
        if items.len() != images {
            return Err(ImageBatchError::Items { planned: images, given: items.len() });
        }
        let expected_bytes = plan.bytes(self);
        if out.len() != expected_bytes {
            return Err(ImageBatchError::Pixels { found_bytes: out.len(), expected_bytes });
        }
        let mask_elements = height as usize * width as usize;
        let (found, expected) = (mask.as_ref().map(|mask| mask.len()), mask_elements * images);
        if let Some(found) = found.filter(|&found| found != expected) {
            return Err(ImageBatchError::Mask { found, expected });
        }
        if out.is_empty() {
            return Ok(plan.failures.clone());
        }
        let one = |index: usize, item: &[u8], out: &mut [u8], mask: Option<&mut [i64]>| {
            let done = match plan.failure(index) {
                Some(refused) => Err(refused.clone()),
                None => self.prepare(item, index, (height, width), out),
            };
            if done.is_err() {
                out.fill(0);
            }
            if let Some(mask) = mask {
                fill_mask(mask, width as usize, *done.as_ref().unwrap_or(&(0, 0)));
            }
            done.err()
        };
        let outs = out.chunks_exact_mut(expected_bytes / images);
        let jobs = items.iter().zip(outs).enumerate();
        let failures = match mask {
            None => work.map(jobs, |(index, (item, out))| one(index, item.as_ref(), out, None))?,
            Some(mask) => {
                let jobs = jobs.zip(mask.chunks_exact_mut(mask_elements));
                work.map(jobs, |((index, (item, out)), mask)| one(index, item.as_ref(), out, Some(mask)))?
            }
        };
        Ok(failures.into_iter().flatten().collect())
    }
}

/// Fills the mask of one image: 1 inside its rows and columns, 0 in its padding.
pub(crate) fn fill_mask(mask: &mut [i64], width: usize, (rows, columns): (u32, u32)) {
    for (y, row) in mask.chunks_exact_mut(width).enumerate() {
        let inside = if y < rows as usize { columns as usize } else { 0 };
        row[..inside].fill(1);
        row[inside..].fill(0);
    }
}
