'use strict';
// Shows the answer of /status. Everything in the answer is inserted as text or as a number, never
// as markup.

// Data: the last answer, and the progress of each projection.

/** Seconds that the small plots show, and over which a rate is measured. */
const PLOTTED = 120;
const RATE_OVER = 3.5;

const known = { answer: null, heardAt: 0, isLost: false, progress: new Map() };

function hear(answer) {
  Object.assign(known, { answer, heardAt: now(), isLost: false });
  for (const set of replicaSets(answer)) {
    if (set.overview) set.overview.projections.forEach((projection) => follow(set, projection));
  }
}

function now() {
  return performance.now() / 1000;
}

/** Returns the watched workers by replica set, each with the newest overview of any of them. */
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

/**
 * Records the progress of a projection: the mean position over its keys, which does not change when
 * the checkpoints are cut along new partitions.
 */
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

/** Returns the half-open ranges of an int4multirange. */
function ranges(keys) {
  return [...keys.matchAll(/\[(\d+),(\d+)\)/g)].map(([, from, to]) => [Number(from), Number(to)]);
}

function size(keys) {
  return sum(ranges(keys).map(([from, to]) => to - from));
}

/** Returns the parts of the key space with their owners. Joins neighbouring ranges of one owner. */
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
