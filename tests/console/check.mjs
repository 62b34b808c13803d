// Uses the console as an operator does. `tests/console.rs` starts it with the browser's path and the API's address, plays
// the device, and is asked for what the device does or gets: one line for each request, one line for each answer.

import { createInterface } from "node:readline";
import { Browser } from "./browser.mjs";

const [executable, base] = process.argv.slice(2);
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const browser = await Browser.start(executable);
const text = (selector) => `(document.querySelector(${JSON.stringify(selector)})?.innerText ?? "")`;

/** Asks the test for something, and waits for its answer. */
async function ask(request) {
  console.log(request);
  return (await answers.next()).value;
}

function assert(condition, what) {
  if (!condition) throw new Error(what);
}

async function logIn(page, name, secret) {
  await page.fill("#login-name", name);
  await page.fill("#login-secret", secret);
  await page.press("Enter");
}

/** Searches for the client by its user, with the keyboard alone. */
async function findClient(page) {
  await page.press("2");
  await page.visible("#clients-list tr[data-at='2']");
  await page.press("/");
  await page.fill("#clients-query", "user:10000");
  await page.press("Enter");
  await page.until(`/^1 client,/.test(${text("#clients-list .foot")})`);
  await page.evaluate("document.querySelector('#clients-list table').focus()");
  await page.press("ArrowDown");
  await page.press("Enter");
  await page.until(`${text("#panel-body")}.includes("<b>name</b>")`, "the client's context is shown as text");
  assert(await page.evaluate("document.querySelector('#panel-body b') === null"), "the context became markup");
}

async function watchClient(page) {
  await page.click("#panel-actions button:nth-child(2)");
  await page.until(`/^\\S* ?Watching client \\d+/.test(${text("#tap-state")})`);
  await ask("send up");
  await page.until(`${text("#tap-list")}.includes("← up")`, "the tap shows what the device sent");
}

async function publish(page) {
  await page.press("7");
  await page.fill("#publish-channel", "news");
  await page.fill("#publish-data", "down");
  await page.click("#publish-form button.main");
  await page.until(`${text("#publish-result")} === "1 client got it."`);
  await ask("receive down");
  await page.evaluate("document.activeElement.blur()");
  await page.press("6");
  await page.until(`${text("#tap-list")}.includes("→ down")`, "the tap shows what the device got");
}

async function lookAtChannels(page) {
  await page.press("3");
  await page.until(`${text("#channels-list")}.includes("<img src=x>")`);
  assert(await page.evaluate("document.querySelector('#channels img') === null"), "a name became markup");
}

async function consume(page) {
  await page.press("4");
  await page.until(`/messages\\s+no consumer/.test(${text("#topics-list")})`);
  await page.click("#topics-list tr[data-at='0'] td");
  await page.click("#panel-actions button:nth-child(2)");
  await page.click("#consume-button");
  await page.click("#ask-yes");
  await page.until(`${text("#consume-list")}.includes("up")`);
  await page.click("#consume-button");
  await page.until(`${text("#consume-state")}.includes("Stopped")`);
}

/** The test's own back end, of the user reader. */
async function lookAtBackEnds(page) {
  await page.evaluate("document.activeElement.blur()");
  await page.press("5");
  await page.until(`/reader\\s+consumes/.test(${text("#backends-list")})`, "the consumer is listed");
  await page.fill("#backends-query", "nobody");
  await page.until(`${text("#backends-list")}.includes("No back end matches.")`);
  await page.fill("#backends-query", "reader");
  await page.click("#backends-list tr[data-at='0'] td");
  await page.until(`/Consumes\\s+audit/.test(${text("#panel-body")})`);
  await page.fill("#backends-query", "");
}

async function closeClient(page) {
  await page.evaluate("document.activeElement.blur()");
  await page.press("2");
  await page.click("#clients-list tr[data-at='0'] td");
  await page.click("#panel-actions button.danger");
  await page.fill("#ask-fields label:last-child input", "bye");
  await page.click("#ask-yes");
  await page.until(`/^0 clients,/.test(${text("#clients-list .foot")})`);
  assert((await ask("closed")) === "1000 bye", "the device was told another reason");
  await page.press("6");
  await page.until(`/close\\s[\\s\\S]*bye/.test(${text("#tap-list")})`, "the tap shows the close");
}

