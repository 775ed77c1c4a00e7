//! JSON of requests: parsed once into borrowed pieces; looked at a second time only to say which field is wrong.

use std::{borrow::Cow, fmt, marker::PhantomData};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, error::Category, value::RawValue};

use super::problem::Problem;

/// Parameters that a request may have: more than a model can, whose tensors they are. Protocols have some of their own.
pub(super) const MAX_PARAMETERS: usize = 2 * forebay::MAX_FIELDS;

/// What `bytes` say.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| explain::<T>(bytes, "", &error))
}

/// What the piece `raw`, found in `field`, says.
pub(super) fn parse_raw<'a, T: Deserialize<'a>>(raw: &'a RawValue, field: &str) -> Result<T, Problem> {
    serde_json::from_str(raw.get()).map_err(|error| explain::<T>(raw.get().as_bytes(), field, &error))
}

/// The first entries of the list `raw`, found in `field`, `most` of them, and how many it has: one of two bytes takes up to a
/// dozen times that in memory.
pub(super) fn list<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    field: &str,
    most: usize,
) -> Result<(Vec<T>, usize), Problem> {
    first_of(raw, most).map_err(|error| explain::<Vec<T>>(raw.get().as_bytes(), field, &error))
}

/// As [`list`], without words for what is wrong.
pub(super) fn first_of<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    most: usize,
) -> Result<(Vec<T>, usize), serde_json::Error> {
    // A raw value is one value: nothing comes behind it.
    FirstOf(most, PhantomData).deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
}

struct FirstOf<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for FirstOf<T> {
    type Value = (Vec<T>, usize);

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstOf<T> {
    type Value = (Vec<T>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        while first.len() < self.0 {
            let Some(entry) = entries.next_element()? else {
                let count = first.len();
                return Ok((first, count));
            };
            first.push(entry);
        }
        let mut count = first.len();
        while entries.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((first, count))
    }
}

/// 400 for what is no JSON, 422 with the field for what is, but not what is expected.
fn explain<'a, T: Deserialize<'a>>(bytes: &'a [u8], within: &str, error: &serde_json::Error) -> Problem {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Problem::malformed("the body is empty, JSON is expected");
    }
    if error.classify() != Category::Data {
        return Problem::malformed(format!("the body is not JSON: {error}"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let path = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) => error.path().to_string(),
        Ok(_) => ".".to_owned(),
    };
    // The words around it are serde_json's; the place is said by the field.
    let mut message = error.to_string();
    if let Some(end) = message.rfind(" at line ") {
        message.truncate(end);
    }
    let named = message.split('`').nth(1).filter(|_| message.contains(" field `"));
    let mut field = within.to_owned();
    for part in [Some(path.as_str()).filter(|path| *path != "."), named].into_iter().flatten() {
        if field.ends_with(part) {
            continue;
        }
        if !field.is_empty() && !part.starts_with('[') {
            field.push('.');
        }
        field.push_str(part);
    }
    Problem::field(if field.is_empty() { "body" } else { &field }, message)
}

/// `parameters` of a request; none is an empty object.
pub(super) fn parameters(raw: Option<&RawValue>) -> Result<Map<String, Value>, Problem> {
    match raw {
        None => Ok(Map::new()),
        Some(raw) => parse_raw::<Option<Parameters>>(raw, "parameters").map(|all| all.unwrap_or_default().0),
    }
}

/// Values by name, no lists or objects: as values these take up to a hundred times the bytes of their text.
#[derive(Default)]
pub(super) struct Parameters(pub(super) Map<String, Value>);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let all: Entries<String, Scalar> = Entries::deserialize(from)?;
        Ok(Self(all.0.into_iter().map(|(name, value)| (name, value.0)).collect()))
    }
}

/// What an object says, in its order; an object of more entries than [`MAX_PARAMETERS`] is none.
pub(super) struct Entries<K, V>(pub(super) Vec<(K, V)>);

impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Entries<K, V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit<K, V>(PhantomData<(K, V)>);
        impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> Visitor<'de> for Visit<K, V> {
            type Value = Entries<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    all.push(entry);
                    if all.len() > MAX_PARAMETERS {
                        return Err(A::Error::custom(format_args!("more than {MAX_PARAMETERS}")));
                    }
                }
                Ok(Entries(all))
            }
        }
        from.deserialize_map(Visit(PhantomData))
    }
}

struct Scalar(Value);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, a text, true or false")
            }

            fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
                Ok(Scalar(Value::Null))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
        }
        from.deserialize_any(Visit)
    }
}

/// A text that is borrowed where it has no escapes.
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Appends `text` as a JSON string.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    // Writing to a Vec does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// 200 with this JSON.
pub(super) fn response(json: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
