//! Messages to calls, and answers to messages.

use bytes::Bytes;
use forebay::DType;
use serde_json::{Map, Value, json};

use super::messages::{Choice, Contents, InferRequest, InferResponse, ModelMetadata, Tensor, TensorMetadata};
use crate::{
    backend::{Answer, Input, ModelInfo, NamedTensor, TensorInfo},
    http::{
        problem::Problem,
        tensors,
        v2::{self, read, write},
    },
};

/// The items and the parameters of a request.
pub(super) fn call(model: &ModelInfo, request: &mut InferRequest) -> Result<(Input, Map<String, Value>), Problem> {
    let raw = std::mem::take(&mut request.raw);
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        let text = format!("{} for {} inputs; expected one for each", raw.len(), request.inputs.len());
        return Err(Problem::field("raw_input_contents", text));
    }
    let mut pieces = Vec::with_capacity(request.inputs.len());
    for (i, tensor) in request.inputs.iter_mut().enumerate() {
        let contents = tensor.contents.take();
        pieces.push(match (raw.get(i), contents) {
            (Some(_), Some(_)) => {
                let text = "expected either contents or raw_input_contents";
                return Err(Problem::field(format!("inputs[{i}].contents"), text));
            }
            (Some(raw), None) => Piece::Raw(raw.clone()),
            (None, contents) => Piece::Typed(contents.unwrap_or_default()),
        });
    }
    let input = match v2::bytes_input(model.takes) {
        Some(name) => bytes_items(model, name, &request.inputs, pieces)?,
        None => tensor_items(model, &request.inputs, pieces)?,
    };
    let parameters = request.parameters.drain().filter_map(|(name, value)| {
        let value = match value.choice? {
            Choice::Bool(value) => json!(value),
            Choice::Int(value) => json!(value),
            Choice::Text(value) => json!(value),
            Choice::Double(value) => json!(value),
            Choice::Uint(value) => json!(value),
        };
        Some((name, value))
    });
    Ok((input, parameters.collect()))
}

enum Piece {
    Raw(Bytes),
    Typed(Contents),
}

fn shape(tensor: &Tensor, field: &str) -> Result<Vec<u64>, Problem> {
    let dims = tensor.shape.iter().map(|dim| u64::try_from(*dim).ok()).collect::<Option<_>>();
    dims.ok_or_else(|| Problem::field(format!("{field}.shape"), format!("{:?} has a dim below 0", tensor.shape)))
}

fn tensor_items(model: &ModelInfo, inputs: &[Tensor], pieces: Vec<Piece>) -> Result<Input, Problem> {
    let wanted: Vec<&TensorInfo> = tensors::inputs(model).collect();
    let mut all = Vec::with_capacity(inputs.len());
    for (i, (tensor, piece)) in inputs.iter().zip(pieces).enumerate() {
        let field = format!("inputs[{i}]");
        let Some(info) = wanted.iter().find(|one| one.name == tensor.name) else {
            return Err(tensors::unknown(&format!("{field}.name"), &wanted));
        };
        let expected = v2::datatype(info.dtype);
        if tensor.datatype != expected {
            let text = format!("{} is {:?}; expected {expected}", info.name, tensor.datatype);
            return Err(Problem::field(format!("{field}.datatype"), text));
        }
        let bytes = match piece {
            Piece::Raw(raw) => raw,
            Piece::Typed(contents) => {
                typed(info.dtype, &contents).map_err(|text| Problem::field(format!("{field}.contents"), text))?
            }
        };
        let tensor = NamedTensor { name: info.name.clone(), dtype: info.dtype, shape: shape(tensor, &field)?, bytes };
        tensors::check(info, &tensor, &field)?;
        all.push(tensor);
    }
    tensors::complete(&wanted, &all, model.max_items)?;
    Ok(Input::Tensors(all))
}

