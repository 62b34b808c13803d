// The client against a gateway that the test plays, with a clock that the test moves.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { connect, comesBack, PROTOCOL } from "../gridcast.js";

/** Every socket that was opened, the last one last. */
let sockets;

class FakeSocket {
  sent = [];
  protocol = PROTOCOL;
  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    sockets.push(this);
  }
  send(text) {
    this.sent.push(text);
  }
  close(code, reason) {
    this.closed ??= { code, reason };
  }
  /** The calls that were sent and not taken yet, by their method. */
  take(method) {
    const calls = this.sent.filter((text) => text !== "ping").map((text) => JSON.parse(text));
    this.sent = [];
    assert.deepEqual([...new Set(calls.map(({ m }) => m))], [method]);
    return calls;
  }
  receive(message) {
    this.onmessage({ data: typeof message === "string" ? message : JSON.stringify(message) });
    return settled();
  }
  answer(i, r) {
    return this.receive({ E: null, r, i });
  }
  refuse(i, c, m) {
    return this.receive({ E: { c, m }, i });
  }
  end(code, reason = "") {
    this.onclose({ code, reason });
    return settled();
  }
}

/** Lets every promise that can go on go on. */
async function settled() {
  for (let i = 0; i < 20; i++) await null;
}

/** A connection that is open, and its socket. */
async function open(options = {}) {
  const connection = connect("ws://gateway/ws", { WebSocket: FakeSocket, ...options });
  await settled();
  const socket = sockets.at(-1);
  socket.onopen();
  await settled();
  return { connection, socket };
}

/** Moves the clock to the next try, and lets it open. */
async function reopen(t, retryMs) {
  t.mock.timers.tick(retryMs);
  await settled();
  const socket = sockets.at(-1);
  socket.onopen();
  await settled();
  return socket;
}

function mockClock(t) {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"] });
}

/** A token that expires after so many milliseconds. */
function token(expiresMs) {
  const claims = JSON.stringify({ sub: "ü", exp: (Date.now() + expiresMs) / 1000 });
  return `h.${Buffer.from(claims).toString("base64url")}.s`;
}

beforeEach(() => {
  sockets = [];
});

test("a push resolves with its receipt and no earlier", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  let stored = false;
  const push = connection.push("hello").then(() => (stored = true));
  const [call] = socket.take("push");
  assert.deepEqual(call.p, { d: "hello" });
  await settled();
  assert.equal(stored, false);
  await socket.answer(call.i, { s: true });
  await push;
});

test("binary data travels as base64 in both directions", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const bytes = Uint8Array.from({ length: 20_000 }, (_, i) => i % 256);
  connection.push(bytes.subarray(1)).catch(() => {});
  const [call] = socket.take("push");
  assert.deepEqual(call.p, { d: Buffer.from(bytes.subarray(1)).toString("base64"), t: "binary" });
  const got = [];
  connection.on("message", (message) => got.push(message));
  await socket.receive({ e: "message", p: { d: call.p.d, t: "binary" } });
  assert.deepEqual(got, [{ data: bytes.slice(1), channel: undefined, position: undefined }]);
});

test("a push that the gateway refuses is rejected with its code", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const push = connection.push("x");
  const [{ i }] = socket.take("push");
  await socket.refuse(i, 201, "the topic is full");
  await assert.rejects(push, { code: 201, message: "the topic is full" });
});

test("without a connection pushes wait, up to a bound, and then are sent in order", async (t) => {
  mockClock(t);
  const connection = connect("ws://gateway/ws", { WebSocket: FakeSocket, maxQueued: 2 });
  connection.push("1").catch(() => {});
  connection.push("2").catch(() => {});
  await assert.rejects(connection.push("3"), { code: "queue_full" });
  await settled();
  sockets[0].onopen();
  assert.deepEqual(sockets[0].take("push").map(({ p }) => p.d), ["1", "2"]);
});

