//! Shows what a runner does: on the board, in the metrics and in the log.

use super::failure::{self, Failure, replay_command};
use super::rows::Rows;
use super::verdict::Verdict;
use crate::backoff::Mentions;
use crate::error::{field, without_rows};
use crate::event::{Event, StreamId};
use crate::metrics::{ProjectionMetrics, WorkerProjectionMetrics};
use crate::plan::KeySet;
use crate::status::{Board, LaneStatus, ProjectionState};
use crate::store::fence::{EventMark, Owner};

pub(super) struct Journal<'a> {
    board: &'a Board,
    metrics: &'a ProjectionMetrics,
    own_metrics: &'a WorkerProjectionMetrics,
    pub(super) projection: &'a str,
    lane: usize,
    owner: Owner,
    /// A success does not reset it: a deadlock may occur in every other batch although each retry
    /// succeeds.
    reload_mentions: Mentions,
    /// A success does not reset it: a handler may fail at every other event and succeed when it is
    /// retried.
    retry_mentions: Mentions,
    halt_mentions: Mentions,
    caught_up_mentions: Mentions,
    is_failure_logged: bool,
    /// The runner counts as halted until an attempt succeeds, also while it tries again.
    is_halted: bool,
}

impl<'a> Journal<'a> {
    pub(super) fn new(
        board: &'a Board,
        metrics: &'a ProjectionMetrics,
        own_metrics: &'a WorkerProjectionMetrics,
        (projection, lane): (&'a str, usize),
        owner: Owner,
    ) -> Self {
        Self {
            board,
            metrics,
            own_metrics,
            projection,
            lane,
            owner,
            reload_mentions: Mentions::default(),
            retry_mentions: Mentions::default(),
            halt_mentions: Mentions::default(),
            caught_up_mentions: Mentions::default(),
            is_failure_logged: false,
            is_halted: false,
        }
    }

    /// The runner runs, and has come this far. While a batch is being retried, its error stays
    /// visible.
    pub(super) fn running(&self, rows: &Rows, is_failing: bool) {
        self.tell(|status| {
            status.keys = rows.keys();
            status.position = rows.first().map(|row| row.reached);
            if !is_failing {
                // Without checkpoints there is nothing to process.
                let is_owner = rows.first().is_some();
                status.state = if is_owner { ProjectionState::Running } else { ProjectionState::Paused };
                status.error = None;
            }
        });
    }

    /// The runner has committed this many events, after this many failed attempts.
    pub(super) fn committed(&mut self, events: usize, failed_attempts: u32) {
        self.is_halted = false;
        self.halt_mentions = Mentions::default();
        if std::mem::take(&mut self.is_failure_logged) {
            log::info!(
                "handler succeeded again: replica_set={} worker={} projection={} attempts={}",
                field(&self.board.replica_set()),
                self.owner.worker,
                field(&self.projection),
                failed_attempts + 1
            );
        }
        let count = u64::try_from(events).unwrap_or(0);
        self.metrics.events_processed.inc_by(count);
        self.metrics.batch_events.observe(f64::from(u32::try_from(events).unwrap_or(u32::MAX)));
        self.tell(|status| status.events += count);
    }

    /// The projection has caught up for the first time, and has been told so.
    pub(super) fn caught_up(&self, position: i64) {
        log::info!(
            "caught up: replica_set={} worker={} projection={} position={position}",
            field(&self.board.replica_set()),
            self.owner.worker,
            field(&self.projection)
        );
    }

    /// The projection's `caught_up` has failed.
    pub(super) fn caught_up_failed(&mut self, error: &str) {
        self.metrics.errors.inc();
        if self.caught_up_mentions.is_due() {
            log::error!(
                "caught_up() failed, will retry: replica_set={} worker={} projection={} error={}",
                field(&self.board.replica_set()),
                self.owner.worker,
                field(&self.projection),
                field(&error)
            );
        }
    }

    /// The aggregate of this event was parked, after this many attempts.
    pub(super) fn parked(&mut self, event: &Event, attempts: u32, error: &str) {
        self.is_halted = false;
        self.is_failure_logged = false;
        self.metrics.errors.inc();
        self.metrics.parked.inc();
        let stream = event.stream();
        log::error!(
            "aggregate parked: replica_set={} worker={} projection={} aggregate={} position={} event={} attempts={attempts} next={} error={}",
            field(&self.board.replica_set()),
            self.owner.worker,
            field(&self.projection),
            field(&stream.to_string()),
            event.global_position(),
            event.event_id(),
            field(&replay_command(self.projection, &stream)),
            field(error)
        );
    }

    /// This many events of a parked aggregate were handled.
    pub(super) fn replayed(&self, events: usize) {
        let count = u64::try_from(events).unwrap_or(0);
        self.metrics.replayed.inc_by(count);
        self.metrics.events_processed.inc_by(count);
        self.tell(|status| status.events += count);
    }

    /// An aggregate is no longer parked.
    pub(super) fn replay_done(&self, stream: &StreamId, events: u64) {
        log::info!(
            "replay done: replica_set={} worker={} projection={} aggregate={} events={events}",
            field(&self.board.replica_set()),
            self.owner.worker,
            field(&self.projection),
            field(&stream.to_string())
        );
    }

    /// A replay has failed for a reason that passes.
    pub(super) fn replay_delayed(&mut self, failure: &Failure) {
        self.metrics.retries.inc();
        if self.reload_mentions.is_due() {
            log::warn!(
                "batch failed, will retry: replica_set={} worker={} projection={} error={}",
                field(&self.board.replica_set()),
                self.owner.worker,
                field(&self.projection),
                field(&failure.describe())
            );
        }
    }

    /// A replay has failed, so the aggregate stays parked, now at this event.
    pub(super) fn replay_failed(&self, stream: &StreamId, event: EventMark, failure: &Failure) {
        self.metrics.errors.inc();
        log::error!(
            "replay failed, aggregate stays parked: replica_set={} worker={} projection={} aggregate={} position={} event={} next={} error={}",
            field(&self.board.replica_set()),
            self.owner.worker,
            field(&self.projection),
            field(&stream.to_string()),
            event.position,
            event.id,
            field(&failure.way_on_of_replay(self.projection, stream, event)),
            field(&failure.describe())
        );
    }

    /// Attempts of this owner or of earlier ones, from this event on, have ended uncleanly.
    pub(super) fn suspects(&self, attempts: u32, event: &Event) {
        let error = failure::ended_uncleanly(attempts, event);
        log::warn!(
            "attempts were interrupted, will retry: replica_set={} worker={} projection={} attempts={attempts} error={}",
            field(&self.board.replica_set()),
            self.owner.worker,
            field(&self.projection),
            field(&error)
        );
        self.show(ProjectionState::Retrying, Some(&error));
    }

    /// A batch has failed, which leads to this verdict. This many attempts have failed now.
    /// `next` says how to go on, if the projection has halted.
    pub(super) fn failed(&mut self, failure: &Failure, verdict: Verdict, attempts: u32, next: Option<&str>) {
        let (replica_set, worker, name) = (self.board.replica_set(), self.owner.worker, self.projection);
        match verdict {
            Verdict::Fenced => {
                self.metrics.fenced.inc();
                log::info!(
                    "fenced: replica_set={replica_set} worker={worker} projection={name} generation={}",
                    self.owner.generation,
                    replica_set = field(&replica_set),
                    name = field(&name)
                );
            }
            Verdict::Reload | Verdict::ReloadLater | Verdict::Repeat => {
                self.metrics.retries.inc();
                let error = failure.describe();
                if self.reload_mentions.is_due() {
                    log::warn!(
                        "batch failed, will retry: replica_set={replica_set} worker={worker} projection={name} error={}",
                        field(&error),
                        replica_set = field(&replica_set),
                        name = field(&name)
                    );
                }
                self.show(ProjectionState::Retrying, Some(&error));
            }
            Verdict::CommitFirst(_) => {}
            Verdict::Retry => {
                self.metrics.errors.inc();
                self.metrics.retries.inc();
                let error = failure.describe();
                if self.retry_mentions.is_due() {
                    self.is_failure_logged = true;
                    log::warn!(
                        "handler failed, will retry: replica_set={replica_set} worker={worker} projection={name} \
                         attempt={attempts} error={}",
                        field(&error),
                        replica_set = field(&replica_set),
                        name = field(&name)
                    );
                }
                self.show(ProjectionState::Retrying, Some(&error));
            }
            Verdict::Halt | Verdict::HaltForGood | Verdict::Park => {
                self.metrics.errors.inc();
                let error = failure.describe();
                let next = next.unwrap_or_default();
                if self.halt_mentions.is_due() {
                    self.is_failure_logged = true;
                    log::error!(
                        "projection halted: replica_set={replica_set} worker={worker} projection={name} \
                         attempts={attempts} next={} error={}",
                        field(next),
                        field(&error),
                        replica_set = field(&replica_set),
                        name = field(&name)
                    );
                }
                self.is_halted = true;
                self.show(ProjectionState::Halted, Some(&error));
                if !next.is_empty() {
                    self.tell(|status| status.error = status.error.take().map(|error| format!("{error}; {next}")));
                }
            }
        }
    }

    /// The runner waits until its worker is trusted again.
    pub(super) fn waiting_for_trust(&self) {
        self.show(ProjectionState::Paused, None);
    }

    /// The runner has stopped.
    pub(super) fn stopped(&self) {
        self.tell(|status| {
            status.state = ProjectionState::Paused;
            status.keys = KeySet::default();
            status.position = None;
        });
    }

    fn show(&self, state: ProjectionState, error: Option<&str>) {
        if self.is_halted && state == ProjectionState::Retrying {
            return;
        }
        self.tell(|status| {
            status.state = state;
            status.error = error.map(without_rows);
        });
    }

    /// Changes the board, and sets the metrics to what the board then says about the projection.
    fn tell(&self, change: impl FnOnce(&mut LaneStatus)) {
        let all = self.board.update_lane(self.projection, self.lane, change);
        self.own_metrics.halted.set(i64::from(all.state == ProjectionState::Halted));
        match all.position {
            Some(position) => self.own_metrics.position.set(position),
            None => self.own_metrics.position.clear(),
        }
    }
}
