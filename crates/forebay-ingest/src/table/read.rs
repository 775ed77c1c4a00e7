//! From a line of JSON to its cells, by any deserializer of serde. No tree of the JSON is built.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::cells::{Cell, Cells};
use super::element::Number;
use super::error::RowError;
use super::hash::HashInput;
use super::plan::Plan;

/// Reads one JSON object into `cells`, which are clear. On an error `cells.problem` says more, if it is not the JSON.
pub(crate) fn read<'de, D: Deserializer<'de>>(json: D, plan: &Plan, cells: &mut Cells) -> Result<(), D::Error> {
    Value { node: 0, plan, cells }.deserialize(json)
}

impl Cells {
    /// Ends the reading.
    fn fail<E: Error>(&mut self, problem: RowError) -> E {
        self.problem = Some(problem);
        E::custom("")
    }
}

/// The visits of a value that is one of the simple kinds, each of which goes through `$method`.
macro_rules! scalars {
    ($method:ident) => {
        fn visit_unit<E: Error>(self) -> Result<(), E> {
            self.$method(Scalar::Null)
        }
        fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
            self.$method(Scalar::Bool(value))
        }
        fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
            self.$method(Scalar::Number(Number::Unsigned(value)))
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
            self.$method(Scalar::Number(Number::Signed(value)))
        }
        fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
            self.$method(Scalar::Number(Number::Float(value)))
        }
        fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
            self.$method(Scalar::Text(value))
        }
    };
}

enum Scalar<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(&'a str),
}

impl Scalar<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
        }
    }
}

/// The value of a key that the schema asks for, or of which it asks for something inside.
struct Value<'a> {
    node: usize,
    plan: &'a Plan,
    cells: &'a mut Cells,
}

impl Value<'_> {
    fn wrong<E: Error>(self, found: &'static str) -> E {
        let node = &self.plan.nodes[self.node];
        let features = node.cell.and_then(|cell| self.plan.cells[cell].features);
        let expected = match (node.cell, features) {
            (None, _) => "an object",
            (_, None) => "a number, a string, true or false",
            (_, Some(input)) => expected(input),
        };
        let path = if node.path.is_empty() { "the line".to_owned() } else { node.path.clone() };
        self.cells.fail(RowError::Kind { path, found, expected })
    }

    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        match self.plan.nodes[self.node].cell {
            Some(cell) => {
                self.cells.cells[cell] = match value {
                    Scalar::Null => Cell::Missing,
                    Scalar::Bool(value) => Cell::Bool(value),
                    Scalar::Number(value) => Cell::Number(value),
                    Scalar::Text(value) => Cell::Text(self.cells.keep(value)),
                };
                Ok(())
            }
            // An object that is null: all in it is missing. The line itself must be one.
            None if matches!(value, Scalar::Null) && self.node != 0 => Ok(()),
            None => Err(self.wrong(value.kind())),
        }
    }

    fn input(&self) -> Option<(usize, HashInput)> {
        let cell = self.plan.nodes[self.node].cell?;
        Some((cell, self.plan.cells[cell].features?))
    }
}

/// What a column of hashed names takes.
pub(crate) fn expected(input: HashInput) -> &'static str {
    match input {
        HashInput::Dict => "an object of names and numbers or strings",
        HashInput::Pair => "an array of pairs of name and number or string",
        HashInput::String => "a string or an array of strings",
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    scalars!(scalar);

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (cell, input) = match self.input() {
            Some((cell, input @ (HashInput::Pair | HashInput::String))) => (cell, input),
            _ => return Err(self.wrong("an array")),
        };
        let start = self.cells.features.len();
        let path = &self.plan.cells[cell].path;
        loop {
            let more = match input {
                HashInput::Pair => items.next_element_seed(Pair { path, cells: &mut *self.cells })?,
                _ => items.next_element_seed(Name { path, cells: &mut *self.cells, keep: None })?,
            };
            if more.is_none() {
                break;
            }
        }
        self.cells.cells[cell] = Cell::Features(start..self.cells.features.len());
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        if let Some((cell, HashInput::Dict)) = self.input() {
            return dict(entries, cell, self.plan, self.cells);
        }
        if self.plan.nodes[self.node].cell.is_some() {
            return Err(self.wrong("an object"));
        }
        let Self { node, plan, cells } = self;
        let mut expected = 0;
        while let Some(child) = entries.next_key_seed(Key { node, plan, expected: &mut expected })? {
            let Some(node) = child else {
                entries.next_value::<IgnoredAny>()?;
                continue;
            };
            if !cells.first_time(node) {
                let path = plan.nodes[node].path.clone();
                return Err(cells.fail(RowError::Duplicate { path }));
            }
            entries.next_value_seed(Value { node, plan, cells: &mut *cells })?;
        }
        Ok(())
    }
}

