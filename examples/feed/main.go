// An Internet-of-things feed, the same as feed.mjs. Run: go run . [HOST:PORT [NAME:PASSWORD]]
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

const tooHigh = 60

type sensor struct {
	Celsius *float64 `json:"celsius,omitempty"`
	Online  bool     `json:"online"`
	client  string
}

type feed struct {
	gridcast *Gridcast
	sensors  map[string]sensor // your database
}

func (f *feed) run() error {
	f.gridcast.Call("queue.pop", object{"t": []string{"sensors", "dashboards"}})
	for {
		event, err := f.gridcast.Event()
		if err != nil {
			return err
		}
		name := event.D.Context.Sensor
		switch {
		case event.T == "dashboards":
			f.show(event.C)
		case event.D.Event == "open":
			f.arrive(event.C, event.D.Query["id"])
		case event.D.Event == "close":
			f.leave(event.C, name)
		case event.D.Frame != nil:
			f.measure(event.C, name, event.D.Frame)
		}
	}
}

// The dashboard was subscribed during its handshake, so no change is missed in between.
func (f *feed) show(client string) {
	f.send(client, object{"state": f.sensors})
}

func (f *feed) arrive(client, name string) {
	if name == "" || len(name) > 40 {
		f.call(client, "close", 4000, "?id= is missing")
		return
	}
	f.call(client, "set_context_value", "sensor", name)
	known := f.sensors[name]
	f.change(name, sensor{known.Celsius, true, client})
}

// A sensor that came back on another connection is still online.
func (f *feed) leave(client, name string) {
	if known, ok := f.sensors[name]; ok && known.client == client {
		f.change(name, sensor{known.Celsius, false, client})
	}
}

// What a sensor sent before its name was in its context is dropped: the next one is not far.
func (f *feed) measure(client, name string, frame *Frame) {
	var message struct {
		Celsius *float64 `json:"celsius"`
	}
	if frame.Type != "text" || json.Unmarshal([]byte(frame.Data), &message) != nil {
		return
	}
	if name == "" || message.Celsius == nil {
		return
	}
	before := f.sensors[name].Celsius
	f.change(name, sensor{message.Celsius, true, client})
	was, is := before != nil && *before > tooHigh, *message.Celsius > tooHigh
	if was != is {
		f.send(client, object{"alarm": is})
	}
}

func (f *feed) change(name string, now sensor) {
	f.sensors[name] = now
	message := object{"sensor": name, "online": now.Online}
	if now.Celsius != nil {
		message["celsius"] = now.Celsius
	}
	text := encode(message)
	for _, channel := range []string{"measurements", "sensor:" + name} {
		f.gridcast.Call("mesh.publish", object{"c": channel, "d": text})
	}
}

func (f *feed) send(client string, message object) {
	f.gridcast.Call("mesh.send", object{"c": client, "d": encode(message)})
}

func (f *feed) call(client, function string, arguments ...any) {
	f.gridcast.Call("conn.call", object{"c": client, "f": function, "a": arguments})
}

func encode(message object) string {
	text, err := json.Marshal(message)
	if err != nil {
		panic(err) // of these types none
	}
	return string(text)
}

func argument(at int, otherwise string) string {
	if len(os.Args) > at {
		return os.Args[at]
	}
	return otherwise
}

func main() {
	address := argument(1, "127.0.0.1:6789")
	sensors := map[string]sensor{}
	for {
		gridcast, err := Connect(address, argument(2, ""))
		if err == nil {
			fmt.Println("connected to", address)
			err = (&feed{gridcast, sensors}).run()
		}
		fmt.Println(err)
		time.Sleep(time.Second)
	}
}
