//! Reading a Hugging Face `preprocessor_config.json`.
//!
//! A key either does what it does there, or cannot change the tensor, or is an error: nothing is passed over in
//! silence. Keys that are missing get the defaults of the processor's kind.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::geometry::Size;
use super::known::{self, DefaultSize, KNOWN, Known, Style};
use super::recipe::{Pad, Recipe};
use super::resize::Filter;
use super::tensor::Normalize;

/// Why a configuration makes no image processor. Retrying does not help unless it was changed in between.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageConfigError {
    /// The file is missing or may not be read.
    #[error("cannot read {}: {source}; expected a preprocessor_config.json, or a folder holding one", path.display())]
    Unreadable {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is not one JSON object.
    #[error("not a preprocessor_config.json: {detail}; expected a JSON object as transformers saves it")]
    NotJson {
        /// What does not fit.
        detail: String,
    },
    /// Nothing says which processor it is, and with it the defaults and the steps.
    #[error(
        "the configuration has neither image_processor_type nor feature_extractor_type; add the one of the model, such \
         as \"ViTImageProcessor\""
    )]
    NoType,
    /// The processor has steps that are not known here.
    #[error(
        "the image processor {found:?} is not supported, expected one of {}; prepare these images with transformers",
        known_names()
    )]
    UnknownType {
        /// The name found.
        found: String,
    },
    /// A key that is not known: it may change the tensor.
    #[error(
        "the key {key:?} (value {value}) is not supported for {processor}; remove it if it does not change the tensor, \
         else prepare these images with transformers"
    )]
    UnknownKey {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The processor.
        processor: String,
    },
    /// A value that cannot be meant.
    #[error("{key} is {found}, expected {expected}; change the configuration")]
    BadValue {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The elements asked for cannot hold what the steps compute.
    #[error(
        "dtype is u8, but the images are rescaled or normalized; choose f32, f16 or bf16, or set do_rescale and \
         do_normalize to false"
    )]
    BytesCannotHold,
}

fn known_names() -> String {
    let names: Vec<String> = KNOWN.iter().map(|known| format!("{}ImageProcessor", known.stem)).collect();
    names.join(", ")
}

/// Larger configurations are no configurations.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most rows or columns that a configuration may ask for.
const MAX_SIDE: u64 = 65_535;

/// Keys that say where a configuration comes from, or concern labels and boxes, and change no pixel.
const IDLE: [&str; 21] = [
    "_name_or_path",
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_annotations",
    "do_convert_rgb",
    "do_reduce_labels",
    "reduce_labels",
    "feature_extractor_type",
    "format",
    "image_processor_type",
    "input_data_format",
    "masks_path",
    "model_input_names",
    "processor_class",
    "return_segmentation_masks",
    "return_tensors",
    "transformers_version",
    "use_fast",
];

/// Keys that are read.
const READ: [&str; 15] = [
    "crop_pct",
    "crop_size",
    "do_center_crop",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "max_size",
    "pad_and_return_pixel_mask",
    "pad_size",
    "resample",
    "rescale_factor",
    "size",
];

impl Recipe {
    /// The recipe of a `preprocessor_config.json`, given as its text.
    ///
    /// # Errors
    /// [`ImageConfigError`] if it is not JSON, names a processor or a key that is not supported, or holds a value that
    /// cannot be meant.
    pub fn from_config(json: &str) -> Result<Self, ImageConfigError> {
        let value: Value = serde_json::from_str(json).map_err(|e| not_json(e.to_string()))?;
        let Value::Object(mut object) = value else {
            return Err(not_json("it is not an object".into()));
        };
        // The processor_config.json of transformers 5 holds the image processor's configuration as one of several.
        if let Some(Value::Object(inner)) = object.remove("image_processor") {
            object = inner;
        }
        Config::new(&object)?.recipe()
    }

    /// The recipe of the file `path`, or of the `preprocessor_config.json` (else `processor_config.json`) in the folder
    /// `path`.
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config), or if there is no such file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ImageConfigError> {
        let given = path.as_ref();
        let mut path = given.to_owned();
        if given.is_dir() {
            path = given.join("preprocessor_config.json");
            let other = given.join("processor_config.json");
            if !path.exists() && other.exists() {
                path = other;
            }
        }
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(|source| ImageConfigError::Unreadable { path, source })?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(not_json(format!("it is larger than {MAX_FILE_BYTES} bytes")));
        }
        Self::from_config(&text)
    }
}

fn not_json(detail: String) -> ImageConfigError {
    ImageConfigError::NotJson { detail }
}

/// A configuration whose keys are all known.
struct Config<'a> {
    object: &'a Map<String, Value>,
    known: &'static Known,
}

