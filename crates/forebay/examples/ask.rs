//! Asks a service over and over, and prints how long an answer takes: `cargo run --release --example ask -- NAME [ROUNDS]`.
//!
//! The other end, in another terminal, is any worker that takes a field `x`, such as
//! `python -c 'import forebay; forebay.Worker("NAME").run(lambda batch: {"y": batch["x"]})'`.
//!
//! Two figures: with both ends looking for the next message all the time, and with both asleep between two requests.
#![allow(clippy::print_stdout, reason = "what an example is for")]

use std::{
    error::Error,
    time::{Duration, Instant},
};

use forebay::{
    DType, FieldSpec,
    service::{AnswerKind, Client, Item, Meta},
};

/// Asks about one item; its answer is for the caller to fetch.
fn ask(client: &mut Client, id: u64) -> Result<(), Box<dyn Error>> {
    let mut loan = client.request(&[FieldSpec::new("x", DType::F32, &[1])], &[Item::new(id)])?;
    loan.tensor_mut::<f32>("x")?[0] = 1.0;
    loan.publish(&Meta::default())?;
    Ok(())
}

fn report(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |part: usize| took[(took.len() - 1) * part / 1000];
    println!("{what}: p50 {:?}, p99 {:?}, p99.9 {:?} of {}", at(500), at(990), at(999), took.len());
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "ask".to_owned());
    let rounds: u64 = arguments.next().map_or(Ok(20_000), |rounds| rounds.parse())?;
    let mut client = Client::options(&name).slots(4).slot_bytes(4096).create()?;
    println!("waiting for a worker of {name:?}");
    client.accept_within(&mut || false)?;
    let ready = client.recv()?;
    println!("{:?}", ready.readiness().ok_or("its first word is that it is ready")?);
    drop(ready);

    let mut took = Vec::new();
    for id in 0..rounds {
        let start = Instant::now();
        ask(&mut client, id)?;
        let answer = loop {
            if let Some(answer) = client.try_answer()? {
                break answer;
            }
        };
        took.push(start.elapsed());
        assert_eq!(answer.kind(), AnswerKind::Result);
    }
    report("both ends looking", took.split_off(took.len() / 10));

    for id in rounds..rounds + rounds / 40 {
        std::thread::sleep(Duration::from_millis(2));
        let start = Instant::now();
        ask(&mut client, id)?;
        let answer = client.recv()?;
        took.push(start.elapsed());
        assert_eq!(answer.kind(), AnswerKind::Result);
    }
    report("both ends asleep", took.split_off(took.len() - (rounds / 40) as usize));
    client.drain();
    Ok(())
}
