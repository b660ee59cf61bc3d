//! The faults of a replica set, what was observed of each, and how that is printed.

use std::time::Duration;

use crate::support::samples::percentile;
use crate::support::units::duration;

/// The default `stale_worker_timeout`.
const STALE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Fault {
    Join,
    Leave,
    Kill,
    SigStop,
    Restart,
}

/// What was observed of one fault.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// The pauses to which the bound applies.
    pub(crate) pauses: Vec<Duration>,
    /// The pauses of the workers that a fault does not affect.
    pub(crate) others: Vec<Duration>,
    pub(crate) longest_wait: Duration,
    pub(crate) generations: i64,
    pub(crate) until_created: Duration,
    pub(crate) until_active: Duration,
    pub(crate) until_resumed: Duration,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] = [Self::Join, Self::Leave, Self::Kill, Self::SigStop, Self::Restart];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Kill => "kill",
            Self::SigStop => "sigstop",
            Self::Restart => "restart",
        }
    }

    pub(crate) fn takes_a_worker(self) -> bool {
        matches!(self, Self::Leave | Self::Kill | Self::SigStop)
    }

    /// The bound, and the pause to which it applies.
    fn bound(self) -> (&'static str, Duration) {
        match self {
            Self::Join | Self::Leave => ("p50", Duration::from_millis(50)),
            Self::Kill | Self::Restart => ("worst", Duration::from_secs(2)),
            Self::SigStop => ("worst", STALE + Duration::from_secs(2)),
        }
    }

    pub(crate) fn print(self, workers: usize, rounds: &[Round]) {
        let all =
            |pauses: fn(&Round) -> &[Duration]| -> Vec<Duration> { rounds.iter().flat_map(pauses).copied().collect() };
        let figure =
            |of: fn(&Round) -> Duration, percent| duration(share(&rounds.iter().map(of).collect::<Vec<_>>(), percent));
        let step = |of| if self == Self::Restart { "-".to_owned() } else { figure(of, 50) };
        let pauses = all(|round| &round.pauses);
        let (which, bound) = self.bound();
        let held = share(&pauses, if which == "p50" { 50 } else { 100 });
        let generations: i64 = rounds.iter().map(|round| round.generations).sum();
        println!(
            "{workers:>7} {:<13}{} {:>10} {:>5}/{:<3} {which:>6} < {:<8} {:<5}{:>10} {:>10} {:>10}",
            self.name(),
            spread(&pauses),
            figure(|round| round.longest_wait, 100),
            generations,
            rounds.len(),
            duration(bound),
            if held < bound { "holds" } else { "OVER" },
            step(|round| round.until_created),
            step(|round| round.until_active),
            step(|round| round.until_resumed),
        );
        let others = all(|round| &round.others);
        if !others.is_empty() {
            println!("{workers:>7} {:<13}{}", format!("{}, others", self.name()), spread(&others));
        }
    }
}

/// The median of the pauses to which the bound applies.
pub(crate) fn median_pause(rounds: &[Round]) -> Duration {
    let pauses: Vec<Duration> = rounds.iter().flat_map(|round| &round.pauses).copied().collect();
    share(&pauses, 50)
}

pub(crate) fn print_header() {
    println!(
        "{:>7} {:<13}{:>5} {:>10} {:>10} {:>10} {:>10} {:>9} {:>17} {:<5}{:>10} {:>10} {:>10}",
        "workers",
        "fault",
        "n",
        "p50",
        "p99",
        "worst",
        "event",
        "gen/round",
        "bound",
        " ",
        "created",
        "active",
        "resumed"
    );
}

fn spread(pauses: &[Duration]) -> String {
    let [p50, p99, worst] = [50, 99, 100].map(|percent| duration(share(pauses, percent)));
    format!("{:>5} {p50:>10} {p99:>10} {worst:>10}", pauses.len())
}

fn share(durations: &[Duration], percent: usize) -> Duration {
    percentile(durations, percent).unwrap_or_default()
}
