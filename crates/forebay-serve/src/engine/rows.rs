//! Rows of answers: in the worker's slot, or copied out of it.

use forebay::{
    DType,
    service::{Answer, ITEMS_FIELD, TEXT_FIELD},
};

use crate::backend::{Rows, TensorInfo};

/// Where a tensor's rows are.
#[derive(Debug, Clone)]
struct Place {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    /// Bytes of a row.
    each: usize,
    /// The tensor's place in the message.
    index: usize,
}

/// Rows in the slot of a worker's answer, which they keep.
#[derive(Debug)]
pub(super) struct Given {
    answer: Answer,
    places: Vec<Place>,
}

impl Given {
    pub(super) fn new(answer: Answer) -> Self {
        let message = answer.message();
        let places = (0..message.len()).filter_map(|index| {
            let (name, meta) = (message.name(index)?, message.meta(index)?);
            let (&rows, shape) = meta.shape().split_first()?;
            if name == ITEMS_FIELD || name == TEXT_FIELD || rows == 0 {
                return None;
            }
            let each = (meta.nbytes / rows) as usize;
            Some(Place { name: name.to_owned(), dtype: meta.dtype, shape: shape.to_vec(), each, index })
        });
        let places = places.collect();
        Self { answer, places }
    }

    pub(super) fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Whether the tensors are what the configuration says.
    pub(super) fn check(&self, expected: &[TensorInfo]) -> Result<(), String> {
        for info in expected {
            let Some(found) = self.places.iter().find(|place| place.name == info.name) else {
                let names: Vec<&str> = self.places.iter().map(|place| place.name.as_str()).collect();
                return Err(format!("output {:?} is missing, found {}", info.name, names.join(", ")));
            };
            let same = found.shape.len() == info.shape.len()
                && found.shape.iter().zip(&info.shape).all(|(dim, expected)| expected.is_none_or(|own| own == *dim));
            if found.dtype != info.dtype || !same {
                let shape: Vec<String> =
                    info.shape.iter().map(|dim| dim.map_or_else(|| "any".to_owned(), |dim| dim.to_string())).collect();
                return Err(format!(
                    "output {:?} is {} with items of shape {:?}, expected {} of [{}]",
                    info.name,
                    found.dtype,
                    found.shape,
                    info.dtype,
                    shape.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// The token ids of a row: of the field `tokens` or `token`, else of the first one of integers; negative ones are none.
    pub(super) fn tokens(&self, row: usize) -> Vec<u32> {
        let integers =
            |place: &&Place| matches!(place.dtype, DType::I64 | DType::I32 | DType::U32 | DType::U64 | DType::U16);
        let named = |place: &&Place| matches!(place.name.as_str(), "tokens" | "token") && integers(place);
        let Some(place) = self.places.iter().find(named).or_else(|| self.places.iter().find(integers)) else {
            return Vec::new();
        };
        let bytes = self.row(place, row);
        let number = |bytes: &[u8]| {
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            let word = u64::from_le_bytes(wide);
            match place.dtype {
                DType::I32 => u32::try_from(word as u32 as i32).ok(),
                _ => u32::try_from(word).ok(),
            }
        };
        bytes.chunks_exact(place.dtype.size()).filter_map(number).collect()
    }

    fn row(&self, place: &Place, row: usize) -> &[u8] {
        let bytes = self.answer.message().bytes(place.index).unwrap_or_default();
        bytes.get(row * place.each..(row + 1) * place.each).unwrap_or_default()
    }
}

impl Rows for Given {
    fn tensors(&self) -> usize {
        self.places.len()
    }

    fn tensor(&self, tensor: usize) -> (&str, DType, &[u64]) {
        let place = &self.places[tensor];
        (&place.name, place.dtype, &place.shape)
    }

    fn bytes(&self, tensor: usize, row: usize) -> &[u8] {
        self.row(&self.places[tensor], row)
    }
}

/// Rows copied out of a slot.
#[derive(Debug)]
pub(super) struct Kept {
    tensors: Vec<(Place, Vec<u8>)>,
}

impl Kept {
    pub(super) fn copy(from: &Given, rows: impl Iterator<Item = usize> + Clone) -> Self {
        let one = |place: &Place| {
            let bytes = rows.clone().flat_map(|row| from.row(place, row).iter().copied()).collect();
            (place.clone(), bytes)
        };
        Self { tensors: from.places.iter().map(one).collect() }
    }

    /// One row of one tensor of token ids.
    pub(super) fn tokens(tokens: &[u32]) -> Self {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| i64::from(token).to_le_bytes()).collect();
        let shape = vec![tokens.len() as u64];
        let place = Place { name: "tokens".to_owned(), dtype: DType::I64, shape, each: bytes.len(), index: 0 };
        Self { tensors: vec![(place, bytes)] }
    }
}

impl Rows for Kept {
    fn tensors(&self) -> usize {
        self.tensors.len()
    }

    fn tensor(&self, tensor: usize) -> (&str, DType, &[u64]) {
        let place = &self.tensors[tensor].0;
        (&place.name, place.dtype, &place.shape)
    }

    fn bytes(&self, tensor: usize, row: usize) -> &[u8] {
        let (place, bytes) = &self.tensors[tensor];
        bytes.get(row * place.each..(row + 1) * place.each).unwrap_or_default()
    }
}
