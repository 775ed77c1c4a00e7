//! The end that asks.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use forebay_layout::{ANY, Backing, DType, Kind as RingKind, schema::Schema};

use super::{
    Answer, DEFAULT_MAX_ITEMS, DetachedRequest, ITEMS_FIELD, Item, Meta, RequestLoan, answers_ring,
    asking::{self, Ledger},
    control_ring,
    error::{End, ServiceError as Error},
    header::{Header, Kind},
    rank_rings, requests_ring,
};
use crate::{
    Consumer, DeadLetters, Message, Producer, WaitPolicy,
    error::{CreateError, LoanError, PublishError, RecvError, WaitError},
    inspect,
    options::{DEFAULT_SLOT_BYTES, DEFAULT_SLOTS},
    producer::FieldSpec,
};

/// Slots of the ring of cancellations, and items that one of them has room for.
const CONTROL: (u32, usize) = (32, 512);
/// How often a blocking wait looks for that room.
const NAP: Duration = Duration::from_millis(5);
/// Cancellations that wait for room; they are hints, so the oldest are forgotten beyond that.
const MOST_WAITING: usize = 65_536;

/// How to begin a service; [`create`](Self::create) does it.
#[derive(Debug, Clone)]
#[must_use = "nothing is created until create is called"]
pub struct ClientOptions {
    service: String,
    dir: Option<PathBuf>,
    schema: Option<Schema>,
    slots: u32,
    slot_bytes: Option<u64>,
    max_items: u32,
    ranks: u32,
    writable: bool,
    wait: WaitPolicy,
    backing: Backing,
    label: String,
}

impl ClientOptions {
    /// Where to listen. Default `$FOREBAY_DIR`, `$XDG_RUNTIME_DIR/forebay` or `/tmp/forebay-<uid>`.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The fields of every request, the batch as dim 0 of each that is no scalar. Without one each request names its own.
    pub fn schema(mut self, schema: Schema) -> Self {
        self.schema = Some(schema);
        self
    }

    /// Requests that may be under way at a time, those that the server still reads included. Default 16.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Bytes of the largest request's fields, each rounded up to 64. Default: what the schema's bounds need, else 1 MiB.
    pub fn slot_bytes(mut self, slot_bytes: u64) -> Self {
        self.slot_bytes = Some(slot_bytes);
        self
    }

    /// Items of a request that there is room for beside its fields, 16 bytes each. Default 1024.
    pub fn max_items(mut self, items: u32) -> Self {
        self.max_items = items;
        self
    }

    /// Ranks of the server, 1 to 32: each of them sees every request, rank 0 answers. Default 1.
    pub fn ranks(mut self, ranks: u32) -> Self {
        self.ranks = ranks;
        self
    }

    /// Whether the server may write into the tensors of requests (one rank only). Default false.
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// How to wait for answers, in the calls that do. Default adaptive.
    pub fn wait(mut self, wait: WaitPolicy) -> Self {
        self.wait = wait;
        self
    }

    /// Where the requests' memory comes from. Default memfd: nothing stays after a kill.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// What `forebay ls` and error texts call this end. Default: the command's name.
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// Creates the rings of requests and cancellations.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(self) -> Result<Client, CreateError> {
        let refuse = |ring: String, what: &str| CreateError::Options { ring, what: what.to_owned() };
        let ring = requests_ring(&self.service);
        if self.ranks == 0 {
            return Err(refuse(ring, "0 ranks; a service has at least one"));
        }
        let schema = match &self.schema {
            Some(schema) => Some(with_items(schema).map_err(|e| refuse(ring.clone(), &e.to_string()))?),
            None => None,
        };
        let bounded = self.schema.as_ref().and_then(Schema::max_bytes);
        let own = self.slot_bytes.or(bounded).unwrap_or(DEFAULT_SLOT_BYTES);
        if let Some(needed) = bounded.filter(|&needed| needed > own) {
            let what = format!("its schema allows requests of {needed} bytes, slot_bytes is {own}; raise it");
            return Err(refuse(ring, &what));
        }
        // A size that cannot be is refused by the ring, with its number.
        let slot_bytes = own.div_ceil(64).saturating_mul(64).saturating_add(u64::from(self.max_items) * 16);
        let several = self.ranks > 1;
        let producer = |ring: &str, kind| {
            let mut options = Producer::options(ring)
                .kind(kind)
                .max_consumers(self.ranks)
                .max_attempts(1)
                .dead_letters(DeadLetters::Discard)
                .backing(self.backing)
                .label(&self.label);
            if let Some(dir) = &self.dir {
                options = options.dir(dir);
            }
            options
        };
        let mut requests = producer(&ring, if several { RingKind::Broadcast } else { RingKind::Queue })
            .slots(self.slots)
            .quota(self.slots)
            .slot_bytes(slot_bytes)
            .writable(self.writable);
        if let Some(schema) = schema {
            requests = requests.schema(schema);
        }
        let requests = requests.create()?;
        let control = control_ring(&self.service);
        // A queue also with several ranks. All attach to it, but only rank 0 ever takes from it: of a broadcast the others
        // would be owed what they never read, and nothing could be said any more once that were all slots.
        let control = producer(&control, RingKind::Queue).slots(CONTROL.0).slot_bytes(CONTROL.1 as u64 * 8).create()?;
        Ok(Client {
            name: self.service,
            dir: self.dir,
            requests,
            control,
            answers: None,
            ranks: self.ranks,
            wait: self.wait,
            accepted: false,
            drained: false,
            ledger: Ledger::default(),
            cancels: VecDeque::new(),
            waiting: 0,
            ended: None,
        })
    }
}

