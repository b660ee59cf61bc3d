// The page: one article for each replica set, which begins with its problems.

/** Seconds after which an answer or an overview is shown as old. */
const OLD = 4;

function render() {
  if (!known.answer) {
    if (known.isLost) show([banner('alarm', h('strong', {}, 'No answer.'), ' This worker cannot be reached.')]);
    return;
  }
  const silent = now() - known.heardAt;
  const sets = replicaSets(known.answer);
  const isCutOff = known.isLost || silent > OLD;
  const parts = sets.map((set) => replicaSet(set, silent));
  if (!sets.length) parts.push(h('p', { class: 'quiet' }, 'No worker runs in this process yet.'));
  if (isCutOff) parts.unshift(cutOff(silent));
  show(parts);
  const mark = document.querySelector('.alarm') ? '■ ' : '';
  renderDesk();
  document.title = `${mark}${sets.map((set) => set.name).join(', ') || 'Projections'}`;
}

function show(parts) {
  patch(document.getElementById('page'), h('main', { id: 'page' }, ...parts));
}

function cutOff(silent) {
  return banner('alarm', h('strong', {}, 'No answer.'), ` This worker has not answered for ${age(silent)}. The page shows its last answer.`);
}

function replicaSet(set, silent) {
  const { overview, own } = set;
  // Ages within the overview are as of the moment when it was loaded.
  const past = overview ? set.age + silent : 0;
  const people = new Map((overview?.workers ?? []).map((worker) => [worker.worker_id, worker]));
  return h('article', {},
    heading(set, past),
    ...own.flatMap((worker) => troubles(worker, overview, silent)),
    ...(overview ? overview.projections.flatMap((projection) => [trouble(projection, people), rewinding(projection, people, past)]) : []),
    overview && set.age > OLD && own.every((worker) => worker.database_reachable)
      && banner('notice', `The overview of the replica set is ${age(past)} old.`),
    ...(overview
      ? [forming(overview, past), h('div', { class: past > OLD ? 'old' : null },
        workers(set, past), keySpace(overview, people), projections(set, people, past), parked(set, past), history(overview, past), generations(overview, past))]
      : [h('p', { class: 'quiet' }, 'The overview of the replica set is being loaded …'), projectionsHere(own)]));
}

function heading(set, past) {
  const { overview, own } = set;
  const newest = overview?.generations[0];
  const living = overview?.workers.filter((worker) => worker.state !== 'stopped').length;
  const heads = own.map((worker) => worker.safe_head).filter((head) => head != null);
  const facts = [
    ['generation', newest ? count(newest.number) : '–'],
    ['partitions', newest ? count(newest.total_partitions) : '–'],
    ['workers', count(living)],
    ['safe head', count(heads.length ? Math.max(...heads) : overview?.safe_head)],
    ['as of', overview ? `${age(past)} ago` : '–'],
  ];
  return h('header', {},
    h('div', { class: 'title' }, h('h1', {}, name(set.name)), newest && badge(worst(overview) ?? newest.state)),
    h('dl', {}, facts.map(([label, value]) => h('div', {}, h('dt', {}, label), h('dd', {}, value)))));
}

/** Returns banners for the problems of a worker of this process. */
function troubles(worker, overview, silent) {
  const found = [];
  if (!worker.database_reachable) {
    const heard = worker.heartbeat_age_seconds;
    found.push(banner('alarm', h('strong', {}, 'The database cannot be reached.'),
      ` ${heard == null ? 'No heartbeat was answered yet' : `The last answered heartbeat was sent ${age(heard + silent)} ago`}. The replica set is shown as it was before.`));
  }
  if (worker.head_blocked && worker.database_reachable) found.push(headBlocked(worker.head_blocked, silent));
  // Leaves out a projection that the overview, which may be older, already shows as halted.
  const isSaid = (projection) => overview?.projections.some((other) => other.name === projection.name && other.state === 'halted');
  for (const projection of worker.projections.filter((projection) => projection.state === 'halted' && !isSaid(projection))) {
    found.push(banner('alarm', h('strong', {}, 'Halted: '), name(projection.name),
      ' processes nothing on this worker. Its error is shown below.'));
  }
  return found;
}

function headBlocked(blocked, silent) {
  const by = blocked.blockers.map((blocker, i) => [
    i ? ', ' : '',
    name(blocker.name || 'unnamed'),
    ` (${blocker.pid == null ? 'prepared transaction' : `pid ${blocker.pid}`}${blocker.age_seconds > 0 ? `, open for ${age(blocker.age_seconds + silent)}` : ''})`,
  ]);
  return banner('notice', h('strong', {}, 'Safe head blocked'), ` for ${age(blocked.seconds + silent)} by an open transaction: `, ...by);
}

const FAULTS = {
  missing: 'its checkpoints were deleted',
  torn: 'its checkpoints overlap or leave keys out',
  deleted: 'its rows were deleted',
};

/** Returns a banner for the problem of a projection, on any worker. */
function trouble(projection, people) {
  const { state, fault } = projection;
  if (state === 'broken') {
    const why = Object.hasOwn(FAULTS, fault) ? FAULTS[fault] : fault;
    return banner('alarm', h('strong', {}, 'Broken: '), name(projection.name), ` is not processed: ${why}. The log says what to do.`);
  }
  if (state === 'halted') {
    const halted = projection.checkpoints.filter((checkpoint) => checkpoint.state === 'halted');
    const where = halted.flatMap(({ worker_id: id }, i) => [i ? ', ' : '', people.has(id) ? place(people.get(id)) : id ?? 'no worker']);
    return banner('alarm', h('strong', {}, 'Halted: '), name(projection.name), ' stands still on ', ...where,
      '. Correct the cause, then it goes on by itself. Until then, stop its attempts with ', code(typed('pause', projection.name, ' --reason …')), '.');
  }
  if (state === 'orphaned') return banner('notice', h('strong', {}, 'Orphaned: '), name(projection.name), ' belongs to this replica set, but none of its workers knows it. Deploy one that does, or forget it with ', code(typed('remove', projection.name)), '.');
  return null;
}

/** Returns a banner for a rewind that is in progress. */
function rewinding(projection, people, past) {
  const { rewind } = projection;
  if (!rewind) return null;
  const executor = people.get(rewind.worker_id);
  const step = rewind.step === 'executing'
    ? [' clears its read model on ', executor ? place(executor) : rewind.worker_id ?? 'no worker', `, attempt ${count(rewind.attempt)}`]
    : [' has cleared its read model, and is about to be processed again'];
  return banner('notice', h('strong', {}, 'Rewinding: '), name(projection.name), ...step, ` (command ${rewind.command_id}, given ${age(rewind.requested_age_seconds + past)} ago).`);
}

/** Returns the state that needs most attention, if any does. */
function worst(overview) {
  return ['broken', 'halted', 'retrying'].find((state) => overview.projections.some((projection) => projection.state === state));
}

function forming(overview, past) {
  const newest = overview.generations[0];
  if (newest?.state !== 'pending') return null;
  const awaited = overview.workers.filter((worker) => worker.generation === newest.number && worker.state === 'pending');
  const who = awaited.flatMap((worker, i) => [i ? ', ' : '; waiting for ', place(worker), ` (partition ${worker.partition})`]);
  return banner('notice', h('strong', {}, `Generation ${newest.number} is being formed`),
    ` (${newest.cause}): processing has been paused for ${age(newest.created_age_seconds + past)}`, ...who);
}
