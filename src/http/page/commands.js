// Commands: what an operator who has the token may ask for.

/** How long a command is waited for: longer than the server waits for the database. */
const COMMAND_MS = 15000;

/** The token is kept in the memory of this page alone: closing or reloading the page forgets it. */
const desk = { token: null, by: '', open: null, isSending: false, said: null };

function takesCommands() {
  return document.body.dataset.commands === 'on';
}

/** Makes a button that opens the form of a command. The form is described by attributes, because elements are replaced. */
function commandButton(label, command, set, projection, fixed = {}) {
  if (!takesCommands() || desk.token === null) return null;
  return h('button', { type: 'button', class: 'command', 'data-open': JSON.stringify({ label, command, set, projection, fixed }) }, label);
}

function projectionButtons(set, projection) {
  if (!['running', 'paused'].includes(projection.desired_state)) return null;
  const toggle = projection.desired_state === 'paused' ? ['Resume', 'resume'] : ['Pause', 'pause'];
  const buttons = [
    commandButton(...toggle, set.name, projection.name),
    commandButton('Rewind', 'rewind', set.name, projection.name),
    projection.parked > 0 && commandButton('Replay all', 'replay', set.name, projection.name, { all: true }),
    projection.rebuild ? commandButton('Cancel the rebuild', 'cancel', set.name, projection.name) : commandButton('Rebuild', 'rebuild', set.name, projection.name),
    projection.old && !projection.rebuild && commandButton('Revert the rebuild', 'revert', set.name, projection.name),
  ];
  return buttons[0] && h('div', { class: 'buttons' }, buttons);
}

const TARGETS = [['to_beginning', 'the beginning'], ['to_position', 'a position'], ['to_time', 'a time']];

function signIn() {
  if (!takesCommands()) return null;
  if (desk.token !== null) {
    return h('form', { class: 'sign', 'data-form': 'forget' }, 'Commands are turned on in this page. ', h('button', { type: 'submit' }, 'Forget the token'));
  }
  return h('form', { class: 'sign', 'data-form': 'token' },
    h('label', {}, 'Operator’s token ', h('input', { name: 'token', type: 'password', autocomplete: 'off', required: '' })),
    h('button', { type: 'submit' }, 'Turn commands on'));
}

function said() {
  return desk.said && banner(desk.said.isGood ? 'good' : 'alarm', h('strong', {}, desk.said.title), ' ', desk.said.text);
}

/** Returns the form of the command that is open. */
function commandForm() {
  if (!desk.open) return null;
  const { label, command, projection, fixed } = desk.open;
  const needsReason = ['pause', 'rewind', 'discard', 'rebuild', 'cancel'].includes(command);
  const what = Object.entries(fixed).map(([key, value]) => h('p', {}, `${key}: `, name(Array.isArray(value) ? value.join('/') : String(value))));
  const rewind = command === 'rewind' && [
    h('p', {}, 'The projection clears its read model, and handles the events after this point again.'),
    h('label', {}, 'Rewind to ', h('select', { name: 'target' }, TARGETS.map(([value, text]) => h('option', { value }, text)))),
    h('label', {}, 'Position, or time such as 2026-01-31T12:00:00Z ', h('input', { name: 'value', type: 'text', autocomplete: 'off' })),
  ];
  const rebuild = command === 'rebuild' && [
    h('p', {}, 'The read model is built anew beside the live one, which readers use until the switch.'),
    h('label', {}, 'Events per second (empty: 5,000) ', h('input', { name: 'rate', type: 'text', inputmode: 'numeric', autocomplete: 'off' })),
    h('label', {}, h('input', { name: 'keep_old', type: 'checkbox' }), ' Keep the former tables'),
  ];
  return h('form', { class: 'order', 'data-form': 'order', 'aria-label': label },
    h('h2', {}, `${label}: `, name(projection)), what, rewind, rebuild,
    h('label', {}, `Reason${needsReason ? '' : ' (optional)'} `, h('input', { name: 'reason', type: 'text', autocomplete: 'off', ...(needsReason ? { required: '' } : {}) })),
    h('label', {}, 'Your name ', h('input', { name: 'by', type: 'text', autocomplete: 'off', value: desk.by, required: '' })),
    h('div', { class: 'buttons' },
      h('button', { type: 'submit', class: 'strong', ...(desk.isSending ? { disabled: '' } : {}) }, desk.isSending ? 'Waiting …' : label),
      h('button', { type: 'button', 'data-close': '' }, 'Cancel')));
}