/// The schema with the items' field at its end.
fn with_items(schema: &Schema) -> Result<Schema, forebay_layout::schema::SchemaError> {
    let (major, minor) = schema.version();
    let mut builder = Schema::builder(schema.name(), major, minor);
    for field in schema.fields() {
        builder = builder.field(field.name.as_str(), field.dtype, field.max_dims());
    }
    builder.field(ITEMS_FIELD, DType::U64, &[ANY, 2]).build()
}

/// A cancellation that waits for room.
#[derive(Debug)]
struct Cancel {
    request: u64,
    /// Empty: all.
    items: Vec<u64>,
}

/// The end of a service that asks. May be moved between threads. No call blocks but those that say so.
///
/// Dropping it ends the service for the server.
#[derive(Debug)]
pub struct Client {
    name: String,
    dir: Option<PathBuf>,
    requests: Producer,
    control: Producer,
    answers: Option<Consumer>,
    ranks: u32,
    wait: WaitPolicy,
    /// All ranks were there.
    accepted: bool,
    /// Ranks may leave one after the other.
    drained: bool,
    ledger: Ledger,
    cancels: VecDeque<Cancel>,
    /// Items in these.
    waiting: usize,
    ended: Option<End>,
}

impl Client {
    /// Starts the creation of a service of this name: `[a-z0-9][a-z0-9._-]*`, at most 62 bytes.
    pub fn options(service: &str) -> ClientOptions {
        ClientOptions {
            service: service.to_owned(),
            dir: None,
            schema: None,
            slots: DEFAULT_SLOTS,
            slot_bytes: None,
            max_items: DEFAULT_MAX_ITEMS,
            ranks: 1,
            writable: false,
            wait: WaitPolicy::Adaptive,
            backing: Backing::Memfd,
            label: String::new(),
        }
    }

    /// Waits until the server, with all its ranks, is attached; true then, false once `stop` says true, which is asked at
    /// least every 50 ms. Blocks: a thread's job. That the server is also ready is its first answer.
    ///
    /// # Errors
    /// [`Error::Attach`]: the answers' ring cannot be attached to. [`Error::PeerDied`]: the server came and died.
    pub fn accept_within(&mut self, stop: &mut dyn FnMut() -> bool) -> Result<bool, Error> {
        if self.answers.is_none() {
            let ring = answers_ring(&self.name);
            let mut options = Consumer::options(&ring).timeout(None).reconnect(Duration::ZERO).wait(self.wait);
            if let Some(dir) = &self.dir {
                options = options.dir(dir);
            }
            self.answers = options.attach_within(stop)?;
        }
        let Some(answers) = &mut self.answers else { return Ok(false) };
        let count = self.ranks as usize;
        let mut gone = false;
        let mut waited = Ok(());
        for ring in [&mut self.control, &mut self.requests] {
            let mut interrupt = || {
                gone = answers.has_lost_producer();
                gone || stop()
            };
            waited = waited.and_then(|()| ring.wait_for_consumers_within(count, None, &mut interrupt));
        }
        match waited {
            Ok(()) => {}
            Err(WaitError::Interrupted) if gone => return Err(self.end(End::Died(String::new()))),
            Err(WaitError::Interrupted | WaitError::Timeout { .. }) => return Ok(false),
            Err(WaitError::Forked) => {
                return Err(LoanError::Forked { ring: self.requests.ring().to_owned() }.into());
            }
            Err(WaitError::Os(e)) => return Err(RecvError::Os(e).into()),
        }
        self.accepted = true;
        Ok(true)
    }

