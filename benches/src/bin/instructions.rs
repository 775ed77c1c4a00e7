//! The operations whose instructions `make instructions` counts, each in a function of its own that a profiler finds by
//! name. Both ends run in one thread of one process: what is counted is work, not waiting.
//!
//! `instructions CASE N` runs each N times and says which functions those are.

use std::{hint::black_box, process::ExitCode};

use forebay::{Consumer, DType, DetachedLoan, FieldSpec, Kind, Loan, Message, Producer, Schema, Tensor};

/// A ring, and what is sent through it.
struct Case {
    name: &'static str,
    kind: Kind,
    /// Consumers that there may be, and that there are.
    consumers: u32,
    attached: usize,
    schema: bool,
    tensors: usize,
}

const CASES: &[Case] = &[
    Case { name: "sole", kind: Kind::Queue, consumers: 1, attached: 1, schema: true, tensors: 1 },
    Case { name: "shared", kind: Kind::Queue, consumers: 8, attached: 1, schema: true, tensors: 1 },
    Case { name: "broadcast", kind: Kind::Broadcast, consumers: 1, attached: 1, schema: true, tensors: 1 },
    Case { name: "queue4", kind: Kind::Queue, consumers: 4, attached: 4, schema: true, tensors: 1 },
    Case { name: "broadcast4", kind: Kind::Broadcast, consumers: 4, attached: 4, schema: true, tensors: 1 },
    Case { name: "schemaless", kind: Kind::Queue, consumers: 1, attached: 1, schema: false, tensors: 1 },
    Case { name: "eight", kind: Kind::Queue, consumers: 1, attached: 1, schema: true, tensors: 8 },
];

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// Bytes of each tensor.
const SHAPE: [u64; 1] = [64];

#[inline(never)]
fn op_loan<'p>(producer: &'p mut Producer, specs: &[FieldSpec<'_>]) -> Loan<'p> {
    producer.loan(specs).expect("a free slot")
}

#[inline(never)]
fn op_publish(loan: Loan<'_>) -> u64 {
    loan.publish().expect("a publishable loan")
}

#[inline(never)]
fn op_detach(loan: Loan<'_>) -> DetachedLoan {
    loan.detach()
}

#[inline(never)]
fn op_abandon(loan: Loan<'_>) {
    drop(loan);
}

#[inline(never)]
fn op_receive(consumer: &mut Consumer) -> Message {
    consumer.try_recv().expect("a healthy ring").expect("a message that was published before")
}

#[inline(never)]
fn op_receive_empty(consumer: &mut Consumer) {
    assert!(consumer.try_recv().expect("a healthy ring").is_none());
}

#[inline(never)]
fn op_release(message: Message) {
    drop(message);
}

#[inline(never)]
fn op_ack(message: &Message) -> bool {
    message.ack()
}

#[inline(never)]
fn op_tensor(message: &Message) -> Tensor {
    message.tensor_at(0).expect("the first tensor")
}

#[inline(never)]
fn op_first_byte(message: &Message) -> u8 {
    message.bytes(0).expect("the first tensor")[0]
}

fn take(consumer: &mut Consumer, ack: bool) {
    let message = op_receive(consumer);
    black_box(op_first_byte(&message));
    drop(black_box(op_tensor(&message)));
    if ack {
        assert!(op_ack(&message));
    }
    op_release(message);
    op_receive_empty(consumer);
}

fn run(case: &Case, rounds: u32) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let specs: Vec<_> = NAMES[..case.tensors].iter().map(|name| FieldSpec::new(name, DType::U8, &SHAPE)).collect();
    let mut options = Producer::options("counted").dir(dir.path()).kind(case.kind).slots(16);
    options = options.slot_bytes(1024).max_consumers(case.consumers);
    if case.schema {
        let fields = NAMES[..case.tensors].iter();
        let schema =
            fields.fold(Schema::builder("counted", 1, 0), |schema, name| schema.field(name, DType::U8, &SHAPE));
        options = options.schema(schema.build().expect("a legal schema"));
    }
    let mut producer = options.create().expect("room for the ring");
    let attach = |_| Consumer::options("counted").dir(dir.path()).attach().expect("a producer that answers");
    let mut consumers: Vec<Consumer> = (0..case.attached).map(attach).collect();
    producer.wait_for_consumers(case.attached, None).expect("consumers that stay");
    for round in 0..rounds {
        let loan = op_loan(&mut producer, &specs);
        op_publish(loan);
        // Of a queue's consumers each has its turn; on a broadcast ring all have the message.
        let turn = round as usize % case.attached;
        for (i, consumer) in consumers.iter_mut().enumerate() {
            if case.kind == Kind::Broadcast || i == turn {
                take(consumer, round % 2 == 1);
            }
        }
    }
    // What happens to other loans makes the next one dearer, so it comes last.
    for _ in 0..rounds {
        op_abandon(producer.loan(&specs).expect("a free slot"));
        drop(black_box(op_detach(producer.loan(&specs).expect("a free slot"))));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let case = CASES.iter().find(|case| Some(case.name) == arguments.first().map(String::as_str));
    let rounds = arguments.get(1).and_then(|rounds| rounds.parse().ok());
    match (case, rounds) {
        (Some(case), Some(rounds)) => {
            run(case, rounds);
            ExitCode::SUCCESS
        }
        _ => {
            let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
            eprintln!("usage: instructions CASE ROUNDS\nCASE is one of {}", names.join(", "));
            ExitCode::FAILURE
        }
    }
}
