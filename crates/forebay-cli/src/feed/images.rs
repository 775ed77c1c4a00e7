//! Feeding images: their pixels, and what was asked for beside: mask, labels, keys.

use std::{ops::Range, path::PathBuf, sync::Arc};

use forebay::{ANY, DType, Loan, LoanError};
use forebay_ingest::{
    Batch, Batches, ImageFeed, ImageFeedOptions, ImagePipeline, ImageTensors, IngestError, PipelineOptions, Position,
    Unit,
    image::{ChannelOrder, ImageProcessor, Recipe, Size},
};

use super::kind::{Feeds, Tensor};
use crate::failure::Failure;

const PIXELS: &str = "pixel_values";
const MASK: &str = "pixel_mask";
const LABELS: &str = "labels";
const KEYS: &str = "keys";
/// Bytes of a key: of a longer one the last ones are kept.
const KEY_BYTES: usize = 256;

/// Samples, prepared.
pub(super) struct Images {
    pub(super) inputs: Vec<PathBuf>,
    pub(super) options: ImageFeedOptions,
    pub(super) processor: Arc<ImageProcessor>,
    pub(super) keys: bool,
}

/// Copies what stands at the upper left of each of so many planes, lines of equal length.
fn copy_inside<T: Copy>(from: &[T], (high, wide): (u32, u32), to: &mut [T], size: (u32, u32), planes: usize) {
    if size == (high, wide) {
        return to.copy_from_slice(from);
    }
    let (all, some) = (planes * high as usize, planes * size.0 as usize);
    // Elements of a line: a pixel may be several.
    let (line, short) = (from.len() / all.max(1), to.len() / some.max(1));
    let lines = from.chunks_exact(line.max(1) * high.max(1) as usize);
    let inside = lines.flat_map(|plane| plane.chunks_exact(line.max(1)).take(size.0 as usize));
    for (to, from) in to.chunks_exact_mut(short.max(1)).zip(inside) {
        to.copy_from_slice(&from[..short]);
    }
}

/// How many times as long as wide an image may be, for slots to have room for whatever it becomes.
const USUAL_RATIO: u32 = 16;

/// Most rows and columns of an image by this recipe, if it sets a most that is worth a slot.
pub(super) fn most(recipe: &Recipe) -> Option<(u32, u32)> {
    match (recipe.fixed_size().or(recipe.crop), recipe.resize) {
        (Some(size), _) => Some(size),
        (None, Some((Size::Fixed { height, width } | Size::Within { height, width }, _))) => Some((height, width)),
        // Of an image one pixel thick the longer side may become 2 × `longest` − 1, see `usual`.
        (None, _) => None,
    }
}

/// Rows and columns that slots are made for where nobody says how large they are; none if nothing is known.
///
/// With a shortest and a longest edge an image whose shorter side is within half a pixel of its new length stays as it is,
/// as transformers leaves it: 1334 × 500 by 800 and 1333. So a side is beyond `longest` by at most half of how many times
/// as long as wide the image is, which is nothing below two times, and `longest` − 1 of one that is one pixel thick. Slots
/// have room for the usual ones; a batch of others may be too large for one.
pub(super) fn usual(recipe: &Recipe) -> Option<(u32, u32)> {
    match recipe.resize {
        Some((Size::ShortestEdge { longest: Some(longest), .. }, _)) => {
            let side = longest.saturating_add(USUAL_RATIO / 2);
            most(recipe).or(Some((side, side)))
        }
        _ => most(recipe),
    }
}

/// Any rows and columns where they are not known.
fn dims(size: Option<(u32, u32)>) -> (u64, u64) {
    size.map_or((ANY, ANY), |(height, width)| (height.into(), width.into()))
}

impl Images {
    fn dtype(&self) -> DType {
        self.processor.options().dtype.into()
    }

