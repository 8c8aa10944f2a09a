package httpsock

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/internal/run"
)

type ask struct {
	N int `json:"n"`
}

func serve(t *testing.T) (string, func() error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /double", func(w http.ResponseWriter, r *http.Request) {
		p, ok := PeerFrom(r)
		if !ok || p.UID != uint32(os.Getuid()) || p.PID != os.Getpid() {
			WriteError(w, &Error{Status: 403, Message: "cannot tell who asks"})
			return
		}
		var a ask
		if e := ReadBody(r, &a); e != nil {
			WriteError(w, e)
			return
		}
		Write(w, ask{2 * a.N})
	})
	mux.HandleFunc("GET /locked", func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, &Error{Status: 423, Message: "cannot open the keystore: it is locked", Hint: "unlock it", Facts: map[string]int64{"tries_left": 9}})
	})
	mux.HandleFunc("GET /unencodable", func(w http.ResponseWriter, r *http.Request) { Write(w, make(chan int)) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, mux) }()
	return path, func() error { cancel(); return <-done }
}

func TestCallAndRefusals(t *testing.T) {
	path, stop := serve(t)
	c := Client(path)
	var out ask
	if err := Call(t.Context(), c, "POST", "/double", ask{21}, &out); err != nil || out.N != 42 {
		t.Fatalf("got %+v, %v", out, err)
	}
	err := Call(t.Context(), c, "GET", "/locked", nil, &out)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Status != 423 || e.Hint != "unlock it" || e.Facts["tries_left"] != 9 {
		t.Errorf("refusal came as %#v", err)
	}
	if err := Call(t.Context(), c, "GET", "/nothing-here", nil, nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("unknown path: %v", err)
	}
	if err := Call(t.Context(), c, "GET", "/unencodable", nil, nil); err == nil || !strings.Contains(err.Error(), "cannot encode") {
		t.Errorf("unencodable answer: %v", err)
	}
	for name, body := range map[string]string{"unknown field": `{"n":1,"m":2}`, "garbage": "\x00", "duplicate": `{"n":1,"n":2}`, "too long": `{"n":1` + strings.Repeat(" ", MaxBody) + "}"} {
		resp, err := c.Post("http://rempart/double", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	if err := stop(); !errors.Is(err, run.ErrStopped) {
		t.Errorf("stopped with %v", err)
	}
	if err := Call(t.Context(), c, "GET", "/locked", nil, nil); err == nil {
		t.Error("a stopped server answered")
	}
}

func TestAClientThatNeverFinishesStallsNoOther(t *testing.T) {
	path, stop := serve(t)
	for range 20 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("POST /double HTTP/1.1\r\nHost: x\r\nContent-Le")); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var out ask
	if err := Call(ctx, Client(path), "POST", "/double", ask{1}, &out); err != nil || out.N != 2 {
		t.Errorf("behind slow clients: %v", err)
	}
	stop()
}
