//! A schema made ready: the keys as a tree, the values as numbered cells, the columns as what is done with a cell.

use std::collections::HashMap;

use super::element::{IndexType, Number, NumberType};
use super::error::SchemaError;
use super::hash::{FeatureHasher, HashInput, MAX_FEATURES};
use super::schema::{ColumnSchema, Label, Layout, Missing, MissingLabel, Path, TableSchema, TensorSchema, Unknown};

/// Most keys in a path.
const MAX_DEPTH: usize = 64;

/// A schema made ready.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The tree of keys; the root is the line itself.
    pub(crate) nodes: Vec<Node>,
    pub(crate) cells: Vec<CellPlan>,
    pub(crate) tensors: Vec<TensorPlan>,
}

/// An object on the way to values, or a value.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) path: String,
    children: Vec<(Box<str>, usize)>,
    by_name: HashMap<Box<str>, usize>,
    /// The cell that the value goes to; such a node has no children.
    pub(crate) cell: Option<usize>,
}

impl Node {
    /// The child of this name. `expected` is where it would be if keys came in the order of the schema.
    #[inline]
    pub(crate) fn child(&self, key: &str, expected: &mut usize) -> Option<usize> {
        if let Some((name, child)) = self.children.get(*expected)
            && **name == *key
        {
            *expected += 1;
            return Some(*child);
        }
        if self.children.len() > 8 {
            return self.by_name.get(key).copied();
        }
        let at = self.children.iter().position(|(name, _)| **name == *key)?;
        *expected = at + 1;
        Some(self.children[at].1)
    }
}

/// What a value may be.
#[derive(Debug)]
pub(crate) struct CellPlan {
    pub(crate) path: String,
    /// The form of names in it, if any column hashes them.
    pub(crate) features: Option<HashInput>,
}

#[derive(Debug)]
pub(crate) struct TensorPlan {
    pub(crate) name: String,
    pub(crate) layout: Layout,
    pub(crate) dtype: NumberType,
    pub(crate) indices: IndexType,
    pub(crate) width: usize,
    pub(crate) columns: Vec<ColumnPlan>,
}

#[derive(Debug)]
pub(crate) struct ColumnPlan {
    pub(crate) cell: usize,
    /// Its first column in the tensor.
    pub(crate) first: usize,
    pub(crate) kind: ColumnKind,
}

#[derive(Debug)]
pub(crate) enum ColumnKind {
    Numeric {
        /// `None`: an error.
        missing: Option<Number>,
    },
    OneHot {
        texts: HashMap<Box<str>, u32>,
        wholes: HashMap<i64, u32>,
        bools: [Option<u32>; 2],
        unknown: Unknown,
        missing: MissingLabel,
        /// Number of labels; the column of unknown ones, if there is one.
        labels: u32,
    },
    Hashed {
        hasher: FeatureHasher,
        input: HashInput,
        missing: MissingLabel,
    },
}

impl Plan {
    pub(crate) fn new(schema: &TableSchema) -> Result<Self, SchemaError> {
        if schema.version != 1 {
            return Err(SchemaError::Version { found: schema.version });
        }
        let mut plan = Self { nodes: vec![Node::default()], cells: Vec::new(), tensors: Vec::new() };
        for tensor in &schema.tensors {
            let made = plan.tensor(tensor)?;
            plan.tensors.push(made);
        }
        if plan.tensors.is_empty() {
            let problem = "the schema has no tensors; add one".to_owned();
            return Err(SchemaError::Invalid { tensor: String::new(), column: None, problem });
        }
        Ok(plan)
    }

    fn tensor(&mut self, schema: &TensorSchema) -> Result<TensorPlan, SchemaError> {
        let refuse = |problem: &str| {
            Err(SchemaError::Invalid { tensor: schema.name.clone(), column: None, problem: problem.to_owned() })
        };
        if schema.name.is_empty() {
            return refuse("its name is empty; give it one");
        }
        if self.tensors.iter().any(|other| other.name == schema.name) {
            return refuse("there are two of this name; rename one");
        }
        if schema.columns.is_empty() {
            return refuse("it has no columns; add one");
        }
        if schema.layout == Layout::Sparse && schema.dtype != NumberType::F32 {
            return refuse("sparse tensors are of f32; leave dtype out");
        }
        let (mut columns, mut width) = (Vec::with_capacity(schema.columns.len()), 0usize);
        for column in &schema.columns {
            let refused = |problem: String| SchemaError::Invalid {
                tensor: schema.name.clone(),
                column: Some(column.path().to_string()),
                problem,
            };
            let kind = kind(column, schema).map_err(refused)?;
            let features = match column {
                ColumnSchema::Hashed { input, .. } => Some(*input),
                _ => None,
            };
            let cell = self.cell(column.path(), features).map_err(refused)?;
            columns.push(ColumnPlan { cell, first: width, kind });
            width += column.width();
            if width > MAX_FEATURES as usize {
                return refuse("it has more than 2147483647 columns; hash into fewer");
            }
        }
        let (name, layout, dtype, indices) = (schema.name.clone(), schema.layout, schema.dtype, schema.indices);
        Ok(TensorPlan { name, layout, dtype, indices, width, columns })
    }

