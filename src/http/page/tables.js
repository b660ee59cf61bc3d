// Tables: the sections of a replica set.

/** Seconds after which a projection that is behind is shown as making no progress. */
const STILL = 10;

function workers(set, past) {
  const here = new Set(set.own.map((worker) => worker.worker_id));
  const rows = set.overview.workers.map((worker) => {
    const isStopped = worker.state === 'stopped';
    return h('tr', { class: isStopped ? 'gone' : null },
      cell('worker', 'lead', chip(worker.partition), place(worker), here.has(worker.worker_id) && h('small', {}, ' here')),
      cell('state', '', badge(worker.state), worker.stop_reason && h('small', {}, ` ${worker.stop_reason}`)),
      cell('partition', 'number', worker.partition == null ? '–' : String(worker.partition)),
      cell('heartbeat', 'number', isStopped ? '–' : `${age(worker.heartbeat_age_seconds + past)} ago`),
      cell('generation', 'number', worker.generation ? count(worker.generation) : '–'),
      cell('up for', 'number', age(worker.started_age_seconds + past)),
      cell('version', 'number', worker.version));
  });
  return section('Workers', null, table('workers', ['worker', 'state', 'partition', 'heartbeat', 'generation', 'up for', 'version'], rows));
}

function place(worker) {
  return h('span', { class: 'place', title: worker.worker_id }, name(worker.host), ':', String(worker.pid));
}

function keySpace(overview, people) {
  const strips = new Map();
  for (const projection of overview.projections.filter((projection) => projection.checkpoints.length)) {
    const parts = ownership(projection);
    const key = JSON.stringify(parts);
    strips.set(key, { parts, names: [...(strips.get(key)?.names ?? []), projection.name] });
  }
  if (!strips.size) return null;
  const isOne = strips.size === 1;
  return section('Key space', 'who owns which part', ...[...strips.values()].map(({ parts, names }) => h('div', { class: 'keys' },
    isOne ? null : h('p', {}, names.map((text, i) => [i ? ', ' : '', name(text)])),
    strip(parts, people))));
}

function projections(set, people, past) {
  const newest = set.overview.newest_position;
  const rows = set.overview.projections.flatMap((projection) => {
    const points = rates(progressOf(set, projection));
    const here = set.own.flatMap((worker) => worker.projections.filter((own) => own.name === projection.name));
    return [
      h('tr', {},
        cell('projection', 'lead', name(projection.name), ' ', badge(projection.state), still(projection, newest), projection.is_replay && h('small', { class: 'still' }, 'handles again what it had handled before')),
        cell('position', 'number', count(projection.position)),
        cell('lag', 'number', projection.lag_events == null ? '–' : plural(projection.lag_events, 'event'), projection.lag_events ? h('small', {}, ` ${span(projection.lag_seconds)}`) : null),
        cell('events/s', 'number', points.length ? perSecond(points.at(-1).rate) : '–'),
        cell('last two minutes', 'plot', plot(points)),
        cell('on this worker', 'here', here.map((own) => h('div', {}, badge(own.state), h('small', {}, ` ${plural(own.events, 'event')}`))))),
      h('tr', { class: 'more' }, h('td', { colspan: 6 },
        here.filter((own) => own.error).map((own) => h('pre', { class: 'error', dir: 'auto' }, own.error)),
        pausedBy(projection, past),
        failures(projection, people, here, past),
        rebuilding(projection, past),
        kept(projection, past),
        projectionButtons(set, projection),
        checkpoints(projection, people, past))),
    ];
  });
  const heads = ['projection', 'position', 'lag', 'events/s', 'last two minutes', 'on this worker'];
  return section('Projections', `newest position ${count(newest)}`, table('projections', heads, rows));
}

/** Returns who has paused a projection, when and why. */
function pausedBy(projection, past) {
  if (projection.desired_state !== 'paused') return null;
  const by = projection.desired_by == null ? [] : [' by ', name(projection.desired_by)];
  const why = projection.desired_reason == null ? [] : [': ', name(projection.desired_reason)];
  return h('p', { class: 'paused-by' }, `Paused ${age(projection.desired_age_seconds + past)} ago`, ...by, ...why, '. Continue it with ', code(typed('resume', projection.name)), '.');
}

