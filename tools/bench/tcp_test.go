package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/internal/link"
	"rempart/internal/proof"
)

func TestReadTransfer(t *testing.T) {
	got, n, err := readTransfer([]byte(`{"start":{},"end":{"sum_sent":{"bytes":9,"retransmits":3},"sum_received":{"bytes":1000000,"bits_per_second":4e6}}}`))
	if err != nil || n != 1000000 || got.Mbits != 4 || got.Retransmits != 3 {
		t.Errorf("%+v, %d, %v", got, n, err)
	}
	for what, text := range map[string]string{
		"an error":     `{"end":{"sum_received":{"bytes":5,"bits_per_second":5}},"error":"the server has terminated"}`,
		"no bytes":     `{"end":{"sum_received":{"bytes":0,"bits_per_second":0}}}`,
		"no end":       `{"start":{}}`,
		"no JSON":      "iperf3: error",
		"half of JSON": `{"end":{"sum_rec`,
		"nothing":      "",
	} {
		if _, _, err := readTransfer([]byte(text)); err == nil {
			t.Errorf("%s was taken for a transfer", what)
		}
	}
}

func TestCPUTime(t *testing.T) {
	got, err := readStat("42 (a) name) R 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0\n")
	if err != nil || got != 2*time.Second {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "42 (x) R 1 2", "42 (x) R 1 2 3 4 5 6 7 8 9 10 a b 0"} {
		if _, err := readStat(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	// A real process: this one, which has used some.
	for end := time.Now().Add(30 * time.Millisecond); time.Now().Before(end); {
	}
	if got, err := cpuOf([]int{os.Getpid()}); err != nil || got == 0 || got > time.Hour {
		t.Errorf("this process used %v, %v", got, err)
	}
	if _, err := cpuOf([]int{1 << 30}); err == nil {
		t.Error("a process that is not there used something")
	}
}

func TestVerdictOfPairs(t *testing.T) {
	pairs := func(ours float64) []pair {
		var all []pair
		for i := range 10 {
			all = append(all, pair{Ours: transfer{Mbits: ours}, Plain: transfer{Mbits: 100}, PlainFirst: i%2 == 1})
		}
		return all
	}
	for ours, kept := range map[float64]bool{100: true, 90: true, 89.9: false, 150: true} {
		r := &result{Name: "tcp"}
		reportPairs(r, pairs(ours))
		if r.finish(nil); r.Kept != kept {
			t.Errorf("%g of 100: kept is %v", ours, r.Kept)
		}
	}
	r := &result{Name: "tcp"}
	reportPairs(r, nil)
	if r.finish(nil); r.Kept {
		t.Error("no pair at all was kept")
	}
}

func TestTextError(t *testing.T) {
	if textError(" \n") != nil || textError("no\n").Error() != "no" {
		t.Error("an error is what was printed")
	}
}

// TestPlainTunnelCarriesTCP brings the yardstick up in a world without
// machines, with both link settings, and sends through it.
func TestPlainTunnelCarriesTCP(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump")
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			name := fmt.Sprintf("plaintest%d", os.Getpid())
			w, err := netns.Start(t.Context(), name, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := errors.Join(w.Release(), netns.Down(context.Background(), name)); err != nil {
					t.Error(err)
				}
			}()
			p, err := newPlain(t.Context(), w, offload)
			if err != nil {
				t.Fatal(err)
			}
			send(t, p, 1<<20)
			used, err := cpuOf(p.path().pids)
			if err != nil || used == 0 {
				t.Errorf("1 MiB cost its processes %v, %v", used, err)
			}
			if err := p.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// send sends n bytes from red to red.
func send(t *testing.T, p *plainTunnel, n int) {
	t.Helper()
	var listener net.Listener
	err := p.ends[1].red.Do(func() (err error) {
		listener, err = net.Listen("tcp4", p.ends[1].inner.String()+":9")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c) // the count tells
		got <- n
	}()
	c, err := dialIn(p.ends[0].red, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(c, io.LimitReader(zeros{}, int64(n))); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	select {
	case arrived := <-got:
		if arrived != int64(n) {
			t.Errorf("%d of %d bytes arrived", arrived, n)
		}
	case <-time.After(20 * time.Second):
		t.Error("the bytes did not arrive")
	}
}

// dialIn dials from a namespace. An address of one family: a dialler that tries
// both would use goroutines outside of it.
func dialIn(ns *link.NS, address string) (c net.Conn, err error) {
	err = ns.Do(func() error {
		c, err = net.DialTimeout("tcp4", address, 10*time.Second)
		return err
	})
	return c, err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestPlainEndRefusesNonsense: an end that cannot start says so and ends.
func TestPlainEndRefusesNonsense(t *testing.T) {
	for _, in := range []string{"", "no JSON", `{"an":"object"}`} {
		if err := plainMain(strings.NewReader(in), io.Discard); err == nil || !strings.Contains(err.Error(), "configuration") {
			t.Errorf("%q: %v", in, err)
		}
	}
}
