// A list that the API gives page by page. More pages are read when the end of the list comes into view.

import { call } from "./api.js";
import { clock, count, plural } from "./dom.js";
import { lostText } from "./missing.js";
import { deniedText, state } from "./samples.js";

const PAGE_ROWS = 500;
/** The rows of a page of a list that is read whole: the most that the API allows. */
const WHOLE_PAGE_ROWS = 1000;
/** The most rows that are kept. Beyond it a search has to be narrowed down. */
const ROWS_MAX = 200_000;

/** Reads a whole list, up to `rowsMax` rows. `field` has the rows of an answer. */
export async function readWhole(method, field, rowsMax) {
  const [rows, missing] = [[], new Set()];
  let after;
  do {
    const answer = await call(method, { max: WHOLE_PAGE_ROWS, ...(after ? { after } : {}) });
    rows.push(...answer[field]);
    answer.missing.forEach((node) => missing.add(node));
    after = answer.next;
  } while (after && rows.length < rowsMax);
  return { rows, missing: [...missing], hasMore: Boolean(after) };
}

export class Pages {
  /** `fetch` reads a page: it gets `max` and `after`, and returns `rows`, `next` and `missing`. */
  constructor(table, { noun, empty, fetch, onMissing }) {
    Object.assign(this, { table, noun, empty, fetch, onMissing, rows: [], next: null, isBusy: false, turn: 0, error: null });
  }

  /** Forgets the rows. A page that is on its way is ignored. */
  clear() {
    this.turn += 1;
    Object.assign(this, { rows: [], next: null, isBusy: false, error: null, missing: new Set() });
    this.table.setRows(this.rows);
    this.table.setFoot("");
  }

  /** Reads the list from its start. */
  async reload() {
    this.turn += 1;
    Object.assign(this, { rows: [], next: undefined, isBusy: false, error: null, missing: new Set() });
    this.table.empty = state.isAdmin ? "Loading…" : "Not available.";
    this.table.setRows(this.rows);
    this.table.toStart();
    if (!state.isAdmin) return this.table.setFoot(deniedText("Lists"), { kind: "bad" });
    await this.more();
  }

  /** Reads the next page, if there is one. */
  async more() {
    if (this.isBusy || this.error || this.next === null || this.rows.length >= ROWS_MAX) return;
    this.isBusy = true;
    const turn = this.turn;
    this.table.setFoot("Loading…");
    try {
      const { rows, next, missing = [] } = await this.fetch({ max: PAGE_ROWS, ...(this.next ? { after: this.next } : {}) });
      if (turn !== this.turn) return;
      this.next = next ?? null;
      this.rows.push(...rows);
      this.readAt = Date.now();
      missing.forEach((node) => this.missing.add(node));
    } catch (error) {
      if (turn !== this.turn) return;
      this.error = error;
    }
    this.isBusy = false;
    this.#show();
  }

  /** Takes rows out, such as clients that were closed. */
  remove(isGone) {
    this.rows = this.rows.filter((row) => !isGone(row));
    this.#show();
  }

  #show() {
    const isAtEnd = this.next === null;
    this.table.empty = this.error ? "Nothing could be read." : isAtEnd ? this.empty + lostText("listed") : "Searching…";
    this.onMissing?.([...this.missing]);
    if (this.error) {
      const retry = () => { this.error = null; this.more(); };
      this.table.setRows(this.rows, { total: -1 });
      return this.table.setFoot(this.error.message, { kind: "bad", action: { title: "Try again", run: retry } });
    }
    // May ask for the next page, if the end is in view.
    this.table.setRows(this.rows, { total: isAtEnd ? this.rows.length : -1 });
    if (this.isBusy) return;
    // A page may be empty although others follow. Then no row comes into view that would ask for them.
    if (this.rows.length === 0 && !isAtEnd && this.table.isVisible) return void this.more();
    const shown = plural(this.rows.length, this.noun);
    if (isAtEnd) return this.table.setFoot(`${shown}, as of ${clock(this.readAt)}`);
    if (this.rows.length >= ROWS_MAX) return this.table.setFoot(`The first ${count(this.rows.length)}: narrow the search down to see others`);
    this.table.setFoot(`${shown} so far, as of ${clock(this.readAt)}; more come as you scroll`);
  }
}
