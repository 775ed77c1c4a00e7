//! The Rust halves of the comparison: one process sends, one receives, through one of the candidates.
//!
//! ```text
//!   plan.rs      what a process is told                    control.rs   the page by which the two keep in step
//!   drive.rs     pacing, stamping, timing: the same for every candidate
//!   minimal.rs   the floor                                 forebay.rs, ringfire.rs, … one candidate each
//! ```
//!
//! `forebay-compare send|recv PLAN`, PLAN as JSON; the receiver prints what it measured, as JSON.

mod candidates;
mod control;
mod drive;
mod plan;

use std::{env, process::ExitCode};

use candidates::{forebay, grpc, iceoryx, minimal, ringfire, shared};
use plan::{Plan, Role};

/// Why nothing was measured; said once, by `main`.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut arguments = env::args().skip(1);
    let (Some(role), Some(text)) = (arguments.next(), arguments.next()) else {
        return Err("usage: forebay-compare send|recv PLAN".into());
    };
    let plan: Plan = serde_json::from_str(&text)?;
    let role: Role = role.parse()?;
    drive::pin(plan.cpu)?;
    match plan.candidate.as_str() {
        "minimal" => drive::run(role, &plan, minimal::Sender::new, minimal::Receiver::new),
        "forebay" => drive::run(role, &plan, forebay::Sender::new, forebay::Receiver::new),
        "ringfire" if plan.bytes <= 64 => drive::run(role, &plan, ringfire::Sender::new, ringfire::Receiver::new),
        "ringfire" => drive::run(role, &plan, ringfire::BlobSender::new, ringfire::BlobReceiver::new),
        "iceoryx2" => drive::run(role, &plan, iceoryx::Sender::new, iceoryx::Receiver::new),
        "shared_memory" => drive::run(role, &plan, shared::Sender::new, shared::Receiver::new),
        "grpc" => drive::run_sender(role, &plan, grpc::Sender::new),
        other => Err(format!("no candidate is called {other}").into()),
    }
}
