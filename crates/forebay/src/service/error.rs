//! What can go wrong between the two ends of a service.

use forebay_layout::Defect;

use crate::error::{AttachError, CreateError, LoanError, PublishError, RecvError};

/// Why an end of a service cannot go on, or not with this call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The other end died, or (several ranks) one of them did. Everything it had published came first. Both ends are of
    /// no use any more: begin a new service under another name.
    #[error(
        "the other end of service {service:?} died{what}; {outstanding} requests are unanswered; begin a new service"
    )]
    PeerDied {
        /// The service.
        service: String,
        /// Which of several, if not all; starts with ": " or is empty.
        what: String,
        /// Requests that will get no answer any more.
        outstanding: usize,
    },
    /// The other end is through and left: the client drained or closed, or the server did. Everything came first.
    #[error("the other end of service {service:?} finished and left; {outstanding} requests are unanswered")]
    Closed {
        /// The service.
        service: String,
        /// Requests that will get no answer any more; 0 after a drain.
        outstanding: usize,
    },
    /// The server has not attached yet: call `accept_within` first.
    #[error("service {service:?} has no server yet; wait for it with accept_within first")]
    NotAccepted {
        /// The service.
        service: String,
    },
    /// The other end speaks another version of the messages' header.
    #[error(
        "service {service:?}: the other end's messages have header version {found}, this build reads {expected}; use \
         the same forebay release on both sides"
    )]
    Version {
        /// The service.
        service: String,
        /// The version found.
        found: u16,
        /// The version this build reads.
        expected: u16,
    },
    /// The other end sent something that cannot be. This end is of no use any more.
    #[error("service {service:?}: the other end sent what cannot be: {source}; end it and look at who wrote that")]
    Defect {
        /// The service.
        service: String,
        /// Which value, found and expected.
        source: Defect,
    },
    /// A field of an answer has not one row for each item.
    #[error("field {field:?} has {found}, expected {expected} rows, one for each item; return as many rows as came in")]
    Rows {
        /// The field.
        field: String,
        /// Its rows, or that it is a scalar.
        found: String,
        /// Items.
        expected: usize,
    },
    /// The fields of an answer are larger than a slot.
    #[error(
        "the answer's fields take {needed} bytes, a slot for answers of service {service:?} has room for {room}; \
         return less, or raise answer_slot_bytes"
    )]
    AnswerTooLarge {
        /// The service.
        service: String,
        /// Bytes of the fields, each rounded up to 64.
        needed: u64,
        /// Bytes that there are for them.
        room: u64,
    },
    /// Every item of that request has its answer already.
    #[error("request {request} of service {service:?} is answered already; each is answered once")]
    Answered {
        /// The service.
        service: String,
        /// The request.
        request: u64,
    },
    /// A part names an item that no open request has.
    #[error("item {item} is not one that service {service:?} still has to answer; each item ends once")]
    NoSuchItem {
        /// The service.
        service: String,
        /// The item.
        item: u64,
    },
    /// Only rank 0 answers.
    #[error("rank {rank} of service {service:?} cannot answer: rank 0 does; call finish instead")]
    NotRankZero {
        /// The service.
        service: String,
        /// This end's rank.
        rank: u32,
    },
    /// There is no such rank.
    #[error("service {service:?} has {ranks} ranks, there is no rank {rank}; count them from 0")]
    NoSuchRank {
        /// The service.
        service: String,
        /// The rank asked for.
        rank: u32,
        /// How many there are.
        ranks: u32,
    },
    /// The caller's interrupt asked to stop waiting.
    #[error("interrupted while waiting in service {service:?}")]
    Interrupted {
        /// The service.
        service: String,
    },
    /// A ring could not be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A ring could not be attached to.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// There is no slot.
    #[error(transparent)]
    Loan(#[from] LoanError),
    /// A message could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Nothing was received.
    #[error(transparent)]
    Recv(#[from] RecvError),
}

/// What a header is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bad {
    Version(u16),
    Defect(Defect),
}

impl From<Defect> for Bad {
    fn from(defect: Defect) -> Self {
        Self::Defect(defect)
    }
}

impl Bad {
    pub(super) fn of(self, service: &str) -> ServiceError {
        let service = service.to_owned();
        match self {
            Self::Version(found) => ServiceError::Version { service, found, expected: super::header::VERSION },
            Self::Defect(source) => ServiceError::Defect { service, source },
        }
    }
}

/// Why an end ended; said by every call after that.
#[derive(Debug, Clone)]
pub(super) enum End {
    Died(String),
    Closed,
    Bad(Bad),
}

impl End {
    /// What a ring says when nothing more comes from it, if it is that.
    pub(super) fn of(error: &RecvError) -> Option<Self> {
        match error {
            RecvError::PeerDied { .. } => Some(Self::Died(String::new())),
            RecvError::Closed { .. } | RecvError::Replaced { .. } => Some(Self::Closed),
            RecvError::Poisoned { source, .. } => Some(Self::Bad(Bad::Defect(source.clone()))),
            _ => None,
        }
    }

    pub(super) fn error(&self, service: &str, outstanding: usize) -> ServiceError {
        let name = service.to_owned();
        match self {
            Self::Died(what) => ServiceError::PeerDied { service: name, what: what.clone(), outstanding },
            Self::Closed => ServiceError::Closed { service: name, outstanding },
            Self::Bad(bad) => bad.clone().of(service),
        }
    }
}
