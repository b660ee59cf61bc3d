
'use strict';
// Shows what /status answers, asked for once a second. Whatever comes from there is put in as text or as a number, never as markup.

const POLL_MS = 1000;
const PATIENCE_MS = 5000;
/** Seconds after which an answer or an overview is said to be old, and a projection that is behind to stand still. */
const OLD = 4;
const STILL = 10;
/** Seconds the small plots show, and over which a rate is taken. */
const PLOTTED = 120;
const RATE_OVER = 3.5;
const KEY_SPACE = 65536;
const COLOURS = 8;

const known = { answer: null, heardAt: 0, isLost: false, progress: new Map() };
let timer = null;

async function poll() {
  timer = null;
  try {
    const response = await fetch('status', { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    hear(await response.json());
  } catch {
    known.isLost = true;
  }
  render();
  // Who does not look does not ask.
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

function hear(answer) {
  Object.assign(known, { answer, heardAt: now(), isLost: false });
  for (const set of replicaSets(answer)) {
    if (set.overview) set.overview.projections.forEach((projection) => follow(set, projection));
  }
}

function now() {
  return performance.now() / 1000;
}

/** The watched workers by replica set, each with the freshest overview that any of them has. */
function replicaSets(answer) {
  const sets = new Map();
  for (const worker of answer.workers) {
    const set = sets.get(worker.replica_set) ?? { name: worker.replica_set, own: [], overview: null, age: Infinity };
    set.own.push(worker);
    if (worker.overview && worker.overview.age_seconds < set.age) {
      set.overview = worker.overview.replica_set;
      set.age = worker.overview.age_seconds;
    }
    sets.set(worker.replica_set, set);
  }
  return [...sets.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

// Events per second.

/** Notes how far a projection is: the mean over its keys, which no new cut of the checkpoints moves. */
function follow(set, projection) {
  const at = known.heardAt - set.age;
  const sizes = projection.checkpoints.map((checkpoint) => size(checkpoint.keys));
  const weighted = projection.checkpoints.map((checkpoint, i) => sizes[i] * checkpoint.position);
  const points = progressOf(set, projection);
  if (points.length && at - points.at(-1).at < 0.2) return;
  points.push({ at, mean: sum(weighted) / Math.max(1, sum(sizes)) });
  while (points[0].at < at - PLOTTED - RATE_OVER) points.shift();
}

function progressOf(set, projection) {
  const key = JSON.stringify([set.name, projection.name]);
  if (!known.progress.has(key)) known.progress.set(key, []);
  return known.progress.get(key);
}

function rates(points) {
  return points.slice(1).map((point) => {
    const from = points.find((other) => point.at - other.at <= RATE_OVER);
    const earlier = from === point ? points[points.indexOf(point) - 1] : from;
    return { at: point.at, rate: Math.max(0, (point.mean - earlier.mean) / (point.at - earlier.at)) };
  });
}

function sum(numbers) {
  return numbers.reduce((a, b) => a + b, 0);
}

// Keys.

/** The ranges of an int4multirange, half open. */
function ranges(keys) {
  return [...keys.matchAll(/\[(\d+),(\d+)\)/g)].map(([, from, to]) => [Number(from), Number(to)]);
}

function size(keys) {
  return sum(ranges(keys).map(([from, to]) => to - from));
}

/** Who owns which part of the key space: neighbouring ranges of one owner are one. */
function ownership(projection) {
  const parts = projection.checkpoints
    .flatMap(({ keys, worker_id }) => ranges(keys).map(([from, to]) => ({ from, to, owner: worker_id })))
    .sort((a, b) => a.from - b.from);
  return parts.reduce((joined, part) => {
    const last = joined.at(-1);
    if (last && last.owner === part.owner && last.to === part.from) last.to = part.to;
    else joined.push(part);
    return joined;
  }, []);
}

// Words.

const plain = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

function count(number) {
  return number == null ? '–' : plain.format(number);
}

function perSecond(rate) {
  return (rate < 10 ? fine : plain).format(rate);
}

function span(seconds) {
  if (seconds == null) return '–';
  if (seconds < 0.9995) return `${Math.round(Math.max(0, seconds) * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** An age in whole seconds at the least: milliseconds that change all the time tell nothing. */
function age(seconds) {
  if (seconds == null) return '–';
  return seconds < 120 ? `${Math.round(Math.max(0, seconds))} s` : span(seconds);
}

function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? '' : 's'}`;
}

// Elements.

function maker(create) {
  return (tag, attributes, ...children) => {
    const node = create(tag);
    for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
    node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
    return node;
  };
}

const h = maker((tag) => document.createElement(tag));
const s = maker((tag) => document.createElementNS('http://www.w3.org/2000/svg', tag));

/** Somebody's text, in whatever direction it is written. */
function name(text) {
  return h('bdi', { class: 'name', title: text }, text);
}

const MARKS = {
  running: '●', active: '●', ready: '◐', pending: '◐', stopping: '◐', paused: '◐', retrying: '▲', halted: '■', stopped: '○',
  superseded: '○', unreachable: '■',
};

function badge(state) {
  const isKnown = Object.hasOwn(MARKS, state);
  return h('span', { class: `badge ${isKnown ? state : ''}` }, h('i', { 'aria-hidden': 'true' }, isKnown ? MARKS[state] : '·'), ' ', state);
}

function banner(kind, ...content) {
  return h('p', { class: `banner ${kind}`, role: kind === 'alarm' ? 'alert' : 'status' }, ...content);
}

function section(title, note, ...content) {
  return h('section', {}, h('h2', {}, title, note && h('small', {}, note)), ...content);
}

function table(kind, heads, rows) {
  const head = h('tr', {}, heads.map((text) => h('th', { scope: 'col' }, text)));
  return h('table', { class: kind }, h('thead', {}, head), h('tbody', {}, rows));
}

/** A cell that bears its column's name, for where there is no room for columns. */
function cell(label, kind, ...content) {
  return h('td', { 'data-label': label, class: kind }, ...content);
}

/** Makes one tree like another with as few changes as it takes, so that a selection or an open list stays. */
function patch(old, next) {
  if (old.nodeName !== next.nodeName) return old.replaceWith(next);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!next.hasAttribute(name) && name !== 'open') old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const children = [...next.childNodes];
  while (old.childNodes.length > children.length) old.lastChild.remove();
  children.forEach((child, i) => (i < old.childNodes.length ? patch(old.childNodes[i], child) : old.append(child)));
}

// The page.

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
  document.title = `${mark}${sets.map((set) => set.name).join(', ') || 'Projections'}`;
}

function show(parts) {
  patch(document.getElementById('page'), h('main', { id: 'page' }, ...parts));
}

function cutOff(silent) {
  return banner('alarm', h('strong', {}, 'Cut off.'), ` This worker has not answered for ${age(silent)}; what is shown is what it said last.`);
}

function replicaSet(set, silent) {
  const { overview, own } = set;
  // Ages within the overview are those of the moment when it was loaded.
  const past = overview ? set.age + silent : 0;
  const people = new Map((overview?.workers ?? []).map((worker) => [worker.worker_id, worker]));
  return h('article', {},
    heading(set, past),
    ...own.flatMap((worker) => troubles(worker, silent)),
    overview && set.age > OLD && own.every((worker) => worker.database_reachable)
      && banner('notice', `The overview of the replica set is ${age(past)} old.`),
    ...(overview
      ? [forming(overview, past), h('div', { class: past > OLD ? 'old' : null },
        workers(set, past), keySpace(overview, people), projections(set, people, past), generations(overview, past))]
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
    h('div', { class: 'title' }, h('h1', {}, name(set.name)), newest && badge(newest.state)),
    h('dl', {}, facts.map(([label, value]) => h('div', {}, h('dt', {}, label), h('dd', {}, value)))));
}

/** What is wrong with a worker of this process. */
function troubles(worker, silent) {
  const found = [];
  if (!worker.database_reachable) {
    const heard = worker.heartbeat_age_seconds;
    found.push(banner('alarm', h('strong', {}, 'Database out of reach.'),
      ` The last heartbeat got through ${heard == null ? 'never' : `${age(heard + silent)} ago`}. What is shown of the replica set is from before.`));
  }
  if (worker.head_blocked && worker.database_reachable) found.push(headBlocked(worker.head_blocked, silent));
  for (const projection of worker.projections.filter((projection) => projection.state === 'halted')) {
    found.push(banner('alarm', h('strong', {}, 'Halted: '), name(projection.name),
      ' stands still on this worker until it is restarted or the partitions are dealt out again.'));
  }
  return found;
}

function headBlocked(blocked, silent) {
  const by = blocked.blockers.map((blocker, i) => [
    i ? ', ' : '',
    name(blocker.name || 'unnamed'),
    ` (${blocker.pid == null ? 'prepared transaction' : `pid ${blocker.pid}`}${blocker.age_seconds > 0 ? `, open for ${age(blocker.age_seconds + silent)}` : ''})`,
  ]);
  return banner('notice', h('strong', {}, 'Safe head held back'), ` for ${age(blocked.seconds + silent)} by an open transaction: `, ...by);
}

function forming(overview, past) {
  const newest = overview.generations[0];
  if (newest?.state !== 'pending') return null;
  const awaited = overview.workers.filter((worker) => worker.generation === newest.number && worker.state === 'pending');
  const who = awaited.flatMap((worker, i) => [i ? ', ' : '; waiting for ', place(worker), ` (partition ${worker.partition})`]);
  return banner('notice', h('strong', {}, `Generation ${newest.number} is being formed`),
    ` (${newest.cause}): processing has been paused for ${age(newest.created_age_seconds + past)}`, ...who);
}

function place(worker) {
  return h('span', { class: 'place', title: worker.worker_id }, name(worker.host), ':', String(worker.pid));
}

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

function colour(partition) {
  return partition == null ? 'nobody' : `owner-${partition % COLOURS}`;
}

function chip(partition) {
  return s('svg', { class: 'chip', width: 10, height: 10, 'aria-hidden': 'true' },
    s('rect', { width: 10, height: 10, rx: 2, class: colour(partition) }));
}

function keySpace(overview, people) {
  const strips = new Map();
  for (const projection of overview.projections) {
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

function strip(parts, people) {
  const percent = (keys) => `${(100 * keys) / KEY_SPACE}%`;
  return s('svg', { class: 'strip', role: 'img', 'aria-label': `the key space in ${plural(parts.length, 'part')}` }, parts.map((part) => {
    const owner = people.get(part.owner);
    const words = part.owner == null ? 'nobody' : owner ? `${owner.host}:${owner.pid}` : part.owner;
    return s('svg', { x: percent(part.from), width: percent(part.to - part.from), height: '100%', class: 'part' },
      s('title', {}, `keys ${part.from} to ${part.to - 1}: ${words}`),
      s('rect', { width: '100%', height: '100%', class: colour(owner?.partition) }),
      s('text', { x: 8, y: 15, class: 'strong' }, owner?.partition == null ? '–' : String(owner.partition)),
      part.to - part.from > KEY_SPACE / 7 && s('text', { x: 8, y: 30 }, words));
  }));
}

function projections(set, people, past) {
  const newest = set.overview.newest_position;
  const rows = set.overview.projections.flatMap((projection) => {
    const points = rates(progressOf(set, projection));
    const here = set.own.flatMap((worker) => worker.projections.filter((own) => own.name === projection.name));
    return [
      h('tr', {},
        cell('projection', 'lead', name(projection.name), still(projection, newest)),
        cell('position', 'number', count(projection.position)),
        cell('lag', 'number', plural(projection.lag_events, 'event'), projection.lag_events ? h('small', {}, ` ${span(projection.lag_seconds)}`) : null),
        cell('events/s', 'number', points.length ? perSecond(points.at(-1).rate) : '–'),
        cell('last two minutes', 'plot', plot(points)),
        cell('on this worker', 'here', here.map((own) => h('div', {}, badge(own.state), h('small', {}, ` ${plural(own.events, 'event')}`))))),
      h('tr', { class: 'more' }, h('td', { colspan: 6 },
        here.filter((own) => own.error).map((own) => h('pre', { class: 'error', dir: 'auto' }, own.error)),
        checkpoints(projection, people, past))),
    ];
  });
  const heads = ['projection', 'position', 'lag', 'events/s', 'last two minutes', 'on this worker'];
  return section('Projections', `newest position ${count(newest)}`, table('projections', heads, rows));
}

/** Says so when a projection is behind and makes no progress. */
function still(projection, newest) {
  const behind = projection.checkpoints.filter((checkpoint) => checkpoint.position < newest);
  const since = Math.min(projection.lag_seconds, Math.max(0, ...behind.map((checkpoint) => checkpoint.moved_age_seconds)));
  return since > STILL ? h('small', { class: 'still' }, `no progress for ${age(since)}`) : null;
}

function checkpoints(projection, people, past) {
  const rows = projection.checkpoints.map((checkpoint) => {
    const owner = people.get(checkpoint.worker_id);
    return h('tr', {},
      h('td', { class: 'keyset' }, checkpoint.keys.replaceAll(',[', ', [')),
      h('td', { class: 'number' }, count(checkpoint.position)),
      h('td', { class: 'number' }, `moved ${age(checkpoint.moved_age_seconds + past)} ago`),
      h('td', {}, chip(owner?.partition), owner ? place(owner) : checkpoint.worker_id ?? 'nobody'));
  });
  return h('details', {}, h('summary', {}, plural(rows.length, 'checkpoint')), h('table', { class: 'checkpoints' }, h('tbody', {}, rows)));
}

/** What is known without an overview. */
function projectionsHere(own) {
  const rows = own.flatMap((worker) => worker.projections.map((projection) => h('tr', {},
    cell('projection', 'lead', name(projection.name)),
    cell('position', 'number', count(projection.position)),
    cell('lag', 'number', count(projection.lag_events)),
    cell('on this worker', '', badge(projection.state), projection.error && h('pre', { class: 'error', dir: 'auto' }, projection.error)))));
  return section('Projections', 'on this worker', table('projections', ['projection', 'position', 'lag', 'on this worker'], rows));
}

function plot(points) {
  const last = points.at(-1);
  const peak = Math.max(1, ...points.map((point) => point.rate));
  const shown = points.filter((point) => point.at >= last.at - PLOTTED);
  const at = ({ at, rate }) => `${(PLOTTED - (last.at - at)).toFixed(1)},${(23 - (21 * rate) / peak).toFixed(1)}`;
  const line = shown.map(at).join(' ');
  return s('svg', { class: 'plot', viewBox: `0 0 ${PLOTTED} 24`, preserveAspectRatio: 'none', role: 'img', 'aria-label': 'events per second' },
    s('title', {}, `events per second, ${perSecond(points.length ? peak : 0)} at the most`),
    s('line', { x1: 0, x2: PLOTTED, y1: 23.5, y2: 23.5, class: 'base' }),
    shown.length > 1 && s('polygon', { points: `${at(shown[0]).split(',')[0]},23.5 ${line} ${PLOTTED},23.5`, class: 'area' }),
    shown.length > 1 && s('polyline', { points: line, class: 'line' }));
}

// Generations.

function generations(overview, past) {
  const all = overview.generations.map((generation) => ({
    ...generation,
    at: generation.created_age_seconds + past,
    // One that was never activated paused until it was superseded, or still does.
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

const SHAPES = { started: 'M0,-5 L5,0 L0,5 L-5,0 Z', joined: 'M0,-5 L5,4 L-5,4 Z', departed: 'M0,5 L5,-4 L-5,-4 Z' };

function shape(cause) {
  const isKnown = Object.hasOwn(SHAPES, cause);
  return s('path', { d: SHAPES[isKnown ? cause : 'started'], class: `cause ${isKnown ? cause : ''}` });
}

function causeMark(cause) {
  return s('svg', { class: 'mark', width: 12, height: 12, viewBox: '-6 -6 12 12', 'aria-hidden': 'true' }, shape(cause));
}

/** Both axes are logarithmic: what happened just now has as much room as what happened last week, and 20 ms as 20 s. */
function timeLine(all) {
  const oldest = Math.max(10, ...all.map((generation) => generation.at)) * 1.3;
  const x = (at) => 98 - (97 * Math.log1p(at)) / Math.log1p(oldest);
  const longest = Math.max(1, ...all.map((generation) => generation.pause));
  const y = (pause) => 86 - (74 * Math.log10(Math.max(pause, 0.001) / 0.001)) / Math.log10(longest / 0.001);
  const ages = [[1, '1 s'], [10, '10 s'], [60, '1 min'], [600, '10 min'], [3600, '1 h'], [21600, '6 h'], [86400, '1 day'], [604800, '1 week'], [2592000, '30 days']];
  const pauses = [[0.001, '1 ms'], [0.01, '10 ms'], [0.1, '100 ms'], [1, '1 s'], [10, '10 s'], [100, '100 s'], [1000, '1000 s']];
  const lines = pauses.filter(([pause]) => pause <= longest);
  const marks = s('svg', { role: 'img', 'aria-label': 'pauses of the last generations by their age' },
    lines.map(([pause]) => s('line', { x2: '100%', y1: y(pause), y2: y(pause), class: 'base' })),
    ages.filter(([at]) => x(at) > 3 && x(at) < 92).map(([at, text], i) =>
      s('text', { x: `${x(at)}%`, y: 104, 'text-anchor': 'middle', class: i % 2 ? 'second' : null }, text)),
    s('text', { x: '100%', y: 104, 'text-anchor': 'end' }, 'now'),
    all.map((generation) => s('svg', { x: `${x(generation.at)}%`, y: y(generation.pause), overflow: 'visible' },
      s('title', {}, `generation ${generation.number}, ${age(generation.at)} ago: ${generation.cause}, ${plural(generation.total_partitions, 'partition')}, paused for ${span(generation.pause)}`),
      s('line', { y2: 86 - y(generation.pause), class: 'stem' }),
      shape(generation.cause))));
  const scale = s('svg', { class: 'scale', 'aria-hidden': 'true' }, lines.map(([pause, text]) => s('text', { y: y(pause) + 3 }, text)));
  return h('div', { class: 'timeline' }, scale, marks);
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && timer === null) poll();
});
setInterval(render, POLL_MS);
poll();
