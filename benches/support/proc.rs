//! Figures about processes, from Linux's `/proc`. On other systems they are zero.

use std::fs;

/// The number of ticks per second in the times of `/proc`, on every current Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the processor seconds of a process, without its children.
pub(crate) fn cpu(pid: u32) -> f64 {
    stat(&format!("/proc/{pid}/stat")).map_or(0.0, |stat| stat.own)
}

/// Returns the processor seconds of a process and all its descendants, including those that ended
/// and were waited for.
pub(crate) fn cpu_of_tree(root: u32) -> f64 {
    let all: Vec<Stat> = processes().filter_map(|pid| stat(&format!("/proc/{pid}/stat"))).collect();
    let mut seconds = 0.0;
    let mut found = vec![root];
    while let Some(pid) = found.pop() {
        seconds += all.iter().filter(|stat| stat.pid == pid).map(|stat| stat.own + stat.of_ended_children).sum::<f64>();
        found.extend(all.iter().filter(|stat| stat.parent == pid).map(|stat| stat.pid));
    }
    seconds
}

/// Returns the name and processor seconds of each thread of a process.
pub(crate) fn cpu_of_threads(pid: u32) -> Vec<(String, f64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| {
            let stat = stat(&format!("{}/stat", task.path().display()))?;
            Some((format!("{} {}", stat.name, stat.pid), stat.own))
        })
        .collect()
}

/// Returns the bytes of memory that a process currently has.
pub(crate) fn resident(pid: u32) -> f64 {
    kilobytes(pid, "VmRSS:") * 1024.0
}

/// Returns the most bytes of memory that a process ever had.
pub(crate) fn peak_resident(pid: u32) -> f64 {
    kilobytes(pid, "VmHWM:") * 1024.0
}

/// Returns the busy and the total time of all processors, in the same unit; `None` if the system
/// does not report them.
pub(crate) fn processor_time() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let times: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all: f64 = times.iter().sum();
    Some((all - times.get(3)? - times.get(4)?, all))
}

/// Returns the model and the number of the processors.
pub(crate) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores", model.unwrap_or("unknown processor"))
}

fn kilobytes(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0.0)
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

struct Stat {
    pid: u32,
    name: String,
    parent: u32,
    own: f64,
    of_ended_children: f64,
}

/// See `proc_pid_stat(5)`.
fn stat(path: &str) -> Option<Stat> {
    let text = fs::read_to_string(path).ok()?;
    // The name may contain spaces and parentheses.
    let (head, rest) = text.rsplit_once(')')?;
    let (pid, name) = head.split_once(" (")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |index: usize| Some(fields.get(index)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Stat {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(11)? + seconds(12)?,
        of_ended_children: seconds(13)? + seconds(14)?,
    })
}
