//! The end that answers.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use forebay_layout::{Backing, DType, Kind as RingKind, MAX_FIELDS, schema::Schema};
use forebay_os::process;

use super::{
    DEFAULT_MAX_ITEMS, ITEMS_FIELD, Request, TEXT_BYTES, TEXT_FIELD, answers_ring,
    control::{Book, lock},
    control_ring,
    error::{End, ServiceError as Error},
    header::{Header, Kind},
    reply::{AnswerLoan, DetachedAnswer, Ends, PartItem},
    requests_ring,
};
use crate::{
    Consumer, DeadLetters, Message, Producer, WaitPolicy,
    error::{LoanError, RecvError},
    inspect,
    options::{DEFAULT_ATTACH_TIMEOUT, DEFAULT_SLOT_BYTES},
    producer::FieldSpec,
};

/// How to attach to a service; [`attach`](Self::attach) does it.
#[derive(Debug, Clone)]
#[must_use = "nothing is attached until attach is called"]
pub struct ServerOptions {
    service: String,
    dir: Option<PathBuf>,
    timeout: Option<Duration>,
    slots: u32,
    slot_bytes: u64,
    max_items: u32,
    rank: u32,
    writable: bool,
    wait: WaitPolicy,
    backing: Backing,
    label: String,
}

impl ServerOptions {
    /// Where the client listens. Default `$FOREBAY_DIR`, `$XDG_RUNTIME_DIR/forebay` or `/tmp/forebay-<uid>`.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// How long attaching waits for the client; `None` waits without end. Default 10 s.
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Answers that may be under way at a time, those that the client still reads included. Default 8.
    pub fn answer_slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Bytes of the largest answer's fields, each rounded up to 64. Default 1 MiB.
    pub fn answer_slot_bytes(mut self, slot_bytes: u64) -> Self {
        self.slot_bytes = slot_bytes;
        self
    }

    /// Items of an answer that there is room for beside its fields, 16 bytes each. Default 1024.
    pub fn max_items(mut self, items: u32) -> Self {
        self.max_items = items;
        self
    }

    /// This end's rank, from 0, if there are several. Only rank 0 answers. Default 0.
    pub fn rank(mut self, rank: u32) -> Self {
        self.rank = rank;
        self
    }

    /// Whether to map requests writable, which the client must allow. Default false.
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// How to wait for requests. Default adaptive.
    pub fn wait(mut self, wait: WaitPolicy) -> Self {
        self.wait = wait;
        self
    }

    /// Where the answers' memory comes from. Default memfd: nothing stays after a kill.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// What `forebay ls` and error texts call this end. Default: the command's name.
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// Attaches. Blocks until the client is there, at most the timeout.
    ///
    /// # Errors
    /// [`Error::Attach`], [`Error::Create`] (the answers' ring), [`Error::NoSuchRank`].
    pub fn attach(self) -> Result<Server, Error> {
        match self.attach_within(&mut || false)? {
            Some(server) => Ok(server),
            None => unreachable!("nothing interrupts this wait"),
        }
    }

