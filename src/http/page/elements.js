// Elements, and the function that updates the page.

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

/** Shows a text of the application, which may be written in any direction. */
function name(text) {
  return h('bdi', { class: 'name', title: text }, text);
}

const MARKS = {
  running: '●', active: '●', ready: '◐', pending: '◐', stopping: '◐', paused: '◐', retrying: '▲', halted: '■', stopped: '○',
  superseded: '○', unreachable: '■', broken: '■', orphaned: '○', done: '●', refused: '○', failed: '■', executing: '◐', executed: '◐',
  loading: '◐', catching_up: '◐', following: '◐', finishing: '◐',
};

function badge(state) {
  const isKnown = Object.hasOwn(MARKS, state);
  return h('span', { class: `badge ${isKnown ? state : ''}` }, h('i', { 'aria-hidden': 'true' }, isKnown ? MARKS[state] : '·'), ' ', state);
}

function banner(kind, ...content) {
  return h('p', { class: `banner ${kind}`, role: kind === 'alarm' ? 'alert' : 'status' }, ...content);
}

/** Shows a command to type. */
function code(text) {
  return h('code', { dir: 'ltr' }, text);
}

function section(title, note, ...content) {
  return h('section', {}, h('h2', {}, title, note && h('small', {}, note)), ...content);
}

function table(kind, heads, rows) {
  const head = h('tr', {}, heads.map((text) => h('th', { scope: 'col' }, text)));
  return h('table', { class: kind }, h('thead', {}, head), h('tbody', {}, rows));
}

/** Makes a cell that has its column's name, for screens that are too small for columns. */
function cell(label, kind, ...content) {
  return h('td', { 'data-label': label, class: kind }, ...content);
}

/** Makes one tree equal to another with few changes, so that a selection or an open list stays. */
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
