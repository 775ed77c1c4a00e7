//! The matrix as text: one table a language, one row a behaviour, kind and backing, one column a wake.

use std::io::{Result, Write};

use forebay::{Backing, Kind};

use super::{Behaviour, Cell, Wake};

/// Prints the matrix. True if no cell failed and none is empty.
pub(super) fn print(
    out: &mut impl Write,
    behaviours: &[Behaviour],
    combinations: &[(Kind, Backing, Wake)],
    cells: &[Cell],
    languages: &[String],
) -> Result<bool> {
    let (mut passed, mut failed, mut none, mut empty) = (0, Vec::new(), 0, Vec::new());
    for language in languages {
        writeln!(out, "\n## {language}\n")?;
        let wakes: Vec<&str> = Wake::ALL.iter().map(|wake| wake.name()).collect();
        writeln!(out, "| kind | backing | {} |", wakes.join(" | "))?;
        writeln!(out, "|---|---|{}", "---|".repeat(wakes.len()))?;
        for behaviour in behaviours {
            for kind in [Kind::Queue, Kind::Broadcast] {
                for backing in [Backing::Posix, Backing::Memfd] {
                    let mut row = Vec::new();
                    for wake in Wake::ALL {
                        if !combinations.contains(&(kind, backing, wake)) {
                            row.push("(not run pairwise)".to_owned());
                            continue;
                        }
                        let found = cells.iter().find(|cell| {
                            cell.behaviour == behaviour.name
                                && cell.kind == kind.name()
                                && cell.backing == backing.name()
                                && cell.wake == wake
                                && cell.language == *language
                        });
                        let place =
                            || format!("{} · {kind} · {backing} · {} · {language}", behaviour.name, wake.name());
                        row.push(match found.map(|cell| (cell.outcome.as_str(), cell)) {
                            Some(("pass", cell)) if !cell.test.is_empty() => {
                                passed += 1;
                                cell.test.clone()
                            }
                            Some(("none", cell)) if !cell.detail.is_empty() => {
                                none += 1;
                                format!("– {}", cell.detail)
                            }
                            Some(("fail", cell)) => {
                                failed.push(format!("{}: {}", place(), cell.detail));
                                format!("FAIL {}", cell.test)
                            }
                            _ => {
                                empty.push(place());
                                "EMPTY".to_owned()
                            }
                        });
                    }
                    writeln!(out, "| {kind} | {backing} | {} |", row.join(" | "))?;
                }
            }
        }
    }
    writeln!(out, "\n{passed} passed, {} failed, {} empty, {none} do not exist", failed.len(), empty.len())?;
    for line in &failed {
        writeln!(out, "FAIL  {line}")?;
    }
    for line in &empty {
        writeln!(out, "EMPTY {line}")?;
    }
    Ok(failed.is_empty() && empty.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{behaviours, combinations, empty};

    #[test]
    fn an_empty_cell_fails_the_run() {
        let (behaviours, combinations) = (behaviours(), combinations(true));
        let mut cells = Vec::new();
        for behaviour in &behaviours {
            for &combination in &combinations {
                let mut cell = empty(behaviour, combination, "rust");
                cell.test = behaviour.name.to_owned();
                cell.outcome = "pass".to_owned();
                cells.push(cell);
            }
        }
        let languages = ["rust".to_owned()];
        assert!(print(&mut Vec::new(), &behaviours, &combinations, &cells, &languages).unwrap());
        let gone = cells.pop().unwrap();
        assert!(!print(&mut Vec::new(), &behaviours, &combinations, &cells, &languages).unwrap());
        cells.push(Cell { outcome: String::new(), ..gone });
        let mut text = Vec::new();
        assert!(!print(&mut text, &behaviours, &combinations, &cells, &languages).unwrap());
        assert!(String::from_utf8(text).unwrap().contains("1 empty"));
    }

    #[test]
    fn every_pair_of_values_meets_in_the_pairwise_part() {
        let (full, part) = (combinations(false), combinations(true));
        assert_eq!((full.len(), part.len()), (16, 8));
        for (kind, backing, wake) in full {
            assert!(part.iter().any(|c| (c.0, c.1) == (kind, backing)));
            assert!(part.iter().any(|c| (c.0, c.2) == (kind, wake)));
            assert!(part.iter().any(|c| (c.1, c.2) == (backing, wake)));
        }
    }
}
