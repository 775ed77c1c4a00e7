//! Tells lies one at a time and books what came of each.
//!
//! A table ([`Row`]) says, for every bit of every word of a structure, which field it belongs to and what may come of a
//! lie about it; [`tile`] fails if a bit is missing or claimed twice. A [`Book`] runs the lies and fails at its end if
//! one led to a panic (on whatever thread), took longer than [`LIMIT`], or came out otherwise than its row says.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use forebay::{AttachError, Consumer, ConsumerOptions};
use forebay_testkit::WATCHDOG;

/// "Never a hang over a second", and ten times that for a machine that does other things meanwhile: what hangs does not
/// come back at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Attaches to an honest ring. On a machine with a load of a dozen its control thread may not have its turn within the
/// second that an answer is waited for; that is not what these tests are about.
pub(crate) fn attach_at_last(options: &ConsumerOptions) -> Consumer {
    let start = Instant::now();
    loop {
        match options.clone().attach() {
            Err(AttachError::Silent { .. }) if start.elapsed() < WATCHDOG => {}
            attached => return attached.unwrap(),
        }
    }
}

/// What came of a lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An error with this text, which is to name the field.
    Refused(String),
    /// The peer was dropped, or said to be gone, without a word about a field.
    Dropped,
    /// It was taken for a hint, or for another value that may be: nothing happened.
    Harmless,
    /// Something that must never be.
    Damage(String),
}

/// What may come of lies about a field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expect {
    /// Every one is refused, with an error that has one of these texts in it.
    Refused(&'static [&'static str]),
    /// As `Refused`, but some other values are values that may be.
    Either(&'static [&'static str]),
    /// A hint: nothing comes of it, or the peer is taken for gone.
    Hint,
}

/// A field: some bits of each of some words.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) words: Range<usize>,
    pub(crate) bits: Range<u32>,
    pub(crate) name: &'static str,
    pub(crate) expect: Expect,
}

pub(crate) fn row(words: Range<usize>, bits: Range<u32>, name: &'static str, expect: Expect) -> Row {
    Row { words, bits, name, expect }
}

/// A field that is one word.
pub(crate) fn word(index: usize, name: &'static str, expect: Expect) -> Row {
    row(index..index + 1, 0..64, name, expect)
}

/// A field of several words.
pub(crate) fn span(words: Range<usize>, name: &'static str, expect: Expect) -> Row {
    row(words, 0..64, name, expect)
}

/// Asserts that the rows say of each bit of `words` exactly once what it is.
pub(crate) fn tile(rows: &[Row], words: Range<usize>) {
    let mut seen = vec![0u64; words.end];
    for row in rows {
        assert!(row.words.start >= words.start && row.words.end <= words.end, "{} lies outside {words:?}", row.name);
        for word in row.words.clone() {
            let bits = mask(&row.bits) << row.bits.start;
            assert_eq!(seen[word] & bits, 0, "bits {bits:#x} of word {word} are in two rows, one is {}", row.name);
            seen[word] |= bits;
        }
    }
    for word in words {
        assert_eq!(seen[word], u64::MAX, "no row has bits {:#x} of word {word}: a new field needs a case", !seen[word]);
    }
}

/// Asserts that each constant `pub const NAME: usize = number;` of a source file starts a row, of which the name contains
/// the constant's. `skip` lists those that are no word.
pub(crate) fn names_constants(source: &str, prefix: &str, skip: &[&str], rows: &[Row]) {
    let mut found = 0;
    for line in source.lines() {
        let Some((name, value)) = line
            .strip_prefix("pub const ")
            .and_then(|rest| rest.split_once(": usize = "))
            .and_then(|(name, value)| Some((name, value.strip_suffix(';')?.parse::<usize>().ok()?)))
        else {
            continue;
        };
        if !name.starts_with(prefix) || skip.contains(&name) {
            continue;
        }
        found += 1;
        let wanted = name.trim_start_matches(prefix).to_lowercase();
        let row = rows.iter().find(|row| row.words.start == value && row.name.contains(&wanted));
        assert!(row.is_some(), "{name} (word {value}) has no row of that name: a new field needs a case");
    }
    assert!(found > 0, "no constant was found");
}

fn mask(bits: &Range<u32>) -> u64 {
    u64::MAX >> (64 - (bits.end - bits.start))
}

/// The words that lie about `row` where the truth is `truth`: 0, 1, all ones, off by one, the high bit, at random.
pub(crate) fn lies(row: &Row, truth: u64, random: u64) -> Vec<u64> {
    let (mask, low) = (mask(&row.bits), row.bits.start);
    let own = truth >> low & mask;
    let high = mask ^ mask >> 1;
    let told = [mask, own.wrapping_add(1), 0, 1, own.wrapping_sub(1), own ^ high, random];
    // Of a wide field each word says less.
    let told = match (row.words.len() > WIDE, thorough()) {
        (true, false) => &told[..1],
        (true, true) => &told[..2],
        _ => &told[..],
    };
    let mut lies: Vec<u64> = told.iter().map(|lie| lie & mask).filter(|&lie| lie != own).collect();
    lies.sort_unstable();
    lies.dedup();
    lies.into_iter().map(|lie| truth & !(mask << low) | lie << low).collect()
}

/// A field of more words than these is told fewer lies about, and not about every word, if time is short.
const WIDE: usize = 8;