function renderDesk() {
  // Each part has a place of its own, so that a message which appears keeps what is typed.
  const parts = [signIn(), said(), commandForm()].map((part) => h('div', {}, part));
  patch(document.getElementById('desk'), h('div', { id: 'desk' }, ...parts));
}

/** Returns the arguments in a form; throws if they are not complete. */
function orderArguments(order, fields) {
  if (order.command === 'rebuild') return rebuildArguments(fields);
  if (order.command !== 'rewind') return order.fixed;
  const target = fields.get('target');
  const value = fields.get('value').trim();
  if (target === 'to_beginning') return { to_beginning: true };
  if (target === 'to_time') return { to_time: value };
  if (!/^\d+$/.test(value)) throw new Error('The position must be a whole number.');
  return { to_position: Number(value) };
}

function rebuildArguments(fields) {
  const rate = fields.get('rate').trim();
  if (!/^\d*$/.test(rate)) throw new Error('The events per second must be a whole number.');
  return { ...(rate ? { rate: Number(rate) } : {}), ...(fields.has('keep_old') ? { keep_old: true } : {}) };
}

async function send(order, fields) {
  const path = `projections/${encodeURIComponent(order.projection)}/${order.command}`;
  const body = { ...orderArguments(order, fields), reason: fields.get('reason'), by: fields.get('by'), replica_set: order.set };
  const response = await fetch(path, {
    method: 'POST',
    cache: 'no-store',
    credentials: 'omit',
    headers: { Authorization: `Bearer ${desk.token}`, 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(COMMAND_MS),
  });
  if (response.status === 401) {
    desk.token = null;
    throw new Error('The token is wrong. No command was given.');
  }
  const answer = await response.json();
  const number = answer.id == null ? '' : ` (command ${answer.id})`;
  if (response.status === 200) return { isGood: true, title: 'Done:', text: `${answer.message}${number}` };
  if (response.status === 202) return { isGood: true, title: answer.outcome === 'begun' ? 'Begun:' : 'Recorded:', text: `${answer.message ?? answer.error}${number}` };
  return { isGood: false, title: answer.outcome === 'refused' ? 'Refused:' : 'Not done:', text: `${answer.error}${number}` };
}

async function submit(order, fields) {
  Object.assign(desk, { isSending: true, said: null, by: fields.get('by') });
  renderDesk();
  try {
    desk.said = await send(order, fields);
    if (desk.open === order && desk.said.isGood) desk.open = null;
  } catch (error) {
    const isLost = error.name === 'TimeoutError' || error instanceof TypeError;
    desk.said = { isGood: false, title: 'Not done:', text: isLost ? 'The worker has not answered. The last commands show whether the command was recorded.' : error.message };
    if (desk.token === null) desk.open = null;
  }
  desk.isSending = false;
  render();
}

function enter(token) {
  if (/^[\x21-\x7e]{16,}$/.test(token)) Object.assign(desk, { token, said: null });
  else desk.said = { isGood: false, title: 'Not a token:', text: 'it has at least 16 printable ASCII characters, without spaces.' };
}

document.addEventListener('click', (event) => {
  const opener = event.target.closest('[data-open]');
  if (opener) Object.assign(desk, { open: JSON.parse(opener.dataset.open), said: null });
  else if (event.target.closest('[data-close]')) desk.open = null;
  else return;
  // Made again, so that no field keeps what was typed for another command.
  document.getElementById('desk').replaceChildren();
  renderDesk();
  document.querySelector('#desk .order input, #desk .order select')?.focus();
});

document.addEventListener('submit', (event) => {
  event.preventDefault();
  const fields = new FormData(event.target);
  const form = event.target.dataset.form;
  if (form === 'token') enter(fields.get('token').trim());
  else if (form === 'forget') Object.assign(desk, { token: null, open: null, said: null });
  else if (form === 'order' && desk.open && !desk.isSending) return void submit(desk.open, fields);
  document.getElementById('desk').replaceChildren();
  render();
});
