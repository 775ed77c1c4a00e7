//! Prints the token ids of each line as a JSON array, for comparing with other tokenizers.
//!
//! ```text
//! cargo run --release -p forebay-ingest --example tokenize -- TOKENIZER [--max-length N] [--field F] [--keep-blank] [FILE…]
//! ```
//!
//! Without a file, standard input is read. A last line on standard error says how fast it was.

use std::error::Error;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Instant;

use forebay_ingest::{
    Format, Input, OnError, Pipeline, PipelineOptions, Source, SourceOptions, Tokenizer, TokenizerOptions,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let file = arguments.next().ok_or("no tokenizer named; expected the path of a tokenizer.json")?;
    let mut inputs = Vec::new();
    let mut tokenizing = TokenizerOptions::default();
    let mut reading = SourceOptions::default();
    let mut options = PipelineOptions { on_error: OnError::Skip, ..PipelineOptions::default() };
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next().and_then(|value| value.into_string().ok());
            value.ok_or("an option without its value; see the top of this example")
        };
        match argument.to_str() {
            Some("--max-length") => tokenizing.max_length = Some(value()?.parse()?),
            Some("--max-line-bytes") => reading.max_line_bytes = value()?.parse()?,
            Some("--field") => options.format = Format::json_lines(value()?),
            Some("--workers") => options.workers = value()?.parse()?,
            Some("--keep-blank") => options.keep_blank = true,
            _ => inputs.push(Input::from_argument(argument)),
        }
    }
    if inputs.is_empty() {
        inputs.push(Input::Stdin);
    }
    let tokenizer = Tokenizer::from_file(file, &tokenizing)?;
    eprintln!("{tokenizer:?}, padding: {}", tokenizer.pad_source());
    let source = Source::open(&inputs, reading)?;
    let start = Instant::now();
    let mut pipeline = Pipeline::start(source, Arc::new(tokenizer), options)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for batch in &mut pipeline {
        for row in batch?.data.iter() {
            writeln!(out, "{row:?}")?;
        }
    }
    out.flush()?;
    let (seconds, report) = (start.elapsed().as_secs_f64(), pipeline.report());
    for line in report.skipped.first() {
        eprintln!("{} line {}: {}", pipeline.name(line.file), line.line, line.reason);
    }
    let rate = report.tokens as f64 / seconds;
    eprintln!("{} items, {} tokens, {rate:.0} tokens/s; {}", report.items, report.tokens, report.skipped);
    Ok(())
}
