// Package directory is the protected service of the gateway: which handsets can
// be called now, as JSON over HTTP on the gateway's inner address. Nothing
// protects it but where it is, and that is the point: whoever reads it has come
// through the tunnel.
package directory

import (
	"encoding/json"
	"net/http"

	"rempart/gateway/registrar"
)

// Entry is one handset that can be called now.
type Entry struct {
	// Name is its address of record.
	Name string `json:"name"`
	// Since is when it registered, CLOCK_MONOTONIC ns of the gateway.
	Since int64 `json:"since"`
}

// List is the answer to GET /directory, at most as long as the registrar's table.
type List struct {
	Domain   string  `json:"domain"`
	Handsets []Entry `json:"handsets"`
}

// Handler serves GET /directory and nothing else.
func Handler(domain string, table *registrar.Table) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /directory", func(w http.ResponseWriter, _ *http.Request) {
		list := List{Domain: domain, Handsets: []Entry{}}
		for _, b := range table.List() {
			list.Handsets = append(list.Handsets, Entry{Name: string(b.AOR), Since: b.Since})
		}
		body, err := json.Marshal(list)
		if err != nil {
			http.Error(w, "cannot write the directory", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(append(body, '\n')) // a reader that left is not our failure
	})
	return mux
}
