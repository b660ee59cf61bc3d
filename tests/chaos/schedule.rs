//! Which faults occur, and when: a pure function of the seed.

use std::time::Duration;

use crate::deeds::{self, Deed};
use crate::operator::{self, Order};
use crate::support::StopMode;

/// The maximum number of workers. The worker in slot 0 reaches the server through the proxy.
pub(crate) const SLOTS: usize = 5;
/// The number of workers at the beginning, in the first slots.
pub(crate) const AT_FIRST: usize = 3;
/// The workers' `stale_worker_timeout`.
pub(crate) const STALE: Duration = Duration::from_millis(1_500);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// A worker starts in an empty slot.
    Join(usize),
    /// SIGTERM.
    Terminate(usize),
    /// SIGKILL.
    Kill(usize),
    /// SIGSTOP.
    Freeze(usize),
    /// SIGCONT.
    Continue(usize),
    /// `pg_terminate_backend` of this many of the workers' sessions.
    EndSessions(i64),
    /// The server stops, stays away for a while and starts again.
    Restart(StopMode, Duration),
    /// The proxy closes all its connections.
    Cut,
    /// The proxy forwards nothing of one direction or both.
    Hold { requests: bool, answers: bool },
    /// The proxy forwards everything with this delay.
    Delay(Duration),
    /// The proxy ends one direction of all its connections.
    HalfClose { requests: bool },
    /// The proxy ends all its connections, and delivers what the worker sent last (for example, a
    /// commit) with this delay.
    Linger(Duration),
    /// The proxy works normally again.
    Heal,
    /// The neighbour does something.
    Neighbour(Deed),
    /// The neighbour undoes it.
    Undo(Deed),
    /// The operator gives a command.
    Command(Order),
    /// The neighbour undoes everything, and the storm stops for a while: the other faults continue,
    /// no new ones begin, and the storm's clock stands still, until every key has an owner that can
    /// work despite the faults.
    Lull,
}

impl Fault {
    /// Whether it leaves a worker helpless, or nearly so, until another fault ends it.
    fn stays(self) -> bool {
        matches!(self, Self::Freeze(_) | Self::Hold { .. } | Self::Delay(_))
    }
}

/// Storms, one after the other. After each storm no fault occurs until the workers have recovered.
pub(crate) struct Schedule {
    rng: fastrand::Rng,
    occupied: [bool; SLOTS],
    /// Random numbers for the neighbour.
    deeds: fastrand::Rng,
    /// The neighbour's next deeds, taken from the end. Every deed occurs before the deck is
    /// shuffled again.
    deck: Vec<Deed>,
    /// Random numbers for the operator.
    commands: fastrand::Rng,
}

/// The state of the storm that is being planned.
struct Weather {
    now: Duration,
    /// Until when each worker is frozen or cut off.
    helpless_until: [Duration; SLOTS],
    restarts: u8,
    faults: Vec<(Duration, Fault)>,
}

impl Schedule {
    pub(crate) fn new(seed: u64) -> Self {
        let mut occupied = [false; SLOTS];
        occupied[..AT_FIRST].fill(true);
        let [rng, deeds, commands] = [seed, !seed, seed.rotate_left(32) ^ 1].map(fastrand::Rng::with_seed);
        Self { rng, occupied, deeds, deck: Vec::new(), commands }
    }

    /// The next storm: its faults in order, each with its time since the beginning, and two lulls.
    /// At its end there are at least two workers.
    pub(crate) fn storm(&mut self) -> Vec<(Duration, Fault)> {
        let lasts = self.millis(5_000..9_000);
        let mut weather =
            Weather { now: Duration::ZERO, helpless_until: Default::default(), restarts: 0, faults: Vec::new() };
        loop {
            // Often two faults occur at once.
            weather.now += if self.rng.u8(..4) == 0 { Duration::ZERO } else { self.millis(50..1_200) };
            if weather.now > lasts {
                break;
            }
            while !self.brew(&mut weather) {}
        }
        self.meddle(lasts, &mut weather.faults);
        self.command(lasts, &mut weather.faults);
        weather.faults.sort_by_key(|(at, _)| *at);
        with_lulls(weather.faults, lasts)
    }