impl<'a> Config<'a> {
    fn new(object: &'a Map<String, Value>) -> Result<Self, ImageConfigError> {
        let name = ["image_processor_type", "feature_extractor_type"].into_iter().find_map(|key| object.get(key));
        let name = name.and_then(Value::as_str).ok_or(ImageConfigError::NoType)?;
        let known = known::find(name).ok_or_else(|| ImageConfigError::UnknownType { found: name.to_owned() })?;
        for (key, value) in object {
            // What is not set, or a step that is not taken, changes nothing.
            let off = value.is_null() || (key.starts_with("do_") && value == &Value::Bool(false));
            if !off && !IDLE.contains(&key.as_str()) && !READ.contains(&key.as_str()) {
                return Err(unknown_key(key, value, name));
            }
        }
        let config = Self { object, known };
        for (key, style) in [("crop_pct", Style::ConvNext), ("max_size", Style::Detr)] {
            if let (Some(value), true) = (config.get(key), known.style != style) {
                return Err(unknown_key(key, value, name));
            }
        }
        if config.get("data_format").is_some_and(|value| !["channels_first", "first"].iter().any(|name| value == name))
        {
            return Err(config.bad("data_format", "\"channels_first\" (ask for another order in the options)"));
        }
        Ok(config)
    }

    fn recipe(&self) -> Result<Recipe, ImageConfigError> {
        let mut recipe = Recipe::default();
        if self.flag("do_resize", true)? {
            recipe.resize = Some((self.size()?, self.filter()?));
        }
        if self.flag("do_center_crop", self.known.do_center_crop)? {
            let default = self.known.crop.map(|side| (side, side));
            let crop = self.rectangle("crop_size")?.or(default);
            recipe.crop =
                Some(crop.ok_or_else(|| self.bad("crop_size", "a height and a width, as do_center_crop is set"))?);
        }
        if self.known.style == Style::ConvNext {
            self.convnext(&mut recipe)?;
        }
        if self.flag("do_rescale", true)? {
            recipe.rescale = Some(self.number("rescale_factor")?.unwrap_or(1.0 / 255.0));
        }
        if self.flag("do_normalize", self.known.do_normalize)? {
            let mean = self.channels("image_mean")?.unwrap_or(self.known.mean);
            let std = self.channels("image_std")?.unwrap_or(self.known.std);
            if std.iter().any(|&std| std as f32 == 0.0) {
                return Err(self.bad("image_std", "numbers other than 0"));
            }
            recipe.normalize = Some(Normalize { mean, std });
        }
        let asked = self.flag("pad_and_return_pixel_mask", self.known.do_pad)?;
        if self.flag("do_pad", asked)? {
            let size = self.rectangle("pad_size")?;
            recipe.pad = Some(size.map_or(Pad::Largest, |(height, width)| Pad::To { height, width }));
        }
        Ok(recipe)
    }

