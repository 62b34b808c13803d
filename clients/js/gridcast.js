/**
 * The client of gridcast for devices: browsers, and Node with its own WebSocket (22 or later) or
 * one that is passed in. One ES module without dependencies.
 *
 *     import { connect } from "./gridcast.js";
 *
 *     const connection = connect("wss://push.example.org/ws", { token: () => fetchToken() });
 *     connection.subscribe("room:1", (data) => console.log(data));
 *     await connection.push("hello");
 *
 * The connection comes back by itself after it was lost, subscribes again, and asks for the
 * messages that it missed. `gridcast.d.ts` has the types and documents every option.
 *
 * @module
 */

/** The subprotocol that this client speaks. */
export const PROTOCOL = "gridcast.v1";

/** The wait before the first try to come back, in milliseconds. Doubles with each try. */
const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 30_000;
/** A connection that lasted for so long was a success: the next wait is the first one again. */
const STABLE_MS = 30_000;
/** Channels of one `subscribe`. More are subscribed by several calls. */
const CHANNELS_PER_CALL = 100;
/** The close codes that a page may use begin here; 3008 tells the gateway's log that it was silent. */
const SILENT = 3008;

/** What a call or a connection failed with. */
export class GridcastError extends Error {
  /**
   * @param {string} message
   * @param {number | string} code the gateway's error code, or a word of this client
   */
  constructor(message, code) {
    super(message);
    this.name = "GridcastError";
    this.code = code;
  }
}

/** Opens a connection, and keeps it. */
export function connect(url, options) {
  return new Connection(url, options);
}

export class Connection {
  #url;
  #options;
  /** "connecting", "open", "waiting" (for the next try) or "closed". */
  #state = "connecting";
  #socket = null;
  /** Counts the tries, so that a token that arrives late does not open a second socket. */
  #attempt = 0;
  #listeners = new Map();

  /** Channel → `{ callback, position, promises }`. `position` is null before the first message. */
  #subscriptions = new Map();
  /** Number of a call → `{ resolve, reject, timer, isPush }`, until its answer. */
  #calls = new Map();
  #lastCall = 0;
  /** Pushes that wait for a connection: `{ params, resolve, reject }`. */
  #queued = [];