/** A node answers within a time: a page may be empty although others follow. */
async function readEmptyPages(page) {
  const shown = await page.evaluate(`(async () => {
    const { Pages } = await import("/console/pages.js");
    const answers = [{ rows: [], next: "1-7" }, { rows: [], next: "1-8" }, { rows: [{ c: "5" }], next: null }];
    return new Promise((resolve) => {
      const table = { isVisible: true, setRows() {}, toStart() {}, setFoot: (text) => { if (answers.length === 0) resolve(text); } };
      new Pages(table, { noun: "client", empty: "", fetch: async () => answers.shift() ?? { rows: [], next: null } }).reload();
      setTimeout(() => resolve("it waits for more"), 5000);
    });
  })()`);
  assert(shown.startsWith("1 client,"), `after empty pages: ${shown}`);
}

/** A client whose node does not answer is not said to be gone. */
async function searchWhereANodeIsMissing(page) {
  await page.evaluate(`(() => {
    const real = window.realFetch = window.fetch;
    const found = { E: null, r: { clients: [], next: null, missing: [7] } };
    window.fetch = async (path, options) => (path === "v1/client/list" ? new Response(JSON.stringify(found)) : real(path, options));
  })()`);
  await page.press("2");
  await page.fill("#clients-query", "1463819408261513216");
  await page.press("Enter");
  await page.until(`${text("#missing")}.startsWith("Node 7 does not answer")`, "the search tells which node is missing");
  await page.evaluate(`(() => {
    window.fetch = window.realFetch;
    document.querySelector("#clients-query").value = "";
    document.querySelector("#clients-form").requestSubmit();
    document.activeElement.blur();
  })()`);
}

/** A topic that is handed out and not acknowledged is said to be stalled, also in the overview. */
async function showStalledTopic(page) {
  const groups = [{ name: null, backlog: 5, in_flight: 5, stalled_ms: 20_000, consumers: 1, redelivered: 0, dead: 0 }];
  const topic = { t: "handed", store: "memory", messages: 5, bytes: 9, oldest_ms: 0, in_flight: 5, consumers: 1, groups, sinks: [] };
  const answer = { E: null, r: { topics: [topic], next: null, missing: [] } };
  await page.evaluate(`(() => {
    const real = window.realFetch = window.fetch;
    window.fetch = async (path, options) => (path === "v1/topic/list" ? new Response(${JSON.stringify(JSON.stringify(answer))}) : real(path, options));
  })()`);
  await page.press("1");
  await page.until(`${text("#tiles small.warn")} === "handed: 20 s"`, "the overview names the topic that stalls");
  await page.press("4");
  await page.until(`/handed\\s+stalled/.test(${text("#topics-list")})`);
  await page.evaluate("window.fetch = window.realFetch");
}

/** A tap says that nothing is watched on a node that was lost. */
async function watchWhereANodeWasLost(page) {
  await page.evaluate(`(() => {
    const real = window.realFetch = window.fetch;
    const lost = { id: 9, state: "lost", lost_ms: 130_000 };
    window.fetch = async (path, options) => {
      const response = await real(path, options);
      if (path !== "v1/node/list") return response;
      const { E, r } = await response.json();
      return new Response(JSON.stringify({ E, r: { ...r, nodes: [...r.nodes, lost] } }));
    };
  })()`);
  await page.press("1");
  await page.until(`/lost 2 min ago/.test(${text("#nodes-list")})`);
  await page.press("6");
  await page.fill("#tap-value", "10001");
  await page.click("#tap-button");
  await page.until(`${text("#tap-state")}.endsWith("Watching user 10001. Node 9 was lost 2 min ago: what was there is not watched.")`);
  await page.click("#tap-button");
  await page.evaluate("window.fetch = window.realFetch; document.activeElement.blur()");
  await page.press("1");
  await page.until(`!/lost/.test(${text("#nodes-list")})`);
}

async function writeTimes(page) {
  const texts = await page.evaluate('import("/console/dom.js").then(({ ago }) => [999, 1999, 61_000, 7_300_000].map(ago).join(", "))');
  assert(texts === "just now, 1 s ago, 1 min ago, 2 h ago", `times: ${texts}`);
}

