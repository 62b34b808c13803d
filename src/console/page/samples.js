// Reads the state of the grid again and again, and keeps its history for the charts.

import { call, read } from "./api.js";

const PERIOD_MS = 2000;
/** Half an hour of samples. */
const SAMPLES_MAX = 900;
/** The time over which quantiles are computed. */
const QUANTILE_MS = 20000;
const RETRY_MIN_MS = 1000;
const RETRY_MAX_MS = 30000;

export const state = {
  /** Whether the page may read lists and open taps. */
  isAdmin: false,
  /** Why not, in the node's words. */
  denial: "",
  nodes: [],
  missing: [],
  samples: [],
};

/** Says that something is not available, and why. */
export const deniedText = (what) => `${what} are not available to you: ${state.denial}.`;

const listeners = { sample: [], link: [] };
let timer;
let failures = 0;
let isRunning = false;

/** Registers a listener: `sample` is told after each reading, `link` of the connection to the node. */
export const on = (event, listener) => listeners[event].push(listener);

const tell = (event, value) => listeners[event].forEach((listener) => listener(value));

export function start() {
  isRunning = true;
  failures = 0;
  readNow();
}

/** Stops reading, and forgets all that was read. */
export function stop() {
  isRunning = false;
  clearTimeout(timer);
  Object.assign(state, { isAdmin: false, denial: "", nodes: [], missing: [], samples: [] });
}

/** Reads at once, instead of when the next reading is due. */
export function readNow() {
  clearTimeout(timer);
  timer = undefined;
  step();
}

// A hidden page reads nothing.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && isRunning && timer === undefined) readNow();
});

async function step() {
  let wait = PERIOD_MS;
  const began = Date.now();
  try {
    await takeSample();
    if (!isRunning) return;
    failures = 0;
    tell("link", { isLive: true, tripMs: state.samples.at(-1).trip });
    tell("sample");
  } catch (error) {
    if (!isRunning) return;
    failures += 1;
    wait = retryMs(failures);
    tell("link", { isLive: false, error, retryAt: Date.now() + wait });
  }
  timer = undefined;
  // Ends here while the page is hidden: `visibilitychange` goes on.
  if (!document.hidden && isRunning) timer = setTimeout(readNow, Math.max(200, began + wait - Date.now()));
}

/** Returns a delay that doubles with each failure. Its random part keeps consoles from coming back at the same time. */
function retryMs(failures) {
  const limit = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** (failures - 1));
  return limit * (0.5 + Math.random() / 2);
}

/** Reads the nodes. Users without the role `admin` get what every user may see. */
export async function readNodes() {
  if (state.isAdmin) return call("node.list");
  const { nodes } = JSON.parse(await read("v1/nodes"));
  return { nodes, missing: nodes.filter((node) => node.state === "lost").map(({ id }) => id) };
}

async function takeSample() {
  const began = performance.now();
  const list = await readNodes();
  const trip = performance.now() - began;
  const counters = parseMetrics(await read("metrics"));
  if (!isRunning) return;
  state.nodes = list.nodes;
  state.missing = list.missing ?? [];
  const sample = { at: Date.now(), trip, counters, ...gridRates(list.nodes) };
  const before = state.samples.at(-1);
  if (before) Object.assign(sample, nodeRates(before, sample));
  const start = state.samples.find(({ at }) => at >= sample.at - QUANTILE_MS);
  if (start) Object.assign(sample, { callP99: quantile("call", start, sample), eventP99: quantile("event", start, sample) });
  state.samples.push(sample);
  if (state.samples.length > SAMPLES_MAX) state.samples.shift();
  // Only recent counters are needed.
  for (const old of state.samples.slice(-20, -15)) delete old.counters;
}

/** Sums what the nodes tell of themselves. A value that no node tells is missing. */
function gridRates(nodes) {
  const sum = (key) => nodes.reduce((total, node) => (typeof node[key] === "number" ? (total ?? 0) + node[key] : total), null);
  return { clients: sum("clients"), backends: sum("backends"), in: sum("in_per_s"), out: sum("out_per_s") };
}

/** Computes rates of the node that serves this page, from its counters. */
function nodeRates(before, now) {
  const seconds = (now.at - before.at) / 1000;
  const perSecond = (name) => {
    const grown = now.counters.get(name) - before.counters?.get(name);
    // A counter that shrank began again: the node was restarted.
    return grown >= 0 && seconds < 30 ? grown / seconds : null;
  };
  const own = { connects: perSecond("clients_total"), failed: perSecond("failed_total"), refused: perSecond("http_refused_total") };
  if (now.in === null) Object.assign(own, { in: perSecond("client_messages_total"), out: perSecond("delivered_total") });
  return own;
}

/** Parses OpenMetrics text into sums over all labels. Buckets of histograms stay apart. */
function parseMetrics(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const match = /^gridcast_(\w+)(\{[^}]*\})? (\S+)/.exec(line);
    if (!match) continue;
    const bucket = match[1].endsWith("_bucket") ? ` ${/le="([^"]*)"/.exec(match[2])?.[1]}` : "";
    const name = match[1] + bucket;
    sums.set(name, (sums.get(name) ?? 0) + Number(match[3]));
  }
  return sums;
}

/** Returns the 99th percentile, in milliseconds, of what a histogram counted between two samples. */
function quantile(name, before, now) {
  if (!before.counters || !now.counters) return null;
  const prefix = `${name}_seconds_bucket `;
  const buckets = [];
  for (const [key, value] of now.counters) {
    if (!key.startsWith(prefix)) continue;
    const edge = key.slice(prefix.length);
    buckets.push([edge === "+Inf" ? Infinity : Number(edge), value - (before.counters.get(key) ?? 0)]);
  }
  buckets.sort((a, b) => a[0] - b[0]);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const at = buckets.findIndex(([, count]) => count >= total * 0.99);
  const [low, lowCount] = at > 0 ? buckets[at - 1] : [0, 0];
  const [high, highCount] = buckets[at];
  if (high === Infinity) return low * 1000;
  // Within a bucket the values are taken to be spread evenly.
  return (low + (high - low) * ((total * 0.99 - lowCount) / Math.max(1, highCount - lowCount))) * 1000;
}