  #token = undefined;
  #wait = FIRST_WAIT_MS;
  #openedAt = null;
  /** The wait that the gateway has asked for, in milliseconds, or null. */
  #hint = null;
  #timers = { connect: null, retry: null, heartbeat: null, renew: null };
  #wake = () => this.#comeBackNow();
  #wakeIfVisible = () => {
    if (globalThis.document.visibilityState === "visible") this.#comeBackNow();
  };

  constructor(url, options = {}) {
    this.#url = url;
    this.#options = {
      WebSocket: globalThis.WebSocket,
      connectTimeoutMs: 10_000,
      callTimeoutMs: 10_000,
      heartbeatMs: 25_000,
      maxQueued: 100,
      reconnects: comesBack,
      ...options,
    };
    if (!this.#options.WebSocket) {
      throw new GridcastError("there is no WebSocket here: pass one as options.WebSocket", "no_websocket");
    }
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.document?.addEventListener("visibilitychange", this.#wakeIfVisible);
    this.#open();
  }

  /** "connecting", "open", "waiting" (for the next try) or "closed". */
  get state() {
    return this.#state;
  }

  /**
   * Subscribes to a channel. Its messages go to `callback(data, { channel, position })`; `data` is
   * a string, or a Uint8Array for a binary message. A second subscribe replaces the callback.
   *
   * Resolves once the gateway has subscribed the channel. The subscription stays until
   * `unsubscribe`, over all reconnects.
   *
   * @throws {GridcastError} if the gateway refuses the channel
   */
  subscribe(channel, callback, { position = null } = {}) {
    if (this.#state === "closed") return Promise.reject(closedError());
    const known = this.#subscriptions.get(channel);
    if (known) {
      known.callback = callback;
      if (known.answer) return Promise.resolve(known.answer);
    }
    const subscription = known ?? { callback, position, answer: null, promises: [] };
    this.#subscriptions.set(channel, subscription);
    return new Promise((resolve, reject) => {
      subscription.promises.push({ resolve, reject });
      if (!known && this.#state === "open") this.#subscribeTo([channel]);
    });
  }

  /** Ends a subscription. Its callback is not called again. */
  unsubscribe(channel) {
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return Promise.resolve();
    this.#subscriptions.delete(channel);
    for (const { reject } of subscription.promises) {
      reject(new GridcastError(`unsubscribed from ${channel}`, "unsubscribed"));
    }
    if (this.#state !== "open") return Promise.resolve();
    // A connection that breaks before the answer has ended the subscription too.
    return this.#call("unsubscribe", { c: [channel] }).then(
      () => {},
      (error) => {
        if (error.code !== "lost") throw error;
      },
    );
  }

  /**
   * Sends an event to the back ends. Resolves once the gateway has stored it.
   *
   * Without a connection the event waits for the next one; at most `maxQueued` events wait.
   *
   * @param {string | Uint8Array | ArrayBuffer} data
   * @throws {GridcastError} with the code "lost" if the connection broke before the answer: the
   *     event may have been stored, and is not sent again by itself. With the code "queue_full" if
   *     too many events wait for a connection.
   */
  push(data) {
    if (this.#state === "closed") return Promise.reject(closedError());
    const params = typeof data === "string" ? { d: data } : { d: encodeBase64(data), t: "binary" };
    if (this.#state === "open") return this.#call("push", params).then(() => {});
    if (this.#queued.length >= this.#options.maxQueued) {
      const message = `${this.#queued.length} events wait for a connection already`;
      return Promise.reject(new GridcastError(message, "queue_full"));
    }
    return new Promise((resolve, reject) => this.#queued.push({ params, resolve, reject }));
  }

  /**
   * Calls `callback` for each event of a kind: "open", "message", "gap", "join", "leave", "close"
   * or "error". Returns a function that ends this.
   */
  on(event, callback) {
    const callbacks = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, callbacks);
    callbacks.add(callback);
    return () => callbacks.delete(callback);
  }

  /**
   * Ends the connection for good. What waits for a connection is rejected with the code "closed",
   * what waits for an answer with "lost".
   */
  close(code = 1000, reason = "") {
    if (this.#state === "closed") return;
    const socket = this.#socket;
    this.#end();
    socket?.close(code, reason);
    this.#emit("close", { code, reason, retryMs: null });
  }

  // ---- Opening and losing a connection

  async #open() {
    const attempt = ++this.#attempt;
    this.#state = "connecting";
    this.#hint = null;
    this.#timers.connect = setTimeout(
      () => this.#lost(attempt, 1006, "no connection in time"),
      this.#options.connectTimeoutMs,
    );
    try {
      this.#token = await this.#fetchToken();
      if (attempt !== this.#attempt) return;
      const protocols = this.#token === undefined ? [PROTOCOL] : [PROTOCOL, `bearer.${this.#token}`];
      const url = typeof this.#url === "function" ? this.#url() : this.#url;
      const socket = new this.#options.WebSocket(url, protocols);
      this.#socket = socket;
      socket.onopen = () => attempt === this.#attempt && this.#opened(socket);
      socket.onmessage = ({ data }) => attempt === this.#attempt && this.#received(data);
      // An error is always followed by a close, which says more.
      socket.onerror = () => {};
      socket.onclose = ({ code, reason }) => this.#lost(attempt, code, reason);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#emit("error", error);
      this.#lost(attempt, 1006, "no token, or a wrong address");
    }
  }

  async #fetchToken() {
    const { token } = this.#options;
    return typeof token === "function" ? await token() : token;
  }

  #opened(socket) {
    clearTimeout(this.#timers.connect);
    if (socket.protocol !== PROTOCOL) {
      this.#emit("error", new GridcastError(`the server does not speak ${PROTOCOL}`, "protocol"));
      return this.close();
    }
    this.#state = "open";
    this.#openedAt = Date.now();
    this.#listen();
    this.#renewInTime();
    const channels = [...this.#subscriptions.keys()];
    for (let i = 0; i < channels.length; i += CHANNELS_PER_CALL) {
      this.#subscribeTo(channels.slice(i, i + CHANNELS_PER_CALL));
    }
    for (const { params, resolve, reject } of this.#queued.splice(0)) {
      this.#call("push", params).then(() => resolve(), reject);
    }
    this.#emit("open", {});
  }

  #lost(attempt, code, reason) {
    if (attempt !== this.#attempt || this.#state === "closed") return;
    const socket = this.#socket;
    this.#drop();
    // A socket that hangs is given up. One that is closed already ignores this.
    socket?.close();
    if (this.#openedAt !== null && Date.now() - this.#openedAt >= STABLE_MS) this.#wait = FIRST_WAIT_MS;
    this.#openedAt = null;
    if (!this.#options.reconnects(code, reason, this.#options)) {
      this.#end();
      return this.#emit("close", { code, reason, retryMs: null });
    }
    // The gateway has spread its hints over the clients; otherwise this client spreads by itself.
    const retryMs = this.#hint ?? this.#wait * (0.5 + Math.random() / 2);
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
    this.#state = "waiting";
    this.#timers.retry = setTimeout(() => this.#open(), retryMs);
    this.#emit("close", { code, reason, retryMs });
  }

  /** Forgets the socket and its calls. */
  #drop() {
    this.#attempt += 1;
    this.#socket = null;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const { reject, timer } of calls) {
      clearTimeout(timer);
      reject(new GridcastError("the connection broke before the answer", "lost"));
    }
  }

  #end() {
    this.#state = "closed";
    this.#drop();
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.document?.removeEventListener("visibilitychange", this.#wakeIfVisible);
    for (const { reject } of this.#queued.splice(0)) reject(closedError());
    for (const { promises } of this.#subscriptions.values()) {
      for (const { reject } of promises) reject(closedError());
    }
    this.#subscriptions.clear();
  }

  /** The network or the page is back: a wait that nobody asked for ends. */
  #comeBackNow() {
    if (this.#state !== "waiting" || this.#hint !== null) return;
    clearTimeout(this.#timers.retry);
    this.#open();
  }

  // ---- Calls and their answers

  #call(method, params) {
    const number = ++this.#lastCall;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#giveUp(), this.#options.callTimeoutMs);
      this.#calls.set(number, { resolve, reject, timer });
      this.#socket.send(JSON.stringify({ m: method, p: params, i: number }));
    });
  }

  /** The gateway has been silent for too long: the connection is as good as broken. */
  #giveUp() {
    const reason = "the gateway does not answer";
    this.#socket?.close(SILENT, reason);
    this.#lost(this.#attempt, 1006, reason);
  }

  #received(data) {
    this.#listen();
    if (data === "pong") return;
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return this.#emit("error", new GridcastError("a message of the gateway is not JSON", "protocol"));
    }
    if (message.e === undefined) return this.#answered(message);
    const { p } = message;
    switch (message.e) {
      case "message":
        return this.#deliver(p);
      case "closing":
        this.#hint = p.after_ms;
        return;
      case "join":
      case "leave":
        this.#emit(message.e, { channel: p.c, user: p.u });
    }
  }

  #answered({ E: error, r: result, i: number }) {
    const call = this.#calls.get(number);
    if (!call) return;
    this.#calls.delete(number);
    clearTimeout(call.timer);
    if (error) call.reject(new GridcastError(error.m, error.c));
    else call.resolve(result);
  }

  #deliver({ c: channel, d, t, o: position }) {
    const data = t === "binary" ? decodeBase64(d) : d;
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return this.#emit("message", { data, channel, position });
    if (position !== undefined) subscription.position = position;
    guard(subscription.callback, data, { channel, position });
  }

  // ---- Subscriptions

  /** Subscribes at the gateway, from the positions that were reached. */
  #subscribeTo(channels) {
    const positions = {};
    for (const channel of channels) {
      const position = this.#subscriptions.get(channel)?.position;
      if (position) positions[channel] = position;
    }
    const params = { c: channels };
    if (Object.keys(positions).length > 0) params.o = positions;
    // The answer is handled before the next message, which may be one that was missed.
    this.#call("subscribe", params).then(
      ({ channels: answers }) => channels.forEach((channel) => this.#subscribed(channel, answers?.[channel] ?? {})),
      (error) => {
        // With the connection lost, the next one subscribes again.
        if (error.code === "lost") return;
        // One channel that is not allowed refuses all of a call.
        if (channels.length > 1) return channels.forEach((channel) => this.#subscribeTo([channel]));
        this.#refused(channels[0], error);
      },
    );
  }

  #subscribed(channel, { recovered, missed = 0, o: position }) {
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return;
    // Missed messages follow and bring their positions. `position` is the one after them.
    const follow = recovered === true && missed > 0;
    if (position !== undefined && !follow) subscription.position = position;
    subscription.answer = { recovered, missed };
    for (const { resolve } of subscription.promises.splice(0)) resolve(subscription.answer);
    if (recovered === false) this.#emit("gap", { channel });
  }

  #refused(channel, error) {
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return;
    this.#subscriptions.delete(channel);
    if (subscription.promises.length === 0) this.#emit("error", error);
    for (const { reject } of subscription.promises) reject(error);
  }

  // ---- The token, and signs that the gateway is there

  /** Renews the token before it expires, if there is a function that makes new ones. */
  #renewInTime() {
    clearTimeout(this.#timers.renew);
    const expires = expiryMs(this.#token);
    if (typeof this.#options.token !== "function" || expires === null) return;
    // After four fifths of what is left, and no more than 2^31 ms ahead: a longer timer fires at once.
    const wait = Math.min(Math.max((expires - Date.now()) * 0.8, FIRST_WAIT_MS), 2 ** 31 - 1);
    const attempt = this.#attempt;
    this.#timers.renew = setTimeout(async () => {
      try {
        const token = await this.#fetchToken();
        if (attempt !== this.#attempt) return;
        this.#token = token;
        await this.#call("token", { token });
        this.#renewInTime();
      } catch (error) {
        // The token that counts stays as it is, and the next connection gets a new one.
        if (error.code !== "lost") this.#emit("error", error);
      }
    }, wait);
  }

  /** Sends a ping after a silence. Without an answer the connection is given up. */
  #listen() {
    clearTimeout(this.#timers.heartbeat);
    this.#timers.heartbeat = setTimeout(() => {
      this.#socket.send("ping");
      this.#timers.heartbeat = setTimeout(() => this.#giveUp(), this.#options.callTimeoutMs);
    }, this.#options.heartbeatMs);
  }

  #emit(event, detail) {
    for (const callback of [...(this.#listeners.get(event) ?? [])]) guard(callback, detail);
  }
}

/**
 * Whether to come back after a close: not after one on purpose, that is 1000, 1008 and what back
 * ends use from 3000 on. An expired token is no reason to stay away if there can be a new one.
 */
export function comesBack(code, reason, { token } = {}) {
  if (code === 1008) {
    return reason === "message not finished in time" || (reason === "token expired" && typeof token === "function");
  }
  return code !== 1000 && code !== 1002 && code !== 1007 && code < 3000;
}

/** Calls a callback of the application. What it throws is the application's, and ends nothing here. */
function guard(callback, ...values) {
  try {
    callback(...values);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

function closedError() {
  return new GridcastError("the connection is closed", "closed");
}

/** The `exp` of a JSON Web Token in milliseconds, or null for anything else. */
function expiryMs(token) {
  try {
    const claims = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const { exp } = JSON.parse(new TextDecoder().decode(decodeBase64(claims)));
    return typeof exp === "number" ? exp * 1000 : null;
  } catch {
    return null;
  }
}

function encodeBase64(data) {
  const bytes = new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength);
  let text = "";
  // In pieces: a call takes only so many arguments.
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

function decodeBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
