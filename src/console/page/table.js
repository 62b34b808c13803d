// A list of any length of which only the visible rows are in the document.

import { element } from "./dom.js";

const ROW_PX = 34;
/** Rows drawn above and below those that are visible. */
const MARGIN_ROWS = 8;
/** Rows from the end at which more are asked for. */
const NEAR_END_ROWS = 40;

let lastTable = 0;

export class Table {
  /**
   * `columns`: each has a `title`, a `cell` that returns text or a node, and a `class` ("number", "mono", and "mid" or
   * "wide" for columns that small screens leave out) and a `width`. `keyOf` names a row across updates. `onOpen` gets a
   * row that is clicked or entered, `onNearEnd` is called when the last rows come into view. Screen readers
   * read the foot out unless the table `isQuiet`.
   */
  constructor(host, { label, columns, keyOf, onOpen, onNearEnd, isQuiet = false, empty = "Nothing here." }) {
    Object.assign(this, { columns, keyOf, onOpen, onNearEnd, empty, rows: [], active: null, drawn: null });
    lastTable += 1;
    this.prefix = `row-${lastTable}-`;
    const heads = columns.map(({ title, class: name = "", width }) => {
      const head = element("th", { scope: "col", class: name }, title);
      if (width) head.style.width = width;
      return head;
    });
    this.body = element("tbody");
    this.table = element("table", { role: "grid", tabindex: "0", "aria-label": label, "aria-rowcount": "1", onkeydown: (event) => this.#onKey(event) },
      element("thead", {}, element("tr", { "aria-rowindex": "1" }, ...heads)), this.body);
    this.note = element("p", { class: "note" });
    this.scroll = element("div", { class: "scroll", onscroll: () => this.#draw() }, this.table, this.note);
    this.foot = element("div", { class: "foot", role: isQuiet ? undefined : "status" });
    host.classList.toggle("opens", Boolean(onOpen));
    host.append(this.scroll, this.foot);
    this.body.addEventListener("click", (event) => this.#onClick(event));
    new ResizeObserver(() => this.#draw()).observe(this.scroll);
  }

  /** Shows these rows. The table keeps the array, and does not change it. */
  setRows(rows, { total = rows.length } = {}) {
    this.rows = rows;
    this.table.setAttribute("aria-rowcount", total < 0 ? "-1" : String(total + 1));
    this.#draw(true);
  }

  /** Shows text below the rows, and a button if there is an action. */
  setFoot(text, { kind = "", action = null } = {}) {
    if (text === this.foot.firstChild?.textContent && !action && this.foot.childElementCount === 1) return;
    this.foot.className = `foot ${kind}`;
    this.foot.replaceChildren(...(text ? [element("span", {}, text)] : []));
    if (action) this.foot.append(element("button", { type: "button", onclick: action.run }, action.title));
  }

  get isVisible() { return this.scroll.clientHeight > 0; }
  get isAtEnd() { return this.scroll.scrollTop + this.scroll.clientHeight >= this.scroll.scrollHeight - ROW_PX; }
  toEnd() { this.scroll.scrollTop = this.scroll.scrollHeight; }
  toStart() { this.scroll.scrollTop = 0; }

  /** Keeps the visible rows in place when rows were removed at the start. */
  shift(rows) { this.scroll.scrollTop -= rows * ROW_PX; }

  focus() { this.table.focus(); }

  /** Draws the visible rows, if they are not drawn yet or have changed. */
  #draw(isChanged = false) {
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / ROW_PX) - MARGIN_ROWS);
    const visible = Math.ceil(this.scroll.clientHeight / ROW_PX) + 2 * MARGIN_ROWS;
    const start = Math.min(first, Math.max(0, this.rows.length - visible));
    const end = Math.min(this.rows.length, start + visible);
    const isNearEnd = end >= this.rows.length - NEAR_END_ROWS && this.isVisible;
    if (isNearEnd && this.rows.length > 0) this.onNearEnd?.();
    if (!isChanged && this.drawn?.[0] === start && this.drawn[1] === end) return;
    this.drawn = [start, end];
    const rows = this.rows.slice(start, end).map((row, at) => this.#row(row, start + at));
    this.note.textContent = this.rows.length === 0 ? this.empty : "";
    this.body.replaceChildren(this.#space(start), ...rows, this.#space(this.rows.length - end));
    this.#markActive();
  }

  #row(row, at) {
    const cells = this.columns.map(({ cell, class: name = "" }) => {
      const value = cell(row);
      const shown = value === null || value === undefined || value === "" ? element("span", { class: "none" }, "–") : value;
      return element("td", { class: name, title: typeof shown === "string" && shown.length > 16 ? shown : undefined }, shown);
    });
    return element("tr", { id: `${this.prefix}${at}`, "data-at": at, "aria-rowindex": at + 2, "aria-selected": "false" }, ...cells);
  }

  #space(rows) {
    const space = element("tr", { class: "space", "aria-hidden": "true" }, element("td"));
    space.style.height = `${rows * ROW_PX}px`;
    return space;
  }

  #onClick(event) {
    const at = event.target.closest("tr")?.dataset.at;
    if (at === undefined) return;
    this.#activate(Number(at));
    this.onOpen?.(this.rows[at]);
  }

  #onKey(event) {
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / ROW_PX) - 2);
    const current = this.#activeAt();
    const steps = { ArrowDown: current + 1, ArrowUp: current - 1, PageDown: current + page, PageUp: current - page, Home: 0, End: this.rows.length - 1 };
    if (event.key === "Enter" && current >= 0) {
      event.preventDefault();
      this.onOpen?.(this.rows[current]);
    } else if (event.key in steps && this.rows.length > 0 && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.#activate(Math.min(this.rows.length - 1, Math.max(0, steps[event.key])));
    }
  }

  #activeAt() { return this.active === null ? -1 : this.rows.findIndex((row) => this.keyOf(row) === this.active); }

  /** Makes a row the active one, and scrolls it into view. */
  #activate(at) {
    this.active = this.keyOf(this.rows[at]);
    const head = this.table.tHead.offsetHeight;
    const [top, height] = [at * ROW_PX, this.scroll.clientHeight - head];
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top + ROW_PX > this.scroll.scrollTop + height) this.scroll.scrollTop = top + ROW_PX - height;
    this.#draw(true);
  }

  #markActive() {
    const at = this.#activeAt();
    const row = at < 0 ? null : document.getElementById(`${this.prefix}${at}`);
    row?.setAttribute("aria-selected", "true");
    if (row) this.table.setAttribute("aria-activedescendant", row.id);
    else this.table.removeAttribute("aria-activedescendant");
  }
}
