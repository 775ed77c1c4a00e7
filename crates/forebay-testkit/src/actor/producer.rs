//! The producer's commands.
//!
//! | command | answer |
//! |---|---|
//! | `publish N [WORDS]` | `published LAST`, or `error …` |
//! | `stream [WORDS]` | `seq ID` after each publish, until it is killed or told something else |
//! | `pause` | `paused` |
//! | `loan [WORDS]`, `drop` | keeps a loan, gives all kept ones back |
//! | `wait N`, `drain [MS]` | `ok`, or `error …` |
//! | `letters` | `letters ID:ATTEMPTS …` |
//! | `stats` | `stats published=… dropped=… dead=… outstanding=… consumers=…` |
//! | `close`, `discard` | `closed` |

use std::{os::fd::AsFd, process::ExitCode, time::Duration};

use forebay::{Backing, DType, DetachedLoan, FieldSpec, Kind, LoanError, Producer, SlotClass, WaitPolicy, WhenFull};

use forebay_os::poll::{Events, poll_one};

use super::{Options, error, process, say, serve, variant};
use crate::{WATCHDOG, ledger};

fn create(ring: &str, options: &Options) -> Result<Producer, forebay::CreateError> {
    let mut builder = Producer::options(ring)
        .kind(options.or("kind", Kind::Queue))
        .backing(options.or("backing", Backing::Posix))
        .when_full(options.or("when_full", WhenFull::Block))
        .wait(options.or("wait", WaitPolicy::Adaptive))
        .full_timeout(Some(Duration::from_millis(options.or("full_ms", WATCHDOG.as_millis() as u64))))
        .max_consumers(options.or("max_consumers", 8))
        .max_attempts(options.or("max_attempts", 3))
        .quota(options.or("quota", 0))
        .fresh(options.or("fresh", false))
        .label(&options.or("label", "actor".to_owned()));
    if let Some(schema) = options.schema() {
        builder = builder.schema(schema);
    }
    builder = match options.get::<u64>("classes") {
        // `classes=1`: two of each of three sizes.
        Some(n) => builder.classes(&[512, 2048, 4096].map(|slot_bytes| SlotClass { slots: 2 * n as u32, slot_bytes })),
        None => builder.slots(options.or("slots", 8)).slot_bytes(options.or("slot_bytes", 4096)),
    };
    builder.create()
}

pub(super) fn run(ring: &str, options: &Options) -> ExitCode {
    let mut producer = match create(ring, options) {
        Ok(producer) => producer,
        Err(e) => {
            say(&error(&e));
            return ExitCode::FAILURE;
        }
    };
    match producer.takeover() {
        Some(found) => {
            say(&format!("ready epoch={} last={} outstanding={}", found.epoch, found.last_sequence, found.outstanding))
        }
        None => say("ready epoch=1 last=0 outstanding=0"),
    }
    let mut loans: Vec<DetachedLoan> = Vec::new();
    serve(|command, rest| {
        let mut numbers = rest.split_whitespace().map(|n| n.parse::<u64>().unwrap());
        match command {
            "publish" => say(&publish(&mut producer, numbers.next().unwrap_or(1), numbers.next().unwrap_or(8))),
            "stream" => stream(&mut producer, numbers.next().unwrap_or(8)),
            "loan" => {
                let words = numbers.next().unwrap_or(8);
                match producer.loan(&[FieldSpec::new(ledger::FIELD, DType::U64, &[words])]).map(|loan| loan.detach()) {
                    Ok(loan) => {
                        say(&format!("loan slot={}", loan.slot()));
                        loans.push(loan);
                    }
                    Err(e) => say(&error(&e)),
                }
            }
            "pause" => say("paused"),
            "drop" => {
                loans.clear();
                say("ok");
            }
            "wait" => {
                let answer = producer.wait_for_consumers(numbers.next().unwrap_or(1) as usize, Some(WATCHDOG));
                say(&answer.map_or_else(|e| error(&e), |()| "ok".to_owned()));
            }
            "drain" => {
                let patience = numbers.next().map_or(WATCHDOG, Duration::from_millis);
                let answer = producer.drain(Some(patience));
                say(&answer.map_or_else(|e| error(&e), |()| "ok".to_owned()));
            }
            "letters" => {
                let letters = producer.take_dead_letters();
                let list: Vec<String> =
                    letters.iter().map(|letter| format!("{}:{}", letter.sequence, letter.attempts)).collect();
                say(&format!("letters {}", list.join(" ")));
            }
            "stats" => {
                let s = producer.stats();
                say(&format!(
                    "stats published={} dropped={} dead={} outstanding={} loaned={} consumers={}",
                    s.published,
                    s.dropped,
                    s.dead_letters,
                    s.outstanding,
                    s.loaned,
                    producer.consumers()
                ));
            }
            "close" => {
                producer.close();
                say("closed");
            }
            "fork" => {
                let pid = process::fork_and_stay(|| in_child(&mut producer));
                say(&format!("forked pid={pid}"));
            }
            other => say(&format!("error no command {other:?}")),
        }
    });
    ExitCode::SUCCESS
}

fn publish(producer: &mut Producer, count: u64, words: u64) -> String {
    for _ in 0..count {
        if let Err(e) = ledger::publish(producer, words) {
            return error(&e);
        }
    }
    format!("published {}", producer.stats().published)
}

fn stream(producer: &mut Producer, words: u64) {
    let stdin = std::io::stdin();
    // The next command ends it.
    while poll_one(stdin.as_fd(), Events::READ, Some(Duration::ZERO)).is_ok_and(Events::is_empty) {
        match ledger::publish(producer, words) {
            Ok(id) => say(&format!("seq {id}")),
            Err(LoanError::Full { .. }) => {}
            Err(e) => return say(&error(&e)),
        }
    }
}

/// Every entry point, in a forked child: none may act, and none may crash.
fn in_child(producer: &mut Producer) {
    let spec = [FieldSpec::new(ledger::FIELD, DType::U64, &[1])];
    let loan = producer.loan(&spec).map(drop).map_err(|e| variant(&e));
    let within = producer.try_loan(&spec).map(drop).map_err(|e| variant(&e));
    let wait = producer.wait_for_consumers(1, Some(WATCHDOG)).map_err(|e| variant(&e));
    let drain = producer.drain(Some(WATCHDOG)).map_err(|e| variant(&e));
    say(&format!("child loan={loan:?} try_loan={within:?} wait={wait:?} drain={drain:?}"));
    let letters = producer.take_dead_letters().len();
    let (stats, consumers) = (producer.stats(), producer.consumers());
    say(&format!("child letters={letters} outstanding={} consumers={consumers}", stats.outstanding));
    producer.close();
    let fault = process::is_fault(producer.data_range().start);
    say(&format!("child closed fault={fault}"));
}
