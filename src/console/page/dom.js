// Building elements and writing values. Text from the server is only ever set as text, never as HTML.

export const byId = (id) => document.getElementById(id);

/** Creates an element. `attributes` may hold listeners, such as `onclick`. Children are nodes or text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const badge = (text, kind = "") => element("span", { class: `badge ${kind}` }, text);

/** Builds a description list from pairs of a term and a text or node. Pairs without a value are left out. */
export function facts(pairs) {
  const list = element("dl", { class: "facts" });
  for (const [term, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("dt", {}, term), element("dd", {}, typeof value === "object" ? value : String(value)));
  }
  return list;
}

export function onSubmit(form, action) {
  byId(form).addEventListener("submit", (event) => { event.preventDefault(); action(); });
}

// ---- values as text ----

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const count = (value) => (isNumber(value) ? whole.format(value) : "–");

/** Writes a rate: few digits, and one decimal where the number is small. */
export function rate(value) {
  if (!isNumber(value)) return "–";
  if (value > 0 && value < 10) return value.toFixed(1);
  return value < 10000 ? whole.format(value) : compact.format(value);
}

export function bytes(value) {
  if (!isNumber(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) [value, at] = [value / 1024, at + 1];
  return `${at === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

/** Writes a duration with its two largest units. */
export function duration(ms) {
  if (!isNumber(ms)) return "–";
  if (ms < 1000) return `${ms < 10 && ms > 0 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : `${seconds} s`;
  const [minutes, hours, days] = [Math.floor(seconds / 60), Math.floor(seconds / 3600), Math.floor(seconds / 86400)];
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

/** Writes how long ago something happened, with the largest unit. */
export function ago(ms) {
  if (ms < 1000) return "just now";
  const text = ms < 60_000 ? `${Math.floor(ms / 1000)} s` : duration(ms).split(" ").slice(0, 2).join(" ");
  return `${text} ago`;
}

const pad = (value, digits = 2) => String(value).padStart(digits, "0");

export function clock(ms) {
  const at = new Date(ms);
  return `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
}

export const clockWithMs = (ms) => `${clock(ms)}.${pad(new Date(ms).getMilliseconds(), 3)}`;

export function dateAndClock(ms) {
  const at = new Date(ms);
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock(ms)}`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** Characters that are not shown, or that show the text behind them in another order. */
const DECEPTIVE = /[\p{Cc}\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu;

/** Shortens text of a device for one line of a list, where it cannot change how its neighbours are shown. */
export function oneLine(text, max = 300) {
  const short = text.length > max ? `${text.slice(0, max)}…` : text;
  return short.replace(/[\r\n\t]+/g, " ").replace(DECEPTIVE, "\ufffd");
}

// ---- messages to the operator ----

let toastTimer;

/** Shows a message for some seconds. Screen readers read it out. */
export function toast(text) {
  byId("toast").textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { byId("toast").textContent = ""; }, 6000);
}

/**
 * Asks for confirmation. `kind` is "danger" for what cannot be undone, else "main". `fields` are nodes between the text
 * and the buttons. Resolves to whether it was given.
 */
export function ask({ title, text, yes, kind, fields = [] }) {
  const dialog = byId("ask");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-fields").replaceChildren(...fields);
  byId("ask-yes").textContent = yes;
  byId("ask-yes").className = kind;
  byId("ask-no").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  if (fields.length === 0) byId("ask-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
