//! The process that is stepped: a producer or a consumer of the real library that does one order after the other.
//!
//! It prepares an operation and looks at its outcome outside of what is stepped. Messages it receives are checked here,
//! word by word, and again before they are let go.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use forebay::{Consumer, DetachedLoan, LoanError, Message, Producer, RecvError};

use crate::{
    board::{Answer, Board, Mode, Order, Status},
    memory::Memory,
    rig,
    setup::Setup,
    step::{self, Stepper},
};

/// How long a wait of a stepped operation sleeps at most.
const SHORT: Duration = Duration::from_micros(300);

/// What an actor is started with.
#[derive(Debug)]
pub(crate) struct Orders {
    board: String,
    dir: PathBuf,
    prefix: String,
    setup: Setup,
}

const FLAG: &str = "--actor";

/// The arguments that make this program an actor. `prefix` starts the names of the ring's objects.
pub(crate) fn arguments(board: &Board, dir: &Path, prefix: &str, seed: u64, scenario: u64) -> Vec<String> {
    let dir = dir.display().to_string();
    vec![FLAG.into(), board.path(), dir, prefix.into(), seed.to_string(), scenario.to_string()]
}

/// What this process was told, if it is an actor.
pub(crate) fn orders() -> Option<Orders> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [flag, board, dir, prefix, seed, scenario] = &args[..] else { return None };
    let setup = Setup::of(seed.parse().ok()?, scenario.parse().ok()?);
    (flag == FLAG).then(|| Orders { board: board.clone(), dir: dir.into(), prefix: prefix.clone(), setup })
}

struct Actor {
    board: &'static Board,
    stepper: &'static mut Stepper,
    dir: PathBuf,
    prefix: String,
    setup: Setup,
    producer: Option<Producer>,
    consumer: Option<Consumer>,
    loans: BTreeMap<u8, DetachedLoan>,
    messages: BTreeMap<u8, Message>,
}

/// Says a byte and waits for one. False once the rig is gone.
fn say(byte: u8) -> bool {
    let mut out = std::io::stdout();
    let said = out.write_all(&[byte]).and_then(|()| out.flush());
    said.is_ok() && matches!(std::io::stdin().read(&mut [0]), Ok(1))
}

pub(crate) fn run(orders: &Orders) {
    let board: &'static Board = Box::leak(Box::new(Board::open(&orders.board)));
    let look = || {
        if !say(rig::LOOK) {
            std::process::exit(1);
        }
    };
    let stepper = Stepper::new(board, &orders.prefix, look).install();
    board.answer(&Answer { status: Status::Done, results: vec![stepper.base()], text: String::new() });
    let mut actor = Actor {
        board,
        stepper,
        dir: orders.dir.clone(),
        prefix: orders.prefix.clone(),
        setup: orders.setup.clone(),
        producer: None,
        consumer: None,
        loans: BTreeMap::new(),
        messages: BTreeMap::new(),
    };
    while say(rig::IDLE) {
        let answer = match actor.obey(board.order()) {
            Ok((status, results)) => Answer { status, results, text: String::new() },
            Err(text) => Answer { status: Status::Fault, results: Vec::new(), text },
        };
        board.answer(&answer);
    }
}

/// What is stepped, if anything is: everything in `work`.
#[inline(never)]
fn stepped<R>(stepper: &mut Stepper, work: impl FnOnce() -> R) -> R {
    match stepper.prepare() {
        Mode::Free => work(),
        Mode::Stores => {
            stepper.protect(true);
            let result = work();
            stepper.protect(false);
            result
        }
        Mode::Words | Mode::Whole | Mode::Count => {
            step::start();
            let result = work();
            step::stop();
            result
        }
    }
}

type Outcome = Result<(Status, Vec<u64>), String>;

