//! Orders and answers: one page that the tracer and an actor share. The tracer writes only while the actor is stopped.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use forebay_os::{Access, Mapping, object::memfd};

const BYTES: usize = 8192;
const STATE: usize = 0;
const ORDER: usize = 1;
const STATUS: usize = 8;
const COUNT: usize = 9;
const RESULTS: usize = 10;
const MOST_RESULTS: usize = 200;
const TEXT: usize = 256;
const TEXT_BYTES: usize = BYTES - (TEXT + 1) * 8;

/// Where the actor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum State {
    /// It waits for an order.
    Idle = 0,
    /// It has prepared an operation and comes to it with the next step.
    Ready = 1,
    /// It is in the operation.
    Inside = 2,
    /// The operation is over.
    Over = 3,
}

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
    Close,
    Suspend,
}

const ORDERS: [fn(u8) -> Order; 16] = [
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
    |_| Order::Close,
    |_| Order::Suspend,
];

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

/// The page.
#[derive(Debug)]
pub(crate) struct Board {
    mapping: Mapping,
    fd: OwnedFd,
}

impl Board {
    /// A new one, for the tracer.
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
        assert!(index < BYTES / 8);
        // SAFETY: inside the mapping by the assertion.
        let word = unsafe { self.mapping.base().cast::<AtomicU64>().add(index) };
        // SAFETY: aligned, mapped as long as `self`, and only ever used as atomics by both sides.
        unsafe { word.as_ref() }
    }

    pub(crate) fn state(&self) -> State {
        match self.word(STATE).load(SeqCst) {
            0 => State::Idle,
            1 => State::Ready,
            2 => State::Inside,
            _ => State::Over,
        }
    }

    #[inline(always)]
    pub(crate) fn set_state(&self, state: State) {
        self.word(STATE).store(state as u64, SeqCst);
    }

    pub(crate) fn give(&self, order: Order) {
        let (code, which) = encode(order);
        self.word(ORDER).store(code, SeqCst);
        self.word(ORDER + 1).store(which.into(), SeqCst);
    }

    pub(crate) fn order(&self) -> Order {
        ORDERS[self.word(ORDER).load(SeqCst) as usize](self.word(ORDER + 1).load(SeqCst) as u8)
    }

    pub(crate) fn answer(&self, answer: &Answer) {
        assert!(answer.results.len() <= MOST_RESULTS);
        self.word(STATUS).store(answer.status as u64, SeqCst);
        self.word(COUNT).store(answer.results.len() as u64, SeqCst);
        for (i, &result) in answer.results.iter().enumerate() {
            self.word(RESULTS + i).store(result, SeqCst);
        }
        let text = &answer.text.as_bytes()[..answer.text.len().min(TEXT_BYTES - 8)];
        self.word(TEXT).store(text.len() as u64, SeqCst);
        for (i, chunk) in text.chunks(8).enumerate() {
            self.word(TEXT + 1 + i).store(forebay_layout::header::pack(chunk), SeqCst);
        }
    }

    pub(crate) fn answered(&self) -> Answer {
        let status = match self.word(STATUS).load(SeqCst) {
            0 => Status::Done,
            1 => Status::Nothing,
            2 => Status::Quota,
            _ => Status::Fault,
        };
        let results =
            (0..self.word(COUNT).load(SeqCst) as usize).map(|i| self.word(RESULTS + i).load(SeqCst)).collect();
        let len = self.word(TEXT).load(SeqCst) as usize;
        let mut text: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|i| self.word(TEXT + 1 + i).load(SeqCst).to_le_bytes()).collect();
        text.truncate(len);
        Answer { status, results, text: String::from_utf8_lossy(&text).into_owned() }
    }
}

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
        Order::Close => (14, 0),
        Order::Suspend => (15, 0),
    }
}
