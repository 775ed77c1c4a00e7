//! Tensors of a request, checked against the configuration and passed on as they are.

use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use forebay::DType;

use super::{Body, IntakeError, refuse};
use crate::{
    backend::{ItemError, NamedTensor, Refusal, TensorInfo},
    config::TensorConfig,
    schedule::Size,
};

pub(super) struct Tensors {
    all: Vec<Declared>,
    /// Dims become group numbers; a key of its own, so that nobody can make two of them equal.
    hasher: RandomState,
}

struct Declared {
    name: String,
    dtype: DType,
    /// The dims of one item; `None` varies.
    shape: Vec<Option<u64>>,
    /// Upper bounds of all dims, as far as there are any.
    bounds: Vec<Option<u64>>,
}

/// The rows of one tensor of a call.
#[derive(Debug)]
pub(super) struct Rows {
    shape: Vec<u64>,
    each: usize,
    bytes: Bytes,
}

impl Rows {
    /// The dims of one item.
    pub(super) fn shape(&self) -> &[u64] {
        &self.shape
    }

    pub(super) fn row(&self, row: usize) -> &[u8] {
        self.bytes.get(row * self.each..(row + 1) * self.each).unwrap_or_default()
    }
}

impl Declared {
    fn new(config: &TensorConfig, key: &str) -> Result<Self, IntakeError> {
        let dtype = config.dtype.parse().map_err(|e| IntakeError::new(format!("{key}.dtype"), e))?;
        let mut bounds = config.max_dims.iter();
        let dim = |&dim: &i64| match u64::try_from(dim) {
            Ok(dim) => Ok((Some(dim), Some(dim))),
            Err(_) if dim == -1 => Ok((None, bounds.next().copied())),
            Err(_) => Err(IntakeError::new(format!("{key}.shape"), format!("{dim}; expected a size, or -1"))),
        };
        let dims: Vec<_> = config.shape.iter().map(dim).collect::<Result<_, _>>()?;
        let (shape, bounds) = dims.into_iter().unzip();
        Ok(Self { name: config.name.clone(), dtype, shape, bounds })
    }

    /// Bytes of the largest item, if there is one.
    fn largest(&self) -> Option<u64> {
        let elements = self.bounds.iter().try_fold(1u64, |all, bound| bound.map(|bound| all.saturating_mul(bound)));
        elements.map(|elements| elements.saturating_mul(self.dtype.size() as u64))
    }

    fn show(&self) -> String {
        let dims = self.shape.iter().map(|dim| dim.map_or_else(|| "any".to_owned(), |dim| dim.to_string()));
        format!("[items, {}]", dims.collect::<Vec<_>>().join(", ")).replace(", ]", "]")
    }

    /// Checks the tensor of a call, which is number `at` in it.
    fn check(&self, at: usize, given: NamedTensor) -> Result<Rows, Refusal> {
        let shape_is_not = |message: String| refuse(format!("inputs[{at}].shape"), message);
        if given.dtype != self.dtype {
            let message = format!("{:?} is of {}, expected {}", self.name, given.dtype, self.dtype);
            return Err(refuse(format!("inputs[{at}].datatype"), message));
        }
        let fits = |(dim, bound): (&u64, (&Option<u64>, &Option<u64>))| match bound {
            (Some(exact), _) => dim == exact,
            (None, Some(most)) => dim <= most,
            (None, None) => true,
        };
        let item = given.shape.get(1..).unwrap_or_default();
        let same_rank = given.shape.len() == self.shape.len() + 1;
        if !same_rank || !item.iter().zip(self.shape.iter().zip(&self.bounds)).all(fits) {
            let bounds: Vec<u64> = self.bounds.iter().flatten().copied().collect();
            let within = if self.shape.contains(&None) && !bounds.is_empty() {
                format!(", at most {bounds:?}")
            } else {
                String::new()
            };
            let message = format!("{:?} has shape {:?}, expected {}{within}", self.name, given.shape, self.show());
            return Err(shape_is_not(message));
        }
        let each = item.iter().try_fold(self.dtype.size() as u64, |all, &dim| all.checked_mul(dim));
        let items = given.shape[0];
        let found = given.bytes.len() as u64;
        match each.filter(|each| each.checked_mul(items) == Some(found)) {
            Some(each) => Ok(Rows { shape: item.to_vec(), each: each as usize, bytes: given.bytes }),
            None => Err(refuse(
                format!("inputs[{at}].data"),
                format!("{:?} has {found} bytes, which is not what its shape {:?} needs", self.name, given.shape),
            )),
        }
    }
}

impl Tensors {
    pub(super) fn new(config: &[TensorConfig]) -> Result<Self, IntakeError> {
        let key = "model.input.tensors";
        if config.is_empty() {
            return Err(IntakeError::new(key, "none; declare at least one"));
        }
        let all = config.iter().enumerate().map(|(at, tensor)| Declared::new(tensor, &format!("{key}[{at}]")));
        Ok(Self { all: all.collect::<Result<_, _>>()?, hasher: RandomState::new() })
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Bytes of the largest item, if there is one.
    pub(super) fn largest(&self) -> Option<u64> {
        self.all.iter().try_fold(0u64, |sum, tensor| tensor.largest().map(|bytes| sum.saturating_add(bytes)))
    }

    pub(super) fn tensors(&self) -> Vec<TensorInfo> {
        let one = |tensor: &Declared| TensorInfo {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        };
        self.all.iter().map(one).collect()
    }

    pub(super) fn prepare(&self, given: Vec<NamedTensor>) -> Result<(Vec<Result<Size, ItemError>>, Body), Refusal> {
        let names = || self.all.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", ");
        let items = given.first().and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0);
        let mut rows: Vec<Option<Rows>> = self.all.iter().map(|_| None).collect();
        for (at, tensor) in given.into_iter().enumerate() {
            let Some(place) = self.all.iter().position(|own| own.name == tensor.name) else {
                let message = format!("no input {:?}; there are {}", tensor.name, names());
                return Err(refuse(format!("inputs[{at}].name"), message));
            };
            if rows[place].is_some() {
                return Err(refuse(format!("inputs[{at}].name"), format!("{:?} stands there twice", tensor.name)));
            }
            if tensor.shape.first() != Some(&items) {
                let message =
                    format!("{:?} has shape {:?}, the first one has {items} items", tensor.name, tensor.shape);
                return Err(refuse(format!("inputs[{at}].shape"), message));
            }
            rows[place] = Some(self.all[place].check(at, tensor)?);
        }
        let missing = || self.all.iter().zip(&rows).find(|(_, rows)| rows.is_none()).map(|(own, _)| own.name.clone());
        if let Some(name) = missing() {
            return Err(refuse("inputs", format!("{name:?} is missing; expected {}", names())));
        }
        let rows: Vec<Rows> = rows.into_iter().flatten().collect();
        let bytes = rows.iter().map(|rows| rows.each as u64).sum();
        let dims: Vec<&[u64]> = rows.iter().map(Rows::shape).collect();
        let group =
            if self.all.iter().any(|tensor| tensor.shape.contains(&None)) { self.hasher.hash_one(dims) } else { 0 };
        let size = Size { tokens: 0, bytes, group };
        // Every item has bytes of its own, or there is one item: no request makes many out of nothing.
        let most = rows.iter().map(|rows| rows.bytes.len()).max().unwrap_or(0).max(1);
        let items = usize::try_from(items).unwrap_or(usize::MAX);
        if items > most {
            return Err(refuse("inputs[0].shape", format!("{items} items without any elements")));
        }
        Ok((vec![Ok(size); items], Body::Tensors(rows)))
    }
}
