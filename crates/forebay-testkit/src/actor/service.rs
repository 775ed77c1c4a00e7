//! The commands of the two ends of a service. Answers double what was asked.
//!
//! | server | answer |
//! |---|---|
//! | `ready` | `ok`, after telling the client |
//! | `take` | `got REQUEST ITEMS`, held from then on; or `error …` |
//! | `answer` | `ok`: the oldest held request is answered and let go |
//! | `begin` | `ok`: its answer is written, and neither published nor dropped |
//! | `part` | `ok`: a row for each of its items, none of them the last |
//! | `work` | answers until the service ends: `end …` |
//!
//! | client | answer |
//! |---|---|
//! | `accept` | `ok`, once the server is there |
//! | `ask N` | `asked REQUEST`, of N items |
//! | `next` | `KIND REQUEST`, or `error …` |
//! | `drain` | `ok` |

use std::{collections::VecDeque, process::ExitCode};

use forebay::{
    DType, FieldSpec,
    service::{AnswerLoan, Client, DetachedAnswer, Item, Meta, PartItem, Request, Server, ServiceError},
};

use super::{Options, error, say, serve, variant};
use crate::WATCHDOG;

/// The field that is asked about, and the one that answers.
pub const FIELDS: (&str, &str) = ("x", "y");

/// Asks about these items: each is asked about its own id.
///
/// # Errors
/// As [`Client::request`].
pub fn ask(client: &mut Client, ids: &[u64]) -> Result<u64, ServiceError> {
    let items: Vec<Item> = ids.iter().copied().map(Item::new).collect();
    let mut loan = client.request(&[FieldSpec::new(FIELDS.0, DType::U64, &[ids.len() as u64])], &items)?;
    loan.tensor_mut::<u64>(FIELDS.0).expect("asked for above").copy_from_slice(ids);
    Ok(loan.publish(&Meta::default())?)
}

fn double<'s>(mut loan: AnswerLoan<'s>, request: &Request) -> AnswerLoan<'s> {
    let x = request.message().as_slice::<u64>(FIELDS.0).expect("every request has it");
    for (y, x) in loan.tensor_mut::<u64>(FIELDS.1).expect("asked for by the caller").iter_mut().zip(x) {
        *y = 2 * x;
    }
    loan
}

/// Answers a request with twice what it asks about.
///
/// # Errors
/// As [`Server::answer`].
pub fn answer(server: &mut Server, request: &Request) -> Result<(), ServiceError> {
    let rows = [request.items().len() as u64];
    let loan = server.answer(request, &[FieldSpec::new(FIELDS.1, DType::U64, &rows)])?;
    Ok(double(loan, request).publish()?)
}

#[derive(Debug)]
struct Answerer {
    server: Server,
    held: VecDeque<Request>,
    begun: Vec<DetachedAnswer>,
}

impl Answerer {
    fn take(&mut self) -> Result<String, ServiceError> {
        let stop = &mut || false;
        let Some(request) = self.server.recv_interruptible(Some(WATCHDOG), stop)? else { return Ok(String::new()) };
        let line = format!("got {} {}", request.id(), request.items().len());
        self.held.push_back(request);
        Ok(line)
    }

    fn serve(&mut self, command: &str) -> Result<String, ServiceError> {
        let ok = || Ok("ok".to_owned());
        match command {
            "ready" => {
                self.server.ready("actor")?;
                ok()
            }
            "take" => self.take(),
            "answer" => {
                let request = self.held.pop_front().expect("told to take before");
                answer(&mut self.server, &request)?;
                ok()
            }
            "begin" => {
                let request = self.held.front().expect("told to take before");
                let rows = [request.items().len() as u64];
                let loan = self.server.answer(request, &[FieldSpec::new(FIELDS.1, DType::U64, &rows)])?;
                self.begun.push(double(loan, request).detach());
                ok()
            }
            "part" => {
                let request = self.held.front().expect("told to take before");
                let items: Vec<_> = request.items().iter().map(|item| PartItem::more(item.id)).collect();
                let loan = self.server.part(&items, &[FieldSpec::new(FIELDS.1, DType::U64, &[items.len() as u64])])?;
                double(loan, request).publish()?;
                ok()
            }
            "work" => loop {
                match self.server.recv() {
                    Ok(request) => answer(&mut self.server, &request)?,
                    Err(e) => return Ok(format!("end {}", variant(&e))),
                }
            },
            _ => Ok(format!("error no command {command:?}")),
        }
    }
}

pub(super) fn run_server(service: &str, options: &Options) -> ExitCode {
    let attached = Server::options(service)
        .timeout(Some(WATCHDOG))
        .answer_slots(options.or("slots", 4))
        .answer_slot_bytes(4096)
        .rank(options.or("rank", 0))
        .attach();
    let server = match attached {
        Ok(server) => server,
        Err(e) => {
            say(&error(&e));
            return ExitCode::FAILURE;
        }
    };
    let mut answerer = Answerer { server, held: VecDeque::new(), begun: Vec::new() };
    say("ready");
    serve(|command, _| say(&answerer.serve(command).unwrap_or_else(|e| error(&e))));
    ExitCode::SUCCESS
}

pub(super) fn run_client(service: &str, options: &Options) -> ExitCode {
    let created =
        Client::options(service).slots(options.or("slots", 4)).slot_bytes(4096).ranks(options.or("ranks", 1)).create();
    let mut client = match created {
        Ok(client) => client,
        Err(e) => {
            say(&error(&e));
            return ExitCode::FAILURE;
        }
    };
    say("ready");
    let mut next = 1;
    serve(|command, rest| {
        let done = match command {
            "accept" => client.accept_within(&mut || false).map(|_| "ok".to_owned()),
            "ask" => {
                let ids: Vec<u64> = (next..next + rest.parse::<u64>().unwrap_or(1)).collect();
                next += ids.len() as u64;
                ask(&mut client, &ids).map(|request| format!("asked {request}"))
            }
            "next" => client.recv_timeout(WATCHDOG).map(|answer| format!("{:?} {}", answer.kind(), answer.request())),
            "drain" => {
                client.drain();
                Ok("ok".to_owned())
            }
            _ => Ok(format!("error no command {command:?}")),
        };
        say(&done.unwrap_or_else(|e| error(&e)));
    });
    ExitCode::SUCCESS
}
