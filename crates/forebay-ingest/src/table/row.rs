//! From the cells of a line to a row of each tensor.

use super::batch::Stored;
use super::cells::{Cell, Cells};
use super::element::{Element, Number, NumberType, with_values};
use super::error::RowError;
use super::hash::{HashInput, sum_duplicates};
use super::plan::{ColumnKind, ColumnPlan, Plan, TensorPlan};
use super::read::expected;
use super::schema::{MissingLabel, Unknown};

/// What a column makes of a cell.
enum Made {
    /// The number of its one column.
    Number(Number),
    /// 1 in one of its columns.
    One(u32),
    /// 0 in all of them.
    Zeros,
    /// The entries that were collected.
    Entries,
}

/// Appends a row to every tensor, or to none.
pub(crate) fn append(
    plan: &Plan,
    cells: &Cells,
    entries: &mut Vec<(u32, f64)>,
    stored: &mut [Stored],
) -> Result<(), RowError> {
    let mut done = 0;
    let mut result = Ok(());
    for (tensor, stored) in plan.tensors.iter().zip(&mut *stored) {
        result = match stored {
            Stored::Dense(values) => with_values!(values, values => dense(plan, tensor, cells, entries, values)),
            Stored::Sparse { ends, columns, values } => {
                sparse(plan, tensor, cells, entries, columns, values).map(|()| ends.push(columns.len()))
            }
        };
        if result.is_err() {
            break;
        }
        done += 1;
    }
    if result.is_err() {
        for (tensor, stored) in plan.tensors.iter().zip(&mut *stored).take(done) {
            stored.drop_row(tensor.width);
        }
    }
    result
}

fn dense<T: Element>(
    plan: &Plan,
    tensor: &TensorPlan,
    cells: &Cells,
    entries: &mut Vec<(u32, f64)>,
    values: &mut Vec<T>,
) -> Result<(), RowError> {
    let start = values.len();
    values.resize(start + tensor.width, T::default());
    let row = &mut values[start..];
    let mut fill = || {
        for column in &tensor.columns {
            let path = &plan.cells[column.cell].path;
            match make(column, path, cells, entries)? {
                Made::Number(number) => {
                    row[column.first] = T::convert(number).ok_or_else(|| range(path, number, T::TYPE))?;
                }
                Made::One(label) => {
                    // Every type has a one.
                    row[column.first + label as usize] = T::convert(Number::Unsigned(1)).unwrap_or_default();
                }
                Made::Zeros => {}
                Made::Entries => {
                    for &(index, value) in &*entries {
                        let number = Number::Float(value);
                        let value = T::convert(number).ok_or_else(|| range(path, number, T::TYPE))?;
                        row[column.first + index as usize] = value;
                    }
                }
            }
        }
        Ok(())
    };
    let result = fill();
    if result.is_err() {
        values.truncate(start);
    }
    result
}

fn sparse(
    plan: &Plan,
    tensor: &TensorPlan,
    cells: &Cells,
    entries: &mut Vec<(u32, f64)>,
    columns: &mut Vec<u32>,
    values: &mut Vec<f32>,
) -> Result<(), RowError> {
    let start = columns.len();
    let mut push = |column: usize, value: f32| {
        // The width of a tensor fits u32, see `Plan`.
        columns.push(column as u32);
        values.push(value);
    };
    let mut fill = || {
        for column in &tensor.columns {
            let path = &plan.cells[column.cell].path;
            let single = |number| f32::convert(number).ok_or_else(|| range(path, number, NumberType::F32));
            match make(column, path, cells, entries)? {
                Made::Number(number) => {
                    let value = single(number)?;
                    if value != 0.0 {
                        push(column.first, value);
                    }
                }
                Made::One(label) => push(column.first + label as usize, 1.0),
                Made::Zeros => {}
                Made::Entries => {
                    for &(index, value) in &*entries {
                        push(column.first + index as usize, single(Number::Float(value))?);
                    }
                }
            }
        }
        Ok(())
    };
    let result = fill();
    if result.is_err() {
        columns.truncate(start);
        values.truncate(start);
    }
    result
}

fn range(path: &str, number: Number, of: NumberType) -> RowError {
    RowError::Range { path: path.to_owned(), value: number.to_string(), of }
}

fn missing(path: &str) -> RowError {
    RowError::Missing { path: path.to_owned() }
}

fn make(column: &ColumnPlan, path: &str, cells: &Cells, entries: &mut Vec<(u32, f64)>) -> Result<Made, RowError> {
    let cell = &cells.cells[column.cell];
    let wrong = |expected| RowError::Kind { path: path.to_owned(), found: cell.kind(), expected };
    match &column.kind {
        ColumnKind::Numeric { missing: rule } => match cell {
            Cell::Number(number) => Ok(Made::Number(*number)),
            Cell::Bool(value) => Ok(Made::Number(Number::Unsigned(u64::from(*value)))),
            Cell::Missing => rule.map(Made::Number).ok_or_else(|| missing(path)),
            Cell::Text(_) | Cell::Features(_) => Err(wrong("a number, true or false")),
        },
        ColumnKind::OneHot { texts, wholes, bools, unknown, missing: rule, labels } => {
            let found = match cell {
                Cell::Text(place) => texts.get(&cells.text[place.clone()]).copied(),
                Cell::Bool(value) => bools[usize::from(*value)],
                Cell::Number(number) => i64::convert(*number).and_then(|whole| wholes.get(&whole).copied()),
                Cell::Missing => match rule {
                    MissingLabel::Error => return Err(missing(path)),
                    MissingLabel::Zeros => return Ok(Made::Zeros),
                    MissingLabel::Unknown => None,
                },
                Cell::Features(_) => return Err(wrong("a string, a whole number, true or false")),
            };
            match (found, unknown) {
                (Some(label), _) => Ok(Made::One(label)),
                (None, Unknown::Zeros) => Ok(Made::Zeros),
                (None, Unknown::Column) => Ok(Made::One(*labels)),
                (None, Unknown::Error) => {
                    Err(RowError::Unknown { path: path.to_owned(), value: shown(cell, &cells.text) })
                }
            }
        }
        ColumnKind::Hashed { hasher, input, missing: rule } => {
            entries.clear();
            let place = |&(hash, value): &(i32, f64)| {
                let (index, sign) = hasher.place_of(hash);
                (index, sign * value)
            };
            match cell {
                Cell::Features(places) => entries.extend(cells.features[places.clone()].iter().map(place)),
                Cell::Text(place) if *input == HashInput::String => {
                    entries.push(hasher.place(cells.text[place.clone()].as_bytes()));
                }
                Cell::Missing => match rule {
                    MissingLabel::Error => return Err(missing(path)),
                    MissingLabel::Zeros | MissingLabel::Unknown => return Ok(Made::Zeros),
                },
                Cell::Text(_) | Cell::Bool(_) | Cell::Number(_) => return Err(wrong(expected(*input))),
            }
            if entries.len() > 1 {
                sum_duplicates(entries, |a, b| a + b);
            }
            Ok(Made::Entries)
        }
    }
}

/// A value for people, shortened.
fn shown(cell: &Cell, text: &str) -> String {
    const MOST: usize = 40;
    match cell {
        Cell::Text(place) => {
            let text = &text[place.clone()];
            match text.char_indices().nth(MOST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text.to_owned(),
            }
        }
        Cell::Bool(value) => value.to_string(),
        Cell::Number(number) => number.to_string(),
        Cell::Missing => "null".to_owned(),
        Cell::Features(_) => "a collection".to_owned(),
    }
}
