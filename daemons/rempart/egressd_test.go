package main

import (
	"net"
	"os"
	"sync"
	"testing"

	"rempart/internal/frame"
	"rempart/vpn/egress"
)

// egressd speaks egressd's frames over a record and a status of the test's.
type egressd struct {
	mu      sync.Mutex
	ln      net.Listener
	conns   []net.Conn
	status  egress.Status
	samples []egress.Sample // in the order of their numbers
	leftOut uint64
}

func (g *egressd) serve(t *testing.T, path string) {
	t.Helper()
	_ = os.Remove(path)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	g.mu.Lock()
	g.ln = ln
	g.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.conns = append(g.conns, c)
			g.mu.Unlock()
			go g.answer(c)
		}
	}()
}

func (g *egressd) answer(c net.Conn) {
	for {
		b, err := frame.Read(c, egress.MaxRequest)
		if err != nil {
			return
		}
		r, err := egress.ParseRequest(b)
		if err != nil {
			return
		}
		g.mu.Lock()
		reply, err := egress.MarshalStatus(g.status)
		if r.Op == egress.OpDrops {
			reply, err = egress.MarshalDrops(g.since(r.Since), "")
		}
		g.mu.Unlock()
		if err != nil || frame.Write(c, reply) != nil {
			return
		}
	}
}

// since is a part of the record, as vpn/enforce reads it. Needs mu.
func (g *egressd) since(n uint64) egress.Drops {
	d := egress.Drops{Next: n, LeftOut: g.leftOut}
	for _, s := range g.samples {
		if s.Seq <= n || len(d.Samples) == egress.MaxSamples {
			continue
		}
		d.Missed += s.Seq - d.Next - 1
		d.Next = s.Seq
		d.Samples = append(d.Samples, s)
	}
	return d
}

// add records samples.
func (g *egressd) add(samples ...egress.Sample) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.samples = append(g.samples, samples...)
}

// die is kill -9: the socket and every connection at once.
func (g *egressd) die() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ln.Close()
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}
