// The clients of the grid: search, details, close.

import { call } from "./api.js";
import { ask, byId, bytes, count, dateAndClock, duration, element, facts, onSubmit, plural, toast } from "./dom.js";
import { Pages } from "./pages.js";
import { isPanelOpen, openPanel, refreshPanel, closePanel } from "./panel.js";
import { parseQuery, writeQuery } from "./query.js";
import { state } from "./samples.js";
import { Table } from "./table.js";
import { goTo } from "./views.js";
import { showMissing } from "./missing.js";

let pages;
let table;
/** The filters in use, from a key to its value. */
let filters = new Map();

export function setUp() {
  table = new Table(byId("clients-list"), {
    label: "Clients", keyOf: (client) => client.c, onOpen: openClient, onNearEnd: () => pages.more(),
    columns: [
      { title: "User", cell: (client) => client.u },
      { title: "Client", class: "mono", width: "180px", cell: (client) => client.c },
      { title: "Address", class: "mono mid", width: "176px", cell: (client) => client.remote },
      { title: "Route", class: "mid", cell: (client) => client.path },
      { title: "Node", class: "number mid", width: "70px", cell: (client) => String(client.n) },
      { title: "Connected", class: "number wide", cell: (client) => duration(Math.max(0, Date.now() - client.since)) },
      { title: "Channels", class: "number wide", width: "96px", cell: (client) => count(client.channels) },
      { title: "Unsent", class: "number wide", width: "90px", cell: (client) => bytes(client.buffered) },
    ],
  });
  pages = new Pages(table, { noun: "client", empty: "No client matches.", fetch: fetchPage, onMissing: (nodes) => showMissing("clients", nodes) });
  onSubmit("clients-form", () => search(byId("clients-query").value));
  byId("clients-refresh").addEventListener("click", () => pages.reload());
}

export const view = {
  id: "clients",
  show(what) {
    if (what?.query !== undefined) byId("clients-query").value = what.query;
    if (what || pages.rows.length === 0) search(byId("clients-query").value);
  },
  hide: () => showMissing("clients", []),
  refresh: () => pages.reload(),
};

/** Forgets what was read, as after a log-out. */
export function forget() {
  pages.clear();
  byId("clients-query").value = "";
  filters = new Map();
  drawFilters(null);
}

function search(text) {
  let error = null;
  try {
    filters = parseQuery(text);
  } catch (problem) {
    error = problem;
  }
  drawFilters(error);
  if (error) return;
  closePanel();
  pages.reload();
}

/** Shows how the search was understood, or why it was not. Each filter can be taken away. */
function drawFilters(error) {
  const chip = ([key, value]) => {
    const without = () => {
      filters.delete(key);
      byId("clients-query").value = writeQuery(filters);
      search(byId("clients-query").value);
    };
    return element("span", { class: "chip" }, `${key === "c" ? "client" : key}: ${value}`,
      element("button", { type: "button", "aria-label": `Remove the filter ${key}`, onclick: without }, "✕"));
  };
  byId("clients-filters").replaceChildren(...(error ? [element("span", { class: "bad" }, error.message)] : [...filters].map(chip)));
}

async function fetchPage(page) {
  const params = Object.fromEntries(filters);
  if (params.node !== undefined) params.node = Number(params.node);
  const { clients, next, missing } = await call("client.list", { ...params, ...page });
  return { rows: clients, next, missing };
}

/** Reads one client with its channels, its context and its route. */
async function readClient(id) {
  const [info, { context }, route] = await Promise.all([
    call("conn.call", { c: id, f: "info" }), call("conn.call", { c: id, f: "get_context" }), readRoute(id),
  ]);
  const user = context.user_id;
  const u = typeof user === "string" || typeof user === "number" ? String(user) : null;
  return {
    c: id, n: info.node, u, remote: info.remote, ...route, since: info.since, channels: info.channels.length,
    buffered: info.buffered, names: info.channels, context,
  };
}

/** Reads the route of a client, which only lists tell. Not everybody may read lists, nor does an older node know them. */
async function readRoute(id) {
  if (!state.isAdmin) return {};
  try {
    const { clients } = await call("client.list", { c: id });
    return clients.length > 0 ? { path: clients[0].path } : {};
  } catch (error) {
    if (error.isUnknown) return {};
    throw error;
  }
}

// ---- details ----

/** Opens the details of a client, of which at least the id is known. */
export function openClient(client) {
  const key = `client ${client.c}`;
  const reload = () => loadClient(key, client);
  openPanel({
    key, title: client.u ? `User ${client.u}` : `Client ${client.c}`, body: [element("p", { class: "hint" }, "Loading…")],
    actions: [
      { title: "Refresh", run: reload },
      ...(state.isAdmin ? [{ title: "Watch", run: () => goTo("tap", { kind: "c", value: client.c }) }] : []),
      { title: "Send…", run: () => goTo("messages", { client: client.c }) },
      { title: "Close…", kind: "danger", run: () => closeClient(client) },
    ],
  });
  reload();
}

async function loadClient(key, client) {
  let body;
  try {
    body = describe({ ...client, ...(await readClient(client.c)) });
  } catch (error) {
    body = [element("p", { class: "notice bad" }, error.message)];
  }
  if (isPanelOpen(key)) refreshPanel(body);
}

function describe(client) {
  const channel = (name) => element("button", { type: "button", class: "inline", onclick: () => goTo("clients", { query: writeQuery(new Map([["channel", name]])) }) }, name);
  const names = client.names.slice(0, 200).map((name) => element("span", { class: "chip plain" }, channel(name)));
  const rest = client.names.length - names.length;
  return [
    facts([
      ["Client id", element("code", {}, client.c)],
      ["User", client.u],
      ["Address", element("code", {}, client.remote)],
      ["Route", client.path],
      ["Node", client.n],
      ["Connected", `${dateAndClock(client.since)}, for ${duration(Math.max(0, Date.now() - client.since))}`],
      ["Unsent", bytes(client.buffered)],
    ]),
    element("h2", {}, client.names.length === 0 ? "No channels" : plural(client.names.length, "channel")),
    ...(names.length > 0 ? [element("p", { class: "chips" }, ...names, rest > 0 ? ` and ${count(rest)} more` : "")] : []),
    element("h2", {}, "Context"),
    element("pre", {}, JSON.stringify(client.context, null, 2)),
  ];
}

async function closeClient(client) {
  const code = element("input", { type: "number", min: "1000", max: "4999", value: "1000", required: true });
  const reason = element("input", { maxlength: "123", autocomplete: "off" });
  const isSure = await ask({
    title: "Close this connection?", yes: "Close the connection", kind: "danger",
    text: `${client.u ? `User ${client.u}, client` : "Client"} ${client.c}. The device may connect again.`,
    fields: [element("label", {}, "Close code ", code), element("label", {}, "Reason, which the device is told ", reason)],
  });
  if (!isSure) return;
  try {
    await call("conn.call", { c: client.c, f: "close", a: [Number(code.value), reason.value] });
    pages.remove(({ c }) => c === client.c);
    closePanel();
    toast(`Client ${client.c} was closed with code ${code.value}.`);
  } catch (error) {
    toast(`Not closed: ${error.message}`);
  }
}
