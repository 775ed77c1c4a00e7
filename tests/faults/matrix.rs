//! Every system call of every operation fails in turn.
//!
//! A first round without a fault counts the calls; then each call fails at each of its places: once, three times in a
//! row (what is retried is retried again), and from there on for good. The operation must end by an error that names
//! what failed, or succeed by another way. The victim itself shows that nothing is lost or left, that the other side
//! goes on, and that the same works afterwards.

use std::collections::BTreeMap;

use libc::{EINTR, c_long};

use crate::{
    VICTIM, errnos, full,
    report::Answer,
    tracer::{Call, Fault, Role, Victim},
};

/// A fault for good.
const ALWAYS: u32 = u32::MAX;
/// More of one call in one operation are not made to fail apart.
const PLACES: u32 = 60;

/// In the short form the others, which differ from these in kind or backing, fail at a call's first and last place.
const AT_ALL_PLACES: &[&str] = &["create", "attach", "takeover", "publish", "recv", "loan-full-broadcast", "clean"];

#[derive(Debug, Default)]
struct Tally {
    places: u32,
    faults: u32,
    succeeded: u32,
    named: u32,
    other: BTreeMap<String, u32>,
}

fn is_removal(call: Call) -> bool {
    let removals: [c_long; 3] = [libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_getdents64];
    removals.contains(&call.number)
}

/// What may be said instead of the errno: each of these says what failed and what to do.
const TYPED: &[&str] = &[
    // Its own deadline passed, and it says what it found.
    "no ring \"ring\" after",
    "is connected but silent for",
    "no message from",
    "consumers are attached to",
    "messages of \"ring\" are not finished",
    "no free slot in",
    // The memory is not there, with numbers.
    "bytes of",
    // Descriptors that were lost on their way.
    "or this process has none left",
    // The lock of a new ring was said to be somebody's.
    "has a living producer",
    "for a new lock file: operation would block",
    // A peer that could not map or lock what it was sent.
    "the lock byte is not held",
    "the byte that the producer locked",
    // The C library tells every failure to make a thread as one.
    "clone failed for the control thread: Resource temporarily unavailable",
];

struct Matrix {
    operation: &'static str,
    victim: Victim,
    tally: Tally,
    failures: Vec<String>,
}

impl Matrix {
    fn new(operation: &'static str) -> Self {
        Self { operation, victim: Victim::start(VICTIM), tally: Tally::default(), failures: Vec::new() }
    }

    fn run(&mut self) {
        // What is made once per process is made by now.
        for _ in 0..2 {
            let warm = self.victim.round(self.operation, None);
            let answer = Answer::read(self.operation, &warm.said);
            assert!(matches!(&answer, Ok(Answer { ok: true, .. })), "{} without a fault: {answer:?}", self.operation);
        }
        let seen = self.victim.round(self.operation, None).seen;
        for ((role, call), count) in seen {
            let errors = errnos::of(call);
            // The standard library gives each new thread a second stack, and ends the process if it cannot.
            if errors.is_empty() || role == Role::Others && errnos::is_stack(call) {
                continue;
            }
            let short = !full() && !AT_ALL_PLACES.contains(&self.operation);
            for nth in 1..=count.min(PLACES) {
                if short && nth > 1 && nth != count {
                    continue;
                }
                self.tally.places += 1;
                for (i, &errno) in errors.iter().enumerate() {
                    // The short form: an interruption everywhere, and of the others one at each place, in turn.
                    let others = errors.len() - usize::from(errors.contains(&EINTR));
                    let turn = i == (nth as usize + call.number as usize) % others.max(1);
                    if full() {
                        for times in [1, 3, ALWAYS] {
                            self.one(Fault { role, call, nth, times, errno });
                        }
                    } else if errno == EINTR && nth <= 3 || turn {
                        self.one(Fault { role, call, nth, times: if nth % 2 == 0 { ALWAYS } else { 1 }, errno });
                    }
                }
            }
        }
    }

    fn one(&mut self, fault: Fault) {
        // Who is interrupted for ever may try for ever.
        let endless = fault.times == ALWAYS && fault.errno == EINTR;
        let fault = if endless { Fault { times: 3, ..fault } } else { fault };
        if self.victim.is_over() {
            self.victim = Victim::start(VICTIM);
        }
        let round = self.victim.round(self.operation, Some(fault));
        if round.hits == 0 {
            // Another way than in the round that counted, which took fewer of these calls.
            return;
        }
        self.tally.faults += 1;
        if let Err(why) = self.judge(fault, &round.said) {
            let Fault { role, call, nth, times, errno } = fault;
            let times = if times == ALWAYS { "for good".to_owned() } else { format!("{times} times") };
            let errno = errnos::text(errno);
            self.failures.push(format!("{}: {role:?} {call} #{nth} {times} {errno}: {why}", self.operation));
        }
    }

    fn judge(&mut self, fault: Fault, said: &Result<String, String>) -> Result<(), String> {
        let answer = Answer::read(self.operation, said)?;
        if !answer.left_is_excusable(is_removal(fault.call)) {
            return Err(format!("LEFT {}; {}", answer.left, answer.text));
        }
        if answer.ok {
            self.tally.succeeded += 1;
            return Ok(());
        }
        if fault.role == Role::Caller && errnos::must_succeed(fault.call, fault.errno, fault.times) {
            return Err(format!("FAILED {}", answer.text));
        }
        if answer.text.contains(&errnos::text(fault.errno)) {
            self.tally.named += 1;
            return Ok(());
        }
        match TYPED.iter().find(|typed| answer.text.contains(**typed)) {
            Some(typed) => *self.tally.other.entry((*typed).to_owned()).or_default() += 1,
            None => return Err(format!("UNNAMED {}", answer.text)),
        }
        Ok(())
    }
}

fn every_call_fails(operations: &[&'static str]) {
    let mut failures = Vec::new();
    for operation in operations {
        let mut matrix = Matrix::new(operation);
        matrix.run();
        let Tally { places, faults, succeeded, named, other } = &matrix.tally;
        let others: u32 = other.values().sum();
        println!(
            "faults: {operation}: {places} places, {faults} faults: {succeeded} got round, {named} named the errno, \
             {others} said otherwise what failed"
        );
        failures.append(&mut matrix.failures);
    }
    assert!(failures.is_empty(), "{} of these:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_system_call_of_creating_fails_in_turn() {
    every_call_fails(&["create", "create-fresh", "takeover"]);
}

#[test]
fn every_system_call_of_creating_without_names_or_for_all_fails_in_turn() {
    every_call_fails(&["create-memfd", "create-broadcast", "create-memfd-broadcast", "takeover-broadcast"]);
}

#[test]
fn every_system_call_of_attaching_and_leaving_fails_in_turn() {
    every_call_fails(&["attach", "attach-memfd", "leave", "close", "close-memfd"]);
}

#[test]
fn every_system_call_of_attaching_to_a_broadcast_fails_in_turn() {
    every_call_fails(&["attach-broadcast", "attach-memfd-broadcast", "leave-broadcast", "reconnect"]);
}

#[test]
fn every_system_call_of_waiting_and_waking_fails_in_turn() {
    every_call_fails(&[
        "publish",
        "publish-broadcast",
        "recv",
        "recv-broadcast",
        "recv-timeout",
        "loan-full",
        "loan-full-broadcast",
        "drain",
        "wait-for-consumers",
        "event-loop",
        "set",
    ]);
}

#[test]
fn every_system_call_of_looking_and_cleaning_fails_in_turn() {
    every_call_fails(&["list", "clean", "doctor"]);
}
