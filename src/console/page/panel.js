// The details beside a list, and what can be done with them.

import { byId, element } from "./dom.js";
import { on } from "./samples.js";

let current = null;
let cameFrom = null;

/**
 * Opens the details. `actions` are buttons, each with a `title` and `run`. `onSample` is called after each reading of the
 * grid, while these details are open.
 */
export function openPanel({ key, title, body, actions = [], onSample }) {
  if (!current) cameFrom = document.activeElement;
  current = { key, onSample };
  byId("panel-title").textContent = title;
  setActions(actions);
  byId("panel-body").replaceChildren(...body);
  byId("panel").hidden = false;
  byId("panel").scrollTop = 0;
  // Where the details cover the list, the keyboard goes along.
  if (matchMedia("(max-width: 1100px)").matches) byId("panel-title").focus();
}

export function setActions(actions) {
  byId("panel-actions").replaceChildren(...actions.map(({ title, run, kind = "" }) =>
    element("button", { type: "button", class: kind, onclick: run }, title)));
}

/** Whether details are open, and those of this key if one is given. */
export const isPanelOpen = (key) => current !== null && (key === undefined || current.key === key);

/** Replaces the details. Their buttons stay, and so does the focus. */
export function refreshPanel(body) {
  byId("panel-body").replaceChildren(...body);
}

export function closePanel() {
  if (!current) return;
  const hadFocus = byId("panel").contains(document.activeElement);
  current = null;
  byId("panel").hidden = true;
  if (hadFocus) cameFrom?.focus();
}

export function setUp() {
  byId("panel-close").addEventListener("click", closePanel);
  on("sample", () => current?.onSample?.());
}