/// The words of a row that lies are told about: all of them, or of a wide one some.
pub(crate) fn chosen(row: &Row) -> impl Iterator<Item = usize> {
    let wide = row.words.len() > WIDE && !thorough();
    row.words.clone().step_by(if wide { row.words.len().div_ceil(4) } else { 1 })
}

/// Whether every lie is to be told of every word: `make hostile` has the time, `make test` has not.
pub(crate) fn thorough() -> bool {
    std::env::var_os("FOREBAY_HOSTILE_THOROUGH").is_some()
}

/// Numbers that look random, the same in every run: a case that failed fails again.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Panics of control threads and helpers. A test's own thread has a name, and says itself that it panicked.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics from now on.
pub(crate) fn count_panics() -> u64 {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name().is_none_or(|name| name.starts_with("forebay-")) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            previous(info);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

/// What came of all the lies about one structure in one direction.
#[derive(Debug)]
pub(crate) struct Book {
    subject: String,
    dice: Dice,
    cases: std::collections::BTreeSet<String>,
    refused: u64,
    dropped: u64,
    harmless: u64,
    unanswered: u64,
    longest: (Duration, String),
    wrong: Vec<String>,
}

impl Book {
    pub(crate) fn new(subject: &str) -> Self {
        count_panics();
        Self {
            subject: subject.to_owned(),
            dice: Dice::new(subject.len() as u64),
            cases: std::collections::BTreeSet::new(),
            refused: 0,
            dropped: 0,
            harmless: 0,
            unanswered: 0,
            longest: (Duration::ZERO, String::new()),
            wrong: Vec::new(),
        }
    }

    /// One lie.
    pub(crate) fn lie(&mut self, field: &str, what: &str, expect: Expect, tell: impl FnOnce() -> Outcome) {
        self.cases.insert(field.to_owned());
        let (before, start) = (count_panics(), Instant::now());
        let outcome = catch_unwind(AssertUnwindSafe(tell));
        let took = start.elapsed();
        let case = format!("{field} = {what}");
        if took > self.longest.0 {
            self.longest = (took, case.clone());
        }
        if took > LIMIT {
            self.wrong.push(format!("{case}: took {took:?}"));
        }
        if count_panics() != before {
            self.wrong.push(format!("{case}: a panic of a control thread"));
        }
        let Ok(outcome) = outcome else {
            self.wrong.push(format!("{case}: a panic"));
            return;
        };
        match &outcome {
            Outcome::Refused(_) => self.refused += 1,
            Outcome::Dropped => self.dropped += 1,
            Outcome::Harmless => self.harmless += 1,
            Outcome::Damage(_) => {}
        }
        let named = |names: &[&str], text: &str| names.iter().any(|name| text.contains(name));
        let fine = match (expect, &outcome) {
            (_, Outcome::Damage(_)) => false,
            (Expect::Refused(names) | Expect::Either(names), Outcome::Refused(text)) => named(names, text),
            (Expect::Either(_) | Expect::Hint, Outcome::Dropped | Outcome::Harmless) => true,
            (Expect::Refused(_), _) | (Expect::Hint, Outcome::Refused(_)) => false,
        };
        let busy = matches!(&outcome, Outcome::Refused(text) if text.contains("connected but silent"));
        if !fine && busy {
            // The honest end of the handshake did not have its turn within a second.
            self.unanswered += 1;
        } else if !fine {
            self.wrong.push(format!("{case}: {outcome:?}, expected {expect:?}"));
        }
    }

    /// All lies about all rows. `truth` says what stands in a word, `tell` tells the lie and says what came of it.
    pub(crate) fn all(
        &mut self,
        rows: &[Row],
        truth: impl Fn(usize) -> u64,
        mut tell: impl FnMut(usize, u64) -> Outcome,
    ) {
        for row in rows {
            for word in chosen(row) {
                let truth = truth(word);
                for lie in lies(row, truth, self.dice.next()) {
                    let what = format!("{lie:#x} (word {word}, in truth {truth:#x})");
                    self.lie(row.name, &what, row.expect, || tell(word, lie));
                }
            }
        }
    }

    /// Prints the figures, and fails if anything came out wrong.
    pub(crate) fn close(self) {
        let told = self.refused + self.dropped + self.harmless + self.wrong.len() as u64;
        figures(&format!(
            "{:<44} {:>4} fields {:>6} lies: {:>6} refused, {:>5} dropped, {:>6} without effect, {} wrong; longest {:.0?} ({})",
            self.subject,
            self.cases.len(),
            told,
            self.refused,
            self.dropped,
            self.harmless,
            self.wrong.len(),
            self.longest.0,
            self.longest.1.split(" (").next().unwrap_or_default(),
        ));
        assert!(self.wrong.is_empty(), "{}:\n{}", self.subject, self.wrong.join("\n"));
        assert!(self.unanswered * 10 <= told, "{}: {} of {told} were not answered", self.subject, self.unanswered);
    }
}

/// Shows a line of figures, and leaves it for the table that `make hostile` prints at its end.
pub(crate) fn figures(line: &str) {
    use std::io::Write;
    eprintln!("{line}");
    if let Ok(path) = std::env::var("FOREBAY_HOSTILE_FIGURES") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        writeln!(file.unwrap(), "{line}").unwrap();
    }
}