test("a push without an answer when the connection breaks is rejected and not sent again", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const push = connection.push("x");
  await socket.end(1006);
  await assert.rejects(push, { code: "lost" });
  const again = await reopen(t, 1000);
  assert.deepEqual(again.sent, []);
});

test("messages go to the callback of their channel", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const got = [];
  const subscribed = connection.subscribe("a", (data, details) => got.push([data, details]));
  const [call] = socket.take("subscribe");
  assert.deepEqual(call.p, { c: ["a"] });
  await socket.answer(call.i, { s: true, channels: { a: { o: "p0" } } });
  assert.deepEqual(await subscribed, { recovered: undefined, missed: 0 });
  await socket.receive({ e: "message", p: { c: "a", d: "1", o: "p1" } });
  assert.deepEqual(got, [["1", { channel: "a", position: "p1" }]]);
});

test("what a callback throws ends neither the connection nor the other callbacks", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const thrown = [];
  t.mock.method(globalThis, "queueMicrotask", (callback) => {
    try {
      callback();
    } catch (error) {
      thrown.push(error.message);
    }
  });
  const got = [];
  connection.on("message", () => {
    throw new Error("of the application");
  });
  connection.on("message", ({ data }) => got.push(data));
  await socket.receive({ e: "message", p: { d: "1" } });
  assert.deepEqual([got, thrown], [["1"], ["of the application"]]);
});

test("after a break channels are subscribed from the last message that was seen", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  connection.subscribe("a", () => {});
  connection.subscribe("b", () => {});
  const calls = socket.take("subscribe");
  await socket.answer(calls[0].i, { s: true, channels: { a: { o: "a0" } } });
  await socket.answer(calls[1].i, { s: true, channels: { b: {} } });
  await socket.receive({ e: "message", p: { c: "a", d: "1", o: "a1" } });
  await socket.end(1006);
  const again = await reopen(t, 1000);
  assert.deepEqual(again.take("subscribe")[0].p, { c: ["a", "b"], o: { a: "a1" } });
});

test("a break among the missed messages continues after the last of them that came", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  connection.subscribe("a", () => {}, { position: "a0" });
  const [call] = socket.take("subscribe");
  assert.deepEqual(call.p.o, { a: "a0" });
  await socket.answer(call.i, { s: true, channels: { a: { recovered: true, missed: 3, o: "a3" } } });
  await socket.receive({ e: "message", p: { c: "a", d: "1", o: "a1" } });
  await socket.end(1006);
  const again = await reopen(t, 1000);
  assert.deepEqual(again.take("subscribe")[0].p.o, { a: "a1" });
});

test("a gap is told, and the channel continues from where it is now", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const gaps = [];
  connection.on("gap", (gap) => gaps.push(gap));
  connection.subscribe("a", () => {}, { position: "old" });
  const [{ i }] = socket.take("subscribe");
  await socket.answer(i, { s: true, channels: { a: { recovered: false, o: "new" } } });
  assert.deepEqual(gaps, [{ channel: "a" }]);
  await socket.end(1006);
  const again = await reopen(t, 1000);
  assert.deepEqual(again.take("subscribe")[0].p.o, { a: "new" });
});

test("a channel that is not allowed keeps no other from being subscribed", async (t) => {
  mockClock(t);
  const connection = connect("ws://gateway/ws", { WebSocket: FakeSocket });
  const good = connection.subscribe("good", () => {});
  const bad = connection.subscribe("bad", () => {});
  await settled();
  const socket = sockets[0];
  socket.onopen();
  const [both] = socket.take("subscribe");
  await socket.refuse(both.i, 102, "bad is not allowed");
  const [first, second] = socket.take("subscribe");
  await socket.answer(first.i, { s: true, channels: { good: {} } });
  await socket.refuse(second.i, 102, "bad is not allowed");
  await good;
  await assert.rejects(bad, { code: 102 });
  await socket.end(1006);
  const again = await reopen(t, 1000);
  assert.deepEqual(again.take("subscribe")[0].p.c, ["good"]);
});

