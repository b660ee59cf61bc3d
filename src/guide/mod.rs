//! The guide: one page per task. Each page begins with what you achieve and ends with what can go
//! wrong. Tests compile the Rust of the pages and execute their SQL. Shell commands are examples:
//! put in your own names.
//!
//! | you want to | page |
//! |---|---|
//! | have a running projection in ten minutes | [`getting_started`] |
//! | write projections | [`projections`] |
//! | keep a state per key, without SQL | [`folds`] |
//! | send mails, call webhooks: effects outside the database | [`reactions`] |
//! | append events, execute commands, wait for a read model | [`event_store`] |
//! | know what happens when a handler fails: halt, park, replay, discard | [`failures`] |
//! | change a read model, or repair one, while it stays readable | [`rebuilding`] |
//! | test projections | [`testing`] |
//! | run workers in production | [`deploying`] |
//! | look, pause, resume, rewind, rebuild, remove, find out who did what | [`operating`] |
//! | find out why something stands still | [`troubleshooting`] |
//! | understand a line of the log | [`logs`] |
//! | set up alerts | [`metrics`] |
//! | change a default | [`tuning`] |
//! | plan connections, memory and workers | [`capacity`] |
//! | set up the server: roles, poolers, standbys | [`postgres`] |
//! | upgrade, roll back, back up, restore | [`upgrading`] |
//! | protect it | [`security`] |
//! | have a short answer | [`questions`] |
//! | know exactly what is guaranteed | [`guarantees`] |
//! | compare it with others | [`comparison`] |
//! | see figures | [`benchmarks`] |

/// A module for each page. What `links.md` defines counts before what the page's last lines define
/// for GitHub.
macro_rules! pages {
    ($($name:ident),* $(,)?) => {$(
        #[doc = include_str!("links.md")]
        #[doc = include_str!(concat!(stringify!($name), ".md"))]
        pub mod $name {}
    )*};
}

pages!(
    getting_started,
    projections,
    folds,
    reactions,
    event_store,
    failures,
    rebuilding,
    deploying,
    operating,
    troubleshooting,
    logs,
    metrics,
    tuning,
    capacity,
    postgres,
    upgrading,
    security,
    questions,
    guarantees,
    comparison,
    benchmarks,
);

#[cfg(feature = "testing")]
pages!(testing);
