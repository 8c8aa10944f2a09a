package soak

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// outside is the unfiltered capture of one session.
type outside struct {
	file    string
	capture *netns.Capture
	tail    *watch.Tail
	watcher *watch.Watcher
	read    chan error
	in      *os.File
}

// observe starts a capture, before any machine is on.
func observe(ctx context.Context, w *netns.World, dir string, rules watch.Rules) (*outside, error) {
	o := &outside{file: filepath.Join(dir, "session.pcapng"), read: make(chan error, 1)}
	var err error
	if o.watcher, err = watch.New(rules); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	if o.capture, err = w.Capture(ctx, o.file); err != nil {
		return nil, err
	}
	if o.in, err = os.Open(o.file); err != nil {
		_, stop := o.capture.Stop()
		return nil, errors.Join(fmt.Errorf("cannot read the capture: %w", err), stop)
	}
	o.tail = watch.NewTail(o.in)
	go func() { o.read <- o.watcher.Read(ctx, o.tail) }()
	return o, nil
}

// marker is a new one, watched for.
func (o *outside) marker() (attack.Marker, error) {
	var m attack.Marker
	rand.Read(m[:]) // never fails: crypto/rand ends the program instead
	return m, o.watcher.Mark(watch.Marker(m))
}

// seen waits for the capture to show what has left so far and counts a marker's frames.
func (o *outside) seen(ctx context.Context, m attack.Marker) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	frames, err := o.capture.Settle(ctx)
	if err != nil {
		return 0, err
	}
	if err := o.watcher.Await(ctx, frames); err != nil {
		return 0, err
	}
	n, _ := o.watcher.Seen(watch.Marker(m))
	return n, nil
}

// end closes the capture and returns what was seen. An incomplete one proves nothing and is an error.
func (o *outside) end() (watch.Summary, error) {
	result, err := o.capture.Stop()
	if err == nil && !result.Complete() {
		err = fmt.Errorf("the capture is not whole: %+v %s", result.Ports, result.Error)
	}
	o.tail.Finish()
	err = errors.Join(err, <-o.read, o.in.Close())
	return o.watcher.Summary(), err
}