    /// Adds the neighbour's deeds during the storm, and when it undoes them.
    fn meddle(&mut self, lasts: Duration, faults: &mut Vec<(Duration, Fault)>) {
        let mut now = Duration::ZERO;
        loop {
            now += Duration::from_millis(self.deeds.u64(50..700));
            if now > lasts {
                return;
            }
            let deed = self.deed();
            faults.push((now, Fault::Neighbour(deed)));
            // Deeds that still stand when the storm is over are undone then.
            let undone = now + Duration::from_millis(self.deeds.u64(deed.stands_for()));
            if !deed.undoing().is_empty() && undone < lasts {
                faults.push((undone, Fault::Undo(deed)));
            }
        }
    }

    /// Adds the operator's commands.
    fn command(&mut self, lasts: Duration, faults: &mut Vec<(Duration, Fault)>) {
        let orders: Vec<Order> =
            operator::all().into_iter().flat_map(|(order, weight)| std::iter::repeat_n(order, weight)).collect();
        let mut now = Duration::from_millis(self.commands.u64(100..1_500));
        while now < lasts {
            faults.push((now, Fault::Command(orders[self.commands.usize(..orders.len())])));
            now += Duration::from_millis(self.commands.u64(100..2_000));
        }
    }

    fn deed(&mut self) -> Deed {
        if self.deck.is_empty() {
            let several = |deed: Deed| std::iter::repeat_n(deed, deed.weight());
            self.deck = deeds::all().into_iter().flat_map(several).collect();
            self.deeds.shuffle(&mut self.deck);
        }
        let variants = self.deck.pop().unwrap().variants();
        variants[self.deeds.usize(..variants.len())]
    }

    /// Adds one random fault. Returns false if the fault drawn is impossible now.
    fn brew(&mut self, weather: &mut Weather) -> bool {
        let slot = self.rng.usize(..SLOTS);
        let occupied = self.occupied[slot];
        let workers = self.occupied.iter().filter(|occupied| **occupied).count();
        let able = |slot: usize| self.occupied[slot] && weather.helpless_until[slot] <= weather.now;
        // At any time, at least one worker can work.
        let others_able = (0..SLOTS).any(|other| other != slot && able(other));
        let proxied = self.occupied[0] && (1..SLOTS).any(able);
        let fault = match self.rng.u8(..100) {
            0..22 if !occupied => {
                self.occupied[slot] = true;
                weather.helpless_until[slot] = Duration::ZERO;
                Fault::Join(slot)
            }
            22..36 if occupied && workers > 2 && others_able => {
                self.occupied[slot] = false;
                Fault::Terminate(slot)
            }
            36..50 if occupied && workers > 2 && others_able => {
                self.occupied[slot] = false;
                Fault::Kill(slot)
            }
            50..64 if able(slot) && others_able => {
                let until = weather.now + self.beyond_stale_or_not();
                weather.helpless_until[slot] = until;
                weather.faults.push((until, Fault::Continue(slot)));
                Fault::Freeze(slot)
            }
            64..76 => Fault::EndSessions(self.rng.i64(1..=4)),
            76..80 if weather.restarts < 2 => {
                weather.restarts += 1;
                let mode = if self.rng.bool() { StopMode::Fast } else { StopMode::Immediate };
                Fault::Restart(mode, self.millis(0..2_500))
            }
            80..85 if proxied => Fault::Cut,
            85..90 if proxied && weather.helpless_until[0] <= weather.now => {
                let until = weather.now + self.beyond_stale_or_not();
                weather.helpless_until[0] = until;
                // Sometimes the data that was held never arrives.
                weather.faults.push((until, if self.rng.bool() { Fault::Heal } else { Fault::Cut }));
                let (requests, answers) = [(true, true), (true, false), (false, true)][self.rng.usize(..3)];
                Fault::Hold { requests, answers }
            }
            90..95 if proxied && weather.helpless_until[0] <= weather.now => {
                // Commits take long then, and some are in progress when the connections end.
                let later = weather.now + self.millis(500..3_000);
                let end = if self.rng.bool() { Fault::Heal } else { Fault::Linger(self.millis(50..1_500)) };
                weather.faults.push((later, end));
                Fault::Delay(self.millis(5..120))
            }
            95..97 if proxied => Fault::Linger(self.millis(50..1_500)),
            97.. if proxied => Fault::HalfClose { requests: self.rng.bool() },
            _ => return false,
        };
        weather.faults.push((weather.now, fault));
        true
    }

