//! What `forebay feed` makes of its input: lines of any bytes, positions that anybody may have written.

use std::{fs, path::PathBuf, sync::Arc};

use forebay_ingest::{
    Format, Input, LineId, OnError, Pipeline, PipelineOptions, Position, Repeat, Source, SourceOptions, Tokenizer,
    TokenizerOptions,
};
use forebay_testkit::Place;

use crate::bytes::Bytes;

thread_local! {
    static DESK: Desk = Desk::new();
}

/// The target `feed`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    DESK.with(|desk| match input.byte() % 4 {
        0 => decode(input.rest()),
        1 => desk.lines(input),
        2 => desk.lost(input),
        _ => desk.batches(input),
    });
}

/// Any bytes: refused, or a position that encodes to exactly them.
fn decode(bytes: &[u8]) {
    match Position::decode(bytes) {
        Ok(position) => assert_eq!(position.encode(), bytes, "two encodings of one position"),
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}

/// A line as it should be found: where it is, and what, or how long it is if that is too long.
type Found = (u32, u64, Result<Vec<u8>, u64>);

/// The lines of one input, by the plainest means.
fn reference(file: u32, bytes: &[u8], most: usize) -> Vec<Found> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let last = lines.pop().unwrap();
    let mut lines: Vec<&[u8]> = lines.iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    if !last.is_empty() {
        lines.push(last);
    }
    let found = lines.iter().map(|line| if line.len() > most { Err(line.len() as u64) } else { Ok(line.to_vec()) });
    found.zip(1..).map(|(line, number)| (file, number, line)).collect()
}

/// Two files, and a tokenizer that knows the digits.
struct Desk {
    place: Place,
    tokenizer: Arc<Tokenizer>,
}

