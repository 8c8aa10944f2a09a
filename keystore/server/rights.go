package server

import (
	"net/http"

	"rempart/internal/journal"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
)

// caller is who may send a request: the uid and the cgroup that init gave a
// daemon, both. A process can change neither: it has no capability, and moving
// into a cgroup takes write access to it.
type caller struct {
	uid    uint32
	cgroup string
}

// callers are the callers by name.
func callers() map[string]caller {
	return map[string]caller{
		"shell":    {1000, "/shell"},
		"tunneld":  {903, "/tunneld"},
		"voiced":   {904, "/voiced"},
		"gatewayd": {905, "/gatewayd"},
	}
}

// route is one request of the socket and who may send it; nobody named means
// anybody on the handset.
type route struct {
	pattern string
	may     []string
	handle  func(*Server, *http.Request) (any, *httpsock.Error)
}

func routes() []route {
	return []route{
		{"GET /v1/status", nil, (*Server).getStatus},
		{"POST /v1/enrol", []string{"shell"}, (*Server).postEnrol},
		{"GET /v1/csr", []string{"shell"}, (*Server).getCSR},
		{"PUT /v1/certificate", []string{"shell"}, (*Server).putCertificate},
		{"GET /v1/certificate", nil, (*Server).getCertificate},
		{"POST /v1/unlock", []string{"shell"}, (*Server).postUnlock},
		{"GET /v1/tunnel-key", []string{"tunneld"}, (*Server).getTunnelKey},
		{"POST /v1/sign", []string{"voiced", "gatewayd"}, (*Server).postSign},
		{"POST /v1/storage/seal", []string{"voiced"}, (*Server).postSeal},
		{"POST /v1/storage/open", []string{"voiced"}, (*Server).postOpen},
	}
}

// Handler answers the key socket's requests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range routes() {
		mux.HandleFunc(r.pattern, func(w http.ResponseWriter, req *http.Request) {
			peer, ok := httpsock.PeerFrom(req)
			if !ok || !r.admits(peer) {
				subject := "unknown"
				if ok {
					subject = peer.String()
				}
				s.journal.Event(eventRefused, subject, journal.Refused, "request", r.pattern)
				httpsock.WriteError(w, &httpsock.Error{
					Status:  client.StatusRefused,
					Message: "keystore does not do this for " + subject,
				})
				return
			}
			answer, refusal := r.handle(s, req)
			if refusal != nil {
				httpsock.WriteError(w, refusal)
				return
			}
			httpsock.Write(w, answer)
		})
	}
	return mux
}

func (r route) admits(peer sock.Peer) bool {
	if len(r.may) == 0 {
		return true
	}
	all := callers()
	for _, name := range r.may {
		if c := all[name]; peer.Is(c.uid, c.cgroup) {
			return true
		}
	}
	return false
}

// subject names the peer of a request that was admitted.
func subject(r *http.Request) string {
	peer, ok := httpsock.PeerFrom(r)
	if !ok {
		return "unknown"
	}
	return peer.String()
}