    fn beyond_stale_or_not(&mut self) -> Duration {
        // Workers that come back just when their peers give them up are the most interesting.
        match self.rng.u8(..3) {
            0 => self.millis(100..1_000),
            1 => STALE.mul_f64(0.75) + self.millis(0..800),
            _ => STALE + self.millis(400..2_000),
        }
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }
}

/// Adds a lull in the middle, when a worker has just become helpless, and one at the end,
/// regardless of the faults at that time.
fn with_lulls(mut faults: Vec<(Duration, Fault)>, end: Duration) -> Vec<(Duration, Fault)> {
    let middle = faults.iter().find(|(at, fault)| *at >= end / 3 && *at < end && fault.stays());
    for at in [middle.map_or(end / 2, |(at, _)| *at), end] {
        let next = faults.partition_point(|(other, _)| *other <= at);
        faults.insert(next, (at, Fault::Lull));
    }
    faults
}

#[test]
fn a_seed_gives_one_schedule() {
    let storms = |seed| {
        let mut schedule = Schedule::new(seed);
        std::iter::repeat_with(|| schedule.storm()).take(300).collect::<Vec<_>>()
    };
    assert_eq!(storms(1), storms(1));
    assert_ne!(storms(1), storms(2));
    let faults: Vec<Fault> = storms(1).into_iter().flatten().map(|(_, fault)| fault).collect();
    let kinds: std::collections::HashSet<_> = faults.iter().map(std::mem::discriminant).collect();
    assert_eq!(kinds.len(), 17, "every kind of fault occurs");
    for (order, _) in operator::all() {
        assert!(faults.contains(&Fault::Command(order)), "{order:?} occurs");
    }
    for deed in deeds::all().into_iter().flat_map(Deed::variants) {
        assert!(faults.contains(&Fault::Neighbour(deed)), "{deed:?} occurs");
    }
}

#[test]
fn lulls_occur_while_a_worker_is_frozen_or_cut_off() {
    let mut schedule = Schedule::new(1);
    let storms: Vec<_> = std::iter::repeat_with(|| schedule.storm()).take(20).collect();
    let mut helpless_in_lulls = 0;
    for storm in &storms {
        assert!(storm.is_sorted_by_key(|(at, _)| *at));
        assert_eq!(storm.iter().filter(|(_, fault)| *fault == Fault::Lull).count(), 2);
        let (mut frozen, mut held) = ([false; SLOTS], false);
        for (_, fault) in storm {
            match *fault {
                Fault::Freeze(slot) => frozen[slot] = true,
                Fault::Continue(slot) | Fault::Kill(slot) | Fault::Join(slot) => frozen[slot] = false,
                Fault::Hold { .. } => held = true,
                Fault::Cut | Fault::Linger(_) | Fault::Heal => held = false,
                Fault::Lull => helpless_in_lulls += u32::from(held || frozen.contains(&true)),
                _ => {}
            }
        }
    }
    assert!(helpless_in_lulls >= 20, "in {helpless_in_lulls} of 40 lulls");
}