    /// A slot for a request of these fields and items. Every field that is no scalar has the batch as dim 0: a row for
    /// each item. Does not block.
    ///
    /// # Errors
    /// [`LoanError::Full`]: as many requests as there are slots are under way, or (nothing is [`outstanding`](Self::outstanding))
    /// the server keeps tensors of old ones. [`LoanError::Fields`]: not a row for each item, or an item's id is not its own.
    /// [`LoanError::Closed`] after a drain. Others: see [`LoanError`].
    pub fn request(&mut self, fields: &[FieldSpec<'_>], items: &[Item]) -> Result<RequestLoan<'_>, LoanError> {
        self.flush();
        asking::begin(&mut self.requests, &mut self.ledger, fields, items)
    }

    /// Asks what was detached; returns the request's id. Does not block.
    ///
    /// # Errors
    /// [`PublishError::NotOurs`] if another client made it; [`PublishError::ItemTaken`] if one of its items has come to be
    /// in another request without an answer since; [`PublishError::Closed`] after a drain. Its slot goes back.
    pub fn publish(&mut self, request: DetachedRequest, meta: &Meta) -> Result<u64, PublishError> {
        request.publish(&mut self.requests, &mut self.ledger, meta)
    }

    /// Tells the server that nobody wants these items of a request any more; all of them if `items` is empty. A hint: an
    /// answer still comes, for each item. Does not block; what finds no room is said later.
    pub fn cancel(&mut self, request: u64, items: &[u64]) {
        if self.ended.is_some() || !self.ledger.open.contains_key(&request) {
            return;
        }
        let chunks = items.chunks(CONTROL.1).map(<[u64]>::to_vec);
        let all = items.is_empty().then(Vec::new);
        for items in chunks.chain(all) {
            self.waiting += items.len().max(1);
            self.cancels.push_back(Cancel { request, items });
        }
        self.flush();
    }

    /// Says the cancellations that waited for room.
    fn flush(&mut self) {
        while let Some(cancel) = self.cancels.front() {
            let shape = [cancel.items.len() as u64];
            let specs = [FieldSpec::new(ITEMS_FIELD, DType::U64, &shape)];
            let open = self.ledger.open.contains_key(&cancel.request);
            if open && let Ok(mut loan) = self.control.try_loan(&specs) {
                let header = Header::new(Kind::Cancel, cancel.request, cancel.items.len());
                if let Ok(ids) = loan.tensor_mut::<u64>(ITEMS_FIELD) {
                    for (to, id) in ids.iter_mut().zip(&cancel.items) {
                        *to = id.to_le();
                    }
                }
                if loan.set_user(&header.encode()).and_then(|()| loan.publish()).is_err() {
                    return;
                }
            } else if open && self.waiting <= MOST_WAITING {
                return;
            }
            self.waiting -= cancel.items.len().max(1);
            self.cancels.pop_front();
        }
    }

    /// The next answer, if there is one now. Does not block.
    ///
    /// # Errors
    /// [`Error::PeerDied`], [`Error::Closed`]: everything that was answered came before. [`Error::Version`],
    /// [`Error::Defect`]: it sent what cannot be read; this client is of no use any more. [`Error::NotAccepted`].
    /// [`RecvError::Quota`] in [`Error::Recv`]: let go of earlier answers first.
    pub fn try_answer(&mut self) -> Result<Option<Answer>, Error> {
        self.flush();
        self.usable()?;
        let found = self.attached()?.try_recv();
        self.receive(found)
    }

    /// The next answer; blocks as long as it takes.
    ///
    /// # Errors
    /// As [`try_answer`](Self::try_answer).
    pub fn recv(&mut self) -> Result<Answer, Error> {
        match self.recv_interruptible(None, &mut || false)? {
            Some(answer) => Ok(answer),
            None => Err(Error::Interrupted { service: self.name.clone() }),
        }
    }

    /// The next answer; blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`try_answer`](Self::try_answer); [`RecvError::Timeout`] in [`Error::Recv`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Answer, Error> {
        match self.recv_interruptible(Some(timeout), &mut || false)? {
            Some(answer) => Ok(answer),
            None => Err(Error::Interrupted { service: self.name.clone() }),
        }
    }

    /// As [`recv_timeout`](Self::recv_timeout), or [`recv`](Self::recv) with `None`; asks `interrupt` at least every 50 ms
    /// and returns `None` once it says true.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_interruptible(
        &mut self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Answer>, Error> {
        let start = std::time::Instant::now();
        loop {
            self.flush();
            self.usable()?;
            let (requests, ranks) = (&self.requests, self.ranks as usize);
            let counts = self.counts_ranks();
            let incomplete = || counts && requests.consumers() < ranks;
            let Some(answers) = &mut self.answers else {
                return Err(Error::NotAccepted { service: self.name.clone() });
            };
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            // Room in the ring of cancellations rings no bell here.
            let step = if self.cancels.is_empty() { left } else { Some(left.map_or(NAP, |left| left.min(NAP))) };
            let mut asked = false;
            let mut stop = || {
                asked = interrupt();
                asked || incomplete()
            };
            match answers.recv_interruptible(step, &mut stop) {
                Ok(None) if asked => return Ok(None),
                Err(RecvError::Timeout { .. }) if step != left => {}
                // Without a message this says whether a rank is gone.
                found => {
                    if let Some(answer) = self.receive(found)? {
                        return Ok(Some(answer));
                    }
                }
            }
        }
    }

    fn receive(&mut self, found: Result<Option<Message>, RecvError>) -> Result<Option<Answer>, Error> {
        let end = match found {
            Ok(Some(message)) => match Answer::read(message, &mut self.ledger) {
                Ok(answer) => return Ok(Some(answer)),
                Err(bad) => End::Bad(bad),
            },
            Ok(None) => {
                let there = self.requests.consumers();
                if !self.counts_ranks() || there >= self.ranks as usize {
                    return Ok(None);
                }
                // ORDER That nothing was there was seen before the roster, behind whose lock a death is entered once the
                // kernel closed the socket: between the two looks an answer can have come and its rank have gone. What a
                // rank published before it went is there for a look that begins after the roster said so.
                let again = self.attached()?.try_recv();
                let nothing = match &again {
                    Ok(found) => found.is_none(),
                    // Rank 0 is gone as well; how many are left says more.
                    Err(e) => matches!(End::of(e), Some(End::Died(_) | End::Closed)),
                };
                if !nothing {
                    // Not this arm once more.
                    return self.receive(again);
                }
                End::Died(format!(": {there} of {} ranks are left", self.ranks))
            }
            Err(e) => End::of(&e).ok_or(Error::Recv(e))?,
        };
        Err(self.end(end))
    }

    /// Whether a rank that is not there is a death. After a drain each leaves when it is through.
    fn counts_ranks(&self) -> bool {
        self.ranks > 1 && self.accepted && !self.drained
    }

    fn end(&mut self, end: End) -> Error {
        let error = end.error(&self.name, self.outstanding());
        self.ended = Some(end);
        error
    }

    fn usable(&self) -> Result<(), Error> {
        self.ended.as_ref().map_or(Ok(()), |end| Err(end.error(&self.name, self.outstanding())))
    }

    fn attached(&mut self) -> Result<&mut Consumer, Error> {
        self.answers.as_mut().ok_or_else(|| Error::NotAccepted { service: self.name.clone() })
    }

    /// A descriptor that is readable when [`try_answer`](Self::try_answer) should be called: for `poll`, epoll, tokio. Also
    /// every 50 ms, when a death may be noticed or a cancellation sent. It belongs to this end; do not close it.
    ///
    /// # Errors
    /// [`Error::NotAccepted`]; the system has no descriptor left.
    pub fn fileno(&mut self) -> Result<std::os::fd::RawFd, Error> {
        Ok(self.attached()?.fileno()?)
    }

    /// Whether the server, with all its ranks, is attached, as far as is known; stale at once.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.accepted && self.ended.is_none() && self.requests.consumers() >= self.ranks as usize
    }

    /// Requests that are not answered yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.ledger.open.len()
    }

    /// Asks the server to answer what was asked and then leave: after its last answer comes [`Error::Closed`]. No request
    /// can be made after it.
    ///
    /// After it the end of one of several ranks is no death any more: each leaves when it is through.
    pub fn drain(&mut self) {
        self.drained = true;
        self.requests.close();
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.name
    }

    /// How many ranks the server is to have.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// The ring of requests: its counters, and who holds what.
    #[must_use]
    pub fn requests(&self) -> &Producer {
        &self.requests
    }

    /// The ring of answers, once the server is attached.
    #[must_use]
    pub fn answers(&self) -> Option<&Consumer> {
        self.answers.as_ref()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.answers = None;
        // The sockets and lock files of a server that died, perhaps unnoticed, or while it left; a living one keeps its own.
        let mut rings = vec![answers_ring(&self.name)];
        if self.ranks > 1 {
            rings.extend(rank_rings(&self.name, self.ranks));
        }
        inspect::tidy(self.dir.as_deref(), &rings);
    }
}