/// A key; gives the node that it leads to.
struct Key<'a> {
    node: usize,
    plan: &'a Plan,
    expected: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.plan.nodes[self.node].child(key, self.expected))
    }
}

/// Names and values of an object.
fn dict<'de, A: MapAccess<'de>>(mut entries: A, cell: usize, plan: &Plan, cells: &mut Cells) -> Result<(), A::Error> {
    let start = cells.features.len();
    let path = &plan.cells[cell].path;
    let mut name = 0..0;
    while entries.next_key_seed(Name { path, cells: &mut *cells, keep: Some(&mut name) })?.is_some() {
        let hash = cells.hash(name.clone());
        cells.remember(hash, name.clone());
        entries.next_value_seed(Worth { path, cells: &mut *cells, name: name.clone(), hash })?;
    }
    if let Some(name) = cells.duplicate() {
        return Err(cells.fail(RowError::Duplicate { path: format!("{path}.{name}") }));
    }
    cells.cells[cell] = Cell::Features(start..cells.features.len());
    Ok(())
}

/// A name: kept for what follows, or worth 1.
struct Name<'a> {
    path: &'a str,
    cells: &'a mut Cells,
    keep: Option<&'a mut Range<usize>>,
}

impl Name<'_> {
    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        match (value, self.keep) {
            (Scalar::Text(name), None) => self.cells.add(name.as_bytes(), 1.0),
            (Scalar::Text(name), Some(kept)) => *kept = self.cells.keep(name),
            (other, _) => return Err(not_in(self.cells, self.path, other.kind(), "a string")),
        }
        Ok(())
    }
}

fn not_in<E: Error>(cells: &mut Cells, path: &str, found: &'static str, expected: &'static str) -> E {
    cells.fail(RowError::Kind { path: format!("something in {path}"), found, expected })
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Name<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    scalars!(scalar);

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(not_in(self.cells, self.path, "an array", "a string"))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(not_in(self.cells, self.path, "an object", "a string"))
    }
}

/// What a name is worth.
struct Worth<'a> {
    path: &'a str,
    cells: &'a mut Cells,
    name: Range<usize>,
    /// The name's.
    hash: i32,
}

const WORTH: &str = "a number, a string, true or false";

impl Worth<'_> {
    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        match value {
            Scalar::Number(number) => self.cells.add_hash(self.hash, number.to_f64()),
            Scalar::Bool(value) => self.cells.add_hash(self.hash, f64::from(u8::from(value))),
            Scalar::Text(label) => self.cells.add_label(self.name, label),
            Scalar::Null => return Err(not_in(self.cells, self.path, "null", WORTH)),
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Worth<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Worth<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or string")
    }

    scalars!(scalar);

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(not_in(self.cells, self.path, "an array", WORTH))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(not_in(self.cells, self.path, "an object", WORTH))
    }
}

/// A pair of a name and what it is worth.
struct Pair<'a> {
    path: &'a str,
    cells: &'a mut Cells,
}

const PAIR: &str = "a pair of name and number or string";

impl Pair<'_> {
    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        Err(not_in(self.cells, self.path, value.kind(), PAIR))
    }
}

impl<'de> DeserializeSeed<'de> for Pair<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pair<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pair")
    }

    scalars!(scalar);

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (path, cells) = (self.path, self.cells);
        let mut name = 0..0;
        let whole = items.next_element_seed(Name { path, cells: &mut *cells, keep: Some(&mut name) })?.is_some()
            && {
                let hash = cells.hash(name.clone());
                items.next_element_seed(Worth { path, cells: &mut *cells, name, hash })?.is_some()
            }
            && items.next_element::<IgnoredAny>()?.is_none();
        if whole { Ok(()) } else { Err(not_in(cells, path, "an array of another length", PAIR)) }
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(not_in(self.cells, self.path, "an object", PAIR))
    }
}
