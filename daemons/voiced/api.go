package main

import (
	"errors"
	"net/http"

	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/voice/agent"
	"rempart/voice/sip"
)

// Who may place, end and see calls: the person at the handset.
const (
	shellUID    = 1000
	shellCgroup = "/shell"
)

// routes is the socket's interface.
func (h *handler) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", h.status)
	mux.HandleFunc("POST /v1/calls", h.person(h.dial))
	mux.HandleFunc("GET /v1/calls/{id}", h.person(h.record))
	mux.HandleFunc("DELETE /v1/calls/{id}", h.person(h.hangup))
	mux.HandleFunc("POST /v1/calls/{id}/answer", h.person(h.answer))
	return mux
}

// person lets only the shell in, and only when there is an agent.
func (h *handler) person(f func(*agent.Agent, http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if p, ok := httpsock.PeerFrom(r); !ok || !isShell(p) {
			httpsock.WriteError(w, &httpsock.Error{Status: http.StatusForbidden, Message: "only the person at the handset may use the telephone",
				Hint: "run it as the handset's user, in the cgroup " + shellCgroup})
			return
		}
		a := h.agent.Load()
		if a == nil {
			httpsock.WriteError(w, &httpsock.Error{Status: http.StatusServiceUnavailable, Message: "cannot telephone yet: " + *h.waiting.Load(),
				Hint: "rempart status says what is missing; rempart unlock opens the keystore"})
			return
		}
		f(a, w, r)
	}
}

func isShell(p sock.Peer) bool { return p.Is(shellUID, shellCgroup) }

// status is for every process of the handset; who is called with which short
// authentication string is for the person only.
func (h *handler) status(w http.ResponseWriter, r *http.Request) {
	p, ok := httpsock.PeerFrom(r)
	if !ok {
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusForbidden, Message: "the caller is no process of this handset"})
		return
	}
	a := h.agent.Load()
	if a == nil {
		httpsock.Write(w, agent.Status{Registration: sip.Registration{State: "unregistered", Since: h.since, Reason: *h.waiting.Load()}})
		return
	}
	s := a.Status()
	if !isShell(p) {
		s.Current, s.Last = nil, nil
	}
	httpsock.Write(w, s)
}

// DialRequest is the body of POST /v1/calls; DialAnswer its answer.
type (
	DialRequest struct {
		Callee string `json:"callee"`
	}
	DialAnswer struct {
		ID string `json:"id"`
	}
)

func (h *handler) dial(a *agent.Agent, w http.ResponseWriter, r *http.Request) {
	var req DialRequest
	if err := httpsock.ReadBody(r, &req); err != nil {
		httpsock.WriteError(w, err)
		return
	}
	id, err := a.Dial(req.Callee)
	switch {
	case errors.Is(err, agent.ErrBusy):
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusConflict, Message: err.Error(), Hint: "rempart hangup ends it"})
	case errors.Is(err, agent.ErrCallee):
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusBadRequest, Message: err.Error(), Hint: "a name such as b, or b's whole address, sip:b@DOMAIN"})
	case errors.Is(err, agent.ErrSound):
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusConflict, Message: err.Error(), Hint: "give the sound card a recording of the expected format"})
	case err != nil:
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusInternalServerError, Message: err.Error()})
	default:
		httpsock.Write(w, DialAnswer{ID: id})
	}
}

func (h *handler) record(a *agent.Agent, w http.ResponseWriter, r *http.Request) {
	rec, err := a.Record(r.PathValue("id"))
	if err != nil {
		notFound(w, err)
		return
	}
	httpsock.Write(w, rec)
}

func (h *handler) hangup(a *agent.Agent, w http.ResponseWriter, r *http.Request) {
	if err := a.Hangup(r.PathValue("id")); err != nil {
		notFound(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *handler) answer(a *agent.Agent, w http.ResponseWriter, r *http.Request) {
	if err := a.Answer(r.PathValue("id")); err != nil {
		notFound(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func notFound(w http.ResponseWriter, err error) {
	httpsock.WriteError(w, &httpsock.Error{Status: http.StatusNotFound, Message: err.Error(), Hint: "rempart status shows the call that is on"})
}
