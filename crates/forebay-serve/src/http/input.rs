//! The `inputs` of `/predict` and its kin, by what the model takes.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::value::RawValue;

use super::{
    json::{self, Text},
    numbers,
    problem::Problem,
    tensors,
};
use crate::backend::{Input, ModelInfo, NamedTensor, Takes, TextItem};

/// The items of a request, and whether it was one alone, so that its answer is one as well.
#[derive(Debug)]
pub(super) struct Items {
    pub(super) input: Input,
    pub(super) single: bool,
}

/// Reads `raw`, which is the field `inputs` and lies in `body`.
pub(super) fn read(model: &ModelInfo, raw: &RawValue, body: &Bytes) -> Result<Items, Problem> {
    let json = raw.get();
    let list = json.starts_with('[');
    match model.takes {
        Takes::Texts => texts(raw, model.max_items),
        Takes::Images if list => {
            let all: Vec<Text<'_>> = list_of(raw, "inputs", model.max_items)?;
            let images = all.iter().enumerate().map(|(i, text)| image(&text.0, &format!("inputs[{i}]")));
            Ok(Items { input: Input::Images(images.collect::<Result<_, _>>()?), single: false })
        }
        Takes::Images => {
            let text: Text<'_> = json::parse_raw(raw, "inputs")?;
            Ok(Items { input: Input::Images(vec![image(&text.0, "inputs")?]), single: true })
        }
        Takes::Rows => {
            let all: Vec<&RawValue> = if list { list_of(raw, "inputs", model.max_items)? } else { vec![raw] };
            if let Some(i) = all.iter().position(|row| !row.get().starts_with('{')) {
                let field = if list { format!("inputs[{i}]") } else { "inputs".to_owned() };
                return Err(Problem::field(field, "expected an object"));
            }
            let rows = all.iter().map(|row| body.slice_ref(row.get().as_bytes())).collect();
            Ok(Items { input: Input::Rows(rows), single: !list })
        }
        Takes::Tensors => tensors_of(model, raw),
    }
}

/// The list `raw`, found in `field`, with at least one entry and not too many.
pub(super) fn list_of<'a, T: serde::Deserialize<'a>>(
    raw: &'a RawValue,
    field: &str,
    max_items: usize,
) -> Result<Vec<T>, Problem> {
    let (items, found) = json::list(raw, field, max_items)?;
    count(found, max_items).map_err(|problem| problem.called(field))?;
    Ok(items)
}

/// Whether a request may have this many items.
pub(super) fn count(items: usize, max_items: usize) -> Result<(), Problem> {
    match items {
        0 => Err(Problem::field("inputs", "no items; expected at least one")),
        n if n > max_items => {
            Err(Problem::too_large(format!("{n} items, {max_items} may come in one request (limits.items)")))
        }
        _ => Ok(()),
    }
}

/// Texts: one, a list, or a list of pairs.
pub(super) fn texts(raw: &RawValue, max_items: usize) -> Result<Items, Problem> {
    if !raw.get().starts_with('[') {
        let text: Text<'_> = json::parse_raw(raw, "inputs")?;
        return Ok(Items { input: Input::Texts(vec![alone(text)]), single: true });
    }
    // Nearly always texts alone; a second look where not.
    if let Ok((all, found)) = json::first_of::<Text<'_>>(raw, max_items) {
        count(found, max_items)?;
        return Ok(Items { input: Input::Texts(all.into_iter().map(alone).collect()), single: false });
    }
    let all: Vec<&RawValue> = list_of(raw, "inputs", max_items)?;
    let one = |(i, raw): (usize, &&RawValue)| {
        let field = format!("inputs[{i}]");
        if !raw.get().starts_with('[') {
            return json::parse_raw(raw, &field).map(alone).map_err(|problem| problem.item(i));
        }
        let (pair, found) = json::list(raw, &field, 2).map_err(|problem| problem.item(i))?;
        match (<[Text<'_>; 2]>::try_from(pair), found) {
            (Ok([text, pair]), 2) => Ok(TextItem { text: text.0.into_owned(), pair: Some(pair.0.into_owned()) }),
            _ => {
                let text = format!("a list of {found}; expected a text or a pair of texts");
                Err(Problem::field(&field, text).item(i))
            }
        }
    };
    let items = all.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    Ok(Items { input: Input::Texts(items), single: false })
}

/// A text that is no pair.
pub(super) fn alone(text: Text<'_>) -> TextItem {
    TextItem { text: text.0.into_owned(), pair: None }
}

/// The bytes of an image written in base64, with or without `data:…;base64,` before it.
pub(super) fn image(text: &str, field: &str) -> Result<Bytes, Problem> {
    let digits = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map_or(text, |(_, digits)| digits),
        None => text,
    };
    let bytes = STANDARD.decode(digits.trim_end()).map_err(|error| {
        Problem::field(field, format!("not base64: {error}; expected a JPEG, PNG or WebP file in base64"))
    })?;
    Ok(Bytes::from(bytes))
}

/// Tensors: an object with a nested list for each, or, of models that take one, the list itself; the items are the
/// first dim, or it is missing and there is one item.
fn tensors_of(model: &ModelInfo, raw: &RawValue) -> Result<Items, Problem> {
    let wanted: Vec<_> = tensors::inputs(model).collect();
    let given: Vec<(usize, &RawValue, String)> = if raw.get().starts_with('{') {
        let all: json::Entries<Text<'_>, &RawValue> = json::parse_raw(raw, "inputs")?;
        let all: HashMap<_, _> = all.0.into_iter().collect();
        let mut given = Vec::with_capacity(wanted.len());
        for (name, value) in &all {
            let place = wanted.iter().position(|one| one.name == name.0);
            let place = place.ok_or_else(|| tensors::unknown(&format!("inputs.{}", name.0), &wanted))?;
            given.push((place, *value, format!("inputs.{}", name.0)));
        }
        given.sort_by_key(|(place, ..)| *place);
        given
    } else if wanted.len() == 1 {
        vec![(0, raw, "inputs".to_owned())]
    } else {
        let names: Vec<_> = wanted.iter().map(|one| one.name.as_str()).collect();
        return Err(Problem::field("inputs", format!("expected an object with {}", names.join(", "))));
    };
    let mut single = None;
    let mut tensors = Vec::with_capacity(given.len());
    for (place, value, field) in given {
        let info = wanted[place];
        let mut bytes = Vec::with_capacity(value.get().len());
        let mut shape =
            numbers::read(value.get(), info.dtype, &mut bytes).map_err(|why| Problem::field(&field, why))?;
        let one = shape.len() == info.shape.len();
        if one {
            shape.insert(0, 1);
        }
        if *single.get_or_insert(one) != one {
            return Err(Problem::field(&field, "one tensor has a dim of items, another has not"));
        }
        let tensor = NamedTensor { name: info.name.clone(), dtype: info.dtype, shape, bytes: bytes.into() };
        tensors::check(info, &tensor, &field)?;
        tensors.push(tensor);
    }
    tensors::complete(&wanted, &tensors, model.max_items)?;
    Ok(Items { input: Input::Tensors(tensors), single: single.unwrap_or(false) })
}