/// The bytes of contents that come as numbers; narrow ones come as 32-bit ones.
fn typed(dtype: DType, contents: &Contents) -> Result<Bytes, String> {
    fn le<T: Copy, const N: usize>(all: &[T], bytes: impl Fn(T) -> [u8; N]) -> Bytes {
        all.iter().flat_map(|value| bytes(*value)).collect::<Vec<u8>>().into()
    }
    macro_rules! narrow {
        ($all:expr, $t:ty) => {{
            let all = $all.iter().map(|value| <$t>::try_from(*value).map_err(|_| format!("{value} is no {dtype}")));
            le(&all.collect::<Result<Vec<_>, _>>()?, <$t>::to_le_bytes)
        }};
    }
    Ok(match dtype {
        DType::Bool => le(&contents.bools, |flag| [u8::from(flag)]),
        DType::I8 => narrow!(contents.ints, i8),
        DType::I16 => narrow!(contents.ints, i16),
        DType::I32 => le(&contents.ints, i32::to_le_bytes),
        DType::I64 => le(&contents.int64s, i64::to_le_bytes),
        DType::U8 => narrow!(contents.uints, u8),
        DType::U16 => narrow!(contents.uints, u16),
        DType::U32 => le(&contents.uints, u32::to_le_bytes),
        DType::U64 => le(&contents.uint64s, u64::to_le_bytes),
        DType::F32 => le(&contents.floats, f32::to_le_bytes),
        DType::F64 => le(&contents.doubles, f64::to_le_bytes),
        _ => return Err(format!("{dtype} has no numbers here; send raw_input_contents")),
    })
}

fn bytes_items(model: &ModelInfo, name: &str, inputs: &[Tensor], pieces: Vec<Piece>) -> Result<Input, Problem> {
    let [tensor] = inputs else {
        return Err(Problem::field("inputs", format!("{} tensors; expected one, called {name}", inputs.len())));
    };
    read::check_bytes(name, &tensor.name, &tensor.datatype, &shape(tensor, "inputs[0]")?)?;
    let items = match pieces.into_iter().next() {
        Some(Piece::Raw(raw)) => read::pieces(&raw, model.max_items)?,
        Some(Piece::Typed(contents)) => contents.bytes,
        None => Vec::new(),
    };
    read::items_of(model, items, &shape(tensor, "inputs[0]")?)
}

/// The answer; tensors as raw bytes, which have all element types.
pub(super) fn response(model: &ModelInfo, request: InferRequest, answer: &Answer) -> Result<InferResponse, Problem> {
    let rows = write::rows(answer)?;
    let named = request.outputs.into_iter().map(|one| (one.name, Some(true))).collect();
    let chosen = match rows.first() {
        Some(first) => write::choose(first, &read::Outputs { binary: true, named })?,
        None => Vec::new(),
    };
    let (mut outputs, mut raw) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(chosen.len()));
    for (tensor, _) in chosen {
        let (name, dtype, dims) = write::alike(&rows, tensor)?;
        let dims = std::iter::once(rows.len() as u64).chain(dims.iter().copied());
        outputs.push(Tensor {
            name: name.to_owned(),
            datatype: v2::datatype(dtype).to_owned(),
            shape: dims.map(|dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect(),
            contents: None,
        });
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.rows.bytes(tensor, row.row)).copied().collect();
        raw.push(Bytes::from(bytes));
    }
    Ok(InferResponse {
        model_name: model.name.clone(),
        model_version: model.version.clone(),
        id: request.id,
        outputs,
        raw,
    })
}

/// The same as over REST.
pub(super) fn metadata(model: &ModelInfo) -> ModelMetadata {
    let described = v2::model_metadata(model);
    let tensors = |key: &str| {
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let all = described[key].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter()
            .map(|one| TensorMetadata {
                name: text(one, "name"),
                datatype: text(one, "datatype"),
                shape: one["shape"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default()
                    .iter()
                    .filter_map(Value::as_i64)
                    .collect(),
            })
            .collect()
    };
    ModelMetadata {
        name: model.name.clone(),
        versions: vec![model.version.clone()],
        platform: "forebay".to_owned(),
        inputs: tensors("inputs"),
        outputs: tensors("outputs"),
    }
}
