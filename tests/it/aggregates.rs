//! Loading aggregates, and commands that depend on their state.

use std::error::Error as _;
use std::thread;

use pupsourcing_orchestrator::{
    BoxError, CommandError, DecodeError, Event, EventStore, ExpectedVersion, LoadError, NewEvent, StreamId,
};
use serde::{Deserialize, Serialize};

use crate::support::database;
use crate::support::handlers::prepared;

#[derive(Debug, Serialize, Deserialize)]
enum AccountEvent {
    Opened,
    Deposited { cents: i64 },
}

#[derive(Debug, Default, PartialEq)]
struct Account {
    is_open: bool,
    cents: i64,
    deposits: i64,
}

impl Account {
    fn apply(&mut self, event: &Event) -> Result<(), DecodeError> {
        match event.decode()? {
            AccountEvent::Opened => self.is_open = true,
            AccountEvent::Deposited { cents } => {
                self.cents += cents;
                self.deposits += 1;
            }
        }
        Ok(())
    }
}

fn account(id: &str) -> StreamId {
    StreamId::new("bank", "Account", id)
}

fn deposit(cents: i64) -> NewEvent {
    NewEvent::encode(&AccountEvent::Deposited { cents }).unwrap()
}

#[test]
fn an_aggregate_is_the_fold_of_its_stream() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let loaded = |client: &mut _, id: &str| store.load(client, &account(id), Account::default, Account::apply).unwrap();
    assert_eq!(loaded(&mut client, "none"), (Account::default(), 0));
    // More than one page, and the last page is full.
    let events: Vec<NewEvent> =
        std::iter::once(NewEvent::encode(&AccountEvent::Opened).unwrap()).chain((1..2_000).map(deposit)).collect();
    store.append(&mut client, &account("a"), ExpectedVersion::NoStream, &events).unwrap();
    store.append(&mut client, &account("b"), ExpectedVersion::NoStream, &[deposit(7)]).unwrap();
    let all = Account { is_open: true, cents: 1_999_000, deposits: 1_999 };
    assert_eq!(loaded(&mut client, "a"), (all, 2_000));
    let mut tx = client.transaction().unwrap();
    store.append(&mut tx, &account("b"), ExpectedVersion::Exact(1), &[deposit(8)]).unwrap();
    let (account_b, version) = store.load(&mut tx, &account("b"), Account::default, Account::apply).unwrap();
    assert_eq!((account_b.cents, version), (15, 2), "a transaction sees its own events");
}

#[test]
fn an_event_that_cannot_be_folded_is_named() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let events = [deposit(1), NewEvent::new("Closed", "{}")];
    store.append(&mut client, &account("a"), ExpectedVersion::NoStream, &events).unwrap();
    let error = store.load(&mut client, &account("a"), Account::default, Account::apply).unwrap_err();
    assert!(matches!(&error, LoadError::Fold { position: 2, event_type, .. } if event_type == "Closed"), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("cannot decode Closed"), "{error:?}");
}

#[test]
fn concurrent_commands_all_act_on_the_latest_state() {
    const THREADS: i64 = 4;
    const COMMANDS: i64 = 25;
    let database = database();
    let mut client = prepared(&database);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let (mut client, store) = (database.client(), EventStore::default());
                for _ in 0..COMMANDS {
                    // The n-th deposit is n cents, and only the latest state tells n.
                    let next = |account: &Account| Ok::<_, BoxError>(vec![deposit(account.deposits + 1)]);
                    let mut execute =
                        || store.execute(&mut client, &account("a"), Account::default, Account::apply, next);
                    while let Err(error) = execute() {
                        assert!(matches!(error, CommandError::Contended { attempts: 10, .. }), "{error}");
                    }
                }
            });
        }
    });
    let store = EventStore::default();
    let (state, version) = store.load(&mut client, &account("a"), Account::default, Account::apply).unwrap();
    let commands = THREADS * COMMANDS;
    assert_eq!((state.deposits, version), (commands, commands));
    assert_eq!(state.cents, commands * (commands + 1) / 2);
}

#[test]
fn a_command_that_is_rejected_or_has_no_events_changes_nothing() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let error = store
        .execute(&mut client, &account("a"), Account::default, Account::apply, |account| {
            if account.is_open { Ok(vec![deposit(1)]) } else { Err("the account is not open") }
        })
        .unwrap_err();
    assert!(matches!(error, CommandError::Rejected("the account is not open")), "{error:?}");
    assert_eq!(error.to_string(), "the command was rejected: the account is not open");
    let nothing = |_: &Account| Ok::<_, BoxError>(Vec::new());
    let done = store.execute(&mut client, &account("a"), Account::default, Account::apply, nothing).unwrap();
    assert!(done.is_none());
    let always = |account: &Account| {
        // Another writer is quicker in each attempt.
        let mut other = database.client();
        store.append(&mut other, &self::account("a"), ExpectedVersion::Exact(account.deposits), &[deposit(0)])?;
        Ok::<_, BoxError>(vec![deposit(1)])
    };
    let error = store.execute(&mut client, &account("a"), Account::default, Account::apply, always).unwrap_err();
    assert_eq!(error.to_string(), "other writers changed bank/Account/a during each of 10 attempts");
    let (state, version) = store.load(&mut client, &account("a"), Account::default, Account::apply).unwrap();
    assert_eq!((state.cents, version), (0, 10));
}
