//! The consumer's commands. Every word of a message is checked when it comes and again before it is let go.
//!
//! | command | answer |
//! |---|---|
//! | `take` | `got seq=… attempts=… slot=…`, held from then on; or `error …` |
//! | `try` | as `take`, or `empty` at once |
//! | `poll` | as `take`, waiting in poll(2) on `fileno()` |
//! | `await MS` | as `take`, waiting no longer than that |
//! | `held` | `held SEQ:AGE_MS …` |
//! | `ack SEQ`, `nack SEQ`, `drop SEQ` | `ok` (`refused` if it was decided otherwise before) |
//! | `check` | `ok`: all that is held is as it was |
//! | `work [N]` | `msg SEQ ATTEMPTS` before each is let go, then `end …`, or `done` after N |
//! | `lurk` | as `work`, waiting in poll(2) |
//! | `attach` | attaches (again); `attached index=…` |
//! | `stats`, `close` | `stats …`, `closed` |

use std::{collections::BTreeMap, os::fd::BorrowedFd, process::ExitCode, time::Duration};

use forebay::{AckMode, Consumer, ConsumerOptions, Message, RecvError, WaitPolicy};
use forebay_os::poll::{Events, poll_one};

use super::{Options, error, process, say, serve, variant};
use crate::{WATCHDOG, ledger::check_message};

fn options_of(ring: &str, options: &Options) -> ConsumerOptions {
    let mut builder = Consumer::options(ring)
        .timeout(Some(Duration::from_millis(options.or("timeout_ms", WATCHDOG.as_millis() as u64))))
        .ack(options.or("ack", AckMode::Auto))
        .wait(options.or("wait", WaitPolicy::Adaptive))
        .quota(options.or("quota", 0))
        .reconnect(Duration::from_millis(options.or("reconnect_ms", 30_000)))
        .label(&options.or("label", "actor".to_owned()));
    if options.0.contains_key("schema") {
        builder = builder.schema(options.schema().unwrap());
    }
    builder
}

#[derive(Default)]
struct Worker {
    consumer: Option<Consumer>,
    held: BTreeMap<u64, Message>,
}

impl Worker {
    fn attach(&mut self, builder: ConsumerOptions) -> String {
        match builder.attach() {
            Ok(consumer) => {
                let line = format!("index={}", consumer.index());
                self.consumer = Some(consumer);
                line
            }
            Err(e) => error(&e),
        }
    }

    fn consumer(&mut self) -> &mut Consumer {
        self.consumer.as_mut().expect("told to attach before")
    }

    fn keep(&mut self, received: Result<Option<Message>, RecvError>) -> String {
        match received {
            Ok(Some(message)) => {
                check_message(&message);
                let (seq, attempts, slot) = (message.sequence(), message.attempts(), message.slot());
                self.held.insert(seq, message);
                format!("got seq={seq} attempts={attempts} slot={slot}")
            }
            Ok(None) => "empty".to_owned(),
            Err(e) => error(&e),
        }
    }

    fn work(&mut self, most: u64, poll: bool) {
        for _ in 0..most {
            let received = if poll { poll_for(self.consumer()) } else { self.consumer().recv_timeout(WATCHDOG) };
            match received {
                Ok(message) => {
                    check_message(&message);
                    say(&format!("msg {} {}", message.sequence(), message.attempts()));
                    check_message(&message);
                }
                Err(e) => return say(&format!("end {}", variant(&e))),
            }
        }
        say("done");
    }

    /// `verb` on the held message `seq`; a plain `drop` lets it go.
    fn settle(&mut self, verb: &str, seq: u64) -> String {
        let Some(message) = self.held.get(&seq) else { return format!("error holds no message {seq}") };
        check_message(message);
        let done = match verb {
            "ack" => message.ack(),
            "nack" => message.nack(),
            _ => self.held.remove(&seq).is_some(),
        };
        if done { "ok".to_owned() } else { "refused".to_owned() }
    }

