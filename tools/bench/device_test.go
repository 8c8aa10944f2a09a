package main

import (
	"testing"

	"rempart/internal/proof"
)

// A new device gets every layer, each read back, and nothing of it stays.
func TestDeviceGetsEveryLayer(t *testing.T) {
	proof.NeedRoot(t)
	r := &result{Name: "device", Settings: map[string]string{}}
	if err := newDevices(t.Context(), options{}, r); err != nil {
		t.Fatal(err)
	}
	samples, ok := r.Raw.([]deviceSample)
	if !ok || len(samples) != deviceSamples || len(r.Figures) != 2 {
		t.Fatalf("%d samples, figures %+v", len(samples), r.Figures)
	}
	for _, s := range samples {
		if s.FloorMS <= 0 || s.GateMS <= s.FloorMS || s.AllMS <= s.GateMS {
			t.Errorf("a sample is %+v", s)
		}
	}
	t.Logf("%+v", r.Figures)
}
