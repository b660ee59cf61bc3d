//! Takes the commands of operators who have the token, and gives them to the workers.
//!
//! *Invariants:* without the token, nothing but the head of a request is read. However long the
//! database takes, at most [`MOST_COMMANDS`] connections are open for commands, and no connection's
//! thread waits longer than [`ANSWER_TIME`] or after its client is gone: the thread that waits for
//! the database is another one, `pup-command`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, after, bounded, select};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tiny_http::Method;

use super::asked::{self, Asked, Target};
use super::body::read_body;
use super::clients::Client;
use super::reply::Page;
use super::request::{Refusal, Request};
use super::timed::Timed;
use super::token::Token;
use crate::backoff::Mentions;
use crate::error::{Error, field};
use crate::operator::{Applied, OperatorError};
use crate::plan::base_of;
use crate::probe::HealthProbe;
use crate::threads::safely;

/// How many commands are given at the same time. Each has a connection to the database.
pub(super) const MOST_COMMANDS: usize = 4;
/// How long a request waits for the outcome of its command.
const OUTCOME_TIME: Duration = Duration::from_secs(5);
/// How long a request waits for the database, which may not answer at all.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// What is needed to take commands.
#[derive(Debug)]
pub(super) struct Operating {
    token: Token,
    /// Holds a message for each command that is being given.
    places: (Sender<()>, Receiver<()>),
    refusals: Mutex<Mentions>,
}

/// Why a command has not been given, or has not taken effect.
enum Failure {
    Connection(Error),
    Command(OperatorError),
}

impl Operating {
    pub(super) fn new(token: Token) -> Self {
        Self { token, places: bounded(MOST_COMMANDS), refusals: Mutex::default() }
    }

    /// Answers a request; `None` if the server has closed its connection meanwhile.
    pub(super) fn respond(
        &self,
        probes: &[HealthProbe],
        request: &Request,
        client: &mut Timed<'_>,
        from: &Client,
    ) -> Option<Page> {
        if request.method != Method::Post {
            return Some(refused(405, "a command is given by POST").with(&[("Allow", "POST")]));
        }
        if !self.token.is_in(request.header("authorization")) {
            self.complain(from.peer);
            let why = "the header `Authorization: Bearer …` must have the operator's token";
            return Some(refused(401, why).with(&[("WWW-Authenticate", "Bearer")]));
        }
        let target = match asked::target(&request.path) {
            Ok(target) => target,
            Err(why) => return Some(refused(404, &why)),
        };
        let body = match read_body(request, client) {
            Ok(body) => body,
            Err(Refusal(code, why)) => return Some(refused(code, why)),
        };
        match asked(probes, target, &body, from.peer) {
            Ok((asked, probe)) => self.give(asked, probe, from),
            Err(page) => Some(page),
        }
    }

    fn give(&self, asked: Asked, probe: HealthProbe, from: &Client) -> Option<Page> {
        let Ok(()) = self.places.0.try_send(()) else {
            let why = format!("{MOST_COMMANDS} commands are being given already: try again in a moment");
            return Some(refused(503, &why).with(&[("Retry-After", "1")]));
        };
        let place = Place(self.places.1.clone());
        let (sender, outcome) = bounded(1);
        let thread = std::thread::Builder::new().name("pup-command".to_owned());
        let spawned = thread.spawn(move || {
            let _place = place;
            // Fails if the request does not wait any more.
            _ = sender.send(given(&asked, &probe));
        });
        if spawned.is_err() {
            return Some(refused(503, "the operating system refuses to start a thread: try again in a moment"));
        }
        select! {
            recv(outcome) -> outcome => Some(match outcome {
                Ok(outcome) => page(&outcome),
                Err(_) => refused(500, "giving the command has panicked; the log has the reason, and the history says whether it is recorded"),
            }),
            recv(from.closed.heard()) -> _ => None,
            recv(after(ANSWER_TIME)) -> _ => {
                let why = "the database has not answered in time: the history says whether the command is recorded";
                Some(refused(503, why))
            }
        }
    }