    /// Sizes below 384 are resized to size / crop_pct on the shorter side, then cropped; others are made square.
    fn convnext(&self, recipe: &mut Recipe) -> Result<(), ImageConfigError> {
        let Some((size, filter)) = recipe.resize else { return Ok(()) };
        let Size::ShortestEdge { edge, longest: None } = size else {
            return Err(self.bad("size", "{\"shortest_edge\": n}"));
        };
        if recipe.crop.is_some() {
            return Err(self.bad("do_center_crop", "false: this processor crops by crop_pct"));
        }
        if edge >= 384 {
            recipe.resize = Some((Size::Fixed { height: edge, width: edge }, filter));
            return Ok(());
        }
        let percent = self.number("crop_pct")?.unwrap_or(224.0 / 256.0);
        if !(percent > 0.0 && percent <= 1.0) {
            return Err(self.bad("crop_pct", "more than 0 and at most 1"));
        }
        let resized = (f64::from(edge) / percent) as u64;
        if resized > MAX_SIDE {
            return Err(self.bad("crop_pct", "one that gives at most 65535 pixels a side"));
        }
        recipe.resize = Some((Size::ShortestEdge { edge: resized as u32, longest: None }, filter));
        recipe.crop = Some((edge, edge));
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &'static str, expected: &'static str) -> ImageConfigError {
        let found = self.object.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        ImageConfigError::BadValue { key, found, expected }
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, ImageConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(key, "true or false")),
        }
    }

    fn number(&self, key: &'static str) -> Result<Option<f64>, ImageConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.bad(key, "a number")),
        }
    }

    /// One number for all channels, or one for each.
    fn channels(&self, key: &'static str) -> Result<Option<[f64; 3]>, ImageConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let expected = "one number, or three in single precision";
        let numbers: Option<Vec<f64>> = match value {
            Value::Array(values) => values.iter().map(Value::as_f64).collect(),
            value => value.as_f64().map(|number| vec![number; 3]),
        };
        let numbers = numbers.filter(|numbers| numbers.iter().all(|&number| (number as f32).is_finite()));
        numbers.and_then(|numbers| numbers.try_into().ok()).map(Some).ok_or_else(|| self.bad(key, expected))
    }

    fn filter(&self) -> Result<Filter, ImageConfigError> {
        let found = match self.get("resample") {
            None => Filter::from_number(self.known.resample),
            Some(Value::String(name)) => Filter::from_name(name),
            Some(value) => value.as_u64().and_then(Filter::from_number),
        };
        found.ok_or_else(|| self.bad("resample", "0 to 5, or one of Pillow's names"))
    }

    /// A number of pixels a side.
    fn side(&self, value: &Value) -> Option<u32> {
        value.as_u64().filter(|side| (1..=MAX_SIDE).contains(side)).map(|side| side as u32)
    }

    /// A height and a width: as an object, a list, or one number for both.
    fn rectangle(&self, key: &'static str) -> Result<Option<(u32, u32)>, ImageConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = match value {
            Value::Object(object) if object.len() == 2 => {
                let side = |key| object.get(key).and_then(|value| self.side(value));
                side("height").zip(side("width"))
            }
            Value::Array(sides) if sides.len() == 2 => self.side(&sides[0]).zip(self.side(&sides[1])),
            value => self.side(value).map(|side| (side, side)),
        };
        let expected = "a height and a width of 1 to 65535 pixels";
        found.map(Some).ok_or_else(|| self.bad(key, expected))
    }

    fn size(&self) -> Result<Size, ImageConfigError> {
        let expected = "a height and a width, a shortest_edge (with longest_edge or not), or a max_height and a max_width, \
                        of 1 to 65535 pixels";
        let bad = || self.bad("size", expected);
        let Some(value) = self.get("size") else {
            return Ok(match self.known.size {
                DefaultSize::Square(side) => Size::Fixed { height: side, width: side },
                DefaultSize::Shortest(edge) => Size::ShortestEdge { edge, longest: None },
                DefaultSize::ShortestUpTo(edge, longest) => Size::ShortestEdge { edge, longest: Some(longest) },
            });
        };
        let object = match value {
            Value::Object(object) => object,
            Value::Array(_) => {
                let (height, width) = self.rectangle("size")?.ok_or_else(bad)?;
                return Ok(Size::Fixed { height, width });
            }
            value => return self.plain_size(self.side(value).ok_or_else(bad)?),
        };
        // Keys that are there but null are not there, as for transformers.
        let mut sides: Vec<(&str, u32)> = Vec::with_capacity(2);
        for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            sides.push((key, self.side(value).ok_or_else(bad)?));
        }
        sides.sort_unstable();
        match sides[..] {
            [("height", height), ("width", width)] => Ok(Size::Fixed { height, width }),
            [("shortest_edge", edge)] => Ok(Size::ShortestEdge { edge, longest: None }),
            [("longest_edge", longest), ("shortest_edge", edge)] => {
                Ok(Size::ShortestEdge { edge, longest: Some(longest) })
            }
            [("max_height", height), ("max_width", width)] => Ok(Size::Within { height, width }),
            [("longest_edge", edge)] => Ok(Size::Within { height: edge, width: edge }),
            _ => Err(bad()),
        }
    }

    /// A size that is one number, as old configurations have it.
    fn plain_size(&self, side: u32) -> Result<Size, ImageConfigError> {
        let square = self.flag("default_to_square", self.known.default_to_square)?;
        if self.known.style == Style::Detr {
            let longest = match self.get("max_size") {
                None => 1333,
                Some(value) => self.side(value).ok_or_else(|| self.bad("max_size", "1 to 65535 pixels"))?,
            };
            return Ok(Size::ShortestEdge { edge: side, longest: Some(longest) });
        }
        Ok(if square {
            Size::Fixed { height: side, width: side }
        } else {
            Size::ShortestEdge { edge: side, longest: None }
        })
    }
}