    /// The cell at a path, made if it is new.
    fn cell(&mut self, path: &Path, features: Option<HashInput>) -> Result<usize, String> {
        let keys = path.keys();
        if keys.is_empty() || keys.len() > MAX_DEPTH {
            return Err(format!("the path has {} keys, expected 1 to {MAX_DEPTH}", keys.len()));
        }
        if keys.len() > 1 && keys.iter().any(String::is_empty) {
            return Err("a key of the path is empty; for keys with dots write a list of keys".to_owned());
        }
        let inside = || "another column takes the whole object that this path leads into; keep one of them".to_owned();
        let mut at = 0;
        for (depth, key) in keys.iter().enumerate() {
            if self.nodes[at].cell.is_some() {
                return Err(inside());
            }
            at = match self.nodes[at].by_name.get(key.as_str()) {
                Some(&child) => child,
                None => {
                    let new = self.nodes.len();
                    self.nodes.push(Node { path: keys[..=depth].join("."), ..Node::default() });
                    self.nodes[at].children.push((key.as_str().into(), new));
                    self.nodes[at].by_name.insert(key.as_str().into(), new);
                    new
                }
            };
        }
        if !self.nodes[at].children.is_empty() {
            return Err(inside());
        }
        let cell = *self.nodes[at].cell.get_or_insert_with(|| {
            self.cells.push(CellPlan { path: path.to_string(), features: None });
            self.cells.len() - 1
        });
        match (self.cells[cell].features, features) {
            (Some(old), Some(new)) if old != new => {
                Err("another column hashes the same path with another input; say the same".to_owned())
            }
            (old, new) => {
                self.cells[cell].features = old.or(new);
                Ok(cell)
            }
        }
    }
}

fn kind(column: &ColumnSchema, tensor: &TensorSchema) -> Result<ColumnKind, String> {
    let dtype = tensor.dtype;
    match column {
        ColumnSchema::Numeric { missing, .. } => {
            let missing = match *missing {
                Missing::Error => None,
                Missing::Nan if !dtype.is_float() => {
                    return Err(format!("missing is \"nan\", which {dtype} does not have; use {{ fill = … }}"));
                }
                Missing::Nan => Some(Number::Float(f64::NAN)),
                Missing::Fill(value) | Missing::Mean(value) => {
                    if !value.is_finite() || !dtype.fits(Number::Float(value)) {
                        return Err(format!("missing values become {value}, which is not a finite {dtype}; change it"));
                    }
                    Some(Number::Float(value))
                }
            };
            Ok(ColumnKind::Numeric { missing })
        }
        ColumnSchema::OneHot { vocabulary, unknown, missing, .. } => {
            if vocabulary.is_empty() {
                return Err("the vocabulary is empty; list its labels".to_owned());
            }
            let (mut texts, mut wholes, mut bools) = (HashMap::new(), HashMap::new(), [None; 2]);
            for (at, label) in vocabulary.iter().enumerate() {
                let at = u32::try_from(at).map_err(|_| "the vocabulary is too long".to_owned())?;
                let twice = match label {
                    Label::Text(text) => texts.insert(text.as_str().into(), at),
                    Label::Whole(whole) => wholes.insert(*whole, at),
                    Label::Bool(bool) => bools[usize::from(*bool)].replace(at),
                };
                if twice.is_some() {
                    return Err(format!("the vocabulary has {label:?} twice; remove one"));
                }
            }
            let labels = u32::try_from(vocabulary.len()).map_err(|_| "the vocabulary is too long".to_owned())?;
            Ok(ColumnKind::OneHot { texts, wholes, bools, unknown: *unknown, missing: *missing, labels })
        }
        ColumnSchema::Hashed { features, input, alternate_sign, missing, .. } => {
            if tensor.layout == Layout::Dense && !dtype.is_float() {
                return Err(format!("hashed columns add up signed numbers, which {dtype} cannot hold; use f32 or f64"));
            }
            if *missing == MissingLabel::Unknown {
                return Err("hashed columns know no unknown names; missing is \"error\" or \"zeros\"".to_owned());
            }
            let hasher = FeatureHasher::new(*features, *alternate_sign)
                .ok_or_else(|| format!("features is {features}, expected 1 to {MAX_FEATURES}"))?;
            Ok(ColumnKind::Hashed { hasher, input: *input, missing: *missing })
        }
    }
}
