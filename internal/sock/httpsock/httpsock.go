// Package httpsock speaks JSON over HTTP on unix sockets between daemons and the commands a person types, so that curl can
// be used to look. Each request carries the kernel's word on who sent it; bodies, headers and times are bounded.
package httpsock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"rempart/internal/run"
	"rempart/internal/sock"
	"rempart/internal/strictconf"
)

// MaxBody is the longest request or reply body, in bytes.
const MaxBody = 256 << 10

// Error is a refusal or failure that the other side reported.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"`
	// Facts carries what a caller may branch on, for example tries_left.
	Facts map[string]int64 `json:"facts,omitempty"`
}

func (e *Error) Error() string { return e.Message }

type peerKey struct{}

// PeerFrom returns the process that sent r. ok is false when the kernel could not tell; a handler must refuse then.
func PeerFrom(r *http.Request) (p sock.Peer, ok bool) {
	p, ok = r.Context().Value(peerKey{}).(sock.Peer)
	return p, ok
}

// WithPeer returns ctx as Serve gives it to a request of p. It is for tests of handlers.
func WithPeer(ctx context.Context, p sock.Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// Serve answers requests on ln with h until ctx ends; it returns run.ErrStopped then. Requests in flight get two seconds.
func Serve(ctx context.Context, ln *net.UnixListener, h http.Handler) error {
	srv := &http.Server{
		Handler:           http.MaxBytesHandler(h, MaxBody),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			u, ok := c.(*net.UnixConn)
			if !ok {
				return ctx
			}
			p, err := sock.PeerOf(u)
			if err != nil {
				return ctx
			}
			return WithPeer(ctx, p)
		},
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("cannot serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(end); err != nil {
			return errors.Join(run.ErrStopped, srv.Close())
		}
		return run.ErrStopped
	}
}

// Write answers with v as JSON.
func Write(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		WriteError(w, &Error{Status: http.StatusInternalServerError, Message: "cannot encode the answer: " + err.Error()})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// A caller that hung up is not our failure; there is nobody left to tell.
	w.Write(append(body, '\n'))
}

// WriteError answers with e and its status.
func WriteError(w http.ResponseWriter, e *Error) {
	body, err := json.Marshal(e)
	if err != nil {
		body = []byte(`{"error":"cannot encode an error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	w.Write(append(body, '\n'))
}

// ReadBody decodes the request body into v, strictly. The returned *Error, if any, is to be answered.
func ReadBody(r *http.Request, v any) *Error {
	data, err := io.ReadAll(r.Body)
	if err == nil {
		err = strictconf.Decode(data, MaxBody, v)
	}
	if err != nil {
		return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("cannot read the request: %v", err)}
	}
	return nil
}

// Client returns an HTTP client whose every connection goes to the unix socket at path, whatever the URL's host.
func Client(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     20 * time.Second,
	}}
}

// Call sends in (nil for none) to path and decodes the answer into out (nil to ignore it). A refusal by the other side is
// an *Error; anything else is a transport failure.
func Call(ctx context.Context, c *http.Client, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("cannot encode a request for %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://rempart"+path, body)
	if err != nil {
		return fmt.Errorf("cannot ask for %s: %w", path, err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("cannot ask for %s: %w", path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		return fmt.Errorf("cannot read the answer to %s: %w", path, err)
	}
	if len(data) > MaxBody {
		return fmt.Errorf("cannot read the answer to %s: longer than %d bytes", path, MaxBody)
	}
	if resp.StatusCode/100 != 2 {
		e := &Error{Status: resp.StatusCode}
		if err := json.Unmarshal(data, e); err != nil || e.Message == "" {
			e.Message = fmt.Sprintf("%s %s was answered with %s", method, path, resp.Status)
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("cannot read the answer to %s: %w", path, err)
	}
	return nil
}
