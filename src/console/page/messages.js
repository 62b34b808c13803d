// Publish, send and consume by hand.

import { ApiError, call, Socket } from "./api.js";
import { ask, byId, clockWithMs, count, element, facts, oneLine, onSubmit, plural } from "./dom.js";
import { openPanel } from "./panel.js";
import { openClient } from "./clients.js";
import { readable } from "./tap.js";
import { newestTopics } from "./topics.js";
import { Table } from "./table.js";

/** The most events that the console holds, and so takes: without an acknowledgement the node sends no more. */
const HELD_MAX = 100;
/** The most events that are shown. Beyond it the oldest go. */
const EVENTS_MAX = 2000;

let consumer = null;
let table;
let events = [];

export function setUp() {
  onSubmit("publish-form", publish);
  onSubmit("send-form", send);
  onSubmit("consume-form", () => (consumer ? stop("Stopped") : consume()));
  table = new Table(byId("consume-list"), {
    label: "Events", isQuiet: true, keyOf: (event) => event.number, onOpen: openEvent, empty: "No events.",
    columns: [
      { title: "Time", class: "mono mid", width: "116px", cell: (event) => clockWithMs(event.at) },
      { title: "Topic", class: "mid", width: "150px", cell: (event) => event.t },
      { title: "Client", class: "mono mid", width: "180px", cell: (event) => event.c },
      { title: "Event", cell: ({ d }) => oneLine(contentOf(d)) },
    ],
  });
}

export const view = {
  id: "messages",
  show(what) {
    if (what?.channel !== undefined) fill("publish-channel", what.channel, "publish-data");
    if (what?.client !== undefined) fill("send-client", what.client, "send-data");
    if (what?.topic !== undefined) fill("consume-topics", what.topic, "consume-button");
    byId("topic-names").replaceChildren(...(newestTopics() ?? []).slice(0, 200).map(({ t }) => element("option", { value: t })));
  },
};

function fill(field, value, next) {
  byId(field).value = value;
  byId(next).focus();
  byId(next).scrollIntoView({ block: "center" });
}

async function showResult(output, action) {
  let [kind, text] = ["", "…"];
  byId(output).textContent = text;
  try {
    [kind, text] = await action();
  } catch (error) {
    [kind, text] = ["bad", error.isDenied ? `Not allowed: ${error.message}` : error.message];
  }
  byId(output).className = kind;
  byId(output).textContent = text;
}

const content = (form) => ({ d: byId(`${form}-data`).value, ...(byId(`${form}-type`).value === "binary" ? { t: "binary" } : {}) });

function publish() {
  const channel = byId("publish-channel").value;
  return showResult("publish-result", async () => {
    const { s, f } = await call("mesh.publish", { c: channel, ...content("publish") });
    if (s + f === 0) return ["warn", `No client is subscribed to “${channel}”.`];
    return f === 0 ? ["good", `${plural(s, "client")} got it.`] : ["bad", `${plural(s, "client")} got it, ${count(f)} did not.`];
  });
}

function send() {
  return showResult("send-result", async () => {
    await call("mesh.send", { c: byId("send-client").value.trim(), ...content("send") });
    return ["good", "Sent."];
  });
}

// ---- consuming ----

/**
 * Consumes topics. If events are to be returned, none is acknowledged: when the connection ends, the node gives them to
 * others. Otherwise each is acknowledged as it arrives, and is gone.
 */
async function consume() {
  const topics = [...new Set(byId("consume-topics").value.split(",").map((name) => name.trim()).filter(Boolean))];
  const keeps = byId("consume-keep").checked;
  const text = keeps
    ? `Up to ${HELD_MAX} events are held here until you stop, and then returned to their topics. Until then your back ends do not get them.`
    : "Events that arrive here are taken out of their topics for good. Your back ends do not get them.";
  if (!(await ask({ title: `Consume ${topics.join(", ")}?`, text, yes: "Consume", kind: keeps ? "main" : "danger" }))) return;
  [events, lastNumber] = [[], 0];
  table.setRows(events);
  setState("Connecting…");
  const own = new Socket((event) => receive(own, event, keeps), (why) => { if (consumer === own) ended(why ? `Ended: ${why}` : "Stopped", Boolean(why)); });
  consumer = own;
  byId("consume-button").textContent = "Stop";
  try {
    const { w } = await own.call("queue.pop", { t: topics, a: true, w: HELD_MAX });
    if (consumer === own) setState(`Consuming ${topics.join(", ")}${w ? `. ${w}` : ""}`, "open");
  } catch (error) {
    if (consumer === own) stop(error instanceof ApiError ? error.message : String(error), true);
  }
}

let lastNumber = 0;

function receive(own, { e, p }, keeps) {
  if (e !== "queue.pop" || consumer !== own) return;
  if (!keeps) own.tell("queue.ack", { g: p.g });
  lastNumber += 1;
  events.push({ ...p, at: Date.now(), number: lastNumber });
  if (events.length > EVENTS_MAX) events.shift();
  if (events.isDue) return;
  events.isDue = true;
  requestAnimationFrame(drawEvents);
}

function drawEvents() {
  const follows = table.isAtEnd;
  events.isDue = false;
  table.setRows(events);
  if (follows) table.toEnd();
  table.setFoot(plural(lastNumber, "event"));
}

/** Ends consuming. */
export function stop(why = "Not consuming", isBad = false) {
  const own = consumer;
  ended(why, isBad);
  own?.close();
}

function ended(text, isBad) {
  consumer = null;
  byId("consume-button").textContent = "Consume…";
  setState(text, isBad ? "bad" : "");
}

export function clear() {
  [events, lastNumber] = [[], 0];
  table.setRows(events);
  table.setFoot("");
  for (const output of ["publish-result", "send-result"]) byId(output).textContent = "";
}

function setState(text, kind = "") {
  byId("consume-state").className = `state ${kind}`;
  byId("consume-state").textContent = text;
}

/** Returns what a device sent, or the whole event for other kinds. */
function contentOf(event) {
  const data = parse(event);
  if (data?.frame) return `${data.frame.type === "text" ? "" : `${data.frame.type} `}${data.frame.data}`;
  return typeof event === "string" ? event : JSON.stringify(event);
}

function parse(event) {
  if (typeof event !== "string") return event;
  try { return JSON.parse(event); } catch { return null; }
}

function openEvent(event) {
  openPanel({
    key: `consumed ${event.number}`, title: `Event of ${event.t}`,
    body: [
      facts([["Topic", event.t], ["Client", element("code", {}, event.c)], ["Node", event.n], ["Arrived", clockWithMs(event.at)]]),
      element("pre", {}, readable(event.d)),
    ],
    actions: [
      { title: "Answer…", run: () => fill("send-client", event.c, "send-data") },
      { title: "Show the client", run: () => openClient({ c: event.c }) },
    ],
  });
}