impl Actor {
    fn obey(&mut self, order: Order) -> Outcome {
        let done = Ok((Status::Done, Vec::new()));
        if self.stepper.memory.is_none() && matches!(self.board.mode(), Mode::Words | Mode::Stores) {
            self.stepper.memory = Some(Memory::open(&self.prefix));
        }
        match order {
            Order::Create => {
                let options = self.setup.producer(&self.dir);
                let producer = stepped(self.stepper, || options.create()).map_err(|e| e.to_string())?;
                let taken = producer.takeover().cloned();
                self.producer = Some(producer);
                let (last, user) = taken.map_or((0, Vec::new()), |taken| (taken.last_sequence, taken.last_user));
                if last != 0 && user != self.setup.user_data(last) {
                    return Err(format!("the user data of message {last} is {user:?} after a takeover"));
                }
                Ok((Status::Done, vec![last]))
            }
            Order::Attach => {
                let options = self.setup.consumer(&self.dir);
                let mut consumer = stepped(self.stepper, || options.attach()).map_err(|e| e.to_string())?;
                if self.setup.epoll {
                    consumer.fileno().map_err(|e| e.to_string())?;
                }
                let index = consumer.index();
                self.consumer = Some(consumer);
                Ok((Status::Done, vec![index.into()]))
            }
            Order::Loan(which) => self.loan(which, Duration::ZERO),
            Order::WaitLoan(which) => self.loan(which, SHORT),
            Order::LoanAndDrop => {
                let producer = self.producer.as_mut().ok_or("no producer")?;
                let before = producer.stats().dropped;
                let result =
                    self.setup.with_specs(|specs| stepped(self.stepper, || producer.try_loan(specs).map(drop)));
                self.after_loan(result, before)
            }
            Order::Publish(which) => {
                let mut loan = self.loans.remove(&which).ok_or("no such loan")?;
                let producer = self.producer.as_mut().ok_or("no producer")?;
                let sequence = producer.stats().published + 1;
                write(&self.setup, &mut loan, sequence).map_err(|e| e.to_string())?;
                let published = stepped(self.stepper, || producer.publish(loan)).map_err(|e| e.to_string())?;
                Ok((Status::Done, vec![published]))
            }
            Order::Abandon(which) => {
                let loan = self.loans.remove(&which).ok_or("no such loan")?;
                stepped(self.stepper, || drop(loan));
                done
            }
            Order::TakeLetters => {
                let producer = self.producer.as_mut().ok_or("no producer")?;
                let letters = stepped(self.stepper, || producer.take_dead_letters());
                self.letters(letters)
            }
            Order::Recv(which) => self.recv(which, None),
            Order::Wait(which) => self.recv(which, Some(SHORT)),
            Order::Ack(which) => {
                let message = &self.messages[&which];
                if !stepped(self.stepper, || message.ack()) {
                    return Err("a message that was not nacked cannot be acked".into());
                }
                done
            }
            Order::Nack(which) => {
                let message = self.messages.remove(&which).ok_or("no such lease")?;
                check(&self.setup, &message)?;
                stepped(self.stepper, || {
                    message.nack();
                    drop(message);
                });
                done
            }
            Order::Release(which) => {
                let message = self.messages.remove(&which).ok_or("no such lease")?;
                check(&self.setup, &message)?;
                stepped(self.stepper, || drop(message));
                done
            }
            Order::Leave => {
                let consumer = self.consumer.take().ok_or("no consumer")?;
                stepped(self.stepper, || drop(consumer));
                done
            }
            Order::Discard => {
                let producer = self.producer.take().ok_or("no producer")?;
                stepped(self.stepper, || producer.discard());
                done
            }
            Order::Close => {
                let producer = self.producer.take().ok_or("no producer")?;
                stepped(self.stepper, || drop(producer));
                done
            }
            Order::Suspend => {
                let producer = self.producer.take().ok_or("no producer")?;
                stepped(self.stepper, || producer.suspend());
                done
            }
            Order::Tend => {
                // The rig has somebody come, go or die now; this process's only other thread is the control thread.
                if !stepped(self.stepper, || say(rig::LOOK)) {
                    return Err("the rig is gone".into());
                }
                done
            }
        }
    }

    fn loan(&mut self, which: u8, timeout: Duration) -> Outcome {
        let producer = self.producer.as_mut().ok_or("no producer")?;
        let before = producer.stats().dropped;
        let result = self.setup.with_specs(|specs| {
            stepped(self.stepper, || producer.loan_timeout(specs, timeout).map(forebay::Loan::detach))
        });
        let result = result.map(|loan| drop(self.loans.insert(which, loan)));
        self.after_loan(result, before)
    }

