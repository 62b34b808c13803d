"""The WebSocket API of gridcast in Python, without a package."""
import base64, json, os, socket, struct


class Gridcast:
    """One connection to a node. `user` is `name:password` where the API has users."""

    def __init__(self, address, user=None):
        self.socket = socket.create_connection(address.rsplit(":", 1))
        self.stream = self.socket.makefile("rb")
        self.calls = 0
        key = base64.b64encode(os.urandom(16)).decode()
        login = f"Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n" if user else ""
        self.socket.sendall((f"GET /ws/v1 HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n"
                             f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                             f"Sec-WebSocket-Key: {key}\r\n{login}\r\n").encode())
        status = self.stream.readline()
        while self.stream.readline().strip():
            pass  # the rest of the response's head
        if b" 101 " not in status:
            raise ConnectionError(f"{address} refused the WebSocket: {status.decode().strip()}")

    def call(self, method, **params):
        """Sends a call. Calls take effect in their order, so there is no need to wait for answers."""
        self.calls += 1
        self._send(1, json.dumps({"m": method, "p": params, "i": self.calls}).encode())
        return self.calls

    def events(self):
        """Each event of the consumed topics; ends with the connection. Failed calls are printed."""
        while len(head := self.stream.read(2)) == 2:
            width = {126: 2, 127: 8}.get(head[1])
            size = int.from_bytes(self.stream.read(width), "big") if width else head[1]
            payload = self.stream.read(size)
            opcode = head[0] & 15
            if opcode == 9:
                self._send(10, payload)  # a ping wants a pong
            if opcode == 8:
                return
            if opcode != 1:
                continue
            message = json.loads(payload)
            if "e" in message:
                yield message["p"]
            elif message["E"]:
                print(f"call {message['i']}: {message['E']['m']}", flush=True)

    def _send(self, opcode, payload):
        """One masked frame, RFC 6455 section 5.2."""
        size, mask = len(payload), os.urandom(4)
        length = (struct.pack("!B", 0x80 | size) if size < 126 else
                  struct.pack("!BH", 0xFE, size) if size < 65536 else struct.pack("!BQ", 0xFF, size))
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(bytes([0x80 | opcode]) + length + mask + masked)
