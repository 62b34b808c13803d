// The back ends of the grid, read again and again while they are shown. Those that stall come first.

import { badge, byId, bytes, count, dateAndClock, duration, element, facts, onSubmit, plural } from "./dom.js";
import { showMissing } from "./missing.js";
import { readWhole } from "./pages.js";
import { isPanelOpen, openPanel } from "./panel.js";
import { deniedText, on, state } from "./samples.js";
import { Table } from "./table.js";

/** From when on a back end is shown as stalled that does not read, acknowledge, or answer a ping. */
const STALLED_MS = 5000;
/** The most back ends that are read. */
const ROWS_MAX = 5000;

let table;
let backends = null;
let isBusy = false;
/** Draws the details that were opened last. */
let drawDetails = null;

export function setUp() {
  table = new Table(byId("backends-list"), {
    label: "Back ends", keyOf: (backend) => backend.b, onOpen: openBackend, empty: "Loading…",
    columns: [
      { title: "User", cell: (backend) => backend.u ?? "–" },
      { title: "State", width: "122px", cell: stateBadge },
      { title: "Stalled", class: "number", width: "110px", cell: (backend) => (backend.stalled_ms > 0 ? duration(backend.stalled_ms) : null) },
      { title: "Remote", class: "mono mid", cell: (backend) => backend.remote },
      { title: "Node", class: "number wide", width: "70px", cell: (backend) => String(backend.n) },
      { title: "Consumes", class: "mid", cell: consumed },
      { title: "In flight", class: "number wide", cell: (backend) => count(backend.in_flight) },
      { title: "Buffered", class: "number wide", cell: (backend) => bytes(backend.buffered) },
    ],
  });
  byId("backends-query").addEventListener("input", draw);
  onSubmit("backends-form", () => {});
  on("sample", () => { if (!byId("backends").hidden) read(); });
}

export const view = { id: "backends", show: () => { draw(); read(); }, hide: () => showMissing("backends", []), refresh: read };

async function read() {
  if (!state.isAdmin || isBusy) return;
  isBusy = true;
  try {
    const { rows, missing, hasMore } = await readWhole("backend.list", "backends", ROWS_MAX);
    if (!state.isAdmin) return;
    backends = rows;
    draw();
    drawDetails?.();
    if (!byId("backends").hidden) showMissing("backends", missing);
    table.setFoot(hasMore ? `The first ${plural(rows.length, "back end")}` : plural(rows.length, "back end"));
  } catch (error) {
    if (backends === null) table.empty = "Nothing could be read.";
    draw();
    table.setFoot(error.message, { kind: "bad" });
  } finally {
    isBusy = false;
  }
}

/** Forgets what was read, as after a log-out. */
export function forget() {
  backends = null;
  byId("backends-query").value = "";
  table.setRows([]);
}

function draw() {
  if (byId("backends").hidden) return;
  if (!state.isAdmin) {
    table.empty = "Not available.";
    table.setRows([]);
    return table.setFoot(deniedText("Back ends"), { kind: "bad" });
  }
  const part = byId("backends-query").value;
  const shown = (backends ?? []).filter((backend) => [backend.u ?? "", backend.remote, ...backend.t].some((text) => text.includes(part)));
  shown.sort((a, b) => b.stalled_ms - a.stalled_ms || (a.b < b.b ? -1 : 1));
  if (backends) table.empty = part ? "No back end matches." : "No back end is connected.";
  table.setRows(shown);
}

function stateBadge(backend) {
  if (backend.stalled_ms < STALLED_MS) return backend.topics > 0 ? badge("consumes", "good") : badge("calls");
  // A ping is the only thing that a back end can leave unanswered when nothing waits for it.
  return badge(backend.buffered > 0 ? "does not read" : backend.in_flight > 0 ? "no ack" : "no answer", "bad");
}

/** Names the topics, and how many more there are. */
function consumed(backend) {
  const more = backend.topics - backend.t.length;
  return backend.t.join(", ") + (more > 0 ? ` and ${count(more)} more` : "");
}

function openBackend(backend) {
  const details = element("div");
  const key = `back end ${backend.b}`;
  drawDetails = () => {
    if (isPanelOpen(key)) details.replaceChildren(describe(backends?.find(({ b }) => b === backend.b) ?? backend));
  };
  openPanel({ key, title: backend.u ?? backend.remote, body: [details] });
  drawDetails();
}

function describe(backend) {
  return facts([
    ["State", stateBadge(backend)],
    ["Stalled", backend.stalled_ms > 0 ? duration(backend.stalled_ms) : null],
    ["Remote", backend.remote],
    ["Node", String(backend.n)],
    ["Connected", `${dateAndClock(backend.since)}, for ${duration(Math.max(0, Date.now() - backend.since))}`],
    ["Consumes", consumed(backend)],
    ["Group", backend.group],
    ["In flight", plural(backend.in_flight, "event")],
    ["Buffered", bytes(backend.buffered)],
  ]);
}