    /// Rows and columns that these images need: those of the batch, unless it was filled up for the larger ones in it.
    fn size(&self, batch: &Batch<ImageTensors>, rows: &Range<usize>) -> (u32, u32) {
        let (height, width) = batch.data.size;
        let filled = batch.data.mask.as_ref().filter(|_| self.processor.recipe().fixed_size().is_none());
        let Some(mask) = filled.filter(|_| *rows != (0..batch.rows()) && height > 0 && width > 0) else {
            return (height, width);
        };
        let one = height as usize * width as usize;
        mask[rows.start * one..rows.end * one].chunks_exact(one).fold((0, 0), |(most_high, most_wide), mask| {
            // Padding is to the right and below.
            let wide = mask[..width as usize].iter().take_while(|&&inside| inside == 1).count() as u32;
            let high = mask.chunks_exact(width as usize).take_while(|line| line[0] == 1).count() as u32;
            (high.max(most_high), wide.max(most_wide))
        })
    }

    /// The tensors of so many images of these rows and columns.
    fn shaped(&self, batch: u32, (height, width): (u64, u64)) -> Vec<Tensor> {
        let pixels = match self.processor.options().order {
            ChannelOrder::First => [3, height, width],
            ChannelOrder::Last => [height, width, 3],
        };
        self.list(batch.into(), pixels, (height, width))
    }

    fn list(&self, rows: u64, pixels: [u64; 3], (height, width): (u64, u64)) -> Vec<Tensor> {
        let mut tensors = vec![Tensor::new(PIXELS, self.dtype(), [&[rows], &pixels[..]].concat())];
        if self.processor.recipe().pad.is_some() {
            tensors.push(Tensor::new(MASK, DType::I64, [rows, height, width]));
        }
        if self.options.labels {
            tensors.push(Tensor::new(LABELS, DType::I64, [rows]));
        }
        if self.keys {
            tensors.push(Tensor::new(KEYS, DType::U8, [rows, KEY_BYTES as u64]));
        }
        tensors
    }
}

impl Feeds for Images {
    type Source = ImageFeed;
    type Data = ImageTensors;
    const NAME: &'static str = "images";
    const UNIT: Unit = Unit::Sample;

    fn largest(&self, batch: u32) -> Vec<Tensor> {
        self.shaped(batch, dims(most(self.processor.recipe())))
    }

    fn usual(&self, batch: u32) -> Vec<Tensor> {
        self.shaped(batch, dims(usual(self.processor.recipe())))
    }

    fn open(&self) -> Result<ImageFeed, IngestError> {
        ImageFeed::open(&self.inputs, self.options)
    }

    fn resume(&self, position: &Position) -> Result<ImageFeed, IngestError> {
        ImageFeed::resume(&self.inputs, self.options, position)
    }

    fn position(&self, source: &ImageFeed) -> Position {
        source.position()
    }

    fn name(&self, source: &ImageFeed, file: u32) -> String {
        source.name(file)
    }

    fn start(&self, source: ImageFeed, options: PipelineOptions) -> Result<Batches<ImageTensors>, IngestError> {
        ImagePipeline::images(source, Arc::clone(&self.processor), options)
    }

    fn tensors(&self, batch: &Batch<ImageTensors>, rows: &Range<usize>) -> Vec<Tensor> {
        let (height, width) = self.size(batch, rows);
        let pixels = self.processor.shape(height, width).map(|dim| dim as u64);
        self.list(rows.len() as u64, pixels, (height.into(), width.into()))
    }

