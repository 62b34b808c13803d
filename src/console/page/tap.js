// A live view of what happens to devices.

import { Socket, call } from "./api.js";
import { badge, byId, clockWithMs, count, element, facts, dateAndClock, onSubmit, oneLine, plural } from "./dom.js";
import { openClient } from "./clients.js";
import { lostText, showMissing } from "./missing.js";
import { openPanel } from "./panel.js";
import { deniedText, state } from "./samples.js";
import { Table } from "./table.js";

/** The most events that are kept. Beyond it the oldest go. */
const EVENTS_MAX = 10_000;
const KINDS = { connect: "good", refuse: "bad", in: "accent", out: "", call: "", close: "warn", lost: "bad" };

let socket = null;
let table;
let events = [];
let fresh = [];
let lastNumber = 0;
let isPaused = false;
let isDue = false;
let lost = 0;

export function setUp() {
  table = new Table(byId("tap-list"), {
    label: "Events", isQuiet: true, keyOf: (event) => event.number, onOpen: openEvent, empty: "No events yet.",
    columns: [
      { title: "Time", class: "mono mid", width: "116px", cell: (event) => clockWithMs(event.at) },
      { title: "What", width: "92px", cell: (event) => badge(event.what, KINDS[event.what]) },
      { title: "Client", class: "mono mid", width: "180px", cell: (event) => event.c },
      { title: "Details", cell: summary },
    ],
  });
  const shown = byId("tap-shown");
  for (const what of Object.keys(KINDS)) {
    shown.append(element("label", {}, element("input", { type: "checkbox", value: what, checked: true, onchange: draw }), what));
  }
  onSubmit("tap-form", () => (socket ? stop("Stopped") : start()));
  byId("tap-pause").addEventListener("click", () => setPaused(!isPaused));
  byId("tap-clear").addEventListener("click", clear);
  byId("tap-kind").addEventListener("change", showPlaceholder);
}

export const view = {
  id: "tap",
  show(what) {
    if (what) {
      if (socket) stop("");
      byId("tap-kind").value = what.kind;
      byId("tap-value").value = what.value;
      showPlaceholder();
      start();
    }
    byId("tap-button").disabled = !state.isAdmin;
    if (!state.isAdmin) setState(deniedText("Taps"), "bad");
    draw();
  },
};

function showPlaceholder() {
  const examples = { user: "10000", c: "the digits of a client id", channel: "news", topic: "messages", address: "192.0.2.7, or 192.0.2.0/24" };
  byId("tap-value").placeholder = examples[byId("tap-kind").value];
}

async function start() {
  const [kind, value] = [byId("tap-kind").value, byId("tap-value").value.trim()];
  if (!value) return byId("tap-value").focus();
  clear();
  setState("Connecting…");
  const own = new Socket(receive, (why) => { if (socket === own) ended(why ? `Ended: ${why}` : "Stopped", Boolean(why)); });
  socket = own;
  byId("tap-button").textContent = "Stop";
  try {
    if (kind === "c" && !(await isConnected(value))) {
      if (socket === own) stop(`No client with the id ${value} is connected`, true);
      return;
    }
    const { missing = [] } = await own.call("tap.start", { [kind]: value, max_per_s: Number(byId("tap-rate").value) });
    if (socket !== own) return;
    showMissing("tap", missing);
    const lost = lostText("watched");
    setState(`Watching ${kind === "c" ? "client" : kind} ${value}${lost && `.${lost}`}`, "open");
  } catch (error) {
    if (socket === own) stop(error.message, true);
  }
}

/** Whether a client is connected, or may be to a node that does not answer. Ids are never used again. */
async function isConnected(c) {
  const { clients, missing } = await call("client.list", { c });
  return clients.length > 0 || missing.length > 0;
}

/** Ends the tap. The node ends it when its connection closes. */
export function stop(why = "Not started", isBad = false) {
  const own = socket;
  ended(why, isBad);
  own?.close();
}

function ended(text, isBad) {
  socket = null;
  showMissing("tap", []);
  byId("tap-button").textContent = "Start";
  setState(text, isBad ? "bad" : "");
}

