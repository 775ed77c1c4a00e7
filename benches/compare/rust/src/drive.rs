//! Pacing, stamping and timing, the same for every candidate.
//!
//! A stamp is taken before anything of the candidate's is called and travels in the first eight bytes of the message; its
//! number travels in the last eight. The receiver looks at the clock when it has the bytes (phase `have`), or when it has read
//! the first and the last word of them (phase `touch`). One message is in flight: the next is sent a while after the receiver
//! has released the last one. In phase `rate` messages follow each other as fast as they go, and none may be missing.

use std::{hint::black_box, mem::MaybeUninit};

use serde::Serialize;

use crate::{
    Failure,
    control::{Control, Word},
    plan::{Plan, Role},
};

/// What sends. Every message is `plan.bytes` long.
pub(crate) trait Send {
    /// Called once, when the receiver is there.
    fn start(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Hands over one message that begins with `first` and ends with `last`; waits for room.
    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure>;

    /// Called once, after the last message: whatever is under way has to arrive.
    fn last(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Called once, when the receiver is done.
    fn finish(self) -> Result<(), Failure>
    where
        Self: Sized,
    {
        Ok(())
    }
}

/// What receives.
pub(crate) trait Receive {
    /// Waits, busy, for the next message, shows it, and releases it.
    fn receive(&mut self, look: &mut impl FnMut(&[u8])) -> Result<(), Failure>;
}

/// The clock of all stamps: CLOCK_MONOTONIC, ns.
#[inline]
pub(crate) fn now() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is to a timespec, and this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr()) };
    // SAFETY: clock_gettime with a clock that exists fills it.
    let time = unsafe { time.assume_init() };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Keeps this process on one core.
pub(crate) fn pin(cpu: usize) -> Result<(), Failure> {
    // SAFETY: an all-zero cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a valid one; CPU_SET ignores numbers beyond it.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives through the call and the size is its own.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

/// The word that a message begins with.
pub(crate) fn first(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// The word that it ends with.
pub(crate) fn last(bytes: &[u8]) -> u64 {
    bytes.last_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// Writes both words, and nothing else: whatever is between them was written before.
pub(crate) fn stamp(bytes: &mut [u8], first: u64, last: u64) {
    if let Some(word) = bytes.first_chunk_mut() {
        *word = first.to_le_bytes();
    }
    if let Some(word) = bytes.last_chunk_mut() {
        *word = last.to_le_bytes();
    }
}

/// What a distribution of times was, ns.
#[derive(Debug, Serialize)]
struct Times {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Times {
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or(0);
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: times.last().copied().unwrap_or(0) }
    }
}

/// What the receiver says.
#[derive(Debug, Serialize)]
struct Answer {
    have: Times,
    touch: Times,
    /// Messages a second.
    rate: Option<f64>,
}

/// Runs the sending side, where the receiving one is not in Rust.
pub(crate) fn run_sender<S: Send>(
    role: Role,
    plan: &Plan,
    sender: impl FnOnce(&Plan) -> Result<S, Failure>,
) -> Result<(), Failure> {
    if role != Role::Send {
        return Err("this one has no receiver in Rust".into());
    }
    send(plan, &Control::open(&plan.dir)?, sender(plan)?)
}

/// Runs one side.
pub(crate) fn run<S: Send, R: Receive>(
    role: Role,
    plan: &Plan,
    sender: impl FnOnce(&Plan) -> Result<S, Failure>,
    receiver: impl FnOnce(&Plan) -> Result<R, Failure>,
) -> Result<(), Failure> {
    let control = Control::open(&plan.dir)?;
    match role {
        Role::Send => send(plan, &control, sender(plan)?),
        Role::Receive => {
            control.wait(Word::SenderReady, 1)?;
            let answer = receive(plan, &control, receiver(plan)?)?;
            println!("{}", serde_json::to_string(&answer)?);
            Ok(())
        }
    }
}

fn send(plan: &Plan, control: &Control, mut sender: impl Send) -> Result<(), Failure> {
    control.set(Word::SenderReady, 1);
    control.wait(Word::ReceiverReady, 1)?;
    sender.start()?;
    let paced = 2 * (plan.warm + plan.count);
    for number in 0..paced {
        control.wait(Word::Done, number)?;
        let until = now() + plan.gap_ns;
        let mut stamp = now();
        while stamp < until {
            stamp = now();
        }
        sender.send(stamp, number)?;
    }
    control.wait(Word::Done, paced)?;
    if plan.rate_count > 0 {
        for number in 0..plan.warm + plan.rate_count {
            sender.send(1, number)?;
        }
        sender.last()?;
        control.wait(Word::Done, paced + 1)?;
    }
    sender.finish()
}

fn receive(plan: &Plan, control: &Control, mut receiver: impl Receive) -> Result<Answer, Failure> {
    control.set(Word::ReceiverReady, 1);
    let mut done = 0;
    let have = latency(plan, control, &mut receiver, &mut done, false)?;
    let touch = latency(plan, control, &mut receiver, &mut done, true)?;
    let mut rate = None;
    if plan.rate_count > 0 {
        let (mut begin, mut wrong) = (0, 0u64);
        for number in 0..plan.warm + plan.rate_count {
            receiver.receive(&mut |bytes| wrong += u64::from(last(bytes) != number))?;
            if number == plan.warm {
                begin = now();
            }
        }
        let span = now() - begin;
        if wrong > 0 {
            return Err(format!("{wrong} messages were not the next one").into());
        }
        rate = Some((plan.rate_count - 1) as f64 / (span.max(1) as f64 / 1e9));
        control.set(Word::Done, done + 1);
    }
    Ok(Answer { have, touch, rate })
}

fn latency(
    plan: &Plan,
    control: &Control,
    receiver: &mut impl Receive,
    done: &mut u64,
    touch: bool,
) -> Result<Times, Failure> {
    let mut times = Vec::with_capacity(plan.count as usize);
    for message in 0..plan.warm + plan.count {
        let (mut taken, mut number) = (0, 0);
        receiver.receive(&mut |bytes| {
            let bytes = black_box(bytes);
            if touch {
                black_box(first(bytes));
                black_box(last(bytes));
            }
            let end = now();
            taken = end.saturating_sub(first(bytes));
            number = last(bytes);
        })?;
        if number != *done {
            return Err(format!("message {number} came in place of {done}").into());
        }
        if message >= plan.warm {
            times.push(taken);
        }
        *done += 1;
        control.set(Word::Done, *done);
    }
    Ok(Times::of(times))
}