test("many channels are subscribed a hundred at a time", async (t) => {
  mockClock(t);
  const connection = connect("ws://gateway/ws", { WebSocket: FakeSocket });
  for (let i = 0; i < 250; i++) connection.subscribe(`c${i}`, () => {}).catch(() => {});
  await settled();
  sockets[0].onopen();
  assert.deepEqual(sockets[0].take("subscribe").map(({ p }) => p.c.length), [100, 100, 50]);
});

test("an ended subscription gets nothing more and does not come back", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const got = [];
  connection.subscribe("a", (data) => got.push(data));
  const [{ i }] = socket.take("subscribe");
  await socket.answer(i, { s: true, channels: { a: {} } });
  const ended = connection.unsubscribe("a");
  const [call] = socket.take("unsubscribe");
  await socket.receive({ e: "message", p: { c: "a", d: "late" } });
  await socket.answer(call.i, { s: true });
  await ended;
  await socket.end(1006);
  const again = await reopen(t, 1000);
  assert.deepEqual([got, again.sent], [[], []]);
});

test("waits double up to 30 s, each between a half and all of it, until a connection lasts", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const waits = [];
  connection.on("close", ({ retryMs }) => waits.push(retryMs));
  await socket.end(1006);
  for (let i = 0; i < 7; i++) {
    t.mock.timers.tick(waits.at(-1));
    await settled();
    await sockets.at(-1).end(1006);
  }
  for (const [i, wait] of waits.entries()) {
    const longest = Math.min(1000 * 2 ** i, 30_000);
    assert.ok(wait >= longest / 2 && wait <= longest, `wait ${i} is ${wait} ms`);
  }
  const again = await reopen(t, waits.at(-1));
  t.mock.timers.tick(24_000);
  await again.receive("pong");
  t.mock.timers.tick(7_000);
  await again.end(1006);
  assert.ok(waits.at(-1) <= 1000);
});

test("a closing hint decides when to come back, also when the network returns", async (t) => {
  mockClock(t);
  const listeners = {};
  globalThis.addEventListener = (event, listener) => (listeners[event] = listener);
  t.after(() => delete globalThis.addEventListener);
  const { connection, socket } = await open();
  const closes = [];
  connection.on("close", (close) => closes.push(close));
  await socket.receive({ e: "closing", p: { code: 1001, after_ms: 12_345 } });
  await socket.end(1001, "server is shutting down");
  assert.deepEqual(closes, [{ code: 1001, reason: "server is shutting down", retryMs: 12_345 }]);
  listeners.online();
  await settled();
  assert.equal(sockets.length, 1);
  const again = await reopen(t, 12_345);
  await again.end(1006);
  listeners.online();
  await settled();
  assert.equal(sockets.length, 3);
});

test("a gateway that is silent is pinged, and left if it does not answer", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  t.mock.timers.tick(25_000);
  assert.deepEqual(socket.sent, ["ping"]);
  await socket.receive("pong");
  t.mock.timers.tick(25_000);
  assert.deepEqual(socket.sent, ["ping", "ping"]);
  t.mock.timers.tick(10_000);
  assert.deepEqual(socket.closed, { code: 3008, reason: "the gateway does not answer" });
  assert.equal(connection.state, "waiting");
});

test("a connection that does not open in time is given up, and what it does later is ignored", async (t) => {
  mockClock(t);
  const connection = connect("ws://gateway/ws", { WebSocket: FakeSocket });
  await settled();
  t.mock.timers.tick(10_000);
  assert.equal(connection.state, "waiting");
  sockets[0].onopen();
  await sockets[0].end(1006);
  assert.equal(connection.state, "waiting");
  await reopen(t, 1000);
  assert.equal(connection.state, "open");
});

