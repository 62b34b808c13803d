// Drives Chromium through the DevTools protocol over a pipe, with what Node has built in.

import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
];

/** The longest that anything awaited may take, far beyond what a healthy node and browser need. */
const DEADLINE_MS = 60_000;

export class Browser {
  /** Starts a browser with a profile of its own. */
  static async start(executable) {
    const browser = new Browser();
    browser.profile = await mkdtemp(join(tmpdir(), "gridcast-console-"));
    browser.child = spawn(executable, [...FLAGS, `--user-data-dir=${browser.profile}`, "about:blank"], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    browser.child.on("exit", () => browser.#fail(new Error("the browser ended")));
    browser.#read();
    return browser;
  }

  waiting = new Map();
  pages = new Map();
  lastId = 0;

  /** Reads messages, each of which ends with a zero byte. */
  #read() {
    let rest = Buffer.alloc(0);
    this.child.stdio[4].on("data", (data) => {
      rest = Buffer.concat([rest, data]);
      for (let end = rest.indexOf(0); end >= 0; end = rest.indexOf(0)) {
        const message = JSON.parse(rest.subarray(0, end).toString());
        rest = rest.subarray(end + 1);
        this.#handle(message);
      }
    });
  }

  #handle({ id, result, error, method, params, sessionId }) {
    if (id === undefined) return this.pages.get(sessionId)?.handle(method, params);
    const { resolve, reject } = this.waiting.get(id) ?? {};
    this.waiting.delete(id);
    if (error) reject?.(new Error(error.message));
    else resolve?.(result);
  }

  #fail(error) {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }

  send(method, params = {}, sessionId) {
    this.lastId += 1;
    const id = this.lastId;
    this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  /** Opens a page. `width` and `height` are in CSS pixels. */
  async open(url, { width = 1360, height = 860, scheme = "light" } = {}) {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page((method, params) => this.send(method, params, sessionId));
    this.pages.set(sessionId, page);
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await page.send(`${domain}.enable`);
    await page.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 600 });
    await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }, { name: "prefers-reduced-motion", value: "reduce" }] });
    await page.send("Page.navigate", { url });
    return page;
  }

  async stop() {
    this.child.removeAllListeners("exit");
    const ended = new Promise((resolve) => this.child.once("exit", resolve));
    this.send("Browser.close").catch(() => {});
    await ended;
    await rm(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

export class Page {
  /** What the page wrote to its console as an error, what it threw, and what its policy refused. */
  problems = [];
  /** The addresses that the page asked for. */
  requests = [];

  constructor(send) { this.send = send; }

  handle(method, params) {
    if (method === "Network.requestWillBeSent") this.requests.push(params.request.url);
    if (method === "Network.webSocketCreated") this.requests.push(params.url);
    if (method === "Log.entryAdded" && params.entry.level === "error") this.problems.push(params.entry.text);
    if (method === "Runtime.consoleAPICalled" && ["error", "warning"].includes(params.type)) this.problems.push(JSON.stringify(params.args));
    if (method === "Runtime.exceptionThrown") this.problems.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
  }

  /** Evaluates an expression. */
  async evaluate(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  /** Waits until an expression is true, and returns its value. The expression is evaluated at each change of the page. */
  async until(expression, what = expression) {
    const watch = `new Promise((resolve) => {
      const check = () => { let value = null; try { value = ${expression}; } catch {} if (value) finish(value); };
      const observer = new MutationObserver(check);
      const timer = setInterval(check, 50);
      const deadline = setTimeout(() => finish(null), ${DEADLINE_MS});
      const finish = (value) => { observer.disconnect(); clearInterval(timer); clearTimeout(deadline); resolve(value); };
      observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
      check();
    })`;
    const value = await this.evaluate(watch);
    if (!value) throw new Error(`did not come true: ${what}\n${await this.text()}\n${this.problems.join("\n")}`);
    return value;
  }

  text() { return this.evaluate("document.body.innerText"); }

  /** Waits until an element is visible. */
  visible(selector) {
    return this.until(`document.querySelector(${JSON.stringify(selector)})?.getClientRects().length > 0`, `${selector} is visible`);
  }

  /** Clicks in the middle of an element, as a mouse would. */
  async click(selector) {
    await this.visible(selector);
    const { x, y } = await this.evaluate(`(() => {
      const element = document.querySelector(${JSON.stringify(selector)});
      element.scrollIntoView({ block: "nearest" });
      const box = element.getBoundingClientRect();
      return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
    })()`);
    for (const type of ["mousePressed", "mouseReleased"]) await this.send("Input.dispatchMouseEvent", { type, x, y, button: "left", clickCount: 1 });
  }

  /** Replaces the text of a field, as a keyboard would. */
  async fill(selector, text) {
    await this.visible(selector);
    await this.evaluate(`document.querySelector(${JSON.stringify(selector)}).select()`);
    await this.send("Input.insertText", { text });
  }

  async press(key) {
    const codes = { Enter: 13, Escape: 27, ArrowUp: 38, ArrowDown: 40, ArrowLeft: 37, ArrowRight: 39, Home: 36, End: 35, Tab: 9 };
    const text = key === "Enter" ? "\r" : key.length === 1 ? key : undefined;
    const event = { key, text, windowsVirtualKeyCode: codes[key] ?? key.toUpperCase().charCodeAt(0), code: key };
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", ...event });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  async screenshot(file) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png" });
    await writeFile(file, Buffer.from(data, "base64"));
  }
}