    fn write(&self, batch: &Batch<ImageTensors>, rows: &Range<usize>, loan: &mut Loan<'_>) -> Result<(), Failure> {
        let data = &batch.data;
        let size = self.size(batch, rows);
        let planes = match self.processor.options().order {
            ChannelOrder::First => 3,
            ChannelOrder::Last => 1,
        };
        let image = self.processor.tensor_bytes(data.size.0, data.size.1);
        let from = &data.pixels[rows.start * image..rows.end * image];
        let wanted = rows.len() * self.processor.tensor_bytes(size.0, size.1);
        let pixels = loan.bytes_mut(0).filter(|pixels| pixels.len() == wanted);
        let pixels = pixels.ok_or_else(|| Failure::failed("the loan has no place for the pixels"))?;
        copy_inside(from, data.size, pixels, size, rows.len() * planes);
        if let Some(mask) = &data.mask {
            let one = data.size.0 as usize * data.size.1 as usize;
            let to: &mut [i64] = loan.tensor_mut(MASK).map_err(Failure::failed)?;
            copy_inside(&mask[rows.start * one..rows.end * one], data.size, to, size, rows.len());
        }
        if let Some(labels) = &data.labels {
            loan.tensor_mut(LABELS).map_err(Failure::failed)?.copy_from_slice(&labels[rows.clone()]);
        }
        if self.keys {
            let keys: &mut [u8] = loan.tensor_mut(KEYS).map_err(Failure::failed)?;
            keys.fill(0);
            for (row, key) in keys.chunks_exact_mut(KEY_BYTES).zip(&data.keys[rows.clone()]) {
                let key = key.as_bytes();
                let end = &key[key.len().saturating_sub(KEY_BYTES)..];
                row[..end.len()].copy_from_slice(end);
            }
        }
        Ok(())
    }

    fn too_large(&self, error: &LoanError, batch: &Batch<ImageTensors>, _: &Batches<ImageTensors>) -> String {
        let (height, width) = batch.data.size;
        format!("{error}; its images become {height} × {width}. On the command line: --slot-bytes or a smaller --batch")
    }

    fn note(&self, slot_bytes: u64, batch: u32) -> Option<String> {
        let recipe = self.processor.recipe();
        let mask = if recipe.pad.is_some() { size_of::<i64>() } else { 0 };
        let image = u64::from(batch.max(1)) * (self.processor.tensor_bytes(1, 1) + mask) as u64;
        let pixels = slot_bytes / image;
        let why = match (most(recipe), usual(recipe)) {
            (Some(_), _) => return None,
            (None, Some((height, width))) if pixels >= u64::from(height) * u64::from(width) => return None,
            (None, Some((height, width))) => format!("the processor makes images of up to {height} × {width}"),
            (None, None) => "the processor sets no largest image".to_owned(),
        };
        Some(format!(
            "{why}: a slot holds {batch} images of up to {pixels} pixels each; larger ones end the feed, or with --on-error \
             skip are sent in smaller messages or left out. --slot-bytes makes room"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the comment of `usual` promises, of every shape that is small enough to try.
    #[test]
    fn no_side_is_longer_than_is_said() {
        let mut beyond = 0;
        for (edge, longest) in [(1, 1), (1, 7), (3, 7), (7, 7), (9, 7), (24, 40), (40, 40), (800, 1333), (480, 640)] {
            let size = Size::ShortestEdge { edge, longest: Some(longest) };
            let recipe = Recipe::from_config(&format!(
                r#"{{"image_processor_type": "DetrImageProcessor", "size": {{"shortest_edge": {edge}, "longest_edge": {longest}}}}}"#
            ));
            let recipe = recipe.unwrap();
            assert_eq!(recipe.resize.map(|(size, _)| size), Some(size));
            let (high, wide) = usual(&recipe).unwrap();
            // Beyond that none is left as it is, and the short side has few to try.
            for long in 1..=2 * longest + 3 {
                for short in (1..=long.min(80)).chain((81..=long).step_by(7)) {
                    let (width, height) = size.of(long, short);
                    assert_eq!(size.of(short, long), (height, width));
                    assert!(height <= width && width < 2 * longest, "{long} × {short}: {width} × {height}");
                    let most = longest + width / (2 * height);
                    assert!(width <= most, "{long} × {short}: {width} × {height}");
                    beyond += u32::from(width > longest);
                    if long <= short * USUAL_RATIO {
                        assert!(width <= wide && height <= high, "{long} × {short}: {width} × {height}");
                    }
                }
            }
            assert_eq!(size.of(2 * longest - 1, 1), (2 * longest - 1, 1), "the longest that there is");
        }
        assert!(beyond > 1000, "{beyond}");
    }
}