function setState(text, kind = "") {
  byId("tap-state").className = `state ${kind}`;
  byId("tap-state").textContent = text;
}

function setPaused(paused) {
  isPaused = paused;
  byId("tap-pause").setAttribute("aria-pressed", String(paused));
  byId("tap-pause").textContent = paused ? "Continue" : "Pause";
  if (!paused) flush();
}

export function clear() {
  [events, fresh, lost] = [[], [], 0];
  setPaused(false);
  draw();
}

function receive({ e, p }) {
  if (e !== "tap") return;
  lastNumber += 1;
  if (p.what === "lost") lost += p.n;
  fresh.push({ ...p, number: lastNumber });
  // While the view is paused, or the page hidden, the newest are kept.
  if (fresh.length > EVENTS_MAX) fresh.splice(0, fresh.length - EVENTS_MAX);
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(flush);
}

/** Shows what has arrived since the last frame. Follows the end if the end was in view. */
function flush() {
  isDue = false;
  if (isPaused || fresh.length === 0) return table.setFoot(footText());
  const follows = table.isAtEnd;
  events.push(...fresh);
  fresh = [];
  const gone = Math.max(0, events.length - EVENTS_MAX);
  events.splice(0, gone);
  draw();
  if (follows) table.toEnd();
  else table.shift(gone);
}

function draw() {
  const wanted = new Set([...byId("tap-shown").querySelectorAll(":checked")].map(({ value }) => value));
  // An event of a kind that this page does not know is always shown.
  table.setRows(events.filter(({ what }) => wanted.has(what) || !(what in KINDS)));
  table.setFoot(footText());
}

function footText() {
  const texts = [events.length > 0 ? plural(events.length, "event") : ""];
  if (lost > 0) texts.push(`${count(lost)} were lost: more came than the tap takes`);
  if (isPaused) texts.push(`paused, ${count(fresh.length)} more have arrived`);
  return texts.filter(Boolean).join("; ");
}

// ---- one event ----

/** What has a place of its own. */
const KNOWN = new Set(["at", "what", "c", "d", "number"]);
/** The fields that are the text of an event of each kind. The others follow with their names. */
const LEAD = { connect: ["path"], refuse: ["why"], in: ["d"], out: ["d"], call: ["m", "arguments"], close: ["code", "reason"] };

/** Puts an event into one line. */
function summary(event) {
  if (event.what === "lost") {
    return event.node === undefined ? `${plural(event.n, "event")} lost` : `node ${event.node} is unreachable: its devices are not watched`;
  }
  const lead = LEAD[event.what] ?? ["d"];
  const text = lead.map((key) => event[key] ?? "").join(" ");
  const arrow = { in: "← ", out: "→ " }[event.what] ?? "";
  const line = element("span", {}, text.trim() || arrow ? element("span", {}, arrow, oneLine(text)) : null);
  for (const [key, value] of fieldsOf(event)) {
    if (lead.includes(key) || key === "node" || (key === "t" && value === "text")) continue;
    line.append(element("span", { class: "key" }, key), oneLine(value, 80));
  }
  return line;
}

/** Returns the fields of an event, besides those that every event has and its data, as texts. */
function fieldsOf(event) {
  const fields = Object.entries(event).filter(([key, value]) => !KNOWN.has(key) && value !== null && value !== "");
  return fields.map(([key, value]) => [key, typeof value === "object" ? JSON.stringify(value) : String(value)]);
}

function openEvent(event) {
  openPanel({
    key: `event ${event.number}`, title: `${event.what} at ${clockWithMs(event.at)}`,
    body: [
      facts([["At", dateAndClock(event.at)], ["Client", event.c ? element("code", {}, event.c) : null], ...fieldsOf(event)]),
      ...(event.d === undefined ? [] : [element("h2", {}, "Data"), element("pre", {}, readable(event.d))]),
    ],
    actions: event.c ? [{ title: "Show the client", run: () => openClient({ c: event.c }) }] : [],
  });
}

/** Indents JSON. Other text stays as it is. */
export function readable(data) {
  if (typeof data !== "string") return JSON.stringify(data, null, 2);
  try {
    return JSON.stringify(JSON.parse(data), null, 2);
  } catch {
    return data;
  }
}
