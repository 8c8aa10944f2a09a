package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"rempart/boot/manifest"
	"rempart/internal/journal"
	"rempart/internal/sock/httpsock"
	"rempart/vpn/tunnel"
	"rempart/vpn/wireguard"
)

// Who may replace a gateway's peers.
const (
	gatewaydUID    = 905
	gatewaydCgroup = "/gatewayd"
)

// Status is the answer to GET /v1/status. Times are UTC; those that are not
// known are left out.
type Status struct {
	State string `json:"state"`
	// Since is when the tunnel went down, or came up.
	Since time.Time `json:"since,omitzero"`
	// Reason is what led to the state; while down, the last failure.
	Reason        string    `json:"reason"`
	Gateway       string    `json:"gateway,omitempty"`
	Endpoint      string    `json:"endpoint,omitempty"`
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	RxBytes       uint64    `json:"rx_bytes"`
	TxBytes       uint64    `json:"tx_bytes"`
	Retries       int       `json:"retries"`
	NextRetry     time.Time `json:"next_retry,omitzero"`
	// Peers is how many peers a gateway serves; Connected, how many of them had
	// a handshake within the life of a session.
	Peers     int `json:"peers,omitempty"`
	Connected int `json:"connected,omitempty"`
}

// show makes what the engine knows readable to the socket's goroutines.
func (e *engine) show() {
	s := Status{State: e.state.Phase.String(), Since: e.state.Since.UTC(), Reason: e.state.Why, Gateway: e.state.Gateway,
		Retries: e.state.Retries, Peers: len(e.peers)}
	if !e.state.DownSince.IsZero() {
		s.Since = e.state.DownSince.UTC()
	}
	if e.state.Trouble != "" {
		s.Reason = e.state.Trouble
	}
	if !e.state.NextRetry.IsZero() {
		s.NextRetry = e.state.NextRetry.UTC()
	}
	if !e.state.Handshake.IsZero() {
		s.LastHandshake = e.state.Handshake.UTC()
	}
	if e.cfg.plan.Role == tunnel.Handset && !e.state.Policy().DenyAll() {
		s.Endpoint = e.cfg.plan.Targets[e.state.Target].Endpoint.String()
	}
	if e.device != nil {
		// A device that ended has no counts; that it ended is an event of its own.
		peers, _ := e.device.Peers()
		for _, p := range peers {
			s.RxBytes += p.Received
			s.TxBytes += p.Sent
			if !p.Handshake.IsZero() && time.Since(p.Handshake) < tunnel.RejectAfter {
				s.Connected++
			}
		}
	}
	e.shown.Store(&s)
}

// handler answers on tunneld.sock.
func (e *engine) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := httpsock.PeerFrom(r); !ok {
			httpsock.WriteError(w, &httpsock.Error{Status: http.StatusForbidden, Message: "the caller is no process of this handset"})
			return
		}
		httpsock.Write(w, e.shown.Load())
	})
	mux.HandleFunc("PUT /v1/peers", e.putPeers)
	return mux
}

// PeerText is one peer in PUT /v1/peers.
type PeerText struct {
	Name      string         `json:"name"`
	PublicKey manifest.Key32 `json:"public_key"`
	Inner     []netip.Addr   `json:"inner"`
}

type peersRequest struct {
	peers  []wireguard.Peer
	answer chan error
}

// putPeers replaces the whole set of peers, or nothing.
func (e *engine) putPeers(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, message string) {
		e.journal.Event(eventPeers, "gatewayd", journal.Refused, "why", message)
		httpsock.WriteError(w, &httpsock.Error{Status: status, Message: message})
	}
	caller, ok := httpsock.PeerFrom(r)
	if !ok || !caller.Is(gatewaydUID, gatewaydCgroup) {
		refuse(http.StatusForbidden, "only gatewayd sets peers")
		return
	}
	if e.cfg.plan.Role != tunnel.Gateway {
		refuse(http.StatusNotFound, "a handset has no peers but the policy's gateways")
		return
	}
	var texts []PeerText
	if err := httpsock.ReadBody(r, &texts); err != nil {
		refuse(err.Status, err.Message)
		return
	}
	peers, err := e.cfg.peersOf(texts)
	if err != nil {
		refuse(http.StatusBadRequest, err.Error())
		return
	}
	request := peersRequest{peers, make(chan error, 1)}
	select {
	case e.requests <- request:
	case <-r.Context().Done():
		return
	}
	if err := <-request.answer; err != nil {
		refuse(http.StatusConflict, err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// peersOf gives every peer exactly its certified inner addresses, /32 and /128,
// all in the tunnel's network.
func (c config) peersOf(texts []PeerText) ([]wireguard.Peer, error) {
	peers := make([]wireguard.Peer, 0, len(texts))
	for _, t := range texts {
		for _, a := range t.Inner {
			if _, ok := c.networkOf(a); !ok {
				return nil, fmt.Errorf("cannot set peer %q: %s is not in network %s", t.Name, a, network)
			}
		}
		peers = append(peers, wireguard.Peer{Key: wireguard.Key(t.PublicKey), Inner: wireguard.Hosts(t.Inner)})
	}
	if err := wireguard.Check(peers); err != nil {
		return nil, err
	}
	return peers, nil
}

// setPeers runs in the engine's goroutine.
func (e *engine) setPeers(peers []wireguard.Peer) error {
	own := wireguard.Hosts(e.creds.inner)
	for _, p := range peers {
		if slices.ContainsFunc(p.Inner, func(a netip.Prefix) bool { return slices.Contains(own, a) }) {
			return fmt.Errorf("cannot set a peer with the gateway's own address %v", p.Inner)
		}
	}
	if e.state.Phase == tunnel.Listening {
		if err := e.device.SetPeers(peers); err != nil {
			return err
		}
	}
	if len(peers) != len(e.peers) {
		e.journal.Event(eventPeers, "gatewayd", journal.Success, "peers", strconv.Itoa(len(peers)))
	}
	e.peers = peers
	return nil
}