test("a token travels as a subprotocol and is made anew for each connection", async (t) => {
  mockClock(t);
  let made = 0;
  const { socket } = await open({ token: async () => `t${++made}` });
  assert.deepEqual(socket.protocols, ["gridcast.v1", "bearer.t1"]);
  await socket.end(1008, "token expired");
  const again = await reopen(t, 1000);
  assert.deepEqual(again.protocols, ["gridcast.v1", "bearer.t2"]);
});

test("a token is renewed on the open connection after four fifths of its time", async (t) => {
  mockClock(t);
  const { socket } = await open({ token: () => token(100_000), heartbeatMs: 1e9 });
  t.mock.timers.tick(79_000);
  await settled();
  assert.deepEqual(socket.sent, []);
  t.mock.timers.tick(2_000);
  await settled();
  const [call] = socket.take("token");
  assert.equal(call.p.token, token(100_000));
  await socket.answer(call.i, { s: true });
  t.mock.timers.tick(81_000);
  await settled();
  socket.take("token");
});

test("a token that cannot be made is told and tried again", async (t) => {
  mockClock(t);
  let works = false;
  const connection = connect("ws://gateway/ws", {
    WebSocket: FakeSocket,
    token: async () => {
      if (!works) throw new Error("offline");
      return "t";
    },
  });
  const errors = [];
  connection.on("error", ({ message }) => errors.push(message));
  await settled();
  assert.deepEqual([errors, connection.state, sockets.length], [["offline"], "waiting", 0]);
  works = true;
  await reopen(t, 1000);
  assert.equal(connection.state, "open");
});

test("a close on purpose is final", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const closes = [];
  connection.on("close", (close) => closes.push(close));
  await socket.end(4001, "banned");
  assert.deepEqual(closes, [{ code: 4001, reason: "banned", retryMs: null }]);
  await assert.rejects(connection.push("x"), { code: "closed" });
  await assert.rejects(connection.subscribe("a", () => {}), { code: "closed" });
});

test("closing rejects what still waits and opens nothing more", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const subscribed = connection.subscribe("a", () => {});
  const push = connection.push("x");
  connection.close();
  await assert.rejects(subscribed, { code: "closed" });
  await assert.rejects(push, { code: "lost" });
  assert.equal(socket.closed.code, 1000);
  t.mock.timers.tick(100_000);
  await settled();
  assert.equal(sockets.length, 1);
});

test("the device is told who comes to its channels and goes", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const told = [];
  connection.on("join", (join) => told.push(["join", join]));
  connection.on("leave", (leave) => told.push(["leave", leave]));
  await socket.receive({ e: "join", p: { c: "a", u: "ada" } });
  await socket.receive({ e: "leave", p: { c: "a", u: "ada" } });
  const ada = { channel: "a", user: "ada" };
  assert.deepEqual(told, [["join", ada], ["leave", ada]]);
});

test("a listener that has ended is not called, and events that are not known are ignored", async (t) => {
  mockClock(t);
  const { connection, socket } = await open();
  const got = [];
  const end = connection.on("message", ({ data }) => got.push(data));
  await socket.receive({ e: "message", p: { d: "1" } });
  await socket.receive({ e: "weather", p: { c: "a" } });
  end();
  await socket.receive({ e: "message", p: { d: "2" } });
  assert.deepEqual(got, ["1"]);
});

test("an expired token is a reason to come back only with a new one", () => {
  const cases = [
    [1000, "", {}, false],
    [1001, "server is shutting down", {}, true],
    [1006, "", {}, true],
    [1008, "token expired", { token: "t" }, false],
    [1008, "token expired", { token: () => "t" }, true],
    [1008, "message not finished in time", {}, true],
    [1008, "banned", { token: () => "t" }, false],
    [1009, "", {}, true],
    [1013, "reading too slowly", {}, true],
    [4000, "", {}, false],
  ];
  for (const [code, reason, options, expected] of cases) {
    assert.equal(comesBack(code, reason, options), expected, `${code} ${reason}`);
  }
});
