//! Text on its way out. Results go to standard output, everything else to standard error.

use std::io::{self, Write};

use crate::failure::Failure;

/// Tells something on standard error.
pub(crate) fn say(text: &str) {
    // Nobody may be left to read it, which changes nothing.
    let _ = writeln!(io::stderr().lock(), "forebay: {text}");
}

/// Puts a result on standard output. A reader that has seen enough (`| head`) is no error.
pub(crate) fn put(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// `1 line`, `2 lines`.
pub(crate) fn count(number: u64, one: &str) -> String {
    let many = if number == 1 { "" } else { "s" };
    format!("{} {one}{many}", crate::units::grouped(number))
}

/// Rows under a head, columns as wide as they need to be; what looks like a number stands on the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| cells(column).map(|cell| cell.chars().count()).chain([head[column].len()]).max().unwrap_or(0))
        .collect();
    let right: Vec<bool> =
        (0..head.len()).map(|column| !rows.is_empty() && cells(column).all(|cell| is_number(cell))).collect();
    let mut text = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut out = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let width = widths[column];
            out.push_str(&if right[column] { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") });
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(head.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    text
}

fn is_number(cell: &str) -> bool {
    cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_text_left_and_numbers_right() {
        let rows = [vec!["a".to_owned(), "7".to_owned()], vec!["long".to_owned(), "1 234".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME      N\na         7\nlong  1 234\n");
    }
}
