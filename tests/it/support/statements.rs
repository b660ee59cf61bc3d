//! A server that logs every statement, for tests that count them.

use super::Postgres;

/// A statement that the server was asked to execute.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) backend: i32,
    pub(crate) text: String,
}

/// A private server that logs the statements.
pub(crate) fn start_logging_server() -> Postgres {
    Postgres::options().setting("log_statement", "all").setting("log_line_prefix", "%p ").start().unwrap()
}

/// The statements that a server of [`start_logging_server`] has logged so far, in their order.
pub(crate) fn statements(server: &Postgres) -> Vec<Statement> {
    let log = std::fs::read_to_string(server.data_dir().with_file_name("log")).unwrap();
    let mut statements: Vec<Statement> = Vec::new();
    let mut is_statement = false;
    for line in log.lines() {
        if let Some(more) = line.strip_prefix('\t') {
            if let Some(last) = statements.last_mut().filter(|_| is_statement) {
                last.text.extend(["\n", more]);
            }
            continue;
        }
        let entry = line.split_once(" LOG:  ").and_then(|(backend, entry)| Some((backend.parse().ok()?, entry)));
        let entry = entry.filter(|(_, entry)| entry.starts_with("execute ") || entry.starts_with("statement: "));
        is_statement = entry.is_some();
        statements.extend(entry.map(|(backend, entry)| Statement { backend, text: entry.to_owned() }));
    }
    statements
}
