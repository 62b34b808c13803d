"""A chat room with login. Run: python3 chat.py [HOST:PORT [NAME:PASSWORD]]

What a device sends, each a JSON object:
    {"login": "ada", "password": "lovelace"}    first
    {"say": "hello"}                            to everybody in the room
    {"room": "tea"}                             to go to another room
What it gets:
    {"welcome": "ada", "room": "lobby"}
    {"error": "wrong name or password"}         before it is closed with 4001
    {"from": "ada", "say": "hello"}, {"joined": "ada"}, {"left": "ada"}
"""
import hmac, json, os, sys, time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from gridcast import Gridcast

USERS = {"ada": "lovelace", "alan": "turing", "grace": "hopper"}  # your user database
FIRST_ROOM = "lobby"


class Chat:
    def __init__(self, gridcast):
        self.gridcast = gridcast

    def run(self):
        # An event is acknowledged once it was handled: if this program dies, it goes to another copy.
        self.gridcast.call("queue.pop", t=["chat"], a=True)
        for event in self.gridcast.events():
            self.handle(event["c"], event["d"])
            self.gridcast.call("queue.ack", g=event["g"])

    def handle(self, client, what):
        context = what.get("context", {})
        name, room = context.get("user_id"), context.get("room")
        if what.get("event") == "close":
            if name:
                self.publish(room, {"left": name})
            return
        message = parse(what["frame"])
        if name is None:
            self.log_in(client, message)
        elif isinstance(message.get("say"), str):
            self.publish(room, {"from": name, "say": message["say"]})
        elif isinstance(message.get("room"), str) and 0 < len(message["room"]) <= 40:
            self.move(client, name, room, message["room"])
        else:
            self.send(client, {"error": "say, or room"})

    def log_in(self, client, message):
        name, password = str(message.get("login")), str(message.get("password"))
        if not hmac.compare_digest(USERS.get(name, ""), password) or name not in USERS:
            self.send(client, {"error": "wrong name or password"})
            return self.function(client, "close", 4001, "wrong name or password")
        self.enter(client, name, FIRST_ROOM)
        # Last, since it lets in what the client has sent meanwhile.
        self.function(client, "set_context", {"user_id": name, "room": FIRST_ROOM})

    def move(self, client, name, old, new):
        self.function(client, "unsubscribe", f"room:{old}")
        self.publish(old, {"left": name})
        self.function(client, "set_context_value", "room", new)
        self.enter(client, name, new)

    def enter(self, client, name, room):
        self.send(client, {"welcome": name, "room": room})
        self.publish(room, {"joined": name})
        self.function(client, "subscribe", f"room:{room}")

    def send(self, client, message):
        self.gridcast.call("mesh.send", c=client, d=json.dumps(message))

    def publish(self, room, message):
        self.gridcast.call("mesh.publish", c=f"room:{room}", d=json.dumps(message))

    def function(self, client, name, *arguments):
        self.gridcast.call("conn.call", c=client, f=name, a=list(arguments))


def parse(frame):
    """What a device sent, an object; an empty one if it sent anything else."""
    try:
        message = json.loads(frame["data"]) if frame["type"] == "text" else {}
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:6789"
    while True:
        try:
            chat = Chat(Gridcast(address, sys.argv[2] if len(sys.argv) > 2 else None))
            print(f"connected to {address}", flush=True)
            chat.run()
        except OSError as error:
            print(error, flush=True)
        time.sleep(1)
