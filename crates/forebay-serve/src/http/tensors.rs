//! Tensors of a request against those that the model declares: names, element types, dims.

use crate::backend::{ModelInfo, NamedTensor, TensorInfo};

use super::{input::count, problem::Problem};

/// The tensors that a request gives: all but those made of parameters.
pub(super) fn inputs(model: &ModelInfo) -> impl Iterator<Item = &TensorInfo> {
    model.inputs.iter().filter(|input| model.parameters.iter().all(|parameter| parameter.name != input.name))
}

/// The problem of a tensor that the model does not know.
pub(super) fn unknown(field: &str, wanted: &[&TensorInfo]) -> Problem {
    let names: Vec<_> = wanted.iter().map(|one| one.name.as_str()).collect();
    Problem::field(field, format!("the model takes no such tensor; it takes {}", names.join(", ")))
}

/// Whether `tensor` is what `info` declares. `field` is where it stands in the request.
pub(super) fn check(info: &TensorInfo, tensor: &NamedTensor, field: &str) -> Result<(), Problem> {
    if tensor.dtype != info.dtype {
        return Err(Problem::field(
            format!("{field}.datatype"),
            format!("{} is {}; expected {}", info.name, tensor.dtype, info.dtype),
        ));
    }
    let fits = tensor.shape.len() == info.shape.len() + 1
        && tensor.shape[1..]
            .iter()
            .zip(&info.shape)
            .all(|(found, wanted)| wanted.is_none_or(|wanted| wanted == *found));
    if !fits {
        let dims = info.shape.iter().map(|dim| dim.map_or_else(|| "any".to_owned(), |dim| dim.to_string()));
        let wanted: Vec<_> = std::iter::once("items".to_owned()).chain(dims).collect();
        let text = format!("{} has dims {:?}; expected [{}]", info.name, tensor.shape, wanted.join(", "));
        return Err(Problem::field(format!("{field}.shape"), text));
    }
    let elements = tensor.shape.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim));
    let wanted = elements.and_then(|all| all.checked_mul(tensor.dtype.size() as u64));
    if wanted != Some(tensor.bytes.len() as u64) {
        let found = tensor.bytes.len() / tensor.dtype.size();
        let text = format!("{found} elements; dims {:?} have {}", tensor.shape, shown(elements));
        return Err(Problem::field(format!("{field}.data"), text));
    }
    Ok(())
}

fn shown(elements: Option<u64>) -> String {
    elements.map_or_else(|| "more than there can be".to_owned(), |elements| elements.to_string())
}

/// Whether all tensors of the model are there, once each, with the same number of items, and not too many.
pub(super) fn complete(wanted: &[&TensorInfo], tensors: &[NamedTensor], max_items: usize) -> Result<(), Problem> {
    for info in wanted {
        match tensors.iter().filter(|tensor| tensor.name == info.name).count() {
            1 => {}
            0 => return Err(Problem::field("inputs", format!("the tensor {} is missing", info.name))),
            _ => return Err(Problem::field("inputs", format!("the tensor {} is there more than once", info.name))),
        }
    }
    let items = tensors.first().map_or(0, |tensor| tensor.shape[0]);
    if let Some(other) = tensors.iter().find(|tensor| tensor.shape[0] != items) {
        let (first, many) = (&tensors[0].name, other.shape[0]);
        return Err(Problem::field("inputs", format!("{first} has {items} items, {} has {many}", other.name)));
    }
    count(usize::try_from(items).unwrap_or(usize::MAX), max_items)
}
