// Refresh: requests the status once a second while the page is visible.

const POLL_MS = 1000;
const PATIENCE_MS = 5000;

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
  // A hidden page does not request the status.
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && timer === null) poll();
});
setInterval(render, POLL_MS);
poll();