    /// As [`attach`](Self::attach); asks `interrupt` every 10 ms, and returns `None` once it says true.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_within(self, interrupt: &mut dyn FnMut() -> bool) -> Result<Option<Server>, Error> {
        let consumer = |ring: &str| {
            let mut options = Consumer::options(ring).timeout(self.timeout).reconnect(Duration::ZERO).wait(self.wait);
            if let Some(dir) = &self.dir {
                options = options.dir(dir);
            }
            if self.label.is_empty() { options } else { options.label(&self.label) }
        };
        let Some(control) = consumer(&control_ring(&self.service)).attach_within(interrupt)? else { return Ok(None) };
        let requests = consumer(&requests_ring(&self.service)).writable(self.writable);
        let Some(requests) = requests.attach_within(interrupt)? else { return Ok(None) };
        let geometry = requests.geometry();
        let ranks = if geometry.kind == RingKind::Broadcast { geometry.max_consumers } else { 1 };
        if self.rank >= ranks {
            return Err(Error::NoSuchRank { service: self.service, rank: self.rank, ranks });
        }
        let answers = if self.rank == 0 { Some(self.create_answers()?) } else { None };
        let book = Book::new(control);
        Ok(Some(Server {
            discards: self.rank != 0 && book.is_owed_a_copy(),
            book: Arc::new(Mutex::new(book)),
            name: self.service,
            dir: self.dir,
            rank: self.rank,
            ranks,
            requests: Some(requests),
            answers,
            ended: None,
        }))
    }

    fn create_answers(&self) -> Result<Producer, Error> {
        let room = TEXT_BYTES + u64::from(self.max_items) * 16;
        // One that cannot be is refused by the ring, with this number.
        let slot_bytes = self.slot_bytes.div_ceil(64).saturating_mul(64).saturating_add(room);
        let mut options = Producer::options(&answers_ring(&self.service))
            .slots(self.slots)
            .slot_bytes(slot_bytes)
            .quota(self.slots)
            .max_consumers(1)
            .max_attempts(1)
            .dead_letters(DeadLetters::Discard)
            .backing(self.backing)
            .wait(self.wait)
            .label(&self.label);
        if let Some(dir) = &self.dir {
            options = options.dir(dir);
        }
        Ok(options.create()?)
    }
}

/// The end of a service that answers. May be moved between threads.
///
/// Dropping it ends the service for the client, after it read every answer.
#[derive(Debug)]
pub struct Server {
    name: String,
    dir: Option<PathBuf>,
    rank: u32,
    ranks: u32,
    /// `None` only while it is dropped.
    requests: Option<Consumer>,
    answers: Option<Producer>,
    book: Arc<Mutex<Book>>,
    /// Cancellations come to this rank too, for nothing.
    discards: bool,
    ended: Option<End>,
}

impl Server {
    /// Starts attaching to the service of this name.
    pub fn options(service: &str) -> ServerOptions {
        ServerOptions {
            service: service.to_owned(),
            dir: None,
            timeout: Some(DEFAULT_ATTACH_TIMEOUT),
            slots: 8,
            slot_bytes: DEFAULT_SLOT_BYTES,
            max_items: DEFAULT_MAX_ITEMS,
            rank: 0,
            writable: false,
            wait: WaitPolicy::Adaptive,
            backing: Backing::Memfd,
            label: String::new(),
        }
    }

