package enforce

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// A reading that an exchange of programs ran into begins anew, a bounded number of times.
func TestWhole(t *testing.T) {
	gone := fmt.Errorf("cannot open program 7: %w", fs.ErrNotExist)
	for _, c := range []struct{ fails, want int }{{0, 1}, {3, 4}, {wholeTries - 1, wholeTries}, {wholeTries, wholeTries}} {
		reads := 0
		err := whole(func() error {
			if reads++; reads <= c.fails {
				return gone
			}
			return nil
		})
		if reads != c.want || (err != nil) != (c.fails >= wholeTries) {
			t.Errorf("%d failures: %d readings, %v", c.fails, reads, err)
		}
	}
	made := fmt.Errorf("get link fd from ID 7: %w", unix.EAGAIN)
	tries := 0
	if err := whole(func() error {
		if tries++; tries < 4 {
			return made
		}
		return nil
	}); err != nil || tries != 4 {
		t.Errorf("a link that is being made: %d readings, %v", tries, err)
	}
	other := errors.New("other")
	reads := 0
	if err := whole(func() error { reads++; return other }); !errors.Is(err, other) || reads != 1 {
		t.Errorf("%d readings, %v", reads, err)
	}
}

// A gate that is exchanged all the time is read without an error: a program that ended in between is a reading to do again.
func TestReadBackAmongSwaps(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "")
	w := newWorld(t)
	g := w.gate(egress.DenyAll())
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := w.black.Do(func() error { return g.denyEach() }); err != nil {
				ended <- err
				return
			}
		}
	}()
	for range 200 {
		w.in(w.black, func() error {
			r, err := ReadBack(w.ifindex, egress.DenyAll(), egress.LinkFacts{})
			return errors.Join(err, r.Err())
		})
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
