"""Takes jobs over HTTP, works on them, and acknowledges them. Needs the standard library alone.

Run: python3 worker.py [HOST:PORT [NAME:PASSWORD]]. Copies share the work. Any node of a grid will do.
"""
import base64
import json
import sys
import time
import urllib.request

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:6789"
USER = sys.argv[2] if len(sys.argv) > 2 else None


class Refused(Exception):
    """The node has refused a call."""


def call(method, params):
    request = urllib.request.Request(f"http://{ADDRESS}/v1/{method}", json.dumps(params).encode())
    if USER:
        request.add_header("Authorization", "Basic " + base64.b64encode(USER.encode()).decode())
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    if answer["E"]:
        raise Refused(f"{method}: {answer['E']['m']}")
    return answer["r"]


def work(event):
    """Works on one job. A job may come again, so the work has to be repeatable."""
    what = event["d"]
    job = json.loads(what["data"] if what.get("event") == "push" else what["frame"]["data"])
    answer = {"done": job["job"].upper()}  # your work
    if event["c"]:  # the job of a device, not of queue.push
        try:
            call("mesh/send", {"c": event["c"], "d": json.dumps(answer)})
        except Refused as error:
            print(error, file=sys.stderr)  # the device is gone, and the job is done


def work_on(events):
    """Works on events, acknowledges those that went well, and gives the others back."""
    done, failed = [], []
    for event in events:
        try:
            work(event)
            done.append(event["g"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"failed: {error!r}", file=sys.stderr)
            failed.append(event["g"])
    if failed:
        call("queue/nack", {"g": failed, "after_ms": 500})
    if done:
        call("queue/ack", {"g": done})


def main():
    wait_ms = 0
    while True:
        try:
            events = call("queue/take", {"t": ["jobs"], "max": 10, "wait_ms": wait_ms})["events"]
            if wait_ms == 0:
                print(f"connected to {ADDRESS}", flush=True)
            wait_ms = 20000
            work_on(events)
        except (OSError, Refused) as error:
            print(error, file=sys.stderr)
            time.sleep(1)  # what was not acknowledged comes again


if __name__ == "__main__":
    main()
