// Two people talk in the page of the example of a chat room. Arguments: the browser, the page, the address of the route.
// With a fourth, a screenshot is written there.

import { Browser } from "../console/browser.mjs";

const [, , executable, page, edge, screenshot] = process.argv;
const browser = await Browser.start(executable);

const shows = (person, text) => person.until(`document.querySelector("ol").innerText.includes(${JSON.stringify(text)})`);

async function logIn(name, password) {
  const person = await browser.open(`${page}?edge=${encodeURIComponent(edge)}`);
  await person.until("document.querySelector('#login')?.onsubmit && true");
  await person.evaluate("window.WebSocket = class extends WebSocket { constructor(...all) { super(...all); window.socket = this; } }");
  await person.fill("#login [name=name]", name);
  await person.fill("#login [name=password]", password);
  await person.click("#login button");
  return person;
}

async function say(person, text, to = "") {
  await person.evaluate(`document.querySelector("#to").value = ${JSON.stringify(to)}`);
  await person.fill("#talk [name=text]", text);
  await person.click("#talk button");
}

const stranger = await logIn("ada", "byron");
await stranger.until("document.body.innerText.includes('wrong name or password')");

const ada = await logIn("ada", "lovelace");
await shows(ada, "You are in lobby.");
await say(ada, "grüße");
await shows(ada, "grüße ✓");
const alan = await logIn("alan", "turing");
await shows(alan, "grüße");
await shows(ada, "alan has come.");
await alan.until("document.querySelector('#online').textContent === 'ada, alan'");
await say(alan, "between us", "ada");
await shows(ada, "alan, to you alone");
await shows(ada, "between us");
if (screenshot) await ada.screenshot(screenshot);
// Who comes back soon is in the room again, without a word, and is heard.
await ada.evaluate("window.socket.close()");
await ada.until("document.querySelector('header output').textContent.startsWith('back in')");
await say(ada, "from a tunnel");
await shows(alan, "from a tunnel");
await say(alan, "welcome back");
await shows(ada, "welcome back");
await alan.evaluate(`(() => { const rooms = document.querySelector("#rooms"); rooms.value = "tea"; rooms.onchange({ target: rooms }); })()`);
await shows(alan, "You are in tea.");
await shows(ada, "alan has gone.");
await ada.until("document.querySelector('#online').textContent === 'ada'");
await browser.stop();
