"""A chat room: serves the page room.html, signs tokens, and handles what people say. Run: python3 room.py [API [PAGE]]
API is the address of gridcast, 127.0.0.1:6789, and PAGE where the page is to be, 127.0.0.1:8080."""
import base64, collections, hmac, http.server, json, pathlib, sys, threading, time, urllib.request

API, PAGE = (sys.argv[1:] + ["127.0.0.1:6789", "127.0.0.1:8080"][len(sys.argv) - 1:])[:2]
KEY = b"an example's key, which is public"
USERS = {"ada": "lovelace", "alan": "turing", "grace": "hopper"}  # your user database
FILES = {"/": "room.html", "/gridcast.js": "../../clients/js/gridcast.js"}
SAID = {room: collections.deque(maxlen=50) for room in ("lobby", "tea", "garden")}  # your database of what was said

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        file = FILES.get(self.path.split("?")[0])
        body = (pathlib.Path(__file__).parent / file).read_bytes() if file else b""
        self.answer(200 if file else 404, "text/javascript" if self.path.endswith(".js") else "text/html", body)
    def do_POST(self):
        name, password = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), 1000)))
        is_right = name in USERS and hmac.compare_digest(USERS[name].encode(), password.encode())
        self.answer(200 if is_right else 403, "text/plain", token(name) if is_right else b"")
    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

def token(name):
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
    signed = part(b'{"alg":"HS256"}') + b"." + part(json.dumps({"sub": name, "exp": int(time.time()) + 900}).encode())
    return signed + b"." + part(hmac.digest(KEY, signed, "sha256"))

def call(method, **params):
    url, head = f"http://{API}/v1/{method.replace('.', '/')}", {"Content-Type": "application/json"}
    answer = json.load(urllib.request.urlopen(urllib.request.Request(url, json.dumps(params).encode(), head), timeout=30))
    return answer["r"] if not answer["E"] else print(method, answer["E"]["m"], flush=True) or {}

def publish(room, message, **more):
    return call("mesh.publish", c=f"room:{room}", d=json.dumps(message), **more)
def online(room):
    return sorted({member["u"] for member in call("channel.members", c=f"room:{room}", max=1000).get("members", [])})

def handle(client, name, message):
    if message.get("enter") in SAID:
        room = message["enter"]
        call("mesh.send", c=client, d=json.dumps({"room": room, "online": online(room), "said": list(SAID[room])}))
    elif "say" in message:
        said = {"id": message["id"], "from": name, "say": message["say"], "to": message.get("to")}
        if said["to"]:
            call("user.send", u=[said["to"], name], d=json.dumps(said))
        elif publish(message["in"], said, k=said["id"]) and said not in SAID[message["in"]]:
            SAID[message["in"]].append(said)  # an event that comes again is published and kept once

if __name__ == "__main__":
    host, port = PAGE.rsplit(":", 1)
    page = http.server.ThreadingHTTPServer((host, int(port)), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    print(f"open http://{host}:{page.server_port}/", flush=True)
    while True:
        for event in call("queue.take", t=["room"], wait_ms=20000).get("events", []):
            try:
                handle(event["c"], event["d"]["context"]["user_id"], json.loads(event["d"]["frame"]["data"]))
            except Exception as error:
                print("not understood:", error, flush=True)
            call("queue.ack", g=event["g"])