    /// Reports a request without the token: somebody may be guessing.
    fn complain(&self, peer: IpAddr) {
        if self.refusals.lock().is_due() {
            let peer = peer.to_string();
            safely(|| log::warn!("command without the operator's token refused: peer={peer}", peer = field(&peer)));
        }
    }
}

/// Returns the command, and the probe of a worker that has the projection.
fn asked(probes: &[HealthProbe], target: Target, body: &[u8], peer: IpAddr) -> Result<(Asked, HealthProbe), Page> {
    let name = target.projection.clone();
    let asked = asked::command(target, body, &peer.to_string()).map_err(|why| refused(400, &why))?;
    let is_wanted = |set: &str| asked.replica_set.as_ref().is_none_or(|wanted| wanted == set);
    let able = probes.iter().filter_map(|probe| {
        let own = probe.own();
        (own.projections.contains_key(base_of(&name)) && is_wanted(&own.replica_set))
            .then_some((own.replica_set, probe))
    });
    let mut able = able.collect::<BTreeMap<_, _>>().into_values();
    match (able.next(), able.next()) {
        (Some(probe), None) => Ok((asked, probe.clone())),
        (Some(_), Some(_)) => {
            Err(refused(409, &format!("several replica sets have a projection {name:?}: say which \"replica_set\"")))
        }
        (None, _) => {
            Err(refused(404, &format!("no worker of this process has a projection {name:?}: ask one that has it")))
        }
    }
}

/// The place of a command among those that are being given. It is returned when its thread ends.
struct Place(Receiver<()>);

impl Drop for Place {
    fn drop(&mut self) {
        // Never empty: this place's own message is in it.
        _ = self.0.try_recv();
    }
}

/// Gives the command on a connection of its own, and waits for its outcome.
fn given(asked: &Asked, probe: &HealthProbe) -> Result<Applied, Failure> {
    let (operator, mut connection) = probe.operator().map_err(Failure::Connection)?;
    operator.execute(&mut connection, &asked.command, OUTCOME_TIME).map_err(Failure::Command)
}

fn page(outcome: &Result<Applied, Failure>) -> Page {
    let error = match outcome {
        Ok(applied) => {
            let said = applied.to_string();
            let (code, outcome) = if applied.is_done { (200, "done") } else { (202, "begun") };
            return answer(code, Some(applied.id), Some(outcome), &applied.result, Some(&said), None);
        }
        Err(Failure::Connection(error)) => return refused(503, &error.with_causes()),
        Err(Failure::Command(error)) => error,
    };
    let (code, outcome) = match error {
        OperatorError::Refused { .. } => (409, Some("refused")),
        OperatorError::Failed { .. } => (409, Some("failed")),
        OperatorError::Unknown { .. } | OperatorError::Elsewhere { .. } => (404, None),
        OperatorError::Invalid { .. } => (400, None),
        OperatorError::Forbidden { .. } => (403, None),
        error if error.is_pending() => (202, Some("pending")),
        OperatorError::Schema { .. } => (500, None),
        _ => (503, None),
    };
    let why = match error {
        OperatorError::Refused { why, .. } | OperatorError::Failed { why, .. } => why.clone(),
        error => error.with_causes(),
    };
    answer(code, error.id(), outcome, &Value::Null, None, Some(&why))
}

/// The answer if no command is recorded.
fn refused(code: u16, why: &str) -> Page {
    answer(code, None, None, &Value::Null, None, Some(why))
}

fn answer(
    code: u16,
    id: Option<i64>,
    outcome: Option<&str>,
    result: &Value,
    message: Option<&str>,
    error: Option<&str>,
) -> Page {
    Page::json(code, &json!({ "id": id, "outcome": outcome, "result": result, "message": message, "error": error }))
}
