//! Orders, answers and the log of a stepped operation: memory that the rig and an actor share. One of the two writes while
//! the other waits for a byte in a pipe.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use forebay_os::{Access, Mapping, object::memfd};

const BYTES: usize = 4 << 20;
const ORDER: usize = 0;
const MODE: usize = 2;
const MOST: usize = 3;
const STEPS: usize = 4;
const LOGGED: usize = 5;
const STATUS: usize = 8;
const COUNT: usize = 9;
const RESULTS: usize = 10;
const MOST_RESULTS: usize = 200;
const TEXT: usize = 256;
const TEXT_BYTES: usize = 4096;
const LOG: usize = 1024;

/// What an actor is told to do; `u8` names a loan or a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Order {
    Create,
    Attach,
    Loan(u8),
    WaitLoan(u8),
    LoanAndDrop,
    Publish(u8),
    Abandon(u8),
    TakeLetters,
    Recv(u8),
    Wait(u8),
    Ack(u8),
    Nack(u8),
    Release(u8),
    Leave,
    Discard,
    Close,
    Suspend,
    /// The producer's: its main thread stands still, and its control thread is what is stepped.
    Tend,
}

const ORDERS: [fn(u8) -> Order; 18] = [
    |_| Order::Create,
    |_| Order::Attach,
    Order::Loan,
    Order::WaitLoan,
    |_| Order::LoanAndDrop,
    Order::Publish,
    Order::Abandon,
    |_| Order::TakeLetters,
    Order::Recv,
    Order::Wait,
    Order::Ack,
    Order::Nack,
    Order::Release,
    |_| Order::Leave,
    |_| Order::Discard,
    |_| Order::Close,
    |_| Order::Suspend,
    |_| Order::Tend,
];

fn encode(order: Order) -> (u64, u8) {
    match order {
        Order::Create => (0, 0),
        Order::Attach => (1, 0),
        Order::Loan(which) => (2, which),
        Order::WaitLoan(which) => (3, which),
        Order::LoanAndDrop => (4, 0),
        Order::Publish(which) => (5, which),
        Order::Abandon(which) => (6, which),
        Order::TakeLetters => (7, 0),
        Order::Recv(which) => (8, which),
        Order::Wait(which) => (9, which),
        Order::Ack(which) => (10, which),
        Order::Nack(which) => (11, which),
        Order::Release(which) => (12, which),
        Order::Leave => (13, 0),
        Order::Discard => (14, 0),
        Order::Close => (15, 0),
        Order::Suspend => (16, 0),
        Order::Tend => (17, 0),
    }
}

/// How an operation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As ever.
    Free = 0,
    /// As `Words`, but only the instructions that store into the ring's pages trap.
    Stores = 4,
    /// Step by step, to die in it.
    Count = 3,
    /// Step by step; what changes in the ring's words is logged.
    Words = 1,
    /// Step by step; whenever something of the ring may have changed, the rig looks at all of it.
    Whole = 2,
}

impl Mode {
    /// What is counted.
    pub(crate) fn unit(self) -> &'static str {
        if self == Self::Stores { "store" } else { "instruction" }
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Status {
    /// It did what it is for.
    Done = 0,
    /// No message, or no slot.
    Nothing = 1,
    /// A message, but the consumer holds all it may.
    Quota = 2,
    /// It failed in a way that no operation of a walk may; the text says how.
    Fault = 3,
}

/// What an operation answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) results: Vec<u64>,
    pub(crate) text: String,
}

/// One change of the ring's words: by which step, where the program stood then, and the words.
#[derive(Debug, Clone)]
pub(crate) struct Shot {
    pub(crate) step: u64,
    pub(crate) ip: u64,
    pub(crate) changes: Vec<(u32, u64)>,
}

impl Shot {
    /// Makes the picture before it the one after it.
    pub(crate) fn apply(&self, picture: &mut [u64]) {
        for &(at, word) in &self.changes {
            picture[at as usize] = word;
        }
    }
}

/// The memory.
#[derive(Debug)]
pub(crate) struct Board {
    mapping: Mapping,
    fd: OwnedFd,
}

impl Board {
    /// A new one, for the rig.
    pub(crate) fn new() -> Self {
        let fd = memfd::create("forebay-crash", None).unwrap();
        forebay_os::object::allocate(&fd, BYTES as u64).unwrap();
        Self::of(fd)
    }

