package directory

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"rempart/gateway/registrar"
)

func TestDirectory(t *testing.T) {
	table := registrar.New(4, func() int64 { return 5 })
	srv := httptest.NewServer(Handler("handsets.example", table))
	defer srv.Close()
	get := func() List {
		t.Helper()
		res, err := http.Get(srv.URL + "/directory")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var l List
		if err := json.NewDecoder(res.Body).Decode(&l); err != nil || res.StatusCode != 200 {
			t.Fatalf("status %d, %v", res.StatusCode, err)
		}
		return l
	}
	if l := get(); l.Handsets == nil || len(l.Handsets) != 0 || l.Domain != "handsets.example" {
		t.Errorf("empty directory: %+v", l)
	}
	if err := table.Register("sip:a@handsets.example", "10.77.0.11:1", time.Minute); err != nil {
		t.Fatal(err)
	}
	if l := get(); len(l.Handsets) != 1 || l.Handsets[0] != (Entry{Name: "sip:a@handsets.example", Since: 5}) {
		t.Errorf("directory: %+v", l)
	}
	for method, path := range map[string]string{"POST": "/directory", "GET": "/"} {
		req, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode/100 != 4 {
			t.Errorf("%s %s: status %d", method, path, res.StatusCode)
		}
	}
}