    /// Every entry point, in a forked child: none may act, none may crash, and none may touch what the parent holds.
    fn in_child(&mut self) {
        let consumer = self.consumer.as_mut().unwrap();
        let recv = consumer.recv().map(drop).map_err(|e| variant(&e));
        let tried = consumer.try_recv().map(drop).map_err(|e| variant(&e));
        let timed = consumer.recv_timeout(WATCHDOG).map(drop).map_err(|e| variant(&e));
        let fileno = consumer.fileno().map_err(|e| variant(&e));
        say(&format!("child recv={recv:?} try_recv={tried:?} recv_timeout={timed:?} fileno={fileno:?}"));
        let (held, stats) = (consumer.held().len(), consumer.stats());
        say(&format!("child held={held} received={}", stats.received));
        let fault = process::is_fault(consumer.data_range().start);
        for message in self.held.values() {
            let _ = message.held_for();
        }
        if let Some((_, message)) = self.held.iter().next() {
            message.nack();
            let _ = message.tensor_at(0).map(|tensor| assert!(tensor.is_foreign()));
        }
        self.held.clear();
        consumer.close();
        self.consumer = None;
        say(&format!("child closed fault={fault}"));
    }
}

/// The next message, found as an event loop does: `try_recv`, and poll(2) when there is none.
pub(crate) fn poll_for(consumer: &mut Consumer) -> Result<Message, RecvError> {
    let fd = consumer.fileno()?;
    loop {
        if let Some(message) = consumer.try_recv()? {
            return Ok(message);
        }
        // SAFETY: the consumer keeps its epoll descriptor open for as long as it is borrowed here.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if poll_one(fd, Events::READ, Some(WATCHDOG))?.is_empty() {
            return Err(RecvError::Timeout {
                ring: consumer.ring().to_owned(),
                waited: WATCHDOG,
                note: "; its descriptor never became readable".to_owned(),
            });
        }
    }
}

pub(super) fn run(ring: &str, options: &Options) -> ExitCode {
    let mut worker = Worker::default();
    if options.or("lazy", false) {
        say(&format!("ready fds={}", process::descriptors()));
    } else {
        let answer = worker.attach(options_of(ring, options));
        if worker.consumer.is_none() {
            say(&answer);
            return ExitCode::FAILURE;
        }
        say(&format!("ready {answer}"));
    }
    serve(|command, rest| {
        let number = || rest.trim().parse::<u64>().ok();
        match command {
            "take" => {
                let received = worker.consumer().recv_timeout(WATCHDOG).map(Some);
                say(&worker.keep(received));
            }
            "await" => {
                let received = worker.consumer().recv_timeout(Duration::from_millis(number().expect("milliseconds")));
                say(&worker.keep(received.map(Some)));
            }
            "held" => {
                let held = worker.consumer().held();
                let list: Vec<_> = held.iter().map(|h| format!("{}:{}", h.sequence, h.age.as_millis())).collect();
                say(&format!("held {}", list.join(" ")));
            }
            "try" => {
                let received = worker.consumer().try_recv();
                say(&worker.keep(received));
            }
            "poll" => {
                let received = poll_for(worker.consumer()).map(Some);
                say(&worker.keep(received));
            }
            "work" => worker.work(number().unwrap_or(u64::MAX), false),
            "lurk" => worker.work(number().unwrap_or(u64::MAX), true),
            "ack" | "nack" | "drop" => {
                let answer = worker.settle(command, number().expect("a sequence"));
                say(&answer);
            }
            "check" => {
                worker.held.values().for_each(check_message);
                say("ok");
            }
            "attach" => {
                let answer = worker.attach(options_of(ring, options));
                say(&if answer.starts_with("index") { format!("attached {answer}") } else { answer });
            }
            "stats" => {
                let s = worker.consumer().stats();
                say(&format!(
                    "stats received={} acked={} nacked={} recovered={} missed={}",
                    s.received, s.acked, s.nacked, s.recovered, s.missed
                ));
            }
            "close" => {
                worker.consumer().close();
                say("closed");
            }
            "fork" => {
                let pid = process::fork_and_stay(|| worker.in_child());
                say(&format!("forked pid={pid}"));
            }
            "clone" => say(&format!("cloned pid={}", process::fork_unnoticed())),
            other => say(&format!("error no command {other:?}")),
        }
    });
    ExitCode::SUCCESS
}
