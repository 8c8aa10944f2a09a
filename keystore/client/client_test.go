package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/internal/sock/httpsock"
)

func TestRefusalsGetTheirTypes(t *testing.T) {
	answer := func(status int, facts map[string]int64) error {
		return typed(&httpsock.Error{Status: status, Message: "in keyd's words", Facts: facts})
	}
	for _, c := range []struct {
		status int
		facts  map[string]int64
		want   error
	}{
		{StatusLocked, nil, ErrLocked},
		{StatusNotProvisioned, nil, ErrNotProvisioned},
		{StatusTPMGone, nil, ErrTPMGone},
		{StatusRefused, nil, ErrRefused},
		{StatusWrongPIN, map[string]int64{FactTriesLeft: 4}, ErrWrongPIN{TriesLeft: 4}},
		{StatusWrongPIN, map[string]int64{FactTriesLeft: 0}, ErrWrongPIN{}},
		{StatusLockout, map[string]int64{FactLockoutSeconds: 600}, ErrLockout{For: 10 * time.Minute}},
	} {
		err := answer(c.status, c.facts)
		if !errors.Is(err, c.want) {
			t.Errorf("status %d, %v: %v, want %v", c.status, c.facts, err, c.want)
		}
		// No answer is two things.
		for _, other := range []error{ErrLocked, ErrNotProvisioned, ErrTPMGone, ErrRefused} {
			if other != c.want && errors.Is(err, other) {
				t.Errorf("status %d is also %v", c.status, other)
			}
		}
	}
	if err := answer(StatusLocked, nil); err.Error() != "in keyd's words" {
		t.Errorf("keyd's words are lost: %v", err)
	}
	var plain *httpsock.Error
	if err := answer(http.StatusBadRequest, nil); !errors.As(err, &plain) {
		t.Errorf("a bad request: %v", err)
	}
	if typed(nil) != nil {
		t.Error("success is an error")
	}
	for _, err := range []error{ErrWrongPIN{3}, ErrLockout{time.Minute}} {
		if strings.ContainsAny(err.Error(), ".\n") {
			t.Errorf("%q", err.Error())
		}
	}
}

func TestPINIsATextThatIsNotPrinted(t *testing.T) {
	p := PIN("25\"80é")
	data, err := json.Marshal(UnlockRequest{PIN: p})
	if err != nil || string(data) != `{"pin":"25\"80é"}` {
		t.Errorf("%s, %v", data, err)
	}
	var back UnlockRequest
	if err := json.Unmarshal(data, &back); err != nil || string(back.PIN) != string(p) {
		t.Errorf("%q, %v", []byte(back.PIN), err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(verb, UnlockRequest{PIN: p}); !strings.Contains(got, "[pin]") || strings.Contains(got, "25") {
			t.Errorf("%s prints %s", verb, got)
		}
	}
	for name, bad := range map[string]PIN{"short": PIN("123"), "long": PIN(strings.Repeat("1", 65)), "not text": PIN("123\xff")} {
		if bad.Check() == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := json.Marshal(UnlockRequest{PIN: bad}); err == nil {
			t.Errorf("%s: sent", name)
		}
	}
}

func TestNoKeyd(t *testing.T) {
	c := New(filepath.Join(t.TempDir(), "nobody"))
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("status of nobody")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.WaitOpen(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for nobody: %v", err)
	}
}

func TestReady(t *testing.T) {
	for state, want := range map[State]bool{Empty: false, Sealed: false, Open: false, Capped: true, Failed: false} {
		if (Status{State: state}).Ready() != want {
			t.Errorf("%s: ready is not %v", state, want)
		}
	}
}
