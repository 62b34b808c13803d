// Which view is shown. Its name is in the address, and nothing else is.

import { byId } from "./dom.js";
import { closePanel } from "./panel.js";

const views = new Map();
let shown = null;
let hint = null;

export function setUp(all) {
  for (const view of all) views.set(view.id, view);
  addEventListener("hashchange", showFromAddress);
}

/** Goes to a view. `what` is passed to it, such as what to search for. */
export function goTo(id, what = null) {
  hint = what;
  if (location.hash === `#${id}`) showFromAddress();
  else location.hash = id;
}

export const currentView = () => shown;

/** Goes to the view with this number, counted from 1. */
export function goToNumber(number) {
  const id = [...views.keys()][number - 1];
  if (id) goTo(id);
}

export function showFromAddress() {
  const id = views.has(location.hash.slice(1)) ? location.hash.slice(1) : "overview";
  const view = views.get(id);
  const what = hint;
  hint = null;
  if (shown !== view) {
    shown?.hide?.();
    closePanel();
  }
  shown = view;
  for (const { id: other } of views.values()) byId(other).hidden = other !== id;
  for (const link of byId("nav").children) {
    if (link.hash === `#${id}`) {
      link.setAttribute("aria-current", "page");
      // On a phone the links are wider than the page.
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else {
      link.removeAttribute("aria-current");
    }
  }
  // What had the focus may be hidden now.
  if (document.activeElement === document.body) byId("main").focus();
  document.title = `${byId(`${id}-title`).textContent} · gridcast console`;
  view.show(what);
}

/** Hides every view, as before the log-in. */
export function hideAll() {
  shown?.hide?.();
  shown = null;
  closePanel();
  for (const id of views.keys()) byId(id).hidden = true;
}