fn unknown_key(key: &str, value: &Value, processor: &str) -> ImageConfigError {
    ImageConfigError::UnknownKey { key: key.to_owned(), value: value.to_string(), processor: processor.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(json: &str) -> Recipe {
        Recipe::from_config(json).unwrap()
    }

    fn why(json: &str) -> String {
        Recipe::from_config(json).unwrap_err().to_string()
    }

    #[test]
    fn a_name_alone_has_the_defaults_of_its_kind() {
        let clip = recipe(r#"{"image_processor_type": "CLIPImageProcessor"}"#);
        assert_eq!(clip.resize, Some((Size::ShortestEdge { edge: 224, longest: None }, Filter::Bicubic)));
        assert_eq!(clip.crop, Some((224, 224)));
        assert_eq!((clip.rescale, clip.pad, clip.fixed_size()), (Some(1.0 / 255.0), None, Some((224, 224))));
        assert_eq!(clip, recipe(r#"{"feature_extractor_type": "CLIPFeatureExtractor"}"#));
        assert_eq!(clip, recipe(r#"{"image_processor_type": "CLIPImageProcessorFast"}"#));
        let detr = recipe(r#"{"image_processor_type": "DetrImageProcessor"}"#);
        assert_eq!(detr.resize.unwrap().0, Size::ShortestEdge { edge: 800, longest: Some(1333) });
        assert_eq!((detr.pad, detr.fixed_size()), (Some(Pad::Largest), None));
    }

    #[test]
    fn a_size_has_many_forms() {
        let size = |kind: &str, size: &str| {
            let json = format!(r#"{{"image_processor_type": "{kind}ImageProcessor", "size": {size}}}"#);
            recipe(&json).resize.unwrap().0
        };
        let fixed = |height, width| Size::Fixed { height, width };
        assert_eq!(size("ViT", "32"), fixed(32, 32));
        assert_eq!(size("ViT", "[32, 48]"), fixed(32, 48));
        assert_eq!(size("ViT", r#"{"width": 48, "height": 32, "shortest_edge": null}"#), fixed(32, 48));
        assert_eq!(size("CLIP", "32"), Size::ShortestEdge { edge: 32, longest: None });
        assert_eq!(size("Detr", "32"), Size::ShortestEdge { edge: 32, longest: Some(1333) });
        assert_eq!(size("ViT", r#"{"max_height": 5, "max_width": 6}"#), Size::Within { height: 5, width: 6 });
        assert_eq!(size("ViT", r#"{"longest_edge": 6}"#), Size::Within { height: 6, width: 6 });
    }

    #[test]
    fn convnext_crops_by_its_percentage() {
        let small = recipe(r#"{"image_processor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875}"#);
        assert_eq!(small.resize.unwrap().0, Size::ShortestEdge { edge: 256, longest: None });
        assert_eq!(small.crop, Some((224, 224)));
        let large = recipe(r#"{"image_processor_type": "ConvNextFeatureExtractor", "size": 384}"#);
        assert_eq!((large.resize.unwrap().0, large.crop), (Size::Fixed { height: 384, width: 384 }, None));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (json, words) in [
            ("[]", ["not an object", "JSON"]),
            ("{\"a\": 1", ["not a preprocessor_config.json", "EOF"]),
            ("{}", ["image_processor_type", "ViTImageProcessor"]),
            (r#"{"image_processor_type": "Qwen2VLImageProcessor"}"#, ["Qwen2VLImageProcessor", "CLIPImageProcessor"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "do_sharpen": true}"#, ["do_sharpen", "true"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "rescale_offset": 1}"#, ["rescale_offset", "ViTImage"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "crop_pct": 0.9}"#, ["crop_pct", "0.9"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "resample": 6}"#, ["resample is 6", "0 to 5"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "size": 0}"#, ["size is 0", "65535"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 3}}"#, ["size is", "a width"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "do_resize": 1}"#, ["do_resize is 1", "true or false"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "image_std": [1, 1, 0]}"#, ["image_std", "other than 0"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "image_mean": [1, 1]}"#, ["image_mean", "three"]),
            (r#"{"image_processor_type": "ViTImageProcessor", "image_mean": 1e300}"#, ["image_mean", "single"]),
            (
                r#"{"image_processor_type": "ViTImageProcessor", "do_center_crop": true}"#,
                ["crop_size is missing", "width"],
            ),
            (
                r#"{"image_processor_type": "ViTImageProcessor", "data_format": "channels_last"}"#,
                ["data_format", "options"],
            ),
        ] {
            let why = why(json);
            assert!(words.iter().all(|word| why.contains(word)), "{json}: {why}");
        }
    }

    #[test]
    fn what_cannot_change_a_tensor_is_let_pass() {
        let plain = recipe(r#"{"image_processor_type": "ViTImageProcessor"}"#);
        let more = r#"{"image_processor_type": "ViTImageProcessor", "do_flip": false, "patches": null,
            "transformers_version": "5", "do_reduce_labels": true, "default_to_square": true, "device": null}"#;
        assert_eq!(recipe(more), plain);
        assert_eq!(
            recipe(r#"{"image_processor": {"image_processor_type": "ViTImageProcessor"}, "tokenizer": 3}"#),
            plain
        );
    }

    #[test]
    fn a_folder_is_looked_into_and_a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Recipe::from_file(folder.path()).unwrap_err().to_string();
        assert!(missing.contains("preprocessor_config.json"), "{missing}");
        let config = r#"{"image_processor_type": "ViTImageProcessor"}"#;
        std::fs::write(folder.path().join("preprocessor_config.json"), config).unwrap();
        assert_eq!(Recipe::from_file(folder.path()).unwrap(), recipe(config));
    }
}
