//! Nested lists of numbers, as JSON has them, become the bytes of a tensor; and back.
//!
//! The text was checked to be JSON when it was cut out of the request; here its tokens are read once, each number as
//! the element type that it becomes, without a tree in between.

use forebay::DType;
use half::{bf16, f16};

/// Dims that a nested list may have: those of a tensor and the items'.
const MAX_RANK: usize = 9;

/// Appends the numbers of `json`, little-endian, to `out` and gives the dims. The error says what was found.
pub(super) fn read(json: &str, dtype: DType, out: &mut Vec<u8>) -> Result<Vec<u64>, String> {
    macro_rules! int {
        ($t:ty) => {
            walk(json, dtype, |token| {
                let value = token.parse::<$t>().ok().or_else(|| {
                    // 3.0 and 1e3 are whole as well.
                    let value = token.parse::<f64>().ok()?;
                    let whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
                    let value = if whole { value as i64 } else { return None };
                    <$t>::try_from(value).ok()
                });
                value.map(|value| out.extend_from_slice(&value.to_le_bytes())).is_some()
            })
        };
    }
    match dtype {
        DType::Bool => walk(json, dtype, |token| {
            let value = match token {
                "true" | "1" => 1,
                "false" | "0" => 0,
                _ => return false,
            };
            out.push(value);
            true
        }),
        DType::U8 => int!(u8),
        DType::U16 => int!(u16),
        DType::U32 => int!(u32),
        DType::U64 => int!(u64),
        DType::I8 => int!(i8),
        DType::I16 => int!(i16),
        DType::I32 => int!(i32),
        DType::I64 => int!(i64),
        DType::F32 => walk(json, dtype, |token| {
            let value = token.parse::<f32>().ok().filter(|value| value.is_finite());
            value.map(|value| out.extend_from_slice(&value.to_le_bytes())).is_some()
        }),
        DType::F64 => walk(json, dtype, |token| {
            let value = token.parse::<f64>().ok().filter(|value| value.is_finite());
            value.map(|value| out.extend_from_slice(&value.to_le_bytes())).is_some()
        }),
        DType::F16 => walk(json, dtype, |token| {
            let value = token.parse().ok().map(f16::from_f64).filter(|value| value.is_finite());
            value.map(|value| out.extend_from_slice(&value.to_le_bytes())).is_some()
        }),
        DType::BF16 => walk(json, dtype, |token| {
            let value = token.parse().ok().map(bf16::from_f64).filter(|value| value.is_finite());
            value.map(|value| out.extend_from_slice(&value.to_le_bytes())).is_some()
        }),
        DType::F8E4M3 | DType::F8E5M2 | DType::C64 | DType::C128 => {
            Err(format!("{dtype} cannot be written as JSON; send it binary"))
        }
    }
}

fn walk(json: &str, dtype: DType, mut element: impl FnMut(&str) -> bool) -> Result<Vec<u64>, String> {
    let bytes = json.as_bytes();
    let mut dims: Vec<Option<u64>> = Vec::new();
    // How many entries each list around the current place has so far.
    let mut open: Vec<u64> = Vec::new();
    let mut rank = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'[' => {
                if rank.is_some_and(|rank| open.len() >= rank) {
                    return Err(format!(
                        "not rectangular: a list beside numbers, in dim {}",
                        open.len().saturating_sub(1)
                    ));
                }
                open.push(0);
                if open.len() > MAX_RANK {
                    return Err(format!("nested more than {MAX_RANK} deep"));
                }
                if dims.len() < open.len() {
                    dims.push(None);
                }
                at += 1;
            }
            b']' => {
                let count = open.pop().unwrap_or(0);
                let dim = open.len();
                match dims[dim] {
                    Some(known) if known != count => {
                        return Err(format!("not rectangular: lists of {known} and of {count} in dim {dim}"));
                    }
                    _ => dims[dim] = Some(count),
                }
                if let Some(parent) = open.last_mut() {
                    *parent += 1;
                }
                at += 1;
            }
            b',' | b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            b'"' => return Err(format!("a text where a {dtype} is expected")),
            b'{' => return Err(format!("an object where a {dtype} is expected")),
            _ => {
                let rest = &bytes[at..];
                let end = rest.iter().position(|b| matches!(b, b',' | b']' | b' ' | b'\t' | b'\n' | b'\r'));
                let end = at + end.unwrap_or(rest.len());
                if *rank.get_or_insert(open.len()) != open.len() || dims.len() > open.len() {
                    return Err(format!(
                        "not rectangular: numbers beside lists, in dim {}",
                        open.len().saturating_sub(1)
                    ));
                }
                // Numbers are ASCII, and the ends were found at ASCII.
                let token = json.get(at..end).unwrap_or_default();
                if !element(token) {
                    return Err(format!("{} is no {dtype}", shortened(token)));
                }
                if let Some(parent) = open.last_mut() {
                    *parent += 1;
                }
                at = end;
            }
        }
    }
    Ok(dims.into_iter().map(|dim| dim.unwrap_or(0)).collect())
}

