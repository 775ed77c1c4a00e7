//! The schema of a table: which tensors there are, and what each of their columns is made of.

use std::fmt;
use std::path::Path as FilePath;

use serde::{Deserialize, Serialize};

use super::element::{IndexType, NumberType};
use super::error::SchemaError;
use super::hash::HashInput;

/// Tensors made of JSON lines, as a file of TOML or JSON says it.
///
/// ```
/// use forebay_ingest::table::TableSchema;
///
/// let schema = TableSchema::from_toml(r#"
///     [[tensors]]
///     name = "person"                     # dense f32 of shape rows × 4
///     columns = [
///         { type = "numeric", path = "age", missing = { mean = 38.5 } },
///         { type = "one_hot", path = "address.country", vocabulary = ["de", "fr"], unknown = "column" },
///     ]
///     [[tensors]]
///     name = "clicks"                     # row offsets, column numbers and values
///     layout = "sparse"
///     columns = [{ type = "hashed", path = "clicks", input = "dict", features = 262144, missing = "zeros" }]
/// "#)?;
/// assert_eq!(schema.tensors.len(), 2);
/// # Ok::<(), forebay_ingest::table::SchemaError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSchema {
    /// Version of this format: 1.
    #[serde(default = "version")]
    pub version: u32,
    /// The tensors, at least one.
    pub tensors: Vec<TensorSchema>,
}

fn version() -> u32 {
    1
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSchema {
    /// Its name, unique in the schema.
    pub name: String,
    /// Dense, if nothing is said.
    #[serde(default)]
    pub layout: Layout,
    /// Element type; `f32` if nothing is said, and always for a sparse one.
    #[serde(default = "single")]
    pub dtype: NumberType,
    /// Type of row offsets and column numbers of a sparse one.
    #[serde(default)]
    pub indices: IndexType,
    /// Where its columns come from, in their order; at least one.
    pub columns: Vec<ColumnSchema>,
}

fn single() -> NumberType {
    NumberType::F32
}

/// How a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// rows × columns elements.
    #[default]
    Dense,
    /// Compressed rows: rows + 1 offsets, and a column number and a value for each element that is not zero.
    Sparse,
}

/// What one value of a row becomes: one column of the tensor or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ColumnSchema {
    /// A number, true (1) or false (0): one column.
    Numeric {
        /// Where it stands.
        path: Path,
        /// What if it does not.
        #[serde(default)]
        missing: Missing,
    },
    /// A label: as many columns as the vocabulary has, 1 in the one of the label and 0 in all others.
    OneHot {
        /// Where it stands.
        path: Path,
        /// The labels, in the order of their columns.
        vocabulary: Vec<Label>,
        /// What if it is none of them.
        #[serde(default)]
        unknown: Unknown,
        /// What if there is none.
        #[serde(default)]
        missing: MissingLabel,
    },
    /// Names, each added to the column that its hash says, see [`FeatureHasher`](super::FeatureHasher).
    Hashed {
        /// Where they stand.
        path: Path,
        /// Number of columns, 1 to 2³¹ − 1.
        features: u32,
        /// In which form they stand there.
        #[serde(default)]
        input: HashInput,
        /// Whether half of the names count negative.
        #[serde(default = "yes")]
        alternate_sign: bool,
        /// What if there are none; not `unknown`.
        #[serde(default)]
        missing: MissingLabel,
    },
}

fn yes() -> bool {
    true
}

impl ColumnSchema {
    /// Where its value stands.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Numeric { path, .. } | Self::OneHot { path, .. } | Self::Hashed { path, .. } => path,
        }
    }

    /// Columns of the tensor that it fills.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Numeric { .. } => 1,
            Self::OneHot { vocabulary, unknown, .. } => vocabulary.len() + usize::from(*unknown == Unknown::Column),
            Self::Hashed { features, .. } => *features as usize,
        }
    }
}

/// Keys that lead to a value: `"a.b"` in a file, or `["a", "b"]`, also for keys that have dots in them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "PathText", into = "PathText")]
pub struct Path(Vec<String>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Dotted(String),
    Keys(Vec<String>),
}

impl Path {
    /// Its keys, outermost first.
    #[must_use]
    pub fn keys(&self) -> &[String] {
        &self.0
    }
}

impl From<&str> for Path {
    fn from(dotted: &str) -> Self {
        Self(dotted.split('.').map(str::to_owned).collect())
    }
}

impl From<Vec<String>> for Path {
    fn from(keys: Vec<String>) -> Self {
        Self(keys)
    }
}

impl From<PathText> for Path {
    fn from(text: PathText) -> Self {
        match text {
            PathText::Dotted(dotted) => dotted.as_str().into(),
            PathText::Keys(keys) => Self(keys),
        }
    }
}

impl From<Path> for PathText {
    fn from(path: Path) -> Self {
        if path.0.iter().any(|key| key.contains('.')) { Self::Keys(path.0) } else { Self::Dotted(path.0.join(".")) }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// A label of a vocabulary. `3` and `"3"` are two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Whole(i64),
    /// A string.
    Text(String),
}

/// What a number that is missing becomes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// An error of the line.
    #[default]
    Error,
    /// NaN; not for whole numbers.
    Nan,
    /// This number.
    Fill(f64),
    /// This number, which is the mean of the column: the same as `Fill`, said more clearly.
    Mean(f64),
}

/// What becomes of labels or names that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingLabel {
    /// An error of the line.
    #[default]
    Error,
    /// All columns are 0.
    Zeros,
    /// What an unknown label becomes.
    Unknown,
}

/// What a label becomes that is not in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// An error of the line.
    #[default]
    Error,
    /// All columns are 0.
    Zeros,
    /// 1 in a column of its own, after those of the vocabulary.
    Column,
}

impl TableSchema {
    /// Reads a `.toml` or `.json` file.
    ///
    /// # Errors
    /// [`SchemaError`] if it cannot be read, or is none.
    pub fn from_file(path: impl AsRef<FilePath>) -> Result<Self, SchemaError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let read =
            || std::fs::read_to_string(path).map_err(|source| SchemaError::Unreadable { path: name.clone(), source });
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Self::parse_toml(&read()?, &name),
            Some("json") => Self::parse_json(&read()?, &name),
            _ => Err(SchemaError::Extension { path: name }),
        }
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// [`SchemaError::Syntax`] if it is no schema. Whether it can be carried out is seen when an encoder is made.
    pub fn from_toml(text: &str) -> Result<Self, SchemaError> {
        Self::parse_toml(text, "the TOML text")
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml).
    pub fn from_json(text: &str) -> Result<Self, SchemaError> {
        Self::parse_json(text, "the JSON text")
    }

    fn parse_toml(text: &str, name: &str) -> Result<Self, SchemaError> {
        toml::from_str(text).map_err(|error| SchemaError::Syntax {
            name: name.to_owned(),
            detail: error.to_string().trim_end().to_owned(),
        })
    }

    fn parse_json(text: &str, name: &str) -> Result<Self, SchemaError> {
        serde_json::from_str(text)
            .map_err(|error| SchemaError::Syntax { name: name.to_owned(), detail: error.to_string() })
    }
}
