// Words: numbers and durations.

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

/** Formats an age in seconds or longer units, because milliseconds would change all the time. */
function age(seconds) {
  if (seconds == null) return '–';
  return seconds < 120 ? `${Math.round(Math.max(0, seconds))} s` : span(seconds);
}

/** Formats a number of bytes. */
function bytes(number) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  for (; number >= 1000 && unit < units.length - 1; unit += 1) number /= 1000;
  return `${(unit ? fine : plain).format(number)} ${units[unit]}`;
}

function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? '' : 's'}`;
}

/** Quotes a text for a shell. */
function word(text) {
  const line = text.replace(/[\u0000-\u001f\u007f-\u009f]/g, ' ');
  return /^[\p{L}\p{N}_\-./:@]+$/u.test(line) ? line : `'${line.replaceAll("'", "'\\''")}'`;
}

/** Returns a command to type. `worker` stands for the name of the application's program. */
function typed(command, projection, rest = '') {
  return `worker ${command} ${word(projection)}${rest}`;
}