fn shortened(token: &str) -> &str {
    token.get(..40).unwrap_or(token)
}

/// Appends the elements in `bytes` to `out`, apart by commas; no finite number: `null`.
pub(super) fn write(dtype: DType, bytes: &[u8], out: &mut Vec<u8>) {
    macro_rules! each {
        ($t:ty, $push:expr) => {
            for (i, chunk) in bytes.chunks_exact(size_of::<$t>()).enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(chunk);
                $push(<$t>::from_le_bytes(raw), &mut *out);
            }
        };
    }
    fn int(value: impl itoa::Integer, out: &mut Vec<u8>) {
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
    fn float(value: impl zmij::Float, finite: bool, out: &mut Vec<u8>) {
        let mut buffer = zmij::Buffer::new();
        out.extend_from_slice(if finite { buffer.format_finite(value).as_bytes() } else { b"null" });
    }
    let single = |value: f32, out: &mut Vec<u8>| float(value, value.is_finite(), out);
    let double = |value: f64, out: &mut Vec<u8>| float(value, value.is_finite(), out);
    out.reserve(bytes.len() / dtype.size() * 8);
    match dtype {
        DType::Bool => each!(u8, |value: u8, out: &mut Vec<u8>| {
            out.extend_from_slice(if value == 0 { b"false" } else { b"true" });
        }),
        DType::U8 => each!(u8, int),
        DType::U16 => each!(u16, int),
        DType::U32 => each!(u32, int),
        DType::U64 => each!(u64, int),
        DType::I8 => each!(i8, int),
        DType::I16 => each!(i16, int),
        DType::I32 => each!(i32, int),
        DType::I64 => each!(i64, int),
        DType::F32 => each!(f32, single),
        DType::F64 => each!(f64, double),
        DType::F16 => each!(u16, |bits, out: &mut Vec<u8>| single(f16::from_bits(bits).to_f32(), out)),
        DType::BF16 => each!(u16, |bits, out: &mut Vec<u8>| single(bf16::from_bits(bits).to_f32(), out)),
        DType::F8E4M3 => each!(u8, |bits, out: &mut Vec<u8>| single(small_float(bits, 4, 3), out)),
        DType::F8E5M2 => each!(u8, |bits, out: &mut Vec<u8>| single(small_float(bits, 5, 2), out)),
        DType::C64 | DType::C128 => {
            let half = dtype.size() / 2;
            let part = if half == 4 { DType::F32 } else { DType::F64 };
            for (i, pair) in bytes.chunks_exact(2 * half).enumerate() {
                out.extend_from_slice(if i > 0 { b",[" } else { b"[" });
                write(part, pair, out);
                out.push(b']');
            }
        }
    }
}

/// The value of an 8-bit float; what is no finite number in its format is NaN.
fn small_float(bits: u8, exponent_bits: i32, mantissa_bits: i32) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let mantissa = f32::from(bits & ((1 << mantissa_bits) - 1)) / (1u8 << mantissa_bits) as f32;
    let exponent = i32::from((bits & 0x7f) >> mantissa_bits);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let special = if exponent_bits == 4 { bits & 0x7f == 0x7f } else { exponent == 31 };
    match exponent {
        _ if special => f32::NAN,
        0 => sign * mantissa * 2f32.powi(1 - bias),
        _ => sign * (1.0 + mantissa) * 2f32.powi(exponent - bias),
    }
}