    /// The one at `path`, for an actor.
    pub(crate) fn open(path: &str) -> Self {
        Self::of(File::options().read(true).write(true).open(path).unwrap().into())
    }

    fn of(fd: OwnedFd) -> Self {
        Self { mapping: Mapping::map(fd.as_fd(), BYTES, Access::ReadWrite).unwrap(), fd }
    }

    /// Where an actor finds it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < BYTES / 8, "the log is full");
        // SAFETY: inside the mapping by the assertion.
        let word = unsafe { self.mapping.base().cast::<AtomicU64>().add(index) };
        // SAFETY: aligned, mapped as long as `self`, and only ever used as atomics by both sides.
        unsafe { word.as_ref() }
    }

    fn get(&self, index: usize) -> u64 {
        self.word(index).load(SeqCst)
    }

    fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, SeqCst);
    }

    /// The rig's: an order, how to do it, and after how many steps to die in it (0: not at all).
    pub(crate) fn give(&self, order: Order, mode: Mode, most: u64) {
        let (code, which) = encode(order);
        self.set(ORDER, code);
        self.set(ORDER + 1, which.into());
        self.set(MODE, mode as u64);
        self.set(MOST, most);
        self.set(STEPS, 0);
        self.set(LOGGED, 0);
    }

    pub(crate) fn order(&self) -> Order {
        ORDERS[self.get(ORDER) as usize](self.get(ORDER + 1) as u8)
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.get(MODE) {
            0 => Mode::Free,
            1 => Mode::Words,
            2 => Mode::Whole,
            3 => Mode::Count,
            _ => Mode::Stores,
        }
    }

    /// After which step to die.
    pub(crate) fn most(&self) -> u64 {
        self.get(MOST)
    }

    /// Counts a step.
    pub(crate) fn stepped(&self) -> u64 {
        self.set(STEPS, self.get(STEPS) + 1);
        self.get(STEPS)
    }

    pub(crate) fn steps(&self) -> u64 {
        self.get(STEPS)
    }

    /// Logs that words changed in the step that ended before `ip`.
    pub(crate) fn log(&self, ip: u64, changes: &[(u32, u64)]) {
        let at = LOG + self.get(LOGGED) as usize;
        self.set(at, self.steps());
        self.set(at + 1, ip);
        self.set(at + 2, changes.len() as u64);
        for (i, &(index, word)) in changes.iter().enumerate() {
            self.set(at + 3 + 2 * i, index.into());
            self.set(at + 4 + 2 * i, word);
        }
        self.set(LOGGED, (at - LOG + 3 + 2 * changes.len()) as u64);
    }

    /// What was logged.
    pub(crate) fn shots(&self) -> Vec<Shot> {
        let (mut at, end) = (LOG, LOG + self.get(LOGGED) as usize);
        let mut shots = Vec::new();
        while at < end {
            let many = self.get(at + 2) as usize;
            let change = |i: usize| (self.get(at + 3 + 2 * i) as u32, self.get(at + 4 + 2 * i));
            shots.push(Shot { step: self.get(at), ip: self.get(at + 1), changes: (0..many).map(change).collect() });
            at += 3 + 2 * many;
        }
        shots
    }

    pub(crate) fn answer(&self, answer: &Answer) {
        assert!(answer.results.len() <= MOST_RESULTS, "too many results");
        self.set(STATUS, answer.status as u64);
        self.set(COUNT, answer.results.len() as u64);
        for (i, &result) in answer.results.iter().enumerate() {
            self.set(RESULTS + i, result);
        }
        let text = &answer.text.as_bytes()[..answer.text.len().min(TEXT_BYTES)];
        self.set(TEXT, text.len() as u64);
        for (i, chunk) in text.chunks(8).enumerate() {
            self.set(TEXT + 1 + i, forebay_layout::header::pack(chunk));
        }
    }

    pub(crate) fn answered(&self) -> Answer {
        let status = match self.get(STATUS) {
            0 => Status::Done,
            1 => Status::Nothing,
            2 => Status::Quota,
            _ => Status::Fault,
        };
        let results = (0..self.get(COUNT) as usize).map(|i| self.get(RESULTS + i)).collect();
        let len = self.get(TEXT) as usize;
        let mut text: Vec<u8> = (0..len.div_ceil(8)).flat_map(|i| self.get(TEXT + 1 + i).to_le_bytes()).collect();
        text.truncate(len);
        Answer { status, results, text: String::from_utf8_lossy(&text).into_owned() }
    }
}
