"""Answers what clients send to the topic `messages`. Run: python3 backend.py [HOST:PORT]"""
import base64, json, os, socket, struct, sys

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:6789"
connection = socket.create_connection(address.rsplit(":", 1))
stream = connection.makefile("rb")
key = base64.b64encode(os.urandom(16)).decode()
connection.sendall((f"GET /ws/v1 HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
if b" 101 " not in stream.readline(): sys.exit(f"{address} refused the WebSocket")
while stream.readline().strip(): pass  # the rest of the response's head

def send(opcode, payload):  # one masked frame, RFC 6455 section 5.2
    size, mask = len(payload), os.urandom(4)
    length = (struct.pack("!B", 0x80 | size) if size < 126 else
              struct.pack("!BH", 0xFE, size) if size < 65536 else struct.pack("!BQ", 0xFF, size))
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    connection.sendall(bytes([0x80 | opcode]) + length + mask + masked)

send(1, json.dumps({"m": "queue.pop", "p": {"t": ["messages"]}, "i": 1}).encode())
while len(head := stream.read(2)) == 2:
    width = {126: 2, 127: 8}.get(head[1])
    payload = stream.read(int.from_bytes(stream.read(width), "big") if width else head[1])
    if head[0] & 15 == 9: send(10, payload)  # a ping wants a pong
    message = json.loads(payload) if head[0] & 15 == 1 else {}
    if message: print(payload.decode(), flush=True)  # an answer or an event
    if message.get("e") == "queue.pop" and "frame" in message["p"]["d"]:
        reply = {"c": message["p"]["c"], "d": "you said: " + message["p"]["d"]["frame"]["data"]}
        send(1, json.dumps({"m": "mesh.send", "p": reply, "i": 2}).encode())
