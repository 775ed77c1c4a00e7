//! A response to infer: JSON, and binary tensors behind it where they are asked for.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use forebay::DType;

use super::{HEADER_LENGTH, datatype, read::Outputs};
use crate::{
    backend::{Answer, ModelInfo, Row},
    http::{
        json, numbers,
        problem::{self, Problem},
    },
};

/// The answer, all items' rows put together.
pub(super) fn response(
    model: &ModelInfo,
    id: &Option<String>,
    outputs: &Outputs,
    answer: &Answer,
) -> Result<Response, Problem> {
    let rows = rows(answer)?;
    let Some(first) = rows.first() else {
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", "the model gave no rows"));
    };
    let chosen = choose(first, outputs)?;
    let mut head = Vec::with_capacity(256);
    let mut tail = Vec::new();
    head.extend_from_slice(b"{\"model_name\":");
    json::write_text(&model.name, &mut head);
    head.extend_from_slice(b",\"model_version\":");
    json::write_text(&model.version, &mut head);
    if let Some(id) = id {
        head.extend_from_slice(b",\"id\":");
        json::write_text(id, &mut head);
    }
    head.extend_from_slice(b",\"outputs\":[");
    for (i, (tensor, binary)) in chosen.into_iter().enumerate() {
        if i > 0 {
            head.push(b',');
        }
        write(&rows, tensor, binary, &mut head, &mut tail)?;
    }
    head.extend_from_slice(b"]}");
    let any_binary =
        !tail.is_empty() || outputs.binary || outputs.named.iter().any(|(_, binary)| *binary == Some(true));
    if !any_binary {
        return Ok(json::response(head));
    }
    let length = head.len();
    head.append(&mut tail);
    let mut response = Response::new(Body::from(head));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(HEADER_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// The items' rows; one that failed fails them all, because there is no place for it.
pub(in crate::http) fn rows(answer: &Answer) -> Result<Vec<&Row>, Problem> {
    match problem::of_items(answer.errors(), answer.items.len() == 1) {
        Some(problem) => Err(problem),
        None => Ok(answer.items.iter().flatten().collect()),
    }
}

/// Which tensors, by number, and whether binary.
pub(in crate::http) fn choose(first: &Row, outputs: &Outputs) -> Result<Vec<(usize, bool)>, Problem> {
    if outputs.named.is_empty() {
        return Ok((0..first.rows.tensors()).map(|tensor| (tensor, outputs.binary)).collect());
    }
    let find = |(i, (name, binary)): (usize, &(String, Option<bool>))| {
        let tensor = (0..first.rows.tensors()).find(|tensor| first.rows.tensor(*tensor).0 == name);
        let unknown = || {
            let names: Vec<_> = first.tensors().map(|(name, ..)| name.to_owned()).collect();
            Problem::field(
                format!("outputs[{i}].name"),
                format!("the model gives no {name:?}; it gives {}", names.join(", ")),
            )
        };
        tensor.map(|tensor| (tensor, binary.unwrap_or(outputs.binary))).ok_or_else(unknown)
    };
    outputs.named.iter().enumerate().map(find).collect()
}

/// Name, element type and dims of one item of a tensor that is the same in all rows.
pub(in crate::http) fn alike<'a>(rows: &[&'a Row], tensor: usize) -> Result<(&'a str, DType, &'a [u64]), Problem> {
    let (name, dtype, shape) = rows[0].rows.tensor(tensor);
    let other = |row: &Row| tensor >= row.rows.tensors() || row.rows.tensor(tensor) != (name, dtype, shape);
    if let Some(i) = rows.iter().position(|row| other(row)) {
        let text = format!("the answers of items 0 and {i} have other dims in {name}; send them apart, or to /predict");
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", text));
    }
    Ok((name, dtype, shape))
}

fn write(rows: &[&Row], tensor: usize, binary: bool, head: &mut Vec<u8>, tail: &mut Vec<u8>) -> Result<(), Problem> {
    let (name, dtype, shape) = alike(rows, tensor)?;
    head.extend_from_slice(b"{\"name\":");
    json::write_text(name, head);
    head.extend_from_slice(b",\"datatype\":");
    json::write_text(datatype(dtype), head);
    head.extend_from_slice(b",\"shape\":[");
    let dims: Vec<u8> =
        std::iter::once(rows.len() as u64).chain(shape.iter().copied()).flat_map(u64::to_le_bytes).collect();
    numbers::write(DType::U64, &dims, head);
    if binary {
        let before = tail.len();
        for row in rows {
            tail.extend_from_slice(row.rows.bytes(tensor, row.row));
        }
        head.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
        head.extend_from_slice(itoa::Buffer::new().format(tail.len() - before).as_bytes());
        head.extend_from_slice(b"}}");
        return Ok(());
    }
    head.extend_from_slice(b"],\"data\":[");
    let mut any = false;
    for row in rows {
        let bytes = row.rows.bytes(tensor, row.row);
        if any && !bytes.is_empty() {
            head.push(b',');
        }
        any |= !bytes.is_empty();
        numbers::write(dtype, bytes, head);
    }
    head.extend_from_slice(b"]}");
    Ok(())
}
