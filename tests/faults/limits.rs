//! Few descriptors, and many signals.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use forebay_testkit::{Place, watchdog};

use crate::{VICTIM, full, report::Answer};

/// A victim that nobody traces.
struct Free {
    child: Child,
    stdin: ChildStdin,
    stdout: Option<BufReader<ChildStdout>>,
    place: Place,
}

impl Free {
    fn start() -> Self {
        let place = Place::new();
        let mut command = Command::new(VICTIM);
        command.env("FOREBAY_DIR", place.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut this = Self { child, stdin, stdout: Some(stdout), place };
        assert_eq!(this.line(), "ready");
        this
    }

    fn line(&mut self) -> String {
        let mut stdout = self.stdout.take().unwrap();
        let (line, stdout) = watchdog::within("a victim's answer", move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            (line, stdout)
        });
        self.stdout = Some(stdout);
        line.trim_end_matches('\n').to_owned()
    }

    fn round(&mut self, order: &str) -> Answer {
        writeln!(self.stdin, "{order}").unwrap();
        let said = Ok(self.line());
        match Answer::read(order.split(' ').next().unwrap(), &said) {
            Ok(answer) => answer,
            Err(why) => panic!("{order}: {why}"),
        }
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.place.sweep();
    }
}

/// Operations that open descriptors.
const OPENING: &[&str] = &[
    "create",
    "create-memfd",
    "create-broadcast",
    "create-memfd-broadcast",
    "create-fresh",
    "attach",
    "attach-memfd",
    "attach-broadcast",
    "attach-memfd-broadcast",
    "takeover",
    "takeover-broadcast",
    "reconnect",
    "leave",
    "close",
    "close-memfd",
    "event-loop",
    "set",
    "list",
    "clean",
    "doctor",
];

/// What says that descriptors ran out, in one of both processes or on the way between them.
const SAYS_SO: &[&str] = &["os error 24", "raise `ulimit -n`", "no ring \"ring\" after", "is connected but silent for"];

#[test]
fn with_too_few_descriptors_every_operation_says_so_and_nothing_is_left() {
    for operation in OPENING {
        let mut victim = Free::start();
        assert!(victim.round(operation).ok);
        let (mut free, mut errors) = (0, 0);
        loop {
            let answer = victim.round(&format!("{operation} free={free}"));
            assert!(answer.left_is_excusable(true), "{operation} with {free} descriptors left {}", answer.left);
            if answer.ok && (free > 2 || errors > 0) {
                break;
            }
            if !answer.ok {
                errors += 1;
                let says_so = SAYS_SO.iter().any(|text| answer.text.contains(text));
                assert!(says_so, "{operation} with {free} descriptors: {}", answer.text);
            }
            free += 1;
            assert!(free < 64, "{operation} needs more than 64 descriptors: {}", answer.text);
        }
        println!("faults: {operation}: needs {free} descriptors, {errors} times too few");
    }
}

/// Operations that wait or make interruptible calls.
const INTERRUPTED: &[&str] = &[
    "create",
    "create-memfd-broadcast",
    "attach",
    "attach-memfd-broadcast",
    "publish",
    "publish-broadcast",
    "recv",
    "recv-broadcast",
    "recv-timeout",
    "loan-full",
    "loan-full-broadcast",
    "drain",
    "wait-for-consumers",
    "takeover",
    "reconnect",
    "leave",
    "close",
    "event-loop",
    "set",
    "list",
    "clean",
];

#[test]
fn a_storm_of_signals_loses_nothing_and_moves_no_deadline() {
    let rounds = if full() { 40 } else { 4 };
    let mut victim = Free::start();
    for operation in INTERRUPTED {
        for _ in 0..rounds {
            let answer = victim.round(&format!("{operation} storm"));
            assert!(answer.ok && answer.left.is_empty(), "{operation} in a storm: {answer:?}");
        }
    }
    println!("faults: {} rounds of {} operations under 3,000 signals a second", rounds, INTERRUPTED.len());
}
