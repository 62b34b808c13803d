// What a device does with the JavaScript client, in Node and in a browser. `ask` has the test do something on
// its side and resolves with its answer.

/** Messages, receipts, and the death of the node. */
export async function death(connect, urls, ask) {
  let node = 0;
  const connection = connect(() => urls[node]);
  const messages = arrivals();
  const closes = arrivals();
  const opens = arrivals();
  connection.on("close", (close) => {
    node = 1;
    closes.put(close);
  });
  connection.on("open", opens.put);
  connection.on("error", (error) => closes.put(error));

  const subscribed = await connection.subscribe("news", (data, { channel }) => messages.put([channel, data]));
  same(subscribed.missed, 0);
  await ask("publish first");
  same(await messages.next(), ["news", "first"]);
  await ask("publish_binary AAH/");
  const [, bytes] = await messages.next();
  same(bytes instanceof Uint8Array && [...bytes], [0, 1, 255]);

  await connection.push("hello");
  same(await ask("event"), "text hello");
  await connection.push(bytes);
  same(await ask("event"), "binary AAH/");
  const refused = await connection.subscribe("forbidden", () => {}).catch((error) => error);
  same(refused.code, 102);

  await opens.next();
  await ask("kill");
  const lost = await closes.next();
  same([lost.code, lost.retryMs >= 500 && lost.retryMs <= 1000], [1006, true]);
  const waited = connection.push("from the other node");
  await opens.next();
  // Calls are answered in order: with this one the channel is subscribed again.
  await waited;
  same(await ask("event"), "text from the other node");
  await ask("publish second");
  same(await messages.next(), ["news", "second"]);

  await connection.unsubscribe("news");
  await ask("publish to nobody");
  await ask("close");
  same(await closes.next(), { code: 4001, reason: "banned", retryMs: null });
  same([connection.state, messages.count()], ["closed", 0]);
}

/** Messages that a device has missed in a channel with history, and more than the channel keeps. */
export async function recovery(connect, [url], ask) {
  let isAway = false;
  // On a path without a route the device stays away until it has missed what it has to.
  const connection = connect(() => (isAway ? `${url}/nowhere` : url));
  const messages = arrivals();
  const gaps = arrivals();
  const closes = arrivals();
  connection.on("gap", gaps.put);
  connection.on("close", closes.put);
  connection.on("error", gaps.put);
  const first = await connection.subscribe("room:1", (data) => messages.put(data));
  same(first, { missed: 0 });
  await ask("publish 1");
  same(await messages.next(), "1");
  const miss = async (...missed) => {
    await connection.push("who");
    isAway = true;
    await ask("close");
    same((await closes.next()).code, 1012);
    for (const data of missed) await ask(`publish ${data}`);
    isAway = false;
  };
  await miss("2", "3");
  same([await messages.next(), await messages.next(), gaps.count()], ["2", "3", 0]);
  await miss("4", "5", "6", "7");
  same(await gaps.next(), { channel: "room:1" });
  await ask("publish 8");
  same([await messages.next(), messages.count()], ["8", 0]);
  connection.close();
}

/** A token that is renewed on the open connection, and a node that shuts down. */
export async function renewal(connect, [url], ask) {
  const connection = connect(url, { token: () => ask("token") });
  const ends = arrivals();
  connection.on("close", ends.put);
  connection.on("error", ends.put);
  // The first token is about to expire. The context of each event tells which one counts.
  const seen = new Set();
  while (!seen.has("2")) {
    await connection.push("x");
    seen.add(await ask("context"));
  }
  same([[...seen], ends.count()], [["1", "2"], 0]);
  await ask("shut_down");
  const { code, retryMs } = await ends.next();
  // A wait of the client's own would be half a second at least, and hardly ever a whole number.
  same([code, Number.isInteger(retryMs) && retryMs >= 0 && retryMs < 1000], [1001, true]);
  connection.close();
}

/** Another user who comes to a channel with presence and goes. */
export async function presence(connect, [url], ask) {
  const told = arrivals();
  const device = (user) => connect(url, { token: () => ask(`token ${user}`) });
  const ada = device("ada");
  for (const event of ["join", "leave"]) ada.on(event, (detail) => told.put([event, detail]));
  ada.on("error", told.put);
  await ada.subscribe("room:1", () => {});
  const alan = device("alan");
  await alan.subscribe("room:1", () => {});
  same(await told.next(), ["join", { channel: "room:1", user: "alan" }]);
  alan.close();
  same(await told.next(), ["leave", { channel: "room:1", user: "alan" }]);
  ada.close();
}

/** What arrives, and who waits for it. */
function arrivals() {
  const values = [];
  let wanted = null;
  return {
    put(value) {
      if (wanted) wanted(value);
      else values.push(value);
      wanted = null;
    },
    next: () => (values.length > 0 ? values.shift() : new Promise((resolve) => (wanted = resolve))),
    count: () => values.length,
  };
}

function same(got, expected) {
  const [a, b] = [got, expected].map((value) => JSON.stringify(value));
  if (a !== b) throw new Error(`${a} instead of ${b}`);
}