/** A node that stops in the middle of an answer is said not to answer. */
async function stopInAnAnswer(page) {
  await page.evaluate(`(() => {
    [window.realFetch, window.realTimeout] = [window.fetch, AbortSignal.timeout];
    AbortSignal.timeout = () => window.realTimeout.call(AbortSignal, 1);
    const untilAborted = (signal) => new ReadableStream({ start: (body) => signal.addEventListener("abort", () => body.error(signal.reason)) });
    window.fetch = async (path, { signal }) => new Response(untilAborted(signal));
  })()`);
  await page.until(`${text("#lost")}.startsWith("The node did not answer in time.")`);
  await page.evaluate("[window.fetch, AbortSignal.timeout] = [window.realFetch, window.realTimeout]");
  await page.until(`${text("#link")}.startsWith("live")`);
}

/** What happens once in a page that is used as it should be. */
async function useAsAdmin() {
  const page = await browser.open(`${base}/console#overview`);
  await page.visible("#login");
  await logIn(page, "admin", "s3cret");
  await page.until(`/\\bup\\b/.test(${text("#nodes-list")})`);
  await page.until(`${text("#link")}.startsWith("live")`);
  await readEmptyPages(page);
  await searchWhereANodeIsMissing(page);
  await stopInAnAnswer(page);
  await showStalledTopic(page);
  await watchWhereANodeWasLost(page);
  await writeTimes(page);
  await findClient(page);
  await watchClient(page);
  await publish(page);
  await lookAtChannels(page);
  await consume(page);
  await lookAtBackEnds(page);
  await closeClient(page);
  await page.click("#logout");
  await page.visible("#login");
  assert((await page.evaluate("document.querySelectorAll('#clients-list tr[data-at]').length")) === 0, "rows are left after the log-out");
  assert((await page.evaluate("document.cookie + localStorage.length + sessionStorage.length + location.search")) === "00", "something was stored");
  assert(page.problems.length === 0, `problems: ${page.problems.join("; ")}`);
  const own = [`${base}/`, `${base.replace("http", "ws")}/`, "data:"];
  const outside = page.requests.filter((url) => !own.some((start) => url.startsWith(start)));
  assert(outside.length === 0, `requests elsewhere: ${outside.join(", ")}`);
  assert(!page.requests.some((url) => url.includes("s3cret")), "an address holds the secret");
}

/** The start page consumes with credentials, too. */
async function useStartPage() {
  const page = await browser.open(`${base}/`);
  await page.fill("#user", "reader");
  await page.fill("#secret", "reads");
  await page.fill("#topic", "messages");
  await page.click("#consume-button");
  await page.until(`${text("#consume-state")}.includes("connected")`);
  await page.until(`${text("#consume-log")}.includes('"s":true')`);
  assert(page.problems.length === 0, `problems of the start page: ${page.problems.join("; ")}`);
}

/** What others see: wrong credentials, no role, no node. */
async function useOtherwise() {
  const page = await browser.open(`${base}/console`, { width: 375, height: 740 });
  await page.visible("#login");
  await logIn(page, "admin", "wrong");
  await page.until(`${text("#login-error")} === "No user has these credentials."`);
  await logIn(page, "reader", "reads");
  await page.until(`${text("#overview-notice")}.includes("roles do not allow it")`);
  await page.visible("#nodes-list tr[data-at='0']");
  await page.press("2");
  await page.until(`${text("#clients-list .foot")}.includes("roles do not allow it")`);
  const width = await page.evaluate("document.documentElement.scrollWidth");
  assert(width <= 375, `the page is ${width} pixels wide`);
  for (const [key, view] of [["7", "messages"], ["1", "overview"]]) {
    await page.press(key);
    await page.until(`location.hash === "#${view}" && document.querySelector("nav [aria-current]").hash === "#${view}"`);
    const [left, right] = await page.evaluate(`(() => { const box = document.querySelector("nav [aria-current]").getBoundingClientRect(); return [box.left, box.right]; })()`);
    assert(left > -1 && right < 376, `the link of ${view} is from ${left} to ${right}`);
  }
  await ask("end");
  await page.until(`${text("#lost")}.includes("cannot be reached") && ${text("#lost")}.includes("Trying again")`);
}

try {
  await useAsAdmin();
  await useStartPage();
  await useOtherwise();
  console.log("ok");
} finally {
  await browser.stop();
}
// The open standard input would keep the process alive.
process.exit();