    /// Status, and how many messages were dropped for this loan.
    fn after_loan(&mut self, result: Result<(), LoanError>, before: u64) -> Outcome {
        let producer = self.producer.as_mut().ok_or("no producer")?;
        let dropped = producer.stats().dropped - before;
        match result {
            Ok(()) => Ok((Status::Done, vec![dropped])),
            Err(LoanError::Full { .. } | LoanError::OwnLoans { .. }) => Ok((Status::Nothing, vec![dropped])),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Checks dead letters and names them: sequence and attempts of each.
    fn letters(&self, letters: Vec<forebay::DeadLetter>) -> Outcome {
        let mut results = Vec::new();
        for letter in letters {
            let sequence = letter.sequence;
            let same = letter.correlation_id == self.setup.correlation(sequence)
                && letter.user == self.setup.user_data(sequence)
                && letter.tensors.len() as u64 == self.setup.fields
                && letter.tensors.iter().zip(0..).all(|(tensor, field)| {
                    let expected = (0..self.setup.dim(Some(sequence), field))
                        .flat_map(|i| self.setup.word(sequence, field, i).to_le_bytes());
                    tensor.bytes.iter().copied().eq(expected)
                });
            if !same {
                return Err(format!("dead letter {sequence} is not what was sent: {letter:?}"));
            }
            results.extend([sequence, letter.attempts.into()]);
        }
        Ok((Status::Done, results))
    }

    fn recv(&mut self, which: u8, wait: Option<Duration>) -> Outcome {
        let consumer = self.consumer.as_mut().ok_or("no consumer")?;
        let found = stepped(self.stepper, || match wait {
            None => consumer.try_recv(),
            Some(wait) => consumer.recv_timeout(wait).map(Some),
        });
        match found {
            Ok(Some(message)) => {
                check(&self.setup, &message)?;
                let results = vec![message.sequence(), message.attempts().into()];
                self.messages.insert(which, message);
                Ok((Status::Done, results))
            }
            Ok(None) | Err(RecvError::Timeout { .. }) => Ok((Status::Nothing, Vec::new())),
            Err(RecvError::Quota { .. }) => Ok((Status::Quota, Vec::new())),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// Fills a loan with message `sequence`.
pub(crate) fn write(setup: &Setup, loan: &mut DetachedLoan, sequence: u64) -> Result<(), Box<dyn std::error::Error>> {
    for field in 0..setup.fields {
        let dim = setup.dim(Some(sequence), field);
        loan.shrink(field as usize, &[dim])?;
        let bytes = loan.bytes_mut(field as usize).ok_or("a tensor is missing")?;
        for (i, to) in bytes.chunks_exact_mut(8).enumerate() {
            to.copy_from_slice(&setup.word(sequence, field, i as u64).to_le_bytes());
        }
    }
    loan.set_correlation_id(setup.correlation(sequence));
    loan.set_user(&setup.user_data(sequence))?;
    Ok(())
}

/// Whether a received message is the one that was sent under its sequence.
pub(crate) fn check(setup: &Setup, message: &Message) -> Result<(), String> {
    let sequence = message.sequence();
    let wrong = |what: &str| Err(format!("message {sequence} has the wrong {what}"));
    if message.correlation_id() != setup.correlation(sequence) {
        return wrong("correlation id");
    }
    if message.user() != setup.user_data(sequence) {
        return wrong("user data");
    }
    if message.len() as u64 != setup.fields {
        return wrong("number of tensors");
    }
    for field in 0..setup.fields {
        let tensor = message.tensor_at(field as usize).ok_or("a tensor is missing")?;
        let dim = setup.dim(Some(sequence), field);
        if tensor.name() != crate::setup::name(field) || tensor.shape() != [dim] {
            return wrong("name or shape of a tensor");
        }
        let words = tensor.as_slice::<u64>().map_err(|e| e.to_string())?;
        if words.iter().zip(0..).any(|(&found, i)| found != setup.word(sequence, field, i)) {
            return wrong("payload");
        }
    }
    Ok(())
}