/** Returns the progress of a rebuild, and what keeps it from its switch. */
function rebuilding(projection, past) {
  const { rebuild } = projection;
  if (!rebuild) return null;
  const percent = (100 * rebuild.progress).toFixed(1);
  const toGo = rebuild.seconds_to_go == null ? 'time to go unknown' : rebuild.seconds_to_go > 0 ? `${age(rebuild.seconds_to_go)} to go` : 'all events are passed';
  const limit = rebuild.rate_limit == null ? 'without a limit' : `at most ${count(rebuild.rate_limit)} per second`;
  const facts = [`${percent} %`, plural(rebuild.events, 'event'), `${perSecond(rebuild.events_per_second)}/s, ${limit}`, toGo, `version ${rebuild.version}`];
  if (rebuild.parked) facts.push(`${count(rebuild.parked)} parked`);
  return h('div', { class: 'rebuild' },
    h('p', {}, badge(rebuild.state), ` Rebuilding for ${age(rebuild.age_seconds + past)} (command ${rebuild.command_id})`),
    h('progress', { max: 1, value: rebuild.progress, 'aria-label': `rebuild of ${projection.name}`, 'aria-valuetext': `${percent} percent` }, `${percent} %`),
    facts.join(', '),
    rebuild.blocked.length > 0 && h('ul', { 'aria-label': 'what keeps it from its switch' }, rebuild.blocked.map((why) => h('li', {}, h('strong', {}, 'Blocked: '), h('span', { dir: 'auto' }, why)))));
}

/** Returns the former tables that are kept, with what to do with them. */
function kept(projection, past) {
  const { old } = projection;
  if (!old) return null;
  return h('p', { class: 'kept' }, `The former tables (version ${old.version}, ${bytes(old.bytes)}) are kept in schema `, name(old.schema), `, since ${age(old.age_seconds + past)}. Bring them back with `,
    code(typed('rebuild', projection.name, ' --revert')), ', or drop them with ', code(typed('rebuild', projection.name, ' --drop-old')), '.');
}

/** Returns the parked aggregates, with what to do about each. */
function parked(set, past) {
  const { parked_aggregates: shown, projections: all } = set.overview;
  const total = sum(all.map((projection) => projection.parked + (projection.rebuild?.parked ?? 0)));
  if (!total) return null;
  const rows = shown.flatMap((one) => {
    const aggregate = [one.bounded_context, one.aggregate_type, one.aggregate_id];
    const buttons = [
      commandButton('Replay', 'replay', set.name, one.projection, { aggregate }),
      commandButton('Discard', 'discard', set.name, one.projection, { event: one.event_id }),
    ];
    return [
      h('tr', {},
        cell('projection', 'lead', name(one.projection)),
        cell('aggregate', '', name(aggregate.join('/'))),
        cell('event', '', name(one.event_type), h('small', {}, ` ${one.event_id}, position ${count(one.position)}`)),
        cell('attempts', 'number', count(one.attempts)),
        cell('parked', 'number', `${age(one.parked_age_seconds + past)} ago`, one.replay_requested_age_seconds != null && h('small', {}, ` replay requested ${age(one.replay_requested_age_seconds + past)} ago`))),
      h('tr', { class: 'more' }, h('td', { colspan: 5 },
        h('pre', { class: 'error', dir: 'auto' }, one.error),
        h('p', {}, 'After the cause is corrected: ', code(typed('replay', one.projection, ` --aggregate ${word(aggregate.join('/'))}`)), '. To leave this event out: ', code(typed('discard', one.projection, ` --event ${one.event_id} --reason …`)), '.'),
        buttons[0] && h('div', { class: 'buttons' }, buttons))),
    ];
  });
  const note = total > shown.length ? `${plural(total, 'aggregate')}, of which the first ${count(shown.length)} are shown` : plural(total, 'aggregate');
  return section('Parked', note, table('parked', ['projection', 'aggregate', 'event that fails', 'attempts', 'parked'], rows));
}

/** Returns the last commands. */
function history(overview, past) {
  if (!overview.commands.length) return null;
  const rows = overview.commands.map((one) => {
    const facts = [one.arguments === '{}' ? null : one.arguments, one.reason].filter((text) => text != null);
    return h('tr', {},
      cell('#', 'number', count(one.id)),
      cell('command', 'lead', one.command, ' ', name(one.projection), facts.map((text) => h('small', {}, ' ', name(text)))),
      cell('by', '', name(one.requested_by), one.requested_by !== one.requested_as && h('small', {}, ' as ', name(one.requested_as))),
      cell('given', 'number', `${age(one.requested_age_seconds + past)} ago`),
      cell('outcome', 'last', badge(one.outcome ?? one.step ?? 'pending'), one.error != null && h('pre', { class: 'error', dir: 'auto' }, one.error)));
  });
  return section('Commands', 'the last twenty', table('commands', ['#', 'command', 'by', 'given', 'outcome'], rows));
}

