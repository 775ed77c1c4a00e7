//! From a raw line to the text of an item: checked UTF-8, plain or a field of a JSON line.
//!
//! Texts are appended to a buffer of the caller, unescaped in place; no JSON tree is built. This file judges lines, it
//! does not decide what happens to bad ones.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::ItemError;

/// What a line is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// The line itself is the text.
    #[default]
    Text,
    /// The line is a JSON object, the text is a string in it.
    JsonLines {
        /// Name of the field; dots lead into nested objects (`meta.body`), and a field whose own name has dots is found
        /// as well. If it is there more than once, the last one counts.
        field: String,
    },
}

/// What became of a line.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Extracted {
    /// Its text was appended.
    Item,
    /// There is nothing in it but white space; nothing was appended.
    Blank,
}

impl Format {
    /// JSON lines with the text in `field`.
    #[must_use]
    pub fn json_lines(field: impl Into<String>) -> Self {
        Self::JsonLines { field: field.into() }
    }

    /// Appends the text of `line` to `out`. On an error, and for a blank line, `out` is as before.
    ///
    /// With `keep_blank`, blank texts are items; a line of JSON lines without any JSON is blank all the same.
    pub(crate) fn extract(&self, line: &[u8], keep_blank: bool, out: &mut String) -> Result<Extracted, ItemError> {
        let text = std::str::from_utf8(line).map_err(|error| {
            let at = error.valid_up_to();
            ItemError::NotUtf8 { at: at + 1, byte: line[at] }
        })?;
        let start = out.len();
        match self {
            Self::Text => out.push_str(text),
            Self::JsonLines { .. } if text.trim().is_empty() => return Ok(Extracted::Blank),
            Self::JsonLines { field } => {
                if let Err(error) = pick(text, field, out) {
                    out.truncate(start);
                    return Err(error);
                }
            }
        }
        if !keep_blank && out[start..].trim().is_empty() {
            out.truncate(start);
            return Ok(Extracted::Blank);
        }
        Ok(Extracted::Item)
    }
}

/// Appends the string at `field` of the JSON object `text` to `out`.
fn pick(text: &str, field: &str, out: &mut String) -> Result<(), ItemError> {
    let start = out.len();
    let mut pick = Pick { start, out, found: None };
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = json.deserialize_any(Object { path: field, pick: &mut pick });
    parsed.and_then(|()| json.end()).map_err(|error| ItemError::BadJson { detail: error.to_string() })?;
    match pick.found {
        Some(None) => Ok(()),
        Some(Some(found)) => Err(ItemError::NotText { field: field.to_owned(), found }),
        None => Err(ItemError::NoField { field: field.to_owned() }),
    }
}

/// What has been found so far.
struct Pick<'o> {
    out: &'o mut String,
    start: usize,
    /// `None`: no such field yet; `Some(None)`: its text is in `out`; `Some(Some(kind))`: it is something else.
    found: Option<Option<&'static str>>,
}

impl Pick<'_> {
    fn text(&mut self, text: &str) {
        self.out.truncate(self.start);
        self.out.push_str(text);
        self.found = Some(None);
    }

    fn other(&mut self, kind: &'static str) {
        self.out.truncate(self.start);
        self.found = Some(Some(kind));
    }
}

/// Where a key leads.
enum Step<'p> {
    /// To the field.
    Here,
    /// To an object in which the rest of the path starts.
    Into(&'p str),
    Elsewhere,
}

struct Key<'p>(&'p str);

impl<'de, 'p> DeserializeSeed<'de> for Key<'p> {
    type Value = Step<'p>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Step<'p>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Key<'p> {
    type Value = Step<'p>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Step<'p>, E> {
        if key == self.0 {
            return Ok(Step::Here);
        }
        let rest = self.0.strip_prefix(key).and_then(|rest| rest.strip_prefix('.'));
        Ok(rest.map_or(Step::Elsewhere, Step::Into))
    }
}

/// Methods of a visitor that only looks at the kind of a value: one line per kind.
macro_rules! kinds {
    ($self:ident, $kind:ident => $act:expr) => {
        fn visit_bool<E>($self, _: bool) -> Result<(), E> {
            let $kind = "true or false";
            Ok($act)
        }
        fn visit_i64<E>($self, _: i64) -> Result<(), E> {
            let $kind = "a number";
            Ok($act)
        }
        fn visit_u64<E>($self, _: u64) -> Result<(), E> {
            let $kind = "a number";
            Ok($act)
        }
        fn visit_f64<E>($self, _: f64) -> Result<(), E> {
            let $kind = "a number";
            Ok($act)
        }
        fn visit_unit<E>($self) -> Result<(), E> {
            let $kind = "null";
            Ok($act)
        }
        fn visit_seq<A: SeqAccess<'de>>($self, mut seq: A) -> Result<(), A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            let $kind = "an array";
            Ok($act)
        }
    };
}

/// A value in which the path starts.
struct Object<'p, 'a, 'o> {
    path: &'p str,
    pick: &'a mut Pick<'o>,
}

