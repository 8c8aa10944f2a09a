package netns

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
)

// powerRequest says how a machine is to be switched.
type powerRequest struct {
	// GraceMS is how long init gets, after SIGTERM, before the power is cut,
	// in milliseconds; 0 cuts it at once.
	GraceMS int64 `json:"grace_ms,omitempty"`
	// Device is what is plugged in or unplugged.
	Device string `json:"device,omitempty"`
}

// handler is the keeper's socket. Its folder is root's alone, so whoever
// reaches it may ask for anything.
func (k *keeper) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		httpsock.Write(w, k.status())
	})
	mux.HandleFunc("POST /v1/machines", func(w http.ResponseWriter, r *http.Request) {
		var s Spec
		if e := httpsock.ReadBody(r, &s); e != nil {
			httpsock.WriteError(w, e)
			return
		}
		m, err := k.add(s)
		answer(w, err, func() any { return m.describe() })
	})
	mux.HandleFunc("POST /v1/machines/{name}/{what}", k.serveMachine)
	mux.HandleFunc("POST /v1/guard", k.serveGuard)
	mux.HandleFunc("POST /v1/provider", func(w http.ResponseWriter, r *http.Request) {
		var p Provider
		if e := httpsock.ReadBody(r, &p); e != nil {
			httpsock.WriteError(w, e)
			return
		}
		k.mu.Lock()
		err := k.provider.provide(p)
		k.mu.Unlock()
		answer(w, err, nil)
	})
	mux.HandleFunc("POST /v1/keep", func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		k.kept = true
		k.mu.Unlock()
		answer(w, nil, nil)
	})
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, nil)
		k.stop()
	})
	mux.HandleFunc("POST /v1/captures", k.captures.serveStart)
	mux.HandleFunc("POST /v1/captures/{id}/stop", k.captures.serveStop)
	mux.HandleFunc("POST /v1/captures/{id}/settle", k.captures.serveSettle)
	return mux
}

// serveMachine switches a machine.
func (k *keeper) serveMachine(w http.ResponseWriter, r *http.Request) {
	m, err := k.find(r.PathValue("name"))
	if err != nil {
		answer(w, err, nil)
		return
	}
	var off powerRequest
	if r.ContentLength != 0 {
		if e := httpsock.ReadBody(r, &off); e != nil {
			httpsock.WriteError(w, e)
			return
		}
	}
	grace := time.Duration(off.GraceMS) * time.Millisecond
	switch r.PathValue("what") {
	case "on":
		err = m.powerOn(r.Context())
	case "off":
		err = m.powerOff(r.Context(), grace, "it was switched off")
	case "restart":
		if err = m.powerOff(r.Context(), grace, "it was restarted"); err == nil {
			err = m.powerOn(r.Context())
		}
	case "kill":
		err = m.kill9()
	case "prepare":
		err = k.factory.make(r.Context(), m.spec.Name, m.paths.TPM)
	case "plug":
		err = m.hotPlug(off.Device)
	case "unplug":
		err = m.hotUnplug(off.Device)
	default:
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusNotFound, Message: "a machine is asked for on, off, restart, kill, prepare, plug or unplug"})
		return
	}
	answer(w, err, func() any { return m.describe() })
}

// serveGuard holds the world to its client: if the client goes before the
// world was kept, the world goes too.
func (k *keeper) serveGuard(w http.ResponseWriter, r *http.Request) {
	// Only a server that has read the whole request watches for its end.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // a client that is gone is seen next
	<-r.Context().Done()
	k.mu.Lock()
	kept := k.kept
	k.mu.Unlock()
	if !kept {
		k.stop()
	}
}

// answer writes v(), or err with a status that the client turns back into the
// sentinel it stands for.
func answer(w http.ResponseWriter, err error, v func() any) {
	switch {
	case err != nil:
		status := http.StatusConflict
		if errors.Is(err, ErrNoMachine) {
			status = http.StatusNotFound
		} else if errors.Is(err, ErrOff) {
			status = http.StatusGone
		}
		httpsock.WriteError(w, &httpsock.Error{Status: status, Message: err.Error(), Hint: run.HintOf(err)})
	case v != nil:
		httpsock.Write(w, v())
	default:
		httpsock.Write(w, struct{}{})
	}
}

// stream writes one JSON line to a client that stays.
func stream(w http.ResponseWriter, v any) error {
	return errors.Join(json.NewEncoder(w).Encode(v), http.NewResponseController(w).Flush())
}