/// Appends the elements as lists nested by `shape`.
pub(super) fn write_nested(dtype: DType, shape: &[u64], bytes: &[u8], out: &mut Vec<u8>) {
    match shape {
        [] => write(dtype, bytes, out),
        [_] => {
            out.push(b'[');
            write(dtype, bytes, out);
            out.push(b']');
        }
        [dim, inner @ ..] => {
            let count = usize::try_from(*dim).unwrap_or(0);
            let step = bytes.len().checked_div(count).unwrap_or(0);
            out.push(b'[');
            for i in 0..count {
                if i > 0 {
                    out.push(b',');
                }
                write_nested(dtype, inner, &bytes[i * step..(i + 1) * step], out);
            }
            out.push(b']');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(json: &str, dtype: DType) -> Result<(Vec<u64>, String), String> {
        let mut bytes = Vec::new();
        let dims = read(json, dtype, &mut bytes)?;
        let mut out = Vec::new();
        write_nested(dtype, &dims, &bytes, &mut out);
        Ok((dims, String::from_utf8(out).expect("ASCII")))
    }

    #[test]
    fn numbers_lead_back_to_themselves() {
        for (json, dtype, dims, back) in [
            ("3", DType::I64, vec![], "3"),
            ("[]", DType::F32, vec![0], "[]"),
            ("[[],[]]", DType::F32, vec![2, 0], "[[],[]]"),
            (" [ [1, 2] ,\n[3,4 ] ] ", DType::U8, vec![2, 2], "[[1,2],[3,4]]"),
            ("[0.1, -1e-3, 3]", DType::F32, vec![3], "[0.1,-0.001,3.0]"),
            ("[0.5]", DType::F16, vec![1], "[0.5]"),
            ("[1.5]", DType::BF16, vec![1], "[1.5]"),
            ("[0.1]", DType::F64, vec![1], "[0.1]"),
            ("[1.0, 2e2, -7]", DType::I16, vec![3], "[1,200,-7]"),
            (
                "[9007199254740993, -9223372036854775808]",
                DType::I64,
                vec![2],
                "[9007199254740993,-9223372036854775808]",
            ),
            ("[18446744073709551615]", DType::U64, vec![1], "[18446744073709551615]"),
            ("[true, false, 1]", DType::Bool, vec![3], "[true,false,true]"),
            ("[[[1]],[[2]]]", DType::I8, vec![2, 1, 1], "[[[1]],[[2]]]"),
        ] {
            assert_eq!(there_and_back(json, dtype), Ok((dims, back.to_owned())), "{json}");
        }
    }

    #[test]
    fn what_is_not_rectangular_or_does_not_fit_is_said() {
        for (json, dtype, said) in [
            ("[[1,2],[3]]", DType::U8, "not rectangular: lists of 2 and of 1 in dim 1"),
            ("[1,[2]]", DType::U8, "not rectangular: a list beside numbers, in dim 0"),
            ("[[1],2]", DType::U8, "not rectangular: numbers beside lists, in dim 0"),
            ("[[],1]", DType::U8, "not rectangular: numbers beside lists, in dim 0"),
            ("[[[[[[[[[[1]]]]]]]]]]", DType::U8, "nested more than 9 deep"),
            ("[\"1\"]", DType::U8, "a text where a uint8 is expected"),
            ("[{}]", DType::U8, "an object where a uint8 is expected"),
            ("[256]", DType::U8, "256 is no uint8"),
            ("[-1]", DType::U32, "-1 is no uint32"),
            ("[1.5]", DType::I32, "1.5 is no int32"),
            ("[null]", DType::F32, "null is no float32"),
            ("[true]", DType::F32, "true is no float32"),
            ("[1e39]", DType::F32, "1e39 is no float32"),
            ("[65520]", DType::F16, "65520 is no float16"),
            ("[1e400]", DType::F64, "1e400 is no float64"),
            ("[1]", DType::C64, "complex64 cannot be written as JSON; send it binary"),
        ] {
            assert_eq!(there_and_back(json, dtype).expect_err(json), said);
        }
    }

    #[test]
    fn what_json_has_no_number_for_is_null() {
        let bytes: Vec<u8> = [f32::NAN, f32::INFINITY, 1.0].into_iter().flat_map(f32::to_le_bytes).collect();
        let mut out = Vec::new();
        write(DType::F32, &bytes, &mut out);
        assert_eq!(out, b"null,null,1.0");
    }

    #[test]
    fn small_floats_have_the_values_of_their_formats() {
        for (bits, value) in [(0x38, 1.0), (0x7e, 448.0), (0x01, 0.001_953_125), (0xb8, -1.0)] {
            assert_eq!(small_float(bits, 4, 3), value, "{bits:x}");
        }
        for (bits, value) in [(0x3c, 1.0), (0x7b, 57_344.0), (0x01, 1.525_878_9e-5)] {
            assert_eq!(small_float(bits, 5, 2), value, "{bits:x}");
        }
        assert!(small_float(0x7f, 4, 3).is_nan() && small_float(0x7c, 5, 2).is_nan());
    }
}
