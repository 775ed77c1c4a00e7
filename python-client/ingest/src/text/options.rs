//! Keyword arguments as options.

use forebay_ingest::{OffsetUnit, RowOptions, Side, TokenizerOptions, Truncate, UnicodeForm, Width};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};

fn unknown(name: &str, found: &dyn std::fmt::Display, expected: &str) -> PyErr {
    PyValueError::new_err(format!("{name} is {found}, expected {expected}"))
}

/// `"longest"`, a number of columns, or None for what is the default.
fn width(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Width>> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    if let Ok(columns) = value.extract::<usize>()
        && !value.is_instance_of::<PyBool>()
    {
        return Ok(Some(Width::Fixed(columns)));
    }
    match value.cast::<PyString>().map(|name| name.to_cow()) {
        Ok(Ok(word)) if word == "longest" => Ok(Some(Width::Longest)),
        _ => Err(unknown(name, value, "\"longest\" or a number of columns")),
    }
}

fn side(name: &str, value: Option<&str>) -> PyResult<Option<Side>> {
    match value {
        None => Ok(None),
        Some("left") => Ok(Some(Side::Left)),
        Some("right") => Ok(Some(Side::Right)),
        Some(other) => Err(unknown(name, &format!("{other:?}"), "\"left\" or \"right\"")),
    }
}

fn form(value: Option<&str>) -> PyResult<Option<UnicodeForm>> {
    match value {
        None => Ok(None),
        Some("NFC") => Ok(Some(UnicodeForm::Nfc)),
        Some("NFKC") => Ok(Some(UnicodeForm::Nfkc)),
        Some(other) => Err(unknown("normalize", &format!("{other:?}"), "\"NFC\", \"NFKC\" or None")),
    }
}

/// The keyword arguments of loading.
pub(super) struct Loading<'a, 'py> {
    pub(super) max_length: Option<usize>,
    pub(super) width: Option<&'a Bound<'py, PyAny>>,
    pub(super) pad_to_multiple_of: Option<usize>,
    pub(super) pad_id: Option<u32>,
    pub(super) pad_side: Option<&'a str>,
    pub(super) truncation_side: Option<&'a str>,
    pub(super) add_special_tokens: bool,
    pub(super) normalize: Option<&'a str>,
    pub(super) special_in_text: bool,
}

impl Loading<'_, '_> {
    pub(super) fn options(&self) -> PyResult<TokenizerOptions> {
        Ok(TokenizerOptions {
            max_length: self.max_length,
            truncate: None,
            truncate_side: side("truncation_side", self.truncation_side)?,
            width: width("width", self.width)?.unwrap_or_default(),
            pad_to_multiple_of: self.pad_to_multiple_of,
            pad_id: self.pad_id,
            pad_side: side("pad_side", self.pad_side)?,
            add_special_tokens: self.add_special_tokens,
            normalize: form(self.normalize)?,
            special_in_text: self.special_in_text,
        })
    }
}

/// The keyword arguments of one call that are about rows.
pub(super) struct Rows<'a, 'py> {
    pub(super) padding: Option<&'a Bound<'py, PyAny>>,
    pub(super) truncation: Option<&'a Bound<'py, PyAny>>,
    pub(super) max_length: Option<usize>,
    pub(super) stride: Option<usize>,
    pub(super) pad_to_multiple_of: Option<usize>,
    pub(super) add_special_tokens: Option<bool>,
    pub(super) type_ids: Option<bool>,
    pub(super) offsets: bool,
    pub(super) pairs: bool,
}

impl Rows<'_, '_> {
    /// The tokenizer's own `rows`, with what was asked for.
    pub(super) fn options(&self, rows: &RowOptions) -> PyResult<RowOptions> {
        let mut options = rows.clone();
        options.width = width("padding", self.padding)?.unwrap_or(rows.width);
        options.max_length = self.max_length.or(rows.max_length);
        self.truncate(&mut options)?;
        options.overflow = self.stride;
        options.pad_to_multiple_of = self.pad_to_multiple_of.unwrap_or(rows.pad_to_multiple_of);
        options.add_special_tokens = self.add_special_tokens.unwrap_or(rows.add_special_tokens);
        options.type_ids = self.type_ids.unwrap_or(self.pairs);
        options.offsets = self.offsets.then_some(OffsetUnit::Chars);
        Ok(options)
    }

    /// A name, True for what is the default, False for no limit but a fixed width.
    fn truncate(&self, options: &mut RowOptions) -> PyResult<()> {
        let Some(value) = self.truncation.filter(|value| !value.is_none()) else { return Ok(()) };
        let word = value.cast::<PyString>().ok().and_then(|word| word.to_str().ok());
        options.truncate = match (value.extract::<bool>(), word) {
            (Ok(true), _) => return Ok(()),
            (Ok(false), _) => {
                options.max_length = None;
                return Ok(());
            }
            (_, Some("longest_first")) => Truncate::LongestFirst,
            (_, Some("only_first")) => Truncate::OnlyFirst,
            (_, Some("only_second")) => Truncate::OnlySecond,
            _ => {
                let expected = "\"longest_first\", \"only_first\", \"only_second\", True or False";
                return Err(unknown("truncation", value, expected));
            }
        };
        Ok(())
    }
}
