package main

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

type object = map[string]any

// Gridcast is one connection to the WebSocket API, without a package.
type Gridcast struct {
	connection net.Conn
	reader     *bufio.Reader
	calls      int
	failed     error
}

// Event is what a consumer gets, as far as this program reads it.
type Event struct {
	C string
	T string
	D struct {
		Event   string
		Query   map[string]string
		Frame   *Frame
		Context struct{ Sensor string }
	}
}

// Frame is a message from a client.
type Frame struct{ Type, Data string }

// Connect opens the WebSocket. The user is NAME:PASSWORD where the API has users, or else empty.
func Connect(address, user string) (*Gridcast, error) {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	login := ""
	if user != "" {
		login = "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user)) + "\r\n"
	}
	key := base64.StdEncoding.EncodeToString(random(16))
	fmt.Fprintf(connection, "GET /ws/v1 HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\n"+
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s\r\n", address, key, login)
	reader := bufio.NewReader(connection)
	response, err := http.ReadResponse(reader, nil)
	if err == nil && response.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("%s refused the WebSocket: %s", address, response.Status)
	}
	if err != nil {
		connection.Close()
		return nil, err
	}
	return &Gridcast{connection: connection, reader: reader}, nil
}

// Call sends a call. Calls take effect in their order, so there is no need to wait for answers. A
// broken connection is told by the next Event.
func (g *Gridcast) Call(method string, params object) {
	g.calls++
	text, err := json.Marshal(object{"m": method, "p": params, "i": g.calls})
	if err == nil {
		err = g.send(1, text)
	}
	if err != nil && g.failed == nil {
		g.failed = err
	}
}

// Event waits for the next event. Failed calls are printed.
func (g *Gridcast) Event() (*Event, error) {
	for g.failed == nil {
		opcode, payload, err := g.frame()
		if err != nil {
			return nil, err
		}
		switch opcode {
		case 8:
			return nil, io.EOF
		case 9: // a ping wants a pong
			g.failed = g.send(10, payload)
		case 1:
			event, failure, err := decode(payload)
			if err != nil || event != nil {
				return event, err
			}
			if string(failure) != "null" {
				fmt.Printf("a call failed: %s\n", failure)
			}
		}
	}
	return nil, g.failed
}

// An event, or why a call failed. Go's decoder does not tell "E" from "e", so a map is in between.
func decode(payload []byte) (event *Event, failure json.RawMessage, err error) {
	var fields map[string]json.RawMessage
	if err = json.Unmarshal(payload, &fields); err != nil {
		return nil, nil, err
	}
	if _, isEvent := fields["e"]; isEvent {
		err = json.Unmarshal(fields["p"], &event)
	}
	return event, fields["E"], err
}

func (g *Gridcast) frame() (byte, []byte, error) {
	head := make([]byte, 2, 8)
	if _, err := io.ReadFull(g.reader, head); err != nil {
		return 0, nil, err
	}
	opcode, size := head[0]&15, uint64(head[1])
	if width := map[uint64]int{126: 2, 127: 8}[size]; width > 0 {
		length := make([]byte, 8)
		if _, err := io.ReadFull(g.reader, length[8-width:]); err != nil {
			return 0, nil, err
		}
		size = binary.BigEndian.Uint64(length)
	}
	payload := make([]byte, size)
	_, err := io.ReadFull(g.reader, payload)
	return opcode, payload, err
}

// One masked frame, RFC 6455 section 5.2.
func (g *Gridcast) send(opcode byte, payload []byte) error {
	frame := []byte{0x80 | opcode}
	switch size := len(payload); {
	case size < 126:
		frame = append(frame, 0x80|byte(size))
	case size < 65536:
		frame = binary.BigEndian.AppendUint16(append(frame, 0xFE), uint16(size))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0xFF), uint64(size))
	}
	mask := random(4)
	frame = append(frame, mask...)
	for i, octet := range payload {
		frame = append(frame, octet^mask[i%4])
	}
	_, err := g.connection.Write(frame)
	return err
}

func random(size int) []byte {
	bytes := make([]byte, size)
	if _, err := rand.Read(bytes); err != nil {
		panic(err)
	}
	return bytes
}
