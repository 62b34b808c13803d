/** The subprotocol that this client speaks. */
export const PROTOCOL: "gridcast.v1";

export interface Options {
  /**
   * The token of the device: a string, or a function that makes a new one. The function is called
   * for each connection, and before the token in use expires: such a token is renewed on the open
   * connection. Sent as a subprotocol, so that it is in no log.
   */
  token?: string | (() => string | Promise<string>);
  /** The WebSocket class. By default the global one. Node has one since version 22. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
  /** How long one try to connect may take, in milliseconds. Default 10,000. */
  connectTimeoutMs?: number;
  /** How long the gateway may take for an answer before the connection is given up, in milliseconds. Default 10,000. */
  callTimeoutMs?: number;
  /** After how much silence the gateway is asked whether it is there, in milliseconds. Default 25,000. */
  heartbeatMs?: number;
  /** How many events may wait while there is no connection. More are refused with "queue_full". Default 100. */
  maxQueued?: number;
  /** Whether to come back after a close. Default: {@link comesBack}. */
  reconnects?: (code: number, reason: string, options: Options) => boolean;
}

/** What comes with a message of a channel. */
export interface Details {
  channel: string;
  /** The message's place in the channel's history, if it has one. Opaque. */
  position?: string;
}

export type Data = string | Uint8Array;

export interface Subscribed {
  /**
   * Whether everything since the given position has been recovered. Undefined where no position
   * was given.
   */
  recovered?: boolean;
  /** How many missed messages follow. */
  missed: number;
}

export interface Events {
  /** A connection is open. Its channels are being subscribed. */
  open: {};
  /** A message without a callback of its own: sent to this device, or of a channel that a back end has subscribed. */
  message: { data: Data; channel?: string; position?: string };
  /** Messages of this channel were missed and cannot be recovered: fetch its state anew. */
  gap: { channel: string };
  /** Another user has come to a channel with presence. Changes during a break are not told: ask your back end at each `open`. */
  join: { channel: string; user: string };
  /** Another user has left a channel with presence. */
  leave: { channel: string; user: string };
  /** The connection ended. `retryMs` is the time until the next try, or null if there is none. */
  close: { code: number; reason: string; retryMs: number | null };
  /** Something went wrong that no promise reports: no token, a channel that is not allowed any more. */
  error: Error;
}

/**
 * What a call failed with. `code` is the gateway's error code, or one of "closed" (by `close`),
 * "lost" (the connection broke before the answer), "queue_full", "unsubscribed", "protocol" and
 * "no_websocket".
 */
export class GridcastError extends Error {
  readonly code: number | string;
  constructor(message: string, code: number | string);
}

/** A connection that comes back by itself, until `close` or a close on purpose. */
export class Connection {
  constructor(url: string | (() => string), options?: Options);
  readonly state: "connecting" | "open" | "waiting" | "closed";
  /**
   * Subscribes to a channel. `data` is a string, or a Uint8Array for a binary message. A second
   * subscribe to the same channel replaces the callback. The subscription stays until
   * `unsubscribe`, over all reconnects; missed messages come before new ones.
   *
   * `position` continues from a message that was seen before, for example before the page was
   * loaded again.
   */
  subscribe(
    channel: string,
    callback: (data: Data, details: Details) => void,
    options?: { position?: string | null },
  ): Promise<Subscribed>;
  /** Ends a subscription. Its callback is not called again. */
  unsubscribe(channel: string): Promise<void>;
  /**
   * Sends an event to the back ends. Resolves once the gateway has stored it. Rejected with "lost",
   * it may have been stored all the same: send it again only if a double does no harm.
   */
  push(data: string | Uint8Array | ArrayBuffer): Promise<void>;
  /** Calls `callback` for each event of a kind. Returns a function that ends this. */
  on<E extends keyof Events>(event: E, callback: (detail: Events[E]) => void): () => void;
  /**
   * Ends the connection for good. What waits for a connection is rejected with "closed", what waits
   * for an answer with "lost".
   */
  close(code?: number, reason?: string): void;
}

/** Opens a connection, and keeps it. A function as `url` is called for each try. */
export function connect(url: string | (() => string), options?: Options): Connection;

/**
 * The default of `reconnects`: comes back unless the close was on purpose, that is 1000, 1002, 1007,
 * 1008 and everything from 3000 on. After `token expired` it comes back if there can be a new token.
 */
export function comesBack(code: number, reason: string, options?: Options): boolean;
