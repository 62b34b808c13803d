// Calls of the API over HTTP, and WebSockets for what the node pushes. The credentials are in this module's memory alone.

const CALL_TIMEOUT_MS = 5000;

/** The value of `Authorization`; empty where the API has no users. */
let authorization = "";

/** A call that was answered with an error, or that was not answered. */
export class ApiError extends Error {
  constructor(message, { code = 0, status = 0 } = {}) {
    super(message);
    this.code = code;
    this.status = status;
  }

  /** Whether no answer came at all. */
  get isLost() { return this.code === 0; }

  /** Whether the user lacks the role for the call. */
  get isDenied() { return this.status === 403 || (this.status === 200 && this.code === 102); }

  /** Whether the node does not know the method: an older one may answer during a rolling upgrade. */
  get isUnknown() { return this.status === 404; }

  /** Whether the credentials are not, or no longer, those of a user. */
  get isLoggedOut() { return this.status === 401; }
}

/** Sets the credentials. Without a name the secret is a bearer token. */
export function setCredentials(name, secret) {
  if (!secret) authorization = "";
  else if (name === null) authorization = `Bearer ${secret}`;
  else authorization = `Basic ${base64(`${name}:${secret}`)}`;
}

function base64(text) {
  return btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(""));
}

/** Makes a request, and reads the whole answer. */
async function request(path, options) {
  const headers = authorization ? { Authorization: authorization } : {};
  const signal = AbortSignal.timeout(CALL_TIMEOUT_MS);
  try {
    const response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store", redirect: "error", signal });
    return { status: response.status, isOk: response.ok, text: await response.text() };
  } catch {
    // Browsers name the error differently when the time is up in the middle of an answer.
    throw new ApiError(signal.aborted ? "The node did not answer in time." : "The node cannot be reached.");
  }
}

/** Calls a method, such as `client.list`. Returns the result. */
export async function call(method, params = {}) {
  const { status, text } = await request(`v1/${method.replace(".", "/")}`, { method: "POST", body: JSON.stringify(params) });
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new ApiError(`The node's answer cannot be read (status ${status}).`, { code: -1, status });
  }
  if (status === 404) throw new ApiError(`The node does not know ${method}.`, { code: -1, status });
  if (answer.E) throw new ApiError(answer.E.m, { code: answer.E.c, status });
  return answer.r;
}

/** Reads a page of the API as text. */
export async function read(path) {
  const { status, isOk, text } = await request(path, {});
  if (!isOk) throw new ApiError(`${path}: status ${status}`, { code: -1, status });
  return text;
}

/**
 * Opens a WebSocket to the API. `onEvent` gets what the node pushes, `onClose` a text that says why it ended. A browser
 * cannot set headers on a WebSocket, so the credentials travel in a subprotocol, which the node does not repeat.
 */
export class Socket {
  constructor(onEvent, onClose) {
    const url = new URL("ws/v1", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const secret = base64(authorization).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    this.answers = new Map();
    this.lastId = 0;
    this.socket = new WebSocket(url, authorization ? ["gridcast.api", `authorization.${secret}`] : []);
    this.isOpen = new Promise((resolve, reject) => {
      this.socket.addEventListener("open", resolve);
      this.socket.addEventListener("close", () => reject(new ApiError("The WebSocket was refused.")));
    });
    this.isOpen.catch(() => {});
    this.socket.addEventListener("message", ({ data }) => this.#handle(JSON.parse(data), onEvent));
    this.socket.addEventListener("close", ({ code, reason }) => {
      const why = reason || (code === 1006 ? "the connection was lost" : `code ${code}`);
      for (const { reject } of this.answers.values()) reject(new ApiError(`Closed: ${why}.`));
      this.answers.clear();
      onClose(code === 1000 ? "" : why);
    });
  }

  #handle(message, onEvent) {
    if ("e" in message) return onEvent(message);
    const waiting = this.answers.get(message.i);
    this.answers.delete(message.i);
    if (message.E) waiting?.reject(new ApiError(message.E.m, { code: message.E.c, status: 200 }));
    else waiting?.resolve(message.r);
  }

  async call(method, params = {}) {
    await this.isOpen;
    this.lastId += 1;
    this.socket.send(JSON.stringify({ m: method, p: params, i: this.lastId }));
    return new Promise((resolve, reject) => this.answers.set(this.lastId, { resolve, reject }));
  }

  /** Sends without waiting for an answer. */
  tell(method, params) {
    this.call(method, params).catch(() => {});
  }

  close() { this.socket.close(1000); }
}
