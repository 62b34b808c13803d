// The topics of the grid and their backlog, read again and again.

import { badge, byId, bytes, count, duration, element, facts, isNumber, onSubmit, plural } from "./dom.js";
import { Chart } from "./chart.js";
import { showMissing } from "./missing.js";
import { readWhole } from "./pages.js";
import { isPanelOpen, openPanel } from "./panel.js";
import { deniedText, on, state } from "./samples.js";
import { Table } from "./table.js";
import { goTo } from "./views.js";

/** The age of the oldest message from which a topic falls behind, and the time from which a group stalls. */
export const BEHIND_MS = 10_000;
/** The most topics that are read. */
const TOPICS_MAX = 5000;
/** Samples kept of each topic: ten minutes. */
const HISTORY_MAX = 300;
/** Topics whose history is kept. */
const HISTORIES_MAX = 1024;

let table;
let topics = null;
let isBusy = false;
let isUnknown = false;
const histories = new Map();

/** Draws the details that were opened last. */
let drawDetails = null;

/** The topics as they were read last; null before. */
export const newestTopics = () => topics;

export function setUp() {
  table = new Table(byId("topics-list"), {
    label: "Topics", keyOf: (topic) => topic.t, onOpen: openTopic, empty: "Loading…",
    columns: [
      { title: "Topic", cell: (topic) => topic.t },
      { title: "State", width: "122px", cell: stateBadge },
      { title: "Waiting", class: "number mid", cell: (topic) => count(topic.messages) },
      { title: "Oldest", class: "number", width: "130px", cell: (topic) => (topic.messages > 0 ? duration(topic.oldest_ms ?? 0) : null) },
      { title: "Bytes", class: "number mid", cell: (topic) => bytes(topic.bytes) },
      { title: "In flight", class: "number wide", cell: (topic) => count(topic.in_flight) },
      { title: "Consumers", class: "number mid", cell: (topic) => count(topic.consumers) },
    ],
  });
  byId("topics-query").addEventListener("input", draw);
  onSubmit("topics-form", () => {});
  on("sample", read);
}

export const view = { id: "topics", show: draw, hide: () => showMissing("topics", []) };

async function read() {
  if (!state.isAdmin || isBusy || isUnknown) return;
  isBusy = true;
  try {
    const { rows, missing, hasMore } = await readWhole("topic.list", "topics", TOPICS_MAX);
    if (!state.isAdmin) return;
    topics = rows;
    remember(Date.now());
    draw();
    drawDetails?.();
    if (!byId("topics").hidden) showMissing("topics", missing);
    table.setFoot(hasMore ? `The first ${plural(topics.length, "topic")}, by name` : plural(topics.length, "topic"));
  } catch (error) {
    isUnknown = error.isUnknown;
    if (topics === null) table.empty = "Nothing could be read.";
    draw();
    table.setFoot(error.message, { kind: "bad" });
  } finally {
    isBusy = false;
  }
}

/** Forgets what was read, as after a log-out. */
export function forget() {
  [topics, isUnknown] = [null, false];
  histories.clear();
}

function remember(at) {
  for (const topic of topics) {
    const history = histories.get(topic.t) ?? [];
    if (history.length === 0 && histories.size >= HISTORIES_MAX) continue;
    history.push({ at, messages: topic.messages });
    if (history.length > HISTORY_MAX) history.shift();
    histories.set(topic.t, history);
  }
  const names = new Set(topics.map(({ t }) => t));
  for (const name of histories.keys()) if (!names.has(name)) histories.delete(name);
}

/** Draws the topics: those come first whose oldest message waits, or that have stalled, the longest. */
function draw() {
  if (byId("topics").hidden) return;
  if (!state.isAdmin) {
    table.empty = "Not available.";
    table.setRows([]);
    return table.setFoot(deniedText("Topics"), { kind: "bad" });
  }
  const part = byId("topics-query").value;
  const shown = (topics ?? []).filter(({ t }) => t.includes(part));
  shown.sort((a, b) => behindMs(b) - behindMs(a) || b.messages - a.messages || (a.t < b.t ? -1 : 1));
  if (topics) table.empty = part ? "No topic matches." : "There are no topics.";
  table.setRows(shown);
}

