// The WebSocket API of gridcast in Node, without a package.
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { get } from "node:http";

/// One connection to a node. `user` is `name:password` where the API has users.
export async function connect(address, user) {
  const headers = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": 13,
    "Sec-WebSocket-Key": randomBytes(16).toString("base64") };
  if (user) headers.Authorization = `Basic ${Buffer.from(user).toString("base64")}`;
  const request = get(`http://${address}/ws/v1`, { headers });
  request.on("response", ({ statusCode }) => request.destroy(new Error(`refused: ${statusCode}`)));
  const [, socket, head] = await once(request, "upgrade");
  return new Gridcast(socket, head);
}

class Gridcast {
  #socket;
  #received;
  #calls = 0;

  constructor(socket, received) {
    this.#socket = socket;
    this.#received = received;
  }

  /// Sends a call. Calls take effect in their order, so there is no need to wait for answers.
  call(method, params) {
    this.#calls += 1;
    this.#send(1, Buffer.from(JSON.stringify({ m: method, p: params, i: this.#calls })));
  }

  /// Each event of the consumed topics; ends with the connection. Failed calls are printed.
  async *events() {
    yield* this.#take();
    for await (const chunk of this.#socket) {
      this.#received = Buffer.concat([this.#received, chunk]);
      yield* this.#take();
    }
  }

  /// The events among the frames that are whole.
  *#take() {
    for (;;) {
      const bytes = this.#received;
      if (bytes.length < 2) return;
      const width = { 126: 2, 127: 8 }[bytes[1]] ?? 0;
      const start = 2 + width;
      if (bytes.length < start) return;
      const end = start + (width ? Number(`0x${bytes.toString("hex", 2, start)}`) : bytes[1]);
      if (bytes.length < end) return;
      const [opcode, payload] = [bytes[0] & 15, bytes.subarray(start, end)];
      this.#received = bytes.subarray(end);
      if (opcode === 9) this.#send(10, payload); // a ping wants a pong
      if (opcode === 8) this.#socket.end();
      if (opcode !== 1) continue;
      const message = JSON.parse(payload);
      if (message.e) yield message.p;
      else if (message.E) console.log(`call ${message.i}: ${message.E.m}`);
    }
  }

  /// One masked frame, RFC 6455 section 5.2.
  #send(opcode, payload) {
    const size = payload.length;
    const mask = randomBytes(4);
    const length = size < 126 ? [0x80 | size] : size < 65536 ? [0xfe, size >> 8, size] :
      [0xff, 0, 0, 0, 0, size >> 24, size >> 16, size >> 8, size];
    const masked = payload.map((byte, i) => byte ^ mask[i % 4]);
    this.#socket.write(Buffer.concat([Buffer.from([0x80 | opcode, ...length]), mask, masked]));
  }
}
