// Runs a scenario here, or in the browser that is named after it. The addresses of nodes follow. Each line on standard
// output asks the test for something; the answer is a line on standard input. The last line is "ok".

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { connect } from "../../clients/js/gridcast.js";
import { Browser } from "../console/browser.mjs";
import * as scenarios from "./scenarios.js";

const [, , name, browser, ...urls] = process.argv;
// A device that never gets what it waits for.
setTimeout(() => {
  console.error(`${name} takes too long`);
  process.exit(1);
}, 120_000).unref();
const input = createInterface({ input: process.stdin });
const answers = input[Symbol.asyncIterator]();

async function ask(text) {
  process.stdout.write(`${text}\n`);
  return (await answers.next()).value;
}

const FILES = {
  "/gridcast.js": ["../../clients/js/gridcast.js", "text/javascript"],
  "/scenarios.js": ["scenarios.js", "text/javascript"],
};

/** Serves a page with the client, on a port that the system picks. */
async function serve() {
  const server = createServer(async ({ url }, response) => {
    const [file, type] = FILES[url] ?? [];
    response.setHeader("content-type", type ?? "text/html");
    response.end(file ? await readFile(new URL(file, import.meta.url)) : "<!doctype html><title>device</title>");
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

async function runInBrowser() {
  const server = await serve();
  const chromium = await Browser.start(browser);
  const page = await chromium.open(`http://127.0.0.1:${server.address().port}/`);
  await page.until("document.title === 'device'");
  await page.evaluate(`(() => {
    let last = Promise.resolve();
    const ask = (text) => (last = last.then(() => new Promise((answered) => (window.asked = { text, answered }))));
    Promise.all([import("/gridcast.js"), import("/scenarios.js")])
      .then(([{ connect }, { ${name} }]) => ${name}(connect, ${JSON.stringify(urls)}, ask))
      .then(() => (window.ended = "ok"), (error) => (window.ended = String(error.stack)));
  })()`);
  for (;;) {
    const { asked, ended } = await page.until("(window.asked || window.ended) && { asked: window.asked?.text, ended: window.ended }");
    if (ended) {
      await chromium.stop();
      server.close();
      if (ended !== "ok") throw new Error(ended);
      return;
    }
    const answer = await ask(asked);
    await page.evaluate(`(() => { const { answered } = window.asked; window.asked = null; answered(${JSON.stringify(answer)}); })()`);
  }
}

await (browser ? runInBrowser() : scenarios[name](connect, urls, ask));
process.stdout.write("ok\n");
input.close();