impl Desk {
    fn new() -> Self {
        let vocab: Vec<String> = (0..10).map(|digit| format!("\"{digit}\":{}", digit + 1)).collect();
        let json = format!(
            r#"{{"version":"1.0","added_tokens":[],"pre_tokenizer":{{"type":"WhitespaceSplit"}},
                "model":{{"type":"WordLevel","vocab":{{"?":0,{}}},"unk_token":"?"}}}}"#,
            vocab.join(",")
        );
        let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "digits", &TokenizerOptions::default()).unwrap();
        Self { place: Place::new(), tokenizer: Arc::new(tokenizer) }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Input {
        let path: PathBuf = self.place.path().join(name);
        fs::write(&path, bytes).unwrap();
        Input::from(path)
    }

    /// Two files from what is left of an input.
    fn files(&self, mut input: Bytes<'_>) -> ([Input; 2], [Vec<u8>; 2]) {
        let first = input.byte();
        let all = input.rest();
        let (a, b) = all.split_at(usize::from(first).min(all.len()));
        ([self.file("a", a), self.file("b", b)], [a.to_vec(), b.to_vec()])
    }

    /// The lines are those of the reference, also from the middle on.
    fn lines(&self, mut input: Bytes<'_>) {
        let most = 1 + input.below(64);
        let passes = 1 + u64::from(input.byte() & 1);
        let resume_after = usize::from(input.byte());
        let (inputs, bytes) = self.files(input);
        let options = SourceOptions { max_line_bytes: most, repeat: Repeat::Times(passes), shuffle: None };
        let once: Vec<Found> = (0..2).flat_map(|i| reference(i as u32, &bytes[i], most)).collect();
        let expected: Vec<&Found> = (0..passes).flat_map(|_| &once).collect();

        let source = Source::open(&inputs, options.clone()).unwrap();
        assert_eq!(source.remaining_bytes(), Some(passes * (bytes[0].len() + bytes[1].len()) as u64));
        let (found, positions) = drain(source);
        assert!(found.iter().eq(expected.iter().copied()), "found {found:?}, expected {expected:?}");

        let Some(position) = positions.get(resume_after) else { return };
        let position = Position::decode(&position.encode()).unwrap();
        let (rest, _) = drain(Source::resume(&inputs, options, &position).unwrap());
        assert!(rest.iter().eq(expected[resume_after + 1..].iter().copied()), "after {position:?}: {rest:?}");
    }

    /// A position that fits the inputs but was never given out: an error, or lines from somewhere, and an end.
    fn lost(&self, mut input: Bytes<'_>) {
        let (pass, file, offset) = (input.byte(), input.byte() & 1, input.byte());
        let odd = input.byte();
        let (line, items, check) = (input.byte(), input.byte(), input.word());
        let (inputs, _) = self.files(input);
        let options = SourceOptions { max_line_bytes: 32, repeat: Repeat::Times(2), shuffle: None };
        let honest = Source::open(&inputs, options.clone()).unwrap().position();
        let wide = |bit: u8, value: u8| if odd >> bit & 1 == 0 { value.into() } else { u64::MAX - u64::from(value) };
        let position = Position {
            pass: wide(0, pass),
            file: file.into(),
            offset: wide(1, offset),
            line: wide(2, line),
            items: wide(3, items),
            check: if odd & 0x10 == 0 { honest.check } else { check },
            ..honest
        };
        match Source::resume(&inputs, options, &position) {
            Ok(mut source) => {
                let _ = source.remaining_bytes();
                while !source.is_done() {
                    if let Err(why) = source.next_line() {
                        assert!(!why.to_string().is_empty());
                    }
                }
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
        if let Ok(source) = Source::resume(&inputs, SourceOptions::default(), &position) {
            self.run(source, PipelineOptions { workers: 1, on_error: OnError::Skip, ..PipelineOptions::default() });
        }
    }

    fn run(&self, source: Source, options: PipelineOptions) -> (Vec<LineId>, Vec<Position>, Option<u64>) {
        let mut pipeline = Pipeline::start(source, Arc::clone(&self.tokenizer), options).unwrap();
        let (mut rows, mut positions) = (Vec::new(), Vec::new());
        for batch in pipeline.by_ref() {
            let Ok(batch) = batch else { return (rows, positions, None) };
            assert!(batch.rows() > 0, "a batch without rows");
            let mut ids = vec![-1i64; batch.rows() * batch.cols()];
            let mut mask = ids.clone();
            batch.write_into(&mut ids, &mut mask).unwrap();
            assert!(ids.iter().all(|id| (0..=10).contains(id)) && mask.iter().all(|bit| (0..=1).contains(bit)));
            rows.extend_from_slice(&batch.lines);
            positions.push(batch.next);
        }
        let report = pipeline.report();
        assert!(report.complete);
        assert_eq!(report.items, rows.len() as u64);
        (rows, positions, Some(report.items + report.skipped.total() + report.skipped.blank()))
    }

    /// Every line is an item, blank or left out, in order, also from the middle on.
    fn batches(&self, mut input: Bytes<'_>) {
        let bits = input.byte();
        let most = 1 + input.below(128);
        let resume_after = usize::from(input.byte());
        let (inputs, bytes) = self.files(input);
        let options = || PipelineOptions {
            batch_rows: 1 + usize::from(bits & 3),
            workers: 1 + usize::from(bits >> 2 & 1),
            format: if bits & 8 == 0 { Format::Text } else { Format::json_lines("a.b") },
            keep_blank: bits & 0x10 != 0,
            on_error: if bits & 0x20 == 0 { OnError::Skip } else { OnError::Fail },
            ..PipelineOptions::default()
        };
        let how = SourceOptions { max_line_bytes: most, repeat: Repeat::default(), shuffle: None };
        let (rows, positions, lines) = self.run(Source::open(&inputs, how.clone()).unwrap(), options());
        let expected: usize = (0..2).map(|i| reference(i as u32, &bytes[i], most).len()).sum();
        assert!(lines.is_none_or(|lines| lines == expected as u64), "{lines:?} lines of {expected}");
        assert!(lines.is_some() || bits & 0x20 != 0, "a bad line ended the run, but was to be skipped");
        assert!(rows.is_sorted(), "{rows:?}");

        let Some(position) = positions.get(resume_after) else { return };
        let source = Source::resume(&inputs, how, position).unwrap();
        let (rest, ..) = self.run(source, options());
        let done = position.items as usize;
        assert_eq!(rest, rows[done..], "after {position:?}");
    }
}

/// Every line of a source, and where it stood after each.
fn drain(mut source: Source) -> (Vec<Found>, Vec<Position>) {
    let (mut found, mut positions) = (Vec::new(), Vec::new());
    while !source.is_done() {
        let next = source.next_line().unwrap();
        let Some(line) = next else { continue };
        let bytes = match line.too_long {
            Some(length) => Err(length),
            None => Ok(line.bytes.to_vec()),
        };
        found.push((line.file, line.number, bytes));
        positions.push(source.position());
    }
    (found, positions)
}
