package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestNoVerbPrintsTheSecret(t *testing.T) {
	s := New([]byte("canary-7f3a"))
	holder := struct{ Key *Bytes }{s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, v := range []any{s, holder, []*Bytes{s}} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, "canary") || strings.Contains(got, "63616e617279") || strings.Contains(got, "99 97 110") {
				t.Errorf("Sprintf(%q, %T) printed the secret: %s", verb, v, got)
			}
		}
	}
}

func TestMarshallersRefuse(t *testing.T) {
	s := New([]byte("canary"))
	if _, err := json.Marshal(map[string]any{"k": s}); !errors.Is(err, ErrRefused) {
		t.Errorf("json.Marshal: %v, want ErrRefused", err)
	}
	if err := gob.NewEncoder(&bytes.Buffer{}).Encode(s); !errors.Is(err, ErrRefused) {
		t.Errorf("gob: %v, want ErrRefused", err)
	}
	if _, err := s.MarshalText(); !errors.Is(err, ErrRefused) {
		t.Errorf("MarshalText: %v, want ErrRefused", err)
	}
}

func TestWipeOverwritesInPlace(t *testing.T) {
	b := []byte{1, 2, 3, 4}
	s := New(b)
	s.Wipe()
	s.Wipe()
	if !bytes.Equal(b, make([]byte, 4)) {
		t.Errorf("after Wipe the backing bytes are %v", b)
	}
	if s.Len() != 0 || s.Reveal() != nil {
		t.Error("a wiped secret still reveals something")
	}
	var none *Bytes
	none.Wipe()
	if none.Len() != 0 {
		t.Error("nil secret has a length")
	}
}
