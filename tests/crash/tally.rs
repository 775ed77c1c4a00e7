//! What was counted, by operation and kind, and how it is printed. Workers pass it on as lines.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

/// What was counted of one operation.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Row {
    runs: u64,
    /// Instructions that were stepped, one by one.
    steps: u64,
    /// Stores that trapped, in runs where nothing else did.
    stores: u64,
    audits: u64,
    failures: u64,
    /// Distinct pictures, by hash.
    pictures: HashSet<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    rows: BTreeMap<String, Row>,
    failures: Vec<String>,
    scenarios: u64,
    deaths: u64,
}

impl Tally {
    /// An operation was stepped.
    pub(crate) fn ran(&mut self, operation: &str, every_instruction: bool, steps: u64) {
        let row = self.row(operation);
        row.runs += 1;
        *(if every_instruction { &mut row.steps } else { &mut row.stores }) += steps;
    }

    /// A picture was taken; true if it is a new one for this operation.
    pub(crate) fn is_new(&mut self, operation: &str, hash: u64) -> bool {
        self.row(operation).pictures.insert(hash)
    }

    pub(crate) fn audited(&mut self, operation: &str, audits: u64) {
        self.row(operation).audits += audits;
    }

    pub(crate) fn failed(&mut self, operation: &str, text: String) {
        self.row(operation).failures += 1;
        self.failures.push(text);
    }

    /// A scenario is over, in which so many processes were killed.
    pub(crate) fn walked(&mut self, deaths: u64) {
        self.scenarios += 1;
        self.deaths += deaths;
    }

    fn row(&mut self, operation: &str) -> &mut Row {
        if !self.rows.contains_key(operation) {
            self.rows.insert(operation.to_owned(), Row::default());
        }
        self.rows.get_mut(operation).unwrap()
    }

    pub(crate) fn points(&self) -> u64 {
        self.rows.values().map(|row| row.pictures.len() as u64).sum()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.len() as u64
    }

    /// A worker's lines on stdout.
    pub(crate) fn write(&self) {
        println!("walked {} {}", self.scenarios, self.deaths);
        for (operation, row) in &self.rows {
            println!("row {operation} {} {} {} {} {}", row.runs, row.steps, row.stores, row.audits, row.failures);
            for hashes in row.pictures.iter().collect::<Vec<_>>().chunks(1000) {
                let list: Vec<_> = hashes.iter().map(|hash| format!("{hash:x}")).collect();
                println!("pictures {operation} {}", list.join(" "));
            }
        }
        for failure in &self.failures {
            println!("failure {}", failure.replace('\n', "\\n"));
        }
    }

    /// Adds a worker's line.
    pub(crate) fn read(&mut self, line: &str) {
        let mut words = line.split(' ');
        let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(0);
        match words.next() {
            Some("walked") => {
                self.scenarios += number(words.next());
                self.deaths += number(words.next());
            }
            Some("row") => {
                let row = self.row(words.next().unwrap_or("?"));
                row.runs += number(words.next());
                row.steps += number(words.next());
                row.stores += number(words.next());
                row.audits += number(words.next());
                row.failures += number(words.next());
            }
            Some("pictures") => {
                let row = self.row(words.next().unwrap_or("?"));
                row.pictures.extend(words.filter_map(|hash| u64::from_str_radix(hash, 16).ok()));
            }
            Some("failure") => {
                let text = line.trim_start_matches("failure ").replace("\\n", "\n");
                self.failures.push(text);
            }
            _ => println!("{line}"),
        }
    }

    pub(crate) fn table(&self, seed: u64, took: Duration) -> String {
        let mut out = String::new();
        let mut line = |name: &str, cells: [String; 6]| {
            let [runs, steps, stores, pictures, audits, failures] = cells;
            let _ =
                writeln!(out, "{name:26} {runs:>7} {steps:>13} {stores:>9} {pictures:>10} {audits:>9} {failures:>9}");
        };
        line("operation", ["runs", "instructions", "stores", "snapshots", "audits", "failures"].map(str::to_owned));
        let mut total = [0; 6];
        for (operation, row) in &self.rows {
            let numbers = [row.runs, row.steps, row.stores, row.pictures.len() as u64, row.audits, row.failures];
            for (sum, number) in total.iter_mut().zip(numbers) {
                *sum += number;
            }
            line(operation, numbers.map(|number| number.to_string()));
        }
        line("total", total.map(|number| number.to_string()));
        let pictures = total[3];
        let seconds = took.as_secs_f64();
        let _ = write!(
            out,
            "seed {seed}: {} scenarios, {} processes killed, {pictures} crash points in {seconds:.1} s: {:.0} a second",
            self.scenarios,
            self.deaths,
            pictures as f64 / seconds
        );
        for failure in &self.failures {
            let _ = write!(out, "\n\nFAILED: {failure}");
        }
        out
    }
}
