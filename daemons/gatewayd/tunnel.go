package main

import (
	"context"
	"net/http"
	"sync"

	"rempart/gateway/peers"
	"rempart/internal/sock/httpsock"
)

// tunnel is tunneld as gatewayd knows it.
type tunnel struct {
	client *http.Client

	mu   sync.Mutex
	told int // how many peers it was given last
}

func newTunnel(socket string) *tunnel { return &tunnel{client: httpsock.Client(socket)} }

// push gives tunneld the whole set.
func (t *tunnel) push(ctx context.Context, set []peers.Peer) error {
	if set == nil {
		set = []peers.Peer{}
	}
	if err := httpsock.Call(ctx, t.client, http.MethodPut, "/v1/peers", set, nil); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told = len(set)
	return nil
}

// stale tells that tunneld does not hold what it was given: it restarts with no
// peers at all. One that does not answer will be asked again.
func (t *tunnel) stale(ctx context.Context) bool {
	var s struct {
		Peers int `json:"peers"`
	}
	if err := httpsock.Call(ctx, t.client, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.Peers != t.told
}
