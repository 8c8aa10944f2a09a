package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/tools/lab/bringup"
	"rempart/voice/port"
)

// notOneRoom: red is not one big room. Whoever is in one handset's red (here the desk, whom no hook of the handset judges) meets
// of another handset and of the gateway the ports of a call and of the gateway's services; from all else there is silence.
func notOneRoom(t *testing.T, w *world) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the ports that do answer")
	a, b, gateway := w.machine(t, "a"), w.machine(t, "b"), w.machine(t, "gateway")
	for _, c := range []struct {
		what    string
		from    string // red of
		to      int    // number of a machine
		port    uint16
		answers bool
	}{
		{"keys, handset to handset", a.Paths.Red, b.Number, port.Keying, true},
		{"another port, handset to handset", a.Paths.Red, b.Number, 4000, false},
		{"calls at the gateway", a.Paths.Red, gateway.Number, port.Calls, true},
		{"the directory at the gateway", a.Paths.Red, gateway.Number, port.Directory, true},
		{"another port of the gateway", a.Paths.Red, gateway.Number, 22, false},
		{"keys, from the gateway", gateway.Paths.Red, a.Number, port.Keying, true},
		{"another port, from the gateway", gateway.Paths.Red, a.Number, 4000, false},
	} {
		red, err := link.Open(c.from)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range bringup.Inner(c.to) {
			limit := 300 * time.Millisecond
			if c.answers {
				limit = 5 * time.Second
			}
			err := red.Do(func() error {
				conn, err := (&net.Dialer{Timeout: limit}).Dial("tcp", net.JoinHostPort(to.String(), fmt.Sprint(c.port)))
				if err != nil {
					return err
				}
				return conn.Close()
			})
			var slow net.Error
			silent := errors.As(err, &slow) && slow.Timeout()
			if answered := err == nil || errors.Is(err, unix.ECONNREFUSED); answered != c.answers || !answered && !silent {
				t.Errorf("%s, %s: %v, want an answer: %v", c.what, to, err, c.answers)
			}
		}
		if err := red.Close(); err != nil {
			t.Error(err)
		}
	}
}
