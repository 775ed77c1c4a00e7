//! The configuration: one TOML file, then `FOREBAY_SERVE_…` of the environment, then flags; the last one counts.
//!
//! Structures here hold what the file may say, with defaults; what fits together is checked once, at the start, before a
//! port is bound or a worker started.

mod batch;
mod check;
mod error;
mod keys;
mod load;
mod model;
mod server;
mod worker;

pub use batch::BatchConfig;
pub use error::{ConfigError, Origin};
pub use keys::{KEYS, Key};
pub use model::{
    ImageInput, InputConfig, ModelConfig, OutputConfig, ParameterConfig, TableInput, TensorConfig, TextInput,
};
pub use server::{AuthConfig, LimitsConfig, LogConfig, LogFormat, ServerConfig, TraceConfig};
pub use worker::{OnDeath, WorkerConfig};

use serde::Deserialize;

/// Everything that `forebay serve` is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where and how HTTP is spoken.
    #[serde(default)]
    pub server: ServerConfig,
    /// Who may ask, and how often.
    #[serde(default)]
    pub auth: AuthConfig,
    /// How much may be under way.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// What is logged.
    #[serde(default)]
    pub log: LogConfig,
    /// Where traces go.
    #[serde(default)]
    pub trace: TraceConfig,
    /// The model.
    pub model: ModelConfig,
    /// How items become batches.
    #[serde(default)]
    pub batch: BatchConfig,
    /// The processes that run the model.
    pub worker: WorkerConfig,
}
