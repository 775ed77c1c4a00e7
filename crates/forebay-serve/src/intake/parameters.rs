//! Parameters of a request: numbers that become a tensor with one element an item.

use std::ops::RangeInclusive;

use forebay::DType;
use serde_json::{Map, Value};

use super::{IntakeError, copy, refuse};
use crate::{
    backend::{ParameterInfo, Refusal, TensorInfo},
    config::ParameterConfig,
};

pub(super) struct Parameters {
    all: Vec<ParameterInfo>,
    bytes: u64,
}

/// The values of one call, as bytes of their types.
#[derive(Debug)]
pub(super) struct Values(Vec<Encoded>);

/// A value: its bytes, how many of them count, and what it is as a number.
#[derive(Debug)]
struct Encoded {
    bytes: [u8; 8],
    size: usize,
    number: f64,
}

impl Values {
    pub(super) fn write(&self, parameter: usize, to: &mut [u8]) -> Result<(), String> {
        let value = self.0.get(parameter).ok_or("no such parameter")?;
        copy(&value.bytes[..value.size], to)
    }

    pub(super) fn number(&self, parameter: usize) -> Option<f64> {
        self.0.get(parameter).map(|value| value.number)
    }
}

/// What a parameter of the configuration is.
pub(crate) fn info(config: &ParameterConfig, key: &str) -> Result<ParameterInfo, IntakeError> {
    let dtype: DType = config.dtype.parse().map_err(|e| IntakeError::new(format!("{key}.dtype"), e))?;
    let info =
        ParameterInfo { name: config.name.clone(), dtype, default: config.default, min: config.min, max: config.max };
    let default = serde_json::Number::from_f64(config.default).map_or(Value::Null, Value::Number);
    encode(&info, &default).map_err(|what| IntakeError::new(format!("{key}.default"), what))?;
    Ok(info)
}

impl Parameters {
    pub(super) fn new(config: &[ParameterConfig]) -> Result<Self, IntakeError> {
        let one = |(at, config): (usize, &ParameterConfig)| info(config, &format!("model.parameters[{at}]"));
        let all: Vec<ParameterInfo> = config.iter().enumerate().map(one).collect::<Result<_, _>>()?;
        let bytes = all.iter().map(|parameter| parameter.dtype.size() as u64).sum();
        Ok(Self { all, bytes })
    }

    pub(super) fn all(&self) -> &[ParameterInfo] {
        &self.all
    }

    /// Bytes of an item's.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn tensors(&self) -> Vec<TensorInfo> {
        let one = |own: &ParameterInfo| TensorInfo { name: own.name.clone(), dtype: own.dtype, shape: Vec::new() };
        self.all.iter().map(one).collect()
    }

    /// Reads those of a call; what it does not set has its default.
    pub(super) fn read(&self, given: &Map<String, Value>) -> Result<Values, Refusal> {
        for name in given.keys() {
            if !self.all.iter().any(|own| own.name == *name) {
                let names: Vec<&str> = self.all.iter().map(|own| own.name.as_str()).collect();
                let there = if names.is_empty() { "there are none".to_owned() } else { names.join(", ") };
                return Err(refuse(format!("parameters.{name}"), format!("no such parameter; expected: {there}")));
            }
        }
        let one = |own: &ParameterInfo| {
            let value = match given.get(&own.name) {
                Some(value) => value.clone(),
                None => serde_json::Number::from_f64(own.default).map_or(Value::Null, Value::Number),
            };
            let bytes = encode(own, &value).map_err(|what| refuse(format!("parameters.{}", own.name), what))?;
            let number = value.as_f64().unwrap_or_else(|| f64::from(u8::from(value == Value::Bool(true))));
            Ok(Encoded { bytes, size: own.dtype.size(), number })
        };
        self.all.iter().map(one).collect::<Result<_, _>>().map(Values)
    }
}

/// The value in the parameter's type; a text says what is wrong with it.
fn encode(own: &ParameterInfo, value: &Value) -> Result<[u8; 8], String> {
    let expected = if matches!(own.dtype, DType::Bool) { "true or false" } else { "a number" };
    let number = match value {
        Value::Bool(value) if own.dtype == DType::Bool => f64::from(u8::from(*value)),
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
        _ => return Err(format!("{}, expected {expected}", kind(value))),
    };
    let (min, max) = (own.min.unwrap_or(f64::NEG_INFINITY), own.max.unwrap_or(f64::INFINITY));
    if !(min..=max).contains(&number) {
        let end = |bound: Option<f64>, word: &str| bound.map(|bound| format!("{word} {bound}"));
        let bounds: Vec<String> = end(own.min, "at least").into_iter().chain(end(own.max, "at most")).collect();
        return Err(format!(
            "{value}, expected {}",
            if bounds.is_empty() { expected.to_owned() } else { bounds.join(" and ") }
        ));
    }
    // Large whole numbers keep their digits.
    let whole = |range: RangeInclusive<i128>| {
        let exact = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
        let exact = exact.or((number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i128));
        let fits = exact.filter(|exact| range.contains(exact));
        fits.map(i128::to_le_bytes).ok_or_else(|| format!("{value}, expected a whole number that {} has", own.dtype))
    };
    let mut out = [0; 8];
    let mut put = |bytes: &[u8]| out[..bytes.len()].copy_from_slice(bytes);
    match own.dtype {
        DType::Bool => put(&[u8::from(number != 0.0)]),
        DType::U8 => put(&whole(0..=u8::MAX.into())?[..1]),
        DType::U16 => put(&whole(0..=u16::MAX.into())?[..2]),
        DType::U32 => put(&whole(0..=u32::MAX.into())?[..4]),
        DType::U64 => put(&whole(0..=u64::MAX.into())?[..8]),
        DType::I8 => put(&whole(i8::MIN.into()..=i8::MAX.into())?[..1]),
        DType::I16 => put(&whole(i16::MIN.into()..=i16::MAX.into())?[..2]),
        DType::I32 => put(&whole(i32::MIN.into()..=i32::MAX.into())?[..4]),
        DType::I64 => put(&whole(i64::MIN.into()..=i64::MAX.into())?[..8]),
        DType::F32 => {
            let single = number as f32;
            if !single.is_finite() {
                return Err(format!("{value}, expected a number that {} has", own.dtype));
            }
            put(&single.to_le_bytes());
        }
        DType::F64 => put(&number.to_le_bytes()),
        other => return Err(format!("a parameter of {other}; expected an integer, float32, float64 or bool")),
    }
    Ok(out)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
