//! A frozen server: the kernel accepts connections, but nothing answers.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use super::Postgres;

/// The frozen processes of a server, which resume when this is dropped.
pub(crate) struct Frozen(Vec<Pid>);

impl Frozen {
    /// Freezes every process of the server.
    pub(crate) fn freeze(server: &Postgres) -> Self {
        let postmaster = i32::try_from(server.pid()).unwrap();
        // Freeze the postmaster first, so that it starts no process that the loop would miss.
        let mut frozen = Self(Vec::new());
        frozen.stop(postmaster);
        for child in children_of(postmaster) {
            frozen.stop(child);
        }
        assert!(frozen.0.len() > 4, "a server and its sessions are more processes than {:?}", frozen.0);
        frozen
    }

    fn stop(&mut self, pid: i32) {
        let pid = Pid::from_raw(pid).unwrap();
        if kill_process(pid, Signal::STOP).is_ok() {
            self.0.push(pid);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in self.0.iter().rev() {
            _ = kill_process(*pid, Signal::CONT);
        }
    }
}

fn children_of(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses and may contain anything. After it come the state
    // and the parent.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
