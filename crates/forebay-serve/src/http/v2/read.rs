//! A request to infer: JSON, and the bytes behind it.

use std::borrow::Cow;

use axum::http::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::{HEADER_LENGTH, bytes_input, datatype, dtype};
use crate::{
    backend::{Input, ModelInfo, NamedTensor, Takes, TensorInfo, TextItem},
    http::{input, json, numbers, problem::Problem, tensors},
};

/// What a request asks for.
#[derive(Debug)]
pub(in crate::http) struct Asked {
    pub(super) id: Option<String>,
    pub(super) input: Input,
    pub(super) parameters: Map<String, Value>,
    pub(super) outputs: Outputs,
}

/// Which tensors are wanted, and how.
#[derive(Debug, Default)]
pub(in crate::http) struct Outputs {
    /// Whether tensors that say nothing themselves are binary.
    pub(in crate::http) binary: bool,
    /// By name, and whether binary; none: all.
    pub(in crate::http) named: Vec<(String, Option<bool>)>,
}

#[derive(Debug, Deserialize)]
struct Request<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: Vec<Tensor<'a>>,
    #[serde(default)]
    outputs: Option<Vec<Wanted>>,
}

#[derive(Debug, Deserialize)]
struct Tensor<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Vec<u64>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: TensorParameters,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
struct TensorParameters {
    #[serde(default)]
    binary_data_size: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    name: String,
    #[serde(default)]
    parameters: WantedParameters,
}

#[derive(Debug, Default, Deserialize)]
struct WantedParameters {
    #[serde(default)]
    binary_data: Option<bool>,
}

/// What the header says that the JSON's length is.
pub(super) fn header_length(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let bad = || Problem::malformed("expected a number of bytes").at(HEADER_LENGTH);
    length.map(Some).ok_or_else(bad)
}

/// What `body` asks for; `header_length` bytes of it are JSON, or all.
pub(super) fn request(model: &ModelInfo, body: &Bytes, header_length: Option<usize>) -> Result<Asked, Problem> {
    let length = header_length.unwrap_or(body.len());
    if length > body.len() {
        let text = format!("the header says {length} bytes of JSON, the body has {}", body.len());
        return Err(Problem::malformed(text).at(HEADER_LENGTH));
    }
    let request: Request<'_> = json::parse(&body[..length])?;
    let mut parameters = json::parameters(request.parameters)?;
    let binary = take_flag(&mut parameters, "binary_data_output")?;
    // Of the protocol, not of models: sequences and priorities of other servers have no meaning here.
    let mut rest = body.slice(length..);
    let mut given = Vec::with_capacity(request.inputs.len());
    for (i, tensor) in request.inputs.iter().enumerate() {
        let piece = match tensor.parameters.binary_data_size {
            None => None,
            Some(size) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                if size > rest.len() {
                    let text = format!("{size} bytes of {}, {} are left in the body", tensor.name, rest.len());
                    return Err(Problem::field(format!("inputs[{i}].parameters.binary_data_size"), text));
                }
                Some(rest.split_to(size))
            }
        };
        if piece.is_some() == tensor.data.is_some() {
            let text = "expected either data or parameters.binary_data_size";
            return Err(Problem::field(format!("inputs[{i}].data"), text));
        }
        given.push(piece);
    }
    if !rest.is_empty() {
        let text = format!("{} bytes behind the last tensor belong to none", rest.len());
        return Err(Problem::malformed(text));
    }
    let input = match bytes_input(model.takes) {
        Some(name) => bytes_items(model, name, &request.inputs, &given)?,
        None => tensor_items(model, &request.inputs, given)?,
    };
    let named = request.outputs.unwrap_or_default();
    let named = named.into_iter().map(|one| (one.name, one.parameters.binary_data)).collect();
    let id = request.id.map(Cow::into_owned);
    Ok(Asked { id, input, parameters, outputs: Outputs { binary, named } })
}

fn take_flag(parameters: &mut Map<String, Value>, name: &str) -> Result<bool, Problem> {
    match parameters.remove(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(Problem::field(format!("parameters.{name}"), "expected true or false")),
    }
}

