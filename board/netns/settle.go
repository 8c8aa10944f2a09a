package netns

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"rempart/internal/link"
	"rempart/internal/sock/httpsock"
)

// settled is the keeper's answer to a client that settles.
type settled struct {
	Frames int `json:"frames"`
}

// Settle waits until the capture's file holds every frame that any machine has sent so far, by the counters of the ports,
// and returns how many frames the file holds. It fails when frames are missing after the time that they may take.
func (c *Capture) Settle(ctx context.Context) (frames int, err error) {
	var s settled
	if err := c.w.call(ctx, http.MethodPost, "/v1/captures/"+strconv.Itoa(c.id)+"/settle", nil, &s); err != nil {
		return 0, err
	}
	return s.Frames, nil
}

// serveSettle answers Settle.
func (c *captures) serveSettle(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	c.mu.Lock()
	one := c.all[id]
	var dumps []*dump
	if one != nil {
		for _, d := range one.dumps {
			dumps = append(dumps, d)
		}
	}
	c.mu.Unlock()
	if err != nil || one == nil {
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusNotFound, Message: "no such capture"})
		return
	}
	for _, d := range dumps {
		if err := d.settle(r.Context()); err != nil {
			answer(w, err, nil)
			return
		}
	}
	n, err := one.total()
	answer(w, err, func() any { return settled{n} })
}

// settle waits until the dump has shown what its port has counted. A port that goes meanwhile is settled by its end.
func (d *dump) settle(ctx context.Context) error {
	now, err := link.Received(d.port)
	if err != nil {
		return nil
	}
	want := now - d.before
	for end := time.Now().Add(d.drain); d.frames.Load() < want; {
		select {
		case <-d.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("cannot settle the capture on %s: %d of %d frames are in it", d.port, d.frames.Load(), want)
		}
	}
	return nil
}

// total flushes the file and counts its frames.
func (one *capture) total() (int, error) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.ng == nil {
		return 0, nil
	}
	if err := one.ng.Flush(); err != nil {
		return 0, fmt.Errorf("cannot write %s: %w", one.file.Name(), err)
	}
	return one.written, nil
}
