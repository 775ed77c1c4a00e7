//! Answers that come bit by bit: tokens become text, part by part.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures_core::Stream;
use tokio::{sync::mpsc::UnboundedReceiver, time::Sleep};

use super::{Core, Guard, call::Event};
use crate::{
    backend::{Finish, ItemError, ItemErrorKind, Part, Parts, Refusal},
    intake::Detokenizer,
};

/// Parameters that say how many tokens an item may get.
const LIMITS: [&str; 2] = ["max_new_tokens", "max_tokens"];

/// One item's text so far.
struct Text {
    detokenizer: Option<Detokenizer>,
    tokens: usize,
}

struct Stage {
    events: UnboundedReceiver<Event>,
    texts: Vec<Text>,
    limit: Option<usize>,
    deadline: Pin<Box<Sleep>>,
    /// Cancels what is left when it is dropped; `None` once all is over.
    guard: Option<Guard>,
}

/// The parts of a call. Text is made by whoever reads them.
pub(super) fn parts(core: &Arc<Core>, guard: Guard, events: UnboundedReceiver<Event>, deadline: Instant) -> Parts {
    let prepared = &guard.call.prepared;
    let text = |_: &_| Text { detokenizer: core.intake.detokenizer(), tokens: 0 };
    let texts = prepared.items.iter().map(text).collect();
    let limit = LIMITS.iter().find_map(|name| core.intake.parameter(prepared, name)).map(|limit| limit as usize);
    let deadline = Box::pin(tokio::time::sleep_until(deadline.into()));
    Box::pin(Stage { events, texts, limit, deadline, guard: Some(guard) })
}

impl Stage {
    fn part(&mut self, event: Event) -> Result<Part, Refusal> {
        let limit = self.limit;
        match event {
            Event::Refused(refusal) => {
                self.guard = None;
                Err(refusal)
            }
            Event::Failed { item, error } => {
                Ok(Part { item, tokens: Vec::new(), text: String::new(), finished: Some(Finish::Error(error)) })
            }
            Event::Tokens { item, tokens, last } => {
                let Some(own) = self.texts.get_mut(item) else {
                    return Ok(Part { item, tokens, text: String::new(), finished: last.then_some(Finish::Stop) });
                };
                own.tokens += tokens.len();
                let text = own.add(&tokens, last);
                let finished = last.then(|| match &text {
                    Err(error) => Finish::Error(ItemError { kind: ItemErrorKind::Model, message: error.clone() }),
                    Ok(_) if limit.is_some_and(|limit| own.tokens >= limit) => Finish::Length,
                    Ok(_) => Finish::Stop,
                });
                Ok(Part { item, tokens, text: text.unwrap_or_default(), finished })
            }
        }
    }
}

impl Text {
    /// The text that these tokens complete.
    fn add(&mut self, tokens: &[u32], last: bool) -> Result<String, String> {
        let Some(detokenizer) = &mut self.detokenizer else { return Ok(String::new()) };
        let mut text = String::new();
        let mut run = || {
            for &token in tokens {
                text.extend(detokenizer.push(token)?);
            }
            if last {
                text.extend(detokenizer.finish()?);
            }
            Ok::<(), forebay_ingest::DecodeError>(())
        };
        match run() {
            Ok(()) => Ok(text),
            Err(error) => {
                self.detokenizer = None;
                Err(error.to_string())
            }
        }
    }
}

impl Stream for Stage {
    type Item = Result<Part, Refusal>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.guard.is_none() {
            return Poll::Ready(None);
        }
        // First: what has piled up before a slow reader does not outlast it.
        if self.deadline.as_mut().poll(context).is_ready() {
            self.guard = None;
            return Poll::Ready(Some(Err(Refusal::Deadline)));
        }
        match self.events.poll_recv(context) {
            Poll::Ready(Some(event)) => Poll::Ready(Some(self.part(event))),
            Poll::Ready(None) => {
                self.guard = None;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
