//! `[model]`: what requests hold and what workers are given.

use std::path::PathBuf;

use serde::Deserialize;

/// The model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Its name in paths: `[a-z0-9][a-z0-9._-]*`, at most 40 characters.
    pub name: String,
    /// Its version. Default "1".
    #[serde(default = "first")]
    pub version: String,
    /// Whether workers yield tokens step by step. Default false.
    #[serde(default)]
    pub generate: bool,
    /// What one item is.
    pub input: InputConfig,
    /// Parameters that requests may set; each becomes a tensor with one element an item.
    #[serde(default)]
    pub parameters: Vec<ParameterConfig>,
    /// What workers give; where it is stated it is checked and shown, else anything goes.
    #[serde(default)]
    pub outputs: Vec<OutputConfig>,
}

fn first() -> String {
    "1".to_owned()
}

/// What one item is. Paths are relative to the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum InputConfig {
    /// Texts: `input_ids`, `attention_mask` and, if asked for, `token_type_ids`.
    Text(TextInput),
    /// Images: `pixel_values`.
    Image(ImageInput),
    /// Tensors of the request as they are.
    Tensors {
        /// Each of them.
        tensors: Vec<TensorConfig>,
    },
    /// JSON objects: the tensors of a table schema.
    Table(TableInput),
}

/// How texts become tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// The tokenizer.json.
    pub tokenizer: PathBuf,
    /// Tokens that a text may have; default: what the tokenizer's file says, else 512.
    pub max_tokens: Option<usize>,
    /// Whether longer texts are cut (true, the default) or refused.
    #[serde(default = "yes")]
    pub truncate: bool,
    /// Whether workers are given `token_type_ids`. Default false.
    #[serde(default)]
    pub token_type_ids: bool,
    /// Widths are rounded up to a multiple of this. Default 1.
    #[serde(default = "one")]
    pub pad_to_multiple_of: usize,
    /// Pads on the left, as generating models want. Default: `generate`.
    pub pad_left: Option<bool>,
    /// Whether special tokens are added. Default true.
    #[serde(default = "yes")]
    pub special_tokens: bool,
}

/// How images become tensors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageInput {
    /// The preprocessor_config.json.
    pub processor: PathBuf,
    /// Pixels that an image may have. Default 64 Mi.
    pub max_pixels: Option<u64>,
}

/// How JSON objects become features.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableInput {
    /// The table schema, TOML or JSON.
    pub schema: PathBuf,
}

/// A tensor of a request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorConfig {
    /// Its name.
    pub name: String,
    /// Its element type: float32, int64, uint8, bool, ….
    pub dtype: String,
    /// The dims of one item; −1 where they vary (items of one batch then agree, or wait for another batch).
    #[serde(default)]
    pub shape: Vec<i64>,
    /// Bounds for the dims that vary, in their order.
    #[serde(default)]
    pub max_dims: Vec<u64>,
}

/// A tensor of an answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// The dims of one item; −1 where they vary.
    #[serde(default)]
    pub shape: Vec<i64>,
}

/// A parameter of a request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterConfig {
    /// Its name, in requests and in batches.
    pub name: String,
    /// Its element type: an integer, float32, float64 or bool.
    pub dtype: String,
    /// What an item has that does not set it.
    pub default: f64,
    /// The smallest value allowed.
    pub min: Option<f64>,
    /// The largest value allowed.
    pub max: Option<f64>,
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}
