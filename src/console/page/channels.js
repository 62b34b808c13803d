// The channels of the grid.

import { call } from "./api.js";
import { byId, count, facts, onSubmit } from "./dom.js";
import { showMissing } from "./missing.js";
import { Pages } from "./pages.js";
import { openPanel } from "./panel.js";
import { writeQuery } from "./query.js";
import { Table } from "./table.js";
import { goTo } from "./views.js";

let pages;

export function setUp() {
  const table = new Table(byId("channels-list"), {
    label: "Channels", keyOf: (channel) => channel.c, onOpen: openChannel, onNearEnd: () => pages.more(),
    columns: [
      { title: "Channel", cell: (channel) => channel.c },
      { title: "Clients", class: "number", width: "140px", cell: (channel) => count(channel.clients) },
    ],
  });
  const fetch = async (page) => {
    const prefix = byId("channels-query").value;
    const { channels, next, missing } = await call("channel.list", { ...(prefix ? { prefix } : {}), ...page });
    return { rows: channels, next, missing };
  };
  pages = new Pages(table, { noun: "channel", empty: "No channel has subscribers.", fetch, onMissing: (nodes) => showMissing("channels", nodes) });
  onSubmit("channels-form", () => pages.reload());
  byId("channels-refresh").addEventListener("click", () => pages.reload());
}

export const view = {
  id: "channels",
  show() { if (pages.rows.length === 0) pages.reload(); },
  hide: () => showMissing("channels", []),
  refresh: () => pages.reload(),
};

/** Forgets what was read, as after a log-out. */
export function forget() {
  pages.clear();
  byId("channels-query").value = "";
}

function openChannel(channel) {
  openPanel({
    key: `channel ${channel.c}`, title: channel.c,
    body: [facts([["Channel", channel.c], ["Clients", count(channel.clients)]])],
    actions: [
      { title: "Show its clients", run: () => goTo("clients", { query: writeQuery(new Map([["channel", channel.c]])) }) },
      { title: "Publish…", run: () => goTo("messages", { channel: channel.c }) },
      { title: "Watch", run: () => goTo("tap", { kind: "channel", value: channel.c }) },
    ],
  });
}