impl<'de> DeserializeSeed<'de> for Object<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(step) = map.next_key_seed(Key(self.path))? {
            let pick = &mut *self.pick;
            match step {
                Step::Here => map.next_value_seed(Leaf { pick })?,
                Step::Into(path) => map.next_value_seed(Object { path, pick })?,
                Step::Elsewhere => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    kinds!(self, _kind => ());
}

/// The value at the end of the path.
struct Leaf<'a, 'o> {
    pick: &'a mut Pick<'o>,
}

impl<'de> DeserializeSeed<'de> for Leaf<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Leaf<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.pick.text(text);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.pick.other("an object");
        Ok(())
    }

    kinds!(self, kind => self.pick.other(kind));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(field: &str, line: &str) -> Result<String, ItemError> {
        let mut out = String::from("before");
        let extracted = Format::json_lines(field).extract(line.as_bytes(), true, &mut out);
        if extracted.is_err() {
            assert_eq!(out, "before", "an error leaves the buffer alone");
        }
        extracted.map(|_| out["before".len()..].to_owned())
    }

    #[test]
    fn fields_are_found_by_path() {
        assert_eq!(text("text", r#"{"id":1,"text":"a\n\u00e9\ud83d\ude00"}"#), Ok("a\né😀".into()));
        assert_eq!(text("a.b", r#"{"a":{"c":[{}],"b":"deep"}}"#), Ok("deep".into()));
        assert_eq!(text("a.b", r#"{"a.b":"dotted"}"#), Ok("dotted".into()));
        assert_eq!(text("a.b.c", r#"{"a.b":{"c":"both"}}"#), Ok("both".into()));
        assert_eq!(text("t", r#"{"t":1,"t":"first","t":"last"}"#), Ok("last".into()));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let no_field = |field: &str| Err(ItemError::NoField { field: field.into() });
        for line in ["{}", "[]", "3", "null", "\"text\"", r#"{"Text":"x"}"#, r#"{"a":{"text":"x"}}"#] {
            assert_eq!(text("text", line), no_field("text"), "{line}");
        }
        assert_eq!(text("a.b", r#"{"a":"b"}"#), no_field("a.b"));
        for (value, found) in [
            ("null", "null"),
            ("1", "a number"),
            ("-1", "a number"),
            ("1.5", "a number"),
            ("true", "true or false"),
            ("[\"x\"]", "an array"),
            ("{\"x\":1}", "an object"),
        ] {
            let line = format!("{{\"t\":\"was text\",\"t\":{value}}}");
            assert_eq!(text("t", &line), Err(ItemError::NotText { field: "t".into(), found }));
        }
    }

    #[test]
    fn what_is_not_json_is_an_error() {
        let deep = "[".repeat(100_000);
        let deep_in_field = format!("{{\"t\":{deep}");
        for line in ["{", "x", r#"{"t":"a"} {"t":"b"}"#, r#"{"t":"\ud800"}"#, "{\"t\":\"a\tb\"}", &deep, &deep_in_field]
        {
            assert!(matches!(text("t", line), Err(ItemError::BadJson { .. })), "{:.20}", line);
        }
    }

    #[test]
    fn blank_lines_are_items_only_when_kept() {
        for blank in ["", " \t", "\u{3000}"] {
            let mut out = String::new();
            assert_eq!(Format::Text.extract(blank.as_bytes(), false, &mut out), Ok(Extracted::Blank));
            assert_eq!(out, "");
            assert_eq!(Format::Text.extract(blank.as_bytes(), true, &mut out), Ok(Extracted::Item));
            assert_eq!(out, blank);
            out.clear();
            let json = Format::json_lines("t");
            assert_eq!(json.extract(blank.as_bytes(), true, &mut out), Ok(Extracted::Blank));
            let line = format!("{{\"t\":\"{}\"}}", blank.replace('\t', "\\t"));
            assert_eq!(json.extract(line.as_bytes(), false, &mut out), Ok(Extracted::Blank));
            assert_eq!(json.extract(line.as_bytes(), true, &mut out), Ok(Extracted::Item));
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_placed() {
        for format in [Format::Text, Format::json_lines("t")] {
            assert_eq!(
                format.extract(b"ab\xff", true, &mut String::new()),
                Err(ItemError::NotUtf8 { at: 3, byte: 0xff })
            );
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 30, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::hash_map("[ab]|text", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_field_is_what_the_json_tree_has_there(value in json(), nested: bool) {
            let field = if nested { "a.text" } else { "text" };
            let pointer = if nested { "/a/text" } else { "/text" };
            let expected = match &value {
                serde_json::Value::Object(_) => value.pointer(pointer),
                _ => None,
            };
            let found = text(field, &value.to_string());
            match expected {
                Some(serde_json::Value::String(expected)) => prop_assert_eq!(found, Ok(expected.clone())),
                Some(_) => prop_assert!(matches!(found, Err(ItemError::NotText { .. })), "{:?}", found),
                None => prop_assert_eq!(found, Err(ItemError::NoField { field: field.into() })),
            }
        }

        #[test]
        fn no_bytes_make_extract_panic(line: Vec<u8>, keep: bool) {
            let _ = Format::json_lines("t").extract(&line, keep, &mut String::new());
            let _ = Format::Text.extract(&line, keep, &mut String::new());
        }
    }
}