    /// Tells the client that it is warmed up, with a short text such as the framework's name. On ranks other than 0 it
    /// does nothing.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn ready(&mut self, text: &str) -> Result<(), Error> {
        self.ready_within(text, &mut || false)
    }

    /// As [`ready`](Self::ready); `interrupt` is asked at least every 50 ms while it waits.
    ///
    /// # Errors
    /// As [`ready`](Self::ready); [`Error::Interrupted`].
    pub fn ready_within(&mut self, text: &str, interrupt: &mut dyn FnMut() -> bool) -> Result<(), Error> {
        if self.rank != 0 {
            return Ok(());
        }
        let mut header = Header::new(Kind::Ready, 0, 0);
        (header.pid, header.ranks) = (process::my_pid(), self.ranks);
        let mut loan = self.loan(header, Ends::Nothing, &[], None, interrupt)?;
        loan.header.text_bytes = loan.put_text(text, usize::MAX) as u32;
        Ok(loan.publish()?)
    }

    /// The next request; waits as long as it takes.
    ///
    /// # Errors
    /// [`Error::Closed`]: the client drained or left, and everything it asked was received. [`Error::PeerDied`]: it died.
    /// [`Error::Version`], [`Error::Defect`]: it sent what cannot be read, as a request or a cancellation.
    pub fn recv(&mut self) -> Result<Request, Error> {
        match self.recv_interruptible(None, &mut || false)? {
            Some(request) => Ok(request),
            None => Err(Error::Interrupted { service: self.name.clone() }),
        }
    }

    /// The next request, if there is one now. Does not block.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<Request>, Error> {
        self.usable()?;
        self.discard();
        let found = self.requests().try_recv();
        self.receive(found)
    }

    /// As [`recv`](Self::recv), waiting at most `timeout`; asks `interrupt` at least every 50 ms and returns `None` once it
    /// says true.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); [`RecvError::Timeout`] in [`Error::Recv`].
    pub fn recv_interruptible(
        &mut self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Request>, Error> {
        self.usable()?;
        self.discard();
        let (book, discards) = (Arc::clone(&self.book), self.discards);
        let mut interrupt = || {
            if discards {
                lock(&book).discard();
            }
            interrupt()
        };
        let found = self.requests().recv_interruptible(timeout, &mut interrupt);
        self.receive(found)
    }

    /// A descriptor that is readable when [`try_recv`](Self::try_recv) should be called. It belongs to this end; do not
    /// close it.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn fileno(&mut self) -> Result<std::os::fd::RawFd, Error> {
        Ok(self.requests().fileno()?)
    }

    fn discard(&self) {
        if self.discards {
            lock(&self.book).discard();
        }
    }

    fn requests(&mut self) -> &mut Consumer {
        self.requests.as_mut().expect("only dropping takes it")
    }

    fn receive(&mut self, found: Result<Option<Message>, RecvError>) -> Result<Option<Request>, Error> {
        let end = match found {
            Ok(None) => return Ok(None),
            Ok(Some(message)) => match Request::read(message, &self.book, self.ranks > 1) {
                Ok(request) => return Ok(Some(request)),
                Err(bad) => End::Bad(bad),
            },
            Err(e) => End::of(&e).ok_or(Error::Recv(e))?,
        };
        let error = end.error(&self.name, self.outstanding());
        self.ended = Some(end);
        Err(error)
    }

    fn usable(&self) -> Result<(), Error> {
        let book = lock(&self.book);
        // After a cancellation that cannot be read everything counts as cancelled, which somebody must be told. That the
        // client is gone is told by the requests' ring, after its last one.
        let unread = book.ended.as_ref().filter(|end| matches!(end, End::Bad(_)));
        match self.ended.as_ref().or(unread) {
            Some(end) => Err(end.error(&self.name, book.outstanding())),
            None => Ok(()),
        }
    }

    /// A slot for the whole answer to a request, with these fields: each must have a row for each item. Waits until the
    /// client has let go of enough earlier answers.
    ///
    /// # Errors
    /// [`Error::Rows`], [`Error::Answered`], [`Error::NotRankZero`]; [`Error::PeerDied`] or [`Error::Closed`] if the client
    /// is gone; [`LoanError`] in [`Error::Loan`]: among others, the answer is larger than a slot.
    pub fn answer(&mut self, request: &Request, fields: &[FieldSpec<'_>]) -> Result<AnswerLoan<'_>, Error> {
        self.answer_within(request, fields, &mut || false)
    }

    /// As [`answer`](Self::answer); `interrupt` is asked at least every 50 ms while it waits.
    ///
    /// # Errors
    /// As [`answer`](Self::answer); [`Error::Interrupted`].
    pub fn answer_within(
        &mut self,
        request: &Request,
        fields: &[FieldSpec<'_>],
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<AnswerLoan<'_>, Error> {
        let items = request.items();
        if lock(&self.book).left(request.id()) != Some(items.len()) {
            return Err(Error::Answered { service: self.name.clone(), request: request.id() });
        }
        check_rows(fields, items.len())?;
        let header = Header::new(Kind::Result, request.id(), items.len());
        let rows = items.iter().map(|item| (item.id, true));
        self.loan(header, Ends::Request(request.id()), fields, Some(&mut rows.into_iter()), interrupt)
    }

    /// A slot for rows of some items, perhaps of several requests: one row of each field for each of `items`. Those that
    /// are `last` are answered by it. Without fields it says only how items went.
    ///
    /// # Errors
    /// [`Error::NoSuchItem`]; others as [`answer`](Self::answer).
    pub fn part(&mut self, items: &[PartItem], fields: &[FieldSpec<'_>]) -> Result<AnswerLoan<'_>, Error> {
        self.part_within(items, fields, &mut || false)
    }

    /// As [`part`](Self::part); `interrupt` is asked at least every 50 ms while it waits.
    ///
    /// # Errors
    /// As [`part`](Self::part); [`Error::Interrupted`].
    pub fn part_within(
        &mut self,
        items: &[PartItem],
        fields: &[FieldSpec<'_>],
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<AnswerLoan<'_>, Error> {
        {
            let book = lock(&self.book);
            let mut ended = super::IdSet::default();
            for item in items {
                if book.request_of(item.id).is_none() || ended.contains(&item.id) {
                    return Err(Error::NoSuchItem { service: self.name.clone(), item: item.id });
                }
                if item.last {
                    ended.insert(item.id);
                }
            }
        }
        check_rows(fields, items.len())?;
        let last = items.iter().filter(|item| item.last).map(|item| item.id).collect();
        let rows = items.iter().map(|item| (item.id, item.last));
        let header = Header::new(Kind::Part, 0, items.len());
        self.loan(header, Ends::Items(last), fields, Some(&mut rows.into_iter()), interrupt)
    }

    /// Says that a request failed as a whole, or what was not answered of it yet: the exception's type and text.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn fail(&mut self, request: &Request, kind: &str, text: &str) -> Result<(), Error> {
        self.fail_within(request, kind, text, &mut || false)
    }

    /// As [`fail`](Self::fail); `interrupt` is asked at least every 50 ms while it waits.
    ///
    /// # Errors
    /// As [`fail`](Self::fail); [`Error::Interrupted`].
    pub fn fail_within(
        &mut self,
        request: &Request,
        kind: &str,
        text: &str,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<(), Error> {
        if lock(&self.book).left(request.id()).is_none() {
            return Err(Error::Answered { service: self.name.clone(), request: request.id() });
        }
        let header = Header::new(Kind::Failed, request.id(), 0);
        let mut loan = self.loan(header, Ends::Request(request.id()), &[], None, interrupt)?;
        loan.header.type_bytes = loan.put_text(kind, 256) as u32;
        loan.header.text_bytes = loan.put_text(text, usize::MAX) as u32;
        Ok(loan.publish()?)
    }

    /// Is through with a request without answering it: for ranks other than 0.
    pub fn finish(&mut self, request: &Request) {
        self.discard();
        lock(&self.book).close(request.id());
    }

    /// Sends an answer that was detached.
    ///
    /// # Errors
    /// [`Error::Publish`] if another server made it, or in a forked child.
    pub fn publish(&mut self, answer: DetachedAnswer) -> Result<(), Error> {
        match &mut self.answers {
            Some(answers) => answer.publish(answers, &self.book),
            None => Err(Error::NotRankZero { service: self.name.clone(), rank: self.rank }),
        }
    }

    fn loan(
        &mut self,
        header: Header,
        ends: Ends,
        fields: &[FieldSpec<'_>],
        rows: Option<&mut dyn ExactSizeIterator<Item = (u64, bool)>>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<AnswerLoan<'_>, Error> {
        let Some(answers) = &mut self.answers else {
            return Err(Error::NotRankZero { service: self.name.clone(), rank: self.rank });
        };
        let shape = [rows.as_ref().map_or(0, |rows| rows.len() as u64), 2];
        let mut specs = arrayvec::ArrayVec::<FieldSpec<'_>, MAX_FIELDS>::new();
        for field in fields.iter().copied().chain([
            FieldSpec::new(ITEMS_FIELD, DType::U64, &shape),
            FieldSpec::new(TEXT_FIELD, DType::U8, &[TEXT_BYTES]),
        ]) {
            specs.try_push(field).map_err(|_| LoanError::Fields {
                ring: answers.ring().to_owned(),
                what: format!("{} fields, at most {} are possible", fields.len(), MAX_FIELDS - 2),
            })?;
        }
        let book = &*self.book;
        let gone = || {
            let mut book = lock(book);
            book.poll();
            book.ended.as_ref().map(|end| end.error(&self.name, book.outstanding()))
        };
        let mut stop = || interrupt() || gone().is_some();
        let mut loan = match answers.loan_within(&specs, None, &mut stop) {
            Ok(loan) => loan,
            Err(LoanError::Interrupted { .. }) => {
                return Err(gone().unwrap_or_else(|| Error::Interrupted { service: self.name.clone() }));
            }
            Err(LoanError::TooLarge { needed, largest, .. }) => {
                let own = TEXT_BYTES + (shape[0] * 16).next_multiple_of(64);
                return Err(Error::AnswerTooLarge {
                    service: self.name.clone(),
                    needed: needed.saturating_sub(own),
                    room: largest.saturating_sub(own),
                });
            }
            Err(e) => return Err(e.into()),
        };
        if let (Some(rows), Ok(words)) = (rows, loan.tensor_mut::<u64>(ITEMS_FIELD)) {
            for (to, (id, last)) in words.chunks_exact_mut(2).zip(rows) {
                to.copy_from_slice(&[id.to_le(), (u64::from(last) << 8).to_le()]);
            }
        }
        Ok(AnswerLoan { loan, book, header, ends, texts: 0 })
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.name
    }

    /// This end's rank, from 0.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Requests that were received and are not answered yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        lock(&self.book).outstanding()
    }

    /// Whether nobody wants this item any more, as [`Request::cancelled`] says it. With several ranks only rank 0 hears of
    /// it, and must tell the others, so that all go on alike.
    #[must_use]
    pub fn is_cancelled(&self, request: u64, item: u64) -> bool {
        if self.rank != 0 {
            return false;
        }
        let mut book = lock(&self.book);
        book.poll();
        book.ended.is_some() || book.is_cancelled(request, item)
    }

    /// The items that were received, are not answered and that nobody wants any more: request and item, in no order, some
    /// perhaps twice. For who works on many at a time. With several ranks as [`is_cancelled`](Self::is_cancelled).
    #[must_use]
    pub fn cancelled(&self) -> Vec<(u64, u64)> {
        if self.rank != 0 {
            return Vec::new();
        }
        let mut book = lock(&self.book);
        book.poll();
        book.cancelled()
    }

    /// How many requests' slots are still held, by requests or by tensors of them, and how many there are. When all are held
    /// and none is outstanding, somebody keeps tensors of requests that were answered long ago, and no more can come.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        self.requests.as_ref().map_or((0, 0), |requests| {
            let slots: u64 = requests.geometry().classes.iter().map(|class| u64::from(class.slots)).sum();
            (requests.held().len(), slots as usize)
        })
    }

    /// The fields of requests, if the client has a schema, with [`ITEMS_FIELD`] at the end.
    #[must_use]
    pub fn schema(&self) -> Option<&Schema> {
        self.requests.as_ref().and_then(Consumer::schema)
    }
}

fn check_rows(fields: &[FieldSpec<'_>], items: usize) -> Result<(), Error> {
    for field in fields {
        let found = match field.shape.first() {
            Some(&rows) if rows == items as u64 => continue,
            Some(rows) => format!("{rows} rows"),
            None => "no rows: it is a scalar".to_owned(),
        };
        return Err(Error::Rows { field: field.name.to_owned(), found, expected: items });
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.requests = None;
        self.answers = None;
        lock(&self.book).leave();
        // The sockets and lock files of a client that died, perhaps unnoticed, or while it left; a living one keeps its own.
        inspect::tidy(self.dir.as_deref(), &[requests_ring(&self.name), control_ring(&self.name)]);
    }
}