fn tensor_items(model: &ModelInfo, all: &[Tensor<'_>], given: Vec<Option<Bytes>>) -> Result<Input, Problem> {
    let wanted: Vec<&TensorInfo> = tensors::inputs(model).collect();
    let mut out = Vec::with_capacity(all.len());
    for (i, (tensor, piece)) in all.iter().zip(given).enumerate() {
        let field = format!("inputs[{i}]");
        let Some(info) = wanted.iter().find(|one| one.name == tensor.name) else {
            return Err(tensors::unknown(&format!("{field}.name"), &wanted));
        };
        let Some(dtype) = dtype(&tensor.datatype) else {
            let text = format!("{:?} is no datatype here; expected {}", tensor.datatype, datatype(info.dtype));
            return Err(Problem::field(format!("{field}.datatype"), text));
        };
        if dtype != info.dtype {
            let text = format!("{} is {}; expected {}", info.name, tensor.datatype, datatype(info.dtype));
            return Err(Problem::field(format!("{field}.datatype"), text));
        }
        let bytes = match (piece, tensor.data) {
            (Some(piece), _) => piece,
            (None, Some(data)) => {
                let mut bytes = Vec::with_capacity(data.get().len());
                // Flat or nested: the shape is what is said.
                numbers::read(data.get(), dtype, &mut bytes)
                    .map_err(|why| Problem::field(format!("{field}.data"), why))?;
                Bytes::from(bytes)
            }
            (None, None) => Bytes::new(),
        };
        let tensor = NamedTensor { name: info.name.clone(), dtype, shape: tensor.shape.clone(), bytes };
        tensors::check(info, &tensor, &field)?;
        out.push(tensor);
    }
    tensors::complete(&wanted, &out, model.max_items)?;
    Ok(Input::Tensors(out))
}

/// Texts, images or rows: one input of type `BYTES` with one dim.
fn bytes_items(model: &ModelInfo, name: &str, all: &[Tensor<'_>], given: &[Option<Bytes>]) -> Result<Input, Problem> {
    let ([tensor], [piece]) = (all, given) else {
        return Err(Problem::field("inputs", format!("{} tensors; expected one, called {name}", all.len())));
    };
    check_bytes(name, &tensor.name, &tensor.datatype, &tensor.shape)?;
    let items = match (piece, tensor.data) {
        (Some(piece), _) => pieces(piece, model.max_items)?,
        (None, Some(data)) => texts(data, model)?,
        (None, None) => Vec::new(),
    };
    items_of(model, items, &tensor.shape)
}

/// Whether an input is the one of type `BYTES` that the model takes, with one dim.
pub(in crate::http) fn check_bytes(name: &str, found: &str, datatype: &str, shape: &[u64]) -> Result<(), Problem> {
    if found != name {
        return Err(Problem::field("inputs[0].name", format!("{found:?}; expected {name:?}")));
    }
    if datatype != "BYTES" {
        return Err(Problem::field("inputs[0].datatype", format!("{datatype:?}; expected \"BYTES\"")));
    }
    match shape {
        [_] | [_, 1] => Ok(()),
        _ => Err(Problem::field("inputs[0].shape", format!("{shape:?}; expected [items] or [items, 1]"))),
    }
}

/// Elements as what the model takes.
pub(in crate::http) fn items_of(model: &ModelInfo, items: Vec<Bytes>, shape: &[u64]) -> Result<Input, Problem> {
    if items.len() as u64 != shape[0] {
        let text = format!("{} elements; shape {shape:?} has {}", items.len(), shape[0]);
        return Err(Problem::field("inputs[0].data", text));
    }
    input::count(items.len(), model.max_items)?;
    Ok(match model.takes {
        Takes::Images => Input::Images(items),
        Takes::Rows => Input::Rows(items),
        Takes::Texts | Takes::Tensors => {
            let text = |(i, bytes): (usize, Bytes)| match String::from_utf8(bytes.into()) {
                Ok(text) => Ok(TextItem { text, pair: None }),
                Err(_) => Err(Problem::field(format!("inputs[0].data[{i}]"), "not UTF-8").item(i)),
            };
            Input::Texts(items.into_iter().enumerate().map(text).collect::<Result<_, _>>()?)
        }
    })
}

/// Elements with their lengths before them, as 32-bit numbers.
pub(in crate::http) fn pieces(data: &Bytes, max_items: usize) -> Result<Vec<Bytes>, Problem> {
    let mut rest = data.clone();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let cut =
            || Problem::field(format!("inputs[0].data[{}]", all.len()), "cut off: its length is beyond the tensor");
        let length = rest.first_chunk::<4>().copied().ok_or_else(cut)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > rest.len() - 4 {
            return Err(cut());
        }
        let _ = rest.split_to(4);
        let element = rest.split_to(length);
        all.push(element);
        // Before they become many: an element may be four bytes.
        if all.len() > max_items {
            return Err(Problem::too_large(format!("more than {max_items} items in one request (limits.items)")));
        }
    }
    Ok(all)
}

/// Elements as JSON texts; images in base64, rows as texts or as they are.
fn texts(data: &RawValue, model: &ModelInfo) -> Result<Vec<Bytes>, Problem> {
    let takes = model.takes;
    let all: Vec<&RawValue> = input::list_of(data, "inputs[0].data", model.max_items)?;
    // One level more is how a shape of [items, 1] may be written.
    let element = |(i, raw): (usize, &&RawValue)| -> Result<Bytes, Problem> {
        let field = format!("inputs[0].data[{i}]");
        if takes == Takes::Rows && raw.get().starts_with('{') {
            return Ok(Bytes::copy_from_slice(raw.get().as_bytes()));
        }
        let text = if raw.get().starts_with('[') {
            let [text]: [json::Text<'_>; 1] = json::parse_raw(raw, &field)?;
            text
        } else {
            json::parse_raw(raw, &field)?
        };
        if takes != Takes::Images {
            return Ok(Bytes::from(text.0.into_owned()));
        }
        let decoded = STANDARD.decode(text.0.trim_end());
        decoded.map(Bytes::from).map_err(|error| Problem::field(&field, format!("not base64: {error}")))
    };
    all.iter().enumerate().map(element).collect()
}
