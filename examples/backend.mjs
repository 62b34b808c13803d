// Answers what clients send to the topic `messages`. Run: node backend.mjs [HOST:PORT]
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { get } from "node:http";

const address = process.argv[2] ?? "127.0.0.1:6789";
const headers = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": 13,
  "Sec-WebSocket-Key": randomBytes(16).toString("base64") };
let [, socket, received] = await once(get(`http://${address}/ws/v1`, { headers }), "upgrade");
function send(opcode, payload) { // one masked frame, RFC 6455 section 5.2
  const size = payload.length, mask = randomBytes(4), masked = payload.map((byte, i) => byte ^ mask[i % 4]);
  const length = size < 126 ? [0x80 | size] : size < 65536 ? [0xfe, size >> 8, size] :
    [0xff, 0, 0, 0, 0, size >> 24, size >> 16, size >> 8, size];
  socket.write(Buffer.concat([Buffer.from([0x80 | opcode, ...length]), mask, masked]));
}
send(1, Buffer.from(JSON.stringify({ m: "queue.pop", p: { t: ["messages"] }, i: 1 })));
for await (const chunk of socket) for (received = Buffer.concat([received, chunk]); received.length > 1;) {
  const width = { 126: 2, 127: 8 }[received[1]] ?? 0, start = 2 + width; // of the length and the payload
  const end = start + (width ? Number(`0x0${received.toString("hex", 2, start)}`) : received[1]);
  if (received.length < end) break; // the rest of this frame is still on its way
  const opcode = received[0] & 15, payload = received.subarray(start, end);
  received = received.subarray(end);
  if (opcode === 9) send(10, payload); // a ping wants a pong
  if (opcode !== 1) continue;
  console.log(payload.toString()); // an answer or an event
  const { e, p } = JSON.parse(payload);
  const reply = e === "queue.pop" && p.d.frame && { c: p.c, d: `you said: ${p.d.frame.data}` };
  if (reply) send(1, Buffer.from(JSON.stringify({ m: "mesh.send", p: reply, i: 2 })));
}
