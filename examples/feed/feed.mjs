// An Internet-of-things feed. Run: node feed.mjs [HOST:PORT [NAME:PASSWORD]]
//
// A sensor connects to /sensor?id=kitchen and sends measurements: {"celsius": 21.5}
// It gets {"alarm": true} when a measurement is too high, and {"alarm": false} when that is over.
//
// A dashboard connects to /dashboard?channels=measurements, or channels=sensor:kitchen, and gets
//     {"state": {"kitchen": {"celsius": 21.5, "online": true}}}     first: all that is known
//     {"sensor": "kitchen", "celsius": 21.5, "online": true}        for each change
import { connect } from "../lib/gridcast.mjs";

const TOO_HIGH = 60;
const address = process.argv[2] ?? "127.0.0.1:6789";
const sensors = new Map(); // your database: name → { celsius, online, client }

class Feed {
  constructor(gridcast) {
    this.gridcast = gridcast;
  }

  async run() {
    this.gridcast.call("queue.pop", { t: ["sensors", "dashboards"] });
    for await (const { c, t, d } of this.gridcast.events()) {
      if (t === "dashboards") this.show(c);
      else if (d.event === "open") this.arrive(c, d);
      else if (d.event === "close") this.leave(c, d.context?.sensor);
      else this.measure(c, d.context?.sensor, d.frame);
    }
  }

  // The dashboard was subscribed during its handshake, so no change is missed in between.
  show(client) {
    const state = {};
    for (const [name, { celsius, online }] of sensors) state[name] = { celsius, online };
    this.send(client, { state });
  }

  arrive(client, { query }) {
    const name = query?.id;
    if (!name || name.length > 40) return this.call(client, "close", 4000, "?id= is missing");
    this.call(client, "set_context_value", "sensor", name);
    this.change(name, { client, online: true });
  }

  // A sensor that came back on another connection is still online.
  leave(client, name) {
    if (sensors.get(name)?.client === client) this.change(name, { online: false });
  }

  // What a sensor sent before its name was in its context is dropped: the next one is not far.
  measure(client, name, frame) {
    const { celsius } = parse(frame);
    if (!name || typeof celsius !== "number") return;
    const before = sensors.get(name);
    this.change(name, { celsius, client, online: true });
    const [was, is] = [before?.celsius > TOO_HIGH, celsius > TOO_HIGH];
    if (was !== is) this.send(client, { alarm: is });
  }

  change(name, what) {
    const sensor = { ...sensors.get(name), ...what };
    sensors.set(name, sensor);
    const { celsius, online } = sensor;
    const d = JSON.stringify({ sensor: name, celsius, online });
    for (const c of ["measurements", `sensor:${name}`]) this.gridcast.call("mesh.publish", { c, d });
  }

  send(client, message) {
    this.gridcast.call("mesh.send", { c: client, d: JSON.stringify(message) });
  }

  call(client, f, ...a) {
    this.gridcast.call("conn.call", { c: client, f, a });
  }
}

/// What a sensor sent, an object; an empty one if it sent anything else.
function parse(frame) {
  try {
    return Object(frame.type === "text" && JSON.parse(frame.data));
  } catch {
    return {};
  }
}

for (;;) {
  try {
    const feed = new Feed(await connect(address, process.argv[3]));
    console.log(`connected to ${address}`);
    await feed.run();
  } catch (error) {
    console.log(error.message);
  }
  await new Promise((again) => setTimeout(again, 1000));
}
