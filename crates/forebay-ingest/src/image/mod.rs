//! Images become tensors: decoded, turned upright, resized, cropped, normalized, and written where they are wanted.
//!
//! ```text
//!   bytes ─▶ header, limits ─▶ decode ─▶ turn ─▶ resize, crop ─▶ rescale · normalize · layout · dtype ─▶ a slot
//!            JPEG PNG WebP     RGB, u8   EXIF    RGB, u8         one look-up an element
//! ```
//!
//! - [`Recipe`] is what is done, read from a Hugging Face `preprocessor_config.json` ([`Recipe::from_config`]).
//! - [`ImageProcessor`] does it: one image ([`ImageProcessor::prepare`]), or a batch on many cores
//!   ([`ImageProcessor::plan`], [`ImageProcessor::run`]) in which a bad image is a failure of its own.
//! - [`ImageSource`] reads images from files and from tar shards, and knows where it stands.
//!
//! ```
//! use forebay_ingest::Work;
//! use forebay_ingest::image::{ImageOptions, ImageProcessor, Recipe};
//!
//! let recipe = Recipe::from_config(r#"{"image_processor_type": "CLIPImageProcessor"}"#)?;
//! let processor = ImageProcessor::new(recipe, ImageOptions::default())?;
//! # let photograph: &[u8] = include_bytes!("../../tests/data/images/gradient.png");
//! let images = [photograph, b"no image"];
//! let work = Work::shared();
//! let plan = processor.plan(&images, &work)?;
//! // In a feeder: a slot of this shape is loaned, and `out` is its bytes.
//! assert_eq!(plan.shape(&processor), [2, 3, 224, 224]);
//! let mut out = vec![0; plan.bytes(&processor)];
//! let failures = processor.run(&plan, &images, &mut out, None, &work)?;
//! assert_eq!(failures.len(), 1);
//! assert!(failures[0].to_string().starts_with("image 1: not an image"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What an image may be
//!
//! JPEG (baseline, progressive; gray or RGB), PNG (every colour type and depth) and WebP (lossy, lossless), told apart by
//! their first bytes. Animations, CMYK and arithmetically coded JPEGs are refused by name. Colour profiles are not
//! applied. Limits ([`ImageLimits`]), of an image and of all in a batch, are looked at in the header.
//!
//! # The same everywhere
//!
//! A tensor depends on the bytes of its image, the recipe and the options: not on the number of threads, the neighbours
//! in the batch or the place it is written to.

mod batch;
mod config;
mod decode;
mod error;
mod exact;
mod exif;
mod geometry;
mod header;
mod known;
mod orient;
mod processor;
mod recipe;
mod resize;
mod source;
mod tensor;

pub use batch::ImageBatchPlan;
pub(crate) use batch::fill_mask;
pub use config::ImageConfigError;
pub use decode::{Damage, Transparency};
pub use error::{ImageBatchError, ImageError, ImageFailure};
pub use geometry::Size;
pub use header::{ImageFormat, ImageHeader, ImageLimits, Orientation};
pub use processor::{ImageOptions, ImageProcessor};
pub use recipe::{Pad, Recipe};
pub use resize::{Filter, Resampling};
pub use source::{ImagePosition, ImageSource, ImageSourceError, ImageSourceOptions, Sample, SampleError};
pub use tensor::{ChannelOrder, Dtype, Normalize};
