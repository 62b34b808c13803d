// A line chart that moves with time, drawn as SVG.

import { duration, element, isNumber } from "./dom.js";

const HEIGHT_PX = 150;
const LEFT_PX = 54;
/** The shortest time that is shown: less has too few samples to say much. */
const SPAN_MIN_S = 60;
const BOTTOM_PX = 16;
const TOP_PX = 6;

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Returns the smallest of 1, 2, 4, 6 and 8 times a power of ten that is not below the value. Its half is round, too. */
function niceAbove(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.9999);
}

export class Chart {
  /** `series`: each has a `name` and `of`, which reads its value from a sample. `format` writes a value. */
  constructor(host, { title, note = "", series, format, height = HEIGHT_PX }) {
    Object.assign(this, { title, series, format, height, samples: [], spanS: 300, cursor: null });
    this.legend = element("div", { class: "legend" });
    this.svg = shape("svg", { role: "img", tabindex: "0" });
    this.heading = element("small", {}, note);
    host.append(element("div", { class: `chart${height < HEIGHT_PX ? " small" : ""}` },
      element("header", {}, element("h3", {}, title, " ", this.heading), this.legend), this.svg));
    this.svg.addEventListener("pointermove", (event) => this.#pointAt(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.#setCursor(null));
    this.svg.addEventListener("blur", () => this.#setCursor(null));
    this.svg.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#draw()).observe(this.svg);
  }

  /** Shows the samples of the last `spanS` seconds, or of as many as there are. Each has `at`, in Unix milliseconds. */
  show(samples, spanS) {
    const ageS = samples.length > 0 ? (samples.at(-1).at - samples[0].at) / 1000 : 0;
    Object.assign(this, { samples, spanS: Math.min(spanS, Math.max(SPAN_MIN_S, ageS)) });
    this.#draw();
  }

  #onKey(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const last = this.samples.length - 1;
    const at = this.cursor ?? last + (event.key === "ArrowLeft" ? 1 : 0);
    this.#setCursor(Math.min(last, Math.max(0, at + (event.key === "ArrowLeft" ? -1 : 1))));
  }

  /** Moves the cursor to the sample that is nearest to a place. */
  #pointAt(x) {
    const distance = (sample) => Math.abs(this.#x(sample.at) - x);
    const nearest = this.samples.reduce((best, sample, at) => (distance(sample) < distance(this.samples[best]) ? at : best), 0);
    this.#setCursor(this.samples.length > 0 ? nearest : null);
  }

  #setCursor(at) {
    this.cursor = at;
    this.#draw();
  }

  #x(at) {
    const end = this.samples.at(-1)?.at ?? 0;
    return LEFT_PX + (1 - (end - at) / (this.spanS * 1000)) * (this.width - LEFT_PX - 4);
  }

  #draw() {
    this.width = this.svg.clientWidth;
    if (this.width === 0) return;
    const shown = this.samples.filter((sample) => this.#x(sample.at) >= LEFT_PX - 2);
    const values = shown.flatMap((sample) => this.series.map(({ of }) => of(sample))).filter(isNumber);
    const top = niceAbove(Math.max(0, ...values));
    const bottom = this.height - BOTTOM_PX;
    const y = (value) => bottom - (value / top) * (bottom - TOP_PX);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.replaceChildren(...this.#axes(top, y), ...this.#lines(shown, y), ...this.#cursorLine(bottom));
    this.#writeLegend();
  }

  #axes(top, y) {
    const marks = this.height < HEIGHT_PX ? [0, 1] : [0, 0.5, 1];
    const rows = marks.flatMap((part) => [
      shape("line", { class: "grid", x1: LEFT_PX, x2: this.width, y1: Math.round(y(top * part)) + 0.5, y2: Math.round(y(top * part)) + 0.5 }),
      shape("text", { x: LEFT_PX - 6, y: y(top * part) + 4, "text-anchor": "end" }, this.format(top * part)),
    ]);
    const base = { y: this.height - 2 };
    const span = duration(this.spanS * 1000).replace(" min 0 s", " min");
    return [...rows, shape("text", { ...base, x: LEFT_PX }, `−${span}`), shape("text", { ...base, x: this.width - 2, "text-anchor": "end" }, "now")];
  }

  /** Draws each series. A missing value, and a gap in time, interrupts its line. */
  #lines(shown, y) {
    return this.series.flatMap(({ of }, number) => {
      let [line, areas, start, last] = ["", "", null, null];
      const close = () => { if (start !== null) areas += `L${last.x} ${y(0)}L${start} ${y(0)}Z`; start = null; };
      for (const sample of shown) {
        const value = of(sample);
        if (!isNumber(value)) { close(); continue; }
        const point = { at: sample.at, x: this.#x(sample.at).toFixed(1), y: y(value).toFixed(1) };
        if (start !== null && point.at - last.at > 15000) close();
        const isFirst = start === null;
        const step = `${isFirst ? "M" : "L"}${point.x} ${point.y}`;
        // A line of no length makes a lone point visible.
        [line, areas, start, last] = [line + step + (isFirst ? "h0" : ""), areas + step, start ?? point.x, point];
      }
      close();
      return [shape("path", { class: `area s${number + 1}`, d: areas }), shape("path", { class: `line s${number + 1}`, d: line })];
    });
  }

  #cursorLine(bottom) {
    const sample = this.samples[this.cursor ?? -1];
    if (!sample) return [];
    const x = this.#x(sample.at);
    return [shape("line", { class: "cursor", x1: x, x2: x, y1: TOP_PX, y2: bottom })];
  }

  /** Writes the values at the cursor, or the latest ones. */
  #writeLegend() {
    const sample = this.samples[this.cursor ?? this.samples.length - 1];
    const texts = this.series.map(({ name, of }) => [name, sample ? this.format(of(sample)) : "–"]);
    this.legend.replaceChildren(...texts.map(([name, text], at) =>
      element("span", { class: `s${at + 1}` }, name ? `${name} ` : "", element("b", {}, text))));
    const when = this.cursor === null || !sample ? "now" : new Date(sample.at).toTimeString().slice(0, 8);
    this.svg.setAttribute("aria-label", `${this.title}, ${when}: ${texts.map((pair) => pair.join(" ")).join(", ")}`);
  }
}
