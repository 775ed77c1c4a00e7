//! What a consumer can be told.

use std::{path::PathBuf, time::Duration};

use forebay_layout::schema::Schema;

use super::Consumer;
use crate::{
    error::AttachError,
    options::{AckMode, DEFAULT_ATTACH_TIMEOUT, DEFAULT_RECONNECT, WaitPolicy},
    rendezvous::client,
};

/// How to attach to a ring; [`attach`](Self::attach) does it.
#[derive(Debug, Clone)]
#[must_use = "nothing is attached until attach is called"]
pub struct ConsumerOptions {
    pub(crate) ring: String,
    pub(crate) timeout: Option<Duration>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) schema: Option<Schema>,
    pub(crate) ack: AckMode,
    pub(crate) wait: WaitPolicy,
    pub(crate) quota: u32,
    pub(crate) reconnect: Duration,
    pub(crate) prefault: bool,
    pub(crate) writable: bool,
    pub(crate) label: String,
}

impl ConsumerOptions {
    pub(crate) fn new(ring: &str) -> Self {
        Self {
            ring: ring.to_owned(),
            timeout: Some(DEFAULT_ATTACH_TIMEOUT),
            dir: None,
            schema: None,
            ack: AckMode::Auto,
            wait: WaitPolicy::Adaptive,
            quota: 0,
            reconnect: DEFAULT_RECONNECT,
            prefault: true,
            writable: false,
            label: String::new(),
        }
    }

    /// How long attaching waits for the ring to appear; `None` waits without end. Default 10 s.
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the producer listens. Default `$FOREBAY_DIR`, `$XDG_RUNTIME_DIR/forebay` or `/tmp/forebay-<uid>`.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The schema this side expects; attaching fails with a diff if the ring's is another one.
    pub fn schema(mut self, schema: Schema) -> Self {
        self.schema = Some(schema);
        self
    }

    /// When a message counts as dealt with. Default: when its lease ends.
    pub fn ack(mut self, ack: AckMode) -> Self {
        self.ack = ack;
        self
    }

    /// How to wait. Default adaptive.
    pub fn wait(mut self, wait: WaitPolicy) -> Self {
        self.wait = wait;
        self
    }

    /// Leases to hold at most in one size class; 0, the default, is the ring's: its slots − 1.
    pub fn quota(mut self, quota: u32) -> Self {
        self.quota = quota;
        self
    }

    /// How long to wait for the successor of a dead producer before [`RecvError::PeerDied`](crate::RecvError::PeerDied)
    /// (posix rings). Default 30 s; zero does not wait.
    pub fn reconnect(mut self, reconnect: Duration) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// Whether to map every page before the first message. Default true.
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }

    /// Whether to map the slots read-write, which the ring must allow. Default false.
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// What `forebay ls` and error texts call this consumer, cut to 64 bytes. Default: the command's name.
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// Attaches. Blocks until the ring is there, at most the timeout.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(self) -> Result<Consumer, AttachError> {
        client::attach(self)
    }

    /// As [`attach`](Self::attach); asks `interrupt` every 10 ms while the ring is not there, and returns `None` once it
    /// says true.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_within(self, interrupt: &mut dyn FnMut() -> bool) -> Result<Option<Consumer>, AttachError> {
        client::attach_interruptible(self, interrupt)
    }
}
