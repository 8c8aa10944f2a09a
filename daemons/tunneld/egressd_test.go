package main

import (
	"net"
	"os"
	"slices"
	"sync"
	"testing"

	"rempart/internal/frame"
	"rempart/vpn/egress"
)

// egressd speaks the real frames and keeps what it was asked, without a kernel behind it.
type egressd struct {
	mu       sync.Mutex
	ln       net.Listener
	conns    []net.Conn
	table    egress.Policy
	admitted string
	asked    []string
}

func (g *egressd) serve(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.ln, g.admitted = ln, ""
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
		switch r.Op {
		case egress.OpClose:
			g.admitted = ""
			g.asked = append(g.asked, "close")
		case egress.OpAdmit:
			g.admitted = r.Gateway
			g.asked = append(g.asked, "admit "+r.Gateway)
		}
		s := egress.Status{Admitted: g.admitted, Digest: g.table.For(g.admitted).Digest()}
		if g.admitted == "" {
			s.Digest = egress.DenyAll().Digest()
		}
		g.mu.Unlock()
		reply, err := egress.MarshalStatus(s)
		if err != nil || frame.Write(c, reply) != nil {
			return
		}
	}
}

// die is kill -9: the socket and every connection at once.
func (g *egressd) die() {
	g.ln.Close()
	g.dismiss()
}

// dismiss ends every connection, as egressd does when another closes what was admitted.
func (g *egressd) dismiss() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admitted = ""
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

func (g *egressd) since(n int) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked[n:])
}
