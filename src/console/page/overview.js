// The first view: the figures and charts of the grid, and its nodes.

import { ago, badge, byId, bytes, count, duration, element, facts, isNumber, plural, rate } from "./dom.js";
import { Chart } from "./chart.js";
import { Table } from "./table.js";
import { openPanel, refreshPanel } from "./panel.js";
import { goTo } from "./views.js";
import { deniedText, on, state } from "./samples.js";
import { BEHIND_MS, behindMs, newestTopics } from "./topics.js";

const MILLISECONDS = (value) => (isNumber(value) ? duration(value) : "–");
let charts;
let nodes;

const STATES = {
  up: ["up", "good"],
  lame_duck: ["about to end", "warn"],
  draining: ["draining", "warn"],
  suspected: ["suspected", "warn"],
  silent: ["no answer", "bad"],
  lost: ["lost", "bad"],
  unreachable: ["unreachable", "bad"],
};

function stateBadge(node) {
  if (isNumber(node.lost_ms)) return badge(`lost ${ago(node.lost_ms)}`, "bad");
  return badge(...(STATES[node.state] ?? [node.state ?? "up", node.state ? "" : "good"]));
}

export function setUp() {
  const host = byId("charts");
  charts = [
    new Chart(host, { title: "Messages per second", format: rate, series: [{ name: "from devices", of: (s) => s.in }, { name: "to devices", of: (s) => s.out }] }),
    new Chart(host, { title: "Clients", format: rate, series: [{ name: "", of: (s) => s.clients }] }),
    new Chart(host, { title: "Connects per second", note: "of this node", format: rate, series: [{ name: "accepted", of: (s) => s.connects }, { name: "refused", of: (s) => s.refused }] }),
    new Chart(host, {
      title: "Latency", note: "of this node", format: MILLISECONDS,
      series: [{ name: "page", of: (s) => s.trip }, { name: "calls p99", of: (s) => s.callP99 }, { name: "events p99", of: (s) => s.eventP99 }],
    }),
  ];
  nodes = new Table(byId("nodes-list"), {
    label: "Nodes of the grid", keyOf: (node) => node.id, onOpen: openNode, empty: "Loading…",
    columns: [
      { title: "Node", width: "70px", cell: (node) => String(node.id) },
      { title: "State", width: "146px", cell: stateBadge },
      { title: "Clients", class: "number", cell: (node) => count(node.clients) },
      { title: "In /s", class: "number", cell: (node) => rate(node.in_per_s) },
      { title: "Out /s", class: "number", cell: (node) => rate(node.out_per_s) },
      { title: "Memory", class: "number mid", width: "170px", cell: memory },
      { title: "Uptime", class: "number mid", cell: (node) => duration(node.uptime) },
      { title: "Back ends", class: "number wide", cell: (node) => count(node.backends) },
      { title: "Cores", class: "number wide", width: "70px", cell: (node) => count(node.cores) },
      { title: "Driver", class: "wide", cell: (node) => node.driver },
      { title: "Version", class: "wide", cell: (node) => node.version },
    ],
  });
  byId("span").addEventListener("change", draw);
  on("sample", () => { if (!byId("overview").hidden) draw(); });
}

export const view = { id: "overview", show: draw };

function draw() {
  const span = Number(document.querySelector("input[name=span]:checked").value);
  for (const chart of charts) chart.show(state.samples, span);
  nodes.setRows(state.nodes);
  drawTiles();
  const notice = byId("overview-notice");
  notice.hidden = state.isAdmin || state.samples.length === 0;
  notice.textContent = `${deniedText("Lists and taps")} The rates are those of this node.`;
}

function drawTiles() {
  const sample = state.samples.at(-1);
  const isUp = (node) => !state.missing.includes(node.id) && STATES[node.state]?.[1] !== "bad";
  const up = state.nodes.filter(isUp).length;
  const tiles = [
    ["Nodes", `${up} of ${state.nodes.length}`, up < state.nodes.length ? [`${plural(state.nodes.length - up, "node")} missing`, "bad"] : []],
    ["Clients", count(sample?.clients), isNumber(sample?.backends) ? [plural(sample.backends, "back end")] : []],
    ["From devices", rate(sample?.in), ["messages per second"]],
    ["To devices", rate(sample?.out), sample?.failed > 0 ? [`${rate(sample.failed)} failed per second`, "bad"] : ["messages per second"]],
    ["Connects", rate(sample?.connects), sample?.refused > 0 ? [`${rate(sample.refused)} refused per second`, "warn"] : ["per second, this node"]],
    backlogTile(),
  ];
  byId("tiles").replaceChildren(...tiles.filter(Boolean).map(([title, value, [note = "", kind = ""]]) =>
    element("div", {}, element("dt", {}, title), element("dd", {}, sample ? value : "–", element("small", { class: kind }, note)))));
}

/** Describes the topics together: what waits, and since when. */
function backlogTile() {
  const topics = newestTopics();
  if (!topics) return null;
  const waiting = topics.reduce((sum, topic) => sum + topic.messages, 0);
  const worst = topics.reduce((worst, topic) => (behindMs(topic) > (worst ? behindMs(worst) : 0) ? topic : worst), null);
  if (!worst) return ["Backlog", count(waiting), [`in ${plural(topics.length, "topic")}`]];
  return ["Backlog", count(waiting), [`${worst.t}: ${duration(behindMs(worst))}`, behindMs(worst) > BEHIND_MS ? "warn" : ""]];
}

const memory = (node) => (isNumber(node.memory_max) && node.memory_max > 0
  ? `${bytes(node.memory)} · ${Math.round((100 * node.memory) / node.memory_max)} %` : bytes(node.memory));

function openNode(node) {
  const describe = () => {
    const now = state.nodes.find(({ id }) => id === node.id) ?? node;
    return [facts([
      ["State", stateBadge(now)],
      ["Version", now.version],
      ["Uptime", isNumber(now.uptime) ? duration(now.uptime) : null],
      ["Clients", count(now.clients)],
      ["Back ends", isNumber(now.backends) ? count(now.backends) : null],
      ["From devices", isNumber(now.in_per_s) ? `${rate(now.in_per_s)} per second` : null],
      ["To devices", isNumber(now.out_per_s) ? `${rate(now.out_per_s)} per second` : null],
      ["Memory", isNumber(now.memory) ? bytes(now.memory) : null],
      ["Memory budget", isNumber(now.memory_max) ? bytes(now.memory_max) : null],
      ["Cores", isNumber(now.cores) ? count(now.cores) : null],
      ["Driver", now.driver],
      ["API", now.api_server],
      ["Mesh", now.mesh],
    ])];
  };
  const show = () => goTo("clients", { query: `node:${node.id}` });
  openPanel({
    key: `node ${node.id}`, title: `Node ${node.id}`, body: describe(), onSample: () => refreshPanel(describe()),
    actions: state.isAdmin ? [{ title: "Show its clients", run: show }] : [],
  });
}
