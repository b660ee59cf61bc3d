// Charts: everything that is drawn.

const KEY_SPACE = 65536;
const COLOURS = 8;

function colour(partition) {
  return partition == null ? 'nobody' : `owner-${partition % COLOURS}`;
}

function chip(partition) {
  return s('svg', { class: 'chip', width: 10, height: 10, 'aria-hidden': 'true' },
    s('rect', { width: 10, height: 10, rx: 2, class: colour(partition) }));
}

function strip(parts, people) {
  const percent = (keys) => `${(100 * keys) / KEY_SPACE}%`;
  return s('svg', { class: 'strip', role: 'img', 'aria-label': `the key space in ${plural(parts.length, 'part')}` }, parts.map((part) => {
    const owner = people.get(part.owner);
    const words = part.owner == null ? 'no worker' : owner ? `${owner.host}:${owner.pid}` : part.owner;
    return s('svg', { x: percent(part.from), width: percent(part.to - part.from), height: '100%', class: 'part' },
      s('title', {}, `keys ${part.from} to ${part.to - 1}: ${words}`),
      s('rect', { width: '100%', height: '100%', class: colour(owner?.partition) }),
      s('text', { x: 8, y: 15, class: 'strong' }, owner?.partition == null ? '–' : String(owner.partition)),
      part.to - part.from > KEY_SPACE / 7 && s('text', { x: 8, y: 30 }, words));
  }));
}

function plot(points) {
  const last = points.at(-1);
  const peak = Math.max(1, ...points.map((point) => point.rate));
  const shown = points.filter((point) => point.at >= last.at - PLOTTED);
  const at = ({ at, rate }) => `${(PLOTTED - (last.at - at)).toFixed(1)},${(23 - (21 * rate) / peak).toFixed(1)}`;
  const line = shown.map(at).join(' ');
  return s('svg', { class: 'plot', viewBox: `0 0 ${PLOTTED} 24`, preserveAspectRatio: 'none', role: 'img', 'aria-label': 'events per second' },
    s('title', {}, `events per second, at most ${perSecond(points.length ? peak : 0)}`),
    s('line', { x1: 0, x2: PLOTTED, y1: 23.5, y2: 23.5, class: 'base' }),
    shown.length > 1 && s('polygon', { points: `${at(shown[0]).split(',')[0]},23.5 ${line} ${PLOTTED},23.5`, class: 'area' }),
    shown.length > 1 && s('polyline', { points: line, class: 'line' }));
}

const SHAPES = { started: 'M0,-5 L5,0 L0,5 L-5,0 Z', joined: 'M0,-5 L5,4 L-5,4 Z', departed: 'M0,5 L5,-4 L-5,-4 Z' };

function shape(cause) {
  const isKnown = Object.hasOwn(SHAPES, cause);
  return s('path', { d: SHAPES[isKnown ? cause : 'started'], class: `cause ${isKnown ? cause : ''}` });
}

function causeMark(cause) {
  return s('svg', { class: 'mark', width: 12, height: 12, viewBox: '-6 -6 12 12', 'aria-hidden': 'true' }, shape(cause));
}

/**
 * Both axes are logarithmic, so recent and old generations, and short and long pauses, have the
 * same room.
 */
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
