package wireguard

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Status is what one peer's session looks like now.
type Status struct {
	Key      Key
	Endpoint netip.AddrPort // where it was last heard, zero if never
	// Handshake is when the last handshake completed; zero means none.
	Handshake time.Time
	// Received and Sent count bytes on the wire side, authenticated ones only
	// for Received.
	Received, Sent uint64
}

// dump takes wireguard-go's answer to "get". Its first line is the private key,
// in a buffer that is pooled and written again only by the next answer.
type dump struct {
	peers []Status
	err   error
}

// Write parses the answer and then overwrites it: the slice is wireguard-go's
// own buffer, and this is the one chance to take the key out of it. It bends
// io.Writer's rule that the slice is not modified, for a caller that is known.
func (d *dump) Write(text []byte) (int, error) {
	d.peers, d.err = parse(text)
	clear(text)
	return len(text), nil
}

// parse reads the configuration protocol's answer to "get". Lines about the
// device itself are passed over, the private key with them.
func parse(text []byte) ([]Status, error) {
	var peers []Status
	var seconds, nanos int64
	finish := func() {
		if n := len(peers); n > 0 && (seconds != 0 || nanos != 0) {
			peers[n-1].Handshake = time.Unix(seconds, nanos)
		}
		seconds, nanos = 0, 0
	}
	for line := range bytes.Lines(text) {
		key, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("="))
		if !ok {
			return nil, fmt.Errorf("cannot read the device's status: a line has no value")
		}
		if string(key) == "public_key" {
			finish()
			var p Status
			if n, err := hex.Decode(p.Key[:], value[:min(len(value), 64)]); err != nil || n != 32 || len(value) != 64 {
				return nil, fmt.Errorf("cannot read the device's status: a public key is malformed")
			}
			peers = append(peers, p)
			continue
		}
		if len(peers) == 0 {
			continue
		}
		p := &peers[len(peers)-1]
		var err error
		switch string(key) {
		case "endpoint":
			p.Endpoint, err = netip.ParseAddrPort(string(value))
		case "last_handshake_time_sec":
			seconds, err = strconv.ParseInt(string(value), 10, 64)
		case "last_handshake_time_nsec":
			nanos, err = strconv.ParseInt(string(value), 10, 64)
		case "tx_bytes":
			p.Sent, err = strconv.ParseUint(string(value), 10, 64)
		case "rx_bytes":
			p.Received, err = strconv.ParseUint(string(value), 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the device's status: %s: %w", key, err)
		}
	}
	finish()
	return peers, nil
}
