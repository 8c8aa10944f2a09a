package ask

import (
	"errors"
	"testing"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// A policy that is swapped while it is read is read again; one that differs and holds still is a difference at once.
func TestAgreedTellsASwapFromADifference(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "the case \"differs\"")
	differs := errors.New("differs")
	for name, c := range map[string]struct {
		swaps        int // how many of the readings a swap runs into
		bad          bool
		dies         bool
		wantReadings int
		wantErr      error
		wantSilent   bool
	}{
		"as it should be":       {wantReadings: 1},
		"swapped while read":    {swaps: 3, wantReadings: 4},
		"differs":               {bad: true, wantReadings: 1, wantErr: differs},
		"swapped, then differs": {swaps: 2, bad: true, wantReadings: 3, wantErr: differs},
		"never holds still":     {swaps: 1000, wantReadings: rereadTries, wantErr: differs},
		"dies while read":       {swaps: 1, dies: true, wantReadings: 1, wantSilent: true},
	} {
		readings := 0
		status := func() (egress.Status, error) {
			if c.dies && readings > 0 {
				return egress.Status{}, errors.New("no answer")
			}
			return egress.Status{Changes: uint64(min(readings, c.swaps))}, nil
		}
		err, silent := Agreed(status, func(egress.Status) error {
			if readings++; readings <= c.swaps || c.bad {
				return differs
			}
			return nil
		})
		if readings != c.wantReadings || !errors.Is(err, c.wantErr) || (silent != nil) != c.wantSilent {
			t.Errorf("%s: %d readings, %v, silent %v", name, readings, err, silent)
		}
	}
}
