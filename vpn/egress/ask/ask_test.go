package ask

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/internal/frame"
	"rempart/vpn/egress"
)

// daemon answers like egressd, in its frames, as answer says; a nil answer is silence.
// The real daemon is asked in daemons/egressd.
func daemon(t *testing.T, answer func(egress.Request) []byte) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for {
			b, err := frame.Read(c, egress.MaxRequest)
			if err != nil {
				return
			}
			r, err := egress.ParseRequest(b)
			if err != nil {
				return
			}
			if reply := answer(r); reply != nil {
				if err := frame.Write(c, reply); err != nil {
					return
				}
			}
		}
	}()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func reply(t *testing.T, s egress.Status) []byte {
	t.Helper()
	b, err := egress.MarshalStatus(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnswersAndRefusals(t *testing.T) {
	var asked []egress.Request
	c := daemon(t, func(r egress.Request) []byte {
		asked = append(asked, r)
		s := egress.Status{Admitted: r.Gateway}
		if r.Op == egress.OpClose {
			s.Err = "not now"
		}
		return reply(t, s)
	})
	ctx := t.Context()
	if s, err := c.Admit(ctx, "gateway"); err != nil || s.Admitted != "gateway" {
		t.Errorf("admit: %+v, %v", s, err)
	}
	if _, err := c.Table(ctx, egress.DenyAll()); err != nil {
		t.Error(err)
	}
	if _, err := c.Attach(ctx, 3); err != nil {
		t.Error(err)
	}
	_, err := c.CloseGate(ctx)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Text != "not now" || err.Error() != "cannot close: egressd: not now" {
		t.Errorf("refused: %v", err)
	}
	if _, err := c.Status(ctx); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	// What cannot be asked is not sent.
	if _, err := c.Admit(ctx, "Not A Name"); err == nil || errors.As(err, &refused) {
		t.Errorf("bad name: %v", err)
	}
	if len(asked) != 5 || asked[0].Gateway != "gateway" || asked[2].Ifindex != 3 {
		t.Errorf("asked %+v", asked)
	}
}

// What init is told of a close must be the answer to that close: a question that was
// given up is answered later, and its answer must not be taken for the next one's.
func TestALateAnswerIsNobodys(t *testing.T) {
	late := make(chan struct{})
	c := daemon(t, func(r egress.Request) []byte {
		if r.Op == egress.OpStatus {
			<-late
		}
		return reply(t, egress.Status{Admitted: "gateway"})
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); err == nil {
		t.Fatal("an answer that was never given")
	}
	close(late)
	if s, err := c.Table(t.Context(), egress.DenyAll()); err == nil {
		t.Errorf("the table was answered with %+v", s)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestSilenceAndRubbishEnd(t *testing.T) {
	silent := daemon(t, func(egress.Request) []byte { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := silent.Status(ctx); err == nil || time.Since(start) > 2*time.Second {
		t.Errorf("silence: %v after %v", err, time.Since(start))
	}
	cancelled, stop := context.WithCancel(t.Context())
	silent = daemon(t, func(egress.Request) []byte { stop(); return nil })
	if _, err := silent.Status(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	rubbish := daemon(t, func(egress.Request) []byte { return []byte{1, 2, 3} })
	if _, err := rubbish.Status(t.Context()); err == nil {
		t.Error("rubbish was taken for an answer")
	}
	if _, err := Dial(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("dialled nothing")
	}
}

// An end is seen without a question, after any time and not before.
func TestEndedAsksNobody(t *testing.T) {
	asked := 0
	c := daemon(t, func(r egress.Request) []byte {
		if asked++; r.Op == egress.OpClose {
			return reply(t, egress.Status{})[:3] // and whatever follows is nobody's
		}
		return reply(t, egress.Status{})
	})
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The deadline of the last question is not one of looking.
	if err := c.c.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := c.Ended(); err != nil || asked != 1 {
		t.Errorf("a connection that stands: %v, asked %d times", err, asked)
	}
	if _, err := c.CloseGate(t.Context()); err == nil {
		t.Fatal("half an answer was taken")
	}
	if c.Ended() == nil {
		t.Error("a connection of no use stands")
	}
	near, far := pair(t)
	c = &Client{c: near}
	if _, err := far.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := c.Ended(); err == nil || !strings.Contains(err.Error(), "not asked") {
		t.Errorf("an answer to nothing: %v", err)
	}
	near, far = pair(t)
	c = &Client{c: near}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ended(); err == nil || !strings.Contains(err.Error(), "ended the connection") {
		t.Errorf("an end: %v", err)
	}
}

// pair is the two ends of a connection.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("unix", path); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return near, far
}
