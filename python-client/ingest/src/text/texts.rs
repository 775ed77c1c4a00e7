//! Python's strings as Rust sees them: borrowed, not copied.

use forebay_ingest::Text;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

/// The items of a call, held as long as their bytes are read.
pub(super) struct Held<'py> {
    first: Vec<Bound<'py, PyAny>>,
    second: Option<Vec<Bound<'py, PyAny>>>,
}

impl<'py> Held<'py> {
    /// Those of `texts`, beside those of `pairs` if there are any.
    pub(super) fn new(texts: &Bound<'py, PyAny>, pairs: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        let first = sequence(texts, "texts")?;
        let second = pairs.map(|pairs| sequence(pairs, "pairs")).transpose()?;
        match &second {
            Some(second) if second.len() != first.len() => Err(PyValueError::new_err(format!(
                "pairs has {} texts, expected {}, one for each of texts; pass lists of one length",
                second.len(),
                first.len()
            ))),
            _ => Ok(Self { first, second }),
        }
    }

    /// What the tokenizer gets, and why an item is no text.
    pub(super) fn texts(&self) -> (Vec<Text<'_>>, Vec<(usize, String)>) {
        let mut bad = Vec::new();
        let mut texts = Vec::with_capacity(self.first.len());
        for (index, first) in self.first.iter().enumerate() {
            let second = self.second.as_ref().map(|second| &second[index]);
            texts.push(match (utf8(first), second.map(utf8)) {
                (Ok(first), None) => Text::Single(first),
                (Ok(first), Some(Ok(second))) => Text::Pair(first, second),
                (Err(reason), _) | (_, Some(Err(reason))) => {
                    bad.push((index, reason));
                    Text::Absent
                }
            });
        }
        (texts, bad)
    }
}

fn sequence<'py>(texts: &Bound<'py, PyAny>, name: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
    if texts.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("{name} is one string, expected a list of them; pass [{name}]")));
    }
    texts.try_iter()?.collect()
}

fn utf8<'a>(item: &'a Bound<'_, PyAny>) -> Result<&'a str, String> {
    let Ok(string) = item.cast::<PyString>() else {
        let kind = item.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        return Err(format!("it is {kind}, expected str"));
    };
    string.to_str().map_err(|error| format!("it is no Unicode text: {error}"))
}