/** Returns a note if a projection is behind and makes no progress. */
function still(projection, newest) {
  if (projection.lag_events == null || projection.state === 'paused') return null;
  const behind = projection.checkpoints.filter((checkpoint) => checkpoint.position < newest);
  const since = Math.min(projection.lag_seconds, Math.max(0, ...behind.map((checkpoint) => checkpoint.moved_age_seconds)));
  return since > STILL ? h('small', { class: 'still' }, `no progress for ${age(since)}`) : null;
}

/** Returns what the owners of checkpoints report, without the errors that this worker shows. */
function failures(projection, people, here, past) {
  const isShown = ({ error }) => here.some((own) => own.error === error);
  return projection.checkpoints.filter((checkpoint) => checkpoint.error && !isShown(checkpoint)).map((checkpoint) => {
    const owner = people.get(checkpoint.worker_id);
    const attempts = checkpoint.attempts ? [`, ${plural(checkpoint.attempts, 'failed attempt')}`] : [];
    const event = checkpoint.attempt_position == null ? [] : [` at position ${count(checkpoint.attempt_position)} (${checkpoint.attempt_event_id ?? 'unknown event'}), ${age(checkpoint.attempted_age_seconds + past)} ago`];
    return h('div', {}, badge(checkpoint.state), h('small', {}, ' ', owner ? place(owner) : 'no worker', ...attempts, ...event),
      h('pre', { class: 'error', dir: 'auto' }, checkpoint.error));
  });
}

function checkpoints(projection, people, past) {
  const rows = projection.checkpoints.map((checkpoint) => {
    const owner = people.get(checkpoint.worker_id);
    return h('tr', {},
      h('td', { class: 'keyset' }, checkpoint.keys.replaceAll(',[', ', [')),
      h('td', { class: 'number' }, count(checkpoint.position)),
      h('td', { class: 'number' }, `moved ${age(checkpoint.moved_age_seconds + past)} ago`),
      h('td', {}, chip(owner?.partition), owner ? place(owner) : checkpoint.worker_id ?? 'no worker'));
  });
  return h('details', {}, h('summary', {}, plural(rows.length, 'checkpoint')), h('table', { class: 'checkpoints' }, h('tbody', {}, rows)));
}

/** Returns a table of what is known without an overview. */
function projectionsHere(own) {
  const rows = own.flatMap((worker) => worker.projections.map((projection) => h('tr', {},
    cell('projection', 'lead', name(projection.name)),
    cell('position', 'number', count(projection.position)),
    cell('lag', 'number', count(projection.lag_events)),
    cell('on this worker', '', badge(projection.state), projection.error && h('pre', { class: 'error', dir: 'auto' }, projection.error)))));
  return section('Projections', 'on this worker', table('projections', ['projection', 'position', 'lag', 'on this worker'], rows));
}

function generations(overview, past) {
  const all = overview.generations.map((generation) => ({
    ...generation,
    at: generation.created_age_seconds + past,
    // A generation that was never activated paused until it was superseded, or still pauses.
    pause: generation.pause_seconds ?? generation.created_age_seconds + past - (generation.superseded_age_seconds == null ? 0 : generation.superseded_age_seconds + past),
  }));
  if (!all.length) return null;
  const rows = all.map((generation) => h('tr', { class: generation.state },
    h('td', { class: 'number' }, count(generation.number)),
    h('td', { class: 'number' }, `${age(generation.at)} ago`),
    h('td', {}, causeMark(generation.cause), ' ', generation.cause),
    h('td', { class: 'number' }, count(generation.total_partitions)),
    h('td', { class: 'number' }, span(generation.pause)),
    h('td', { class: 'last' }, generation.state === 'superseded' && generation.activated_age_seconds == null ? h('small', {}, 'never active') : badge(generation.state))));
  return section('Generations', 'the last twenty: when, and for how long they paused processing', timeLine(all),
    table('generations', ['#', 'created', 'cause', 'partitions', 'pause', 'state'], rows));
}