function stateBadge(topic) {
  const sinks = topic.sinks ?? [];
  if (sinks.some((sink) => !sink.up)) return badge("sink fails", "bad");
  if ((topic.groups ?? []).some(isUnread)) return badge("no consumer", "bad");
  if (stalledMs(topic) > BEHIND_MS) return badge("stalled", "warn");
  if (topic.oldest_ms > BEHIND_MS) return badge("behind", "warn");
  return topic.consumers === 0 && sinks.length === 0 ? badge("no consumer") : badge("keeps up", "good");
}

/** For how long the group that stalls longest has finished none of its messages in flight. */
const stalledMs = (topic) => Math.max(0, ...(topic.groups ?? []).map((group) => group.stalled_ms ?? 0));

/** For how long the oldest message has waited, or no message in flight was finished: the longer of the two. */
export const behindMs = (topic) => Math.max(topic.oldest_ms ?? 0, stalledMs(topic));

/** Whether events wait for a group that nobody reads. Events that were taken over HTTP are in flight. */
function isUnread(group) {
  return group.consumers === 0 && group.backlog > group.in_flight;
}

function openTopic(topic) {
  const host = element("div");
  const chart = new Chart(host, { title: "Waiting messages", format: count, height: 80, series: [{ name: "", of: (s) => s.messages }] });
  const details = element("div");
  const key = `topic ${topic.t}`;
  drawDetails = () => {
    if (!isPanelOpen(key)) return;
    const now = topics?.find(({ t }) => t === topic.t) ?? topic;
    chart.show(histories.get(topic.t) ?? [], 300);
    details.replaceChildren(describe(now));
  };
  openPanel({
    key, title: topic.t, body: [host, details],
    actions: [
      { title: "Watch", run: () => goTo("tap", { kind: "topic", value: topic.t }) },
      { title: "Consume…", run: () => goTo("messages", { topic: topic.t }) },
    ],
  });
  drawDetails();
}

function describe(topic) {
  return facts([
    ["State", stateBadge(topic)],
    ["Store", topic.store === "disk" ? "on disk" : "in memory"],
    ["Waiting", plural(topic.messages, "message")],
    ["Size", bytes(topic.bytes)],
    ["Oldest", topic.messages > 0 ? duration(topic.oldest_ms ?? 0) : null],
    ["In flight", isNumber(topic.in_flight) ? count(topic.in_flight) : null],
    ["Stalled", stalledMs(topic) > BEHIND_MS ? `none in flight was finished for ${duration(stalledMs(topic))}` : null],
    ["Consumers", count(topic.consumers)],
    ...(topic.groups ?? []).map((group) => [group.name === null ? "Default group" : `Group ${group.name}`, describeGroup(group)]),
    ...(topic.sinks ?? []).map((sink) => [`Sink ${sink.name}`, describeSink(sink)]),
  ]);
}

/** Puts a group into one text: what it has not settled, and for how many consumers. */
function describeGroup(group) {
  const texts = [`${count(group.backlog)} held`, `${count(group.in_flight)} in flight`,
    group.stalled_ms > BEHIND_MS ? `none finished for ${duration(group.stalled_ms)}` : "", plural(group.consumers, "consumer"),
    group.redelivered > 0 ? `${count(group.redelivered)} redelivered` : "", group.dead > 0 ? `${count(group.dead)} dead` : ""];
  return texts.filter(Boolean).join("; ");
}

/** Puts a sink into one text: what its engine has not acknowledged, and why. */
function describeSink(sink) {
  const texts = [`${count(sink.backlog)} wait`, sink.backlog > 0 ? `oldest ${duration(sink.oldest_ms)}` : "", `${count(sink.delivered)} delivered`,
    sink.retries > 0 ? plural(sink.retries, "failed attempt") : "", sink.error ?? (sink.up ? "" : "not running")];
  return texts.filter(Boolean).join("; ");
}
