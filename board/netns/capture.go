package netns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"rempart/internal/sock/httpsock"
)

// PortCount is what a capture saw of one machine.
type PortCount struct {
	Port        string `json:"port"`
	Frames      uint64 `json:"frames"`
	Bytes       uint64 `json:"bytes"`        // of frames as on the air
	KernelDrops uint64 `json:"kernel_drops"` // frames that tcpdump was too slow for
	Missed      uint64 `json:"missed"`       // frames that the port counted and nobody accounts for
}

// CaptureResult is what a capture saw. The file is complete when all drops and
// misses are 0 and Error is empty.
type CaptureResult struct {
	File  string      `json:"file"`
	Ports []PortCount `json:"ports"`
	Error string      `json:"error,omitempty"`
}

// Complete tells whether the file holds every frame that was sent.
func (r CaptureResult) Complete() bool {
	for _, p := range r.Ports {
		if p.KernelDrops+p.Missed > 0 {
			return false
		}
	}
	return r.Error == ""
}

// captures are those of one world: one tcpdump per capture and port, as ports
// come and go.
type captures struct {
	mu    sync.Mutex
	last  int
	ports map[string]bool // the value tells whether frames may be larger than the radio's MTU
	all   map[int]*capture
}

// capture merges the dumps of all ports into one pcapng file.
type capture struct {
	id    int
	dumps map[string]*dump // guarded by captures.mu
	ended chan struct{}

	mu      sync.Mutex
	file    *os.File
	ng      *pcapgo.NgWriter
	written int // frames in the file
	blocks  map[string]int
	counts  map[string]*PortCount
	errs    []error
	closed  bool
}

// captureNote is one line of the answer to a client that captures.
type captureNote struct {
	Ready  int            `json:"ready,omitempty"` // the capture's id: it captures from now on
	Result *CaptureResult `json:"result,omitempty"`
	Error  string         `json:"error,omitempty"`
}

// start opens a capture on every port there is.
func (c *captures) start(path string) (*capture, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("cannot capture to %q: not an absolute path", path)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot capture: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[int]*capture{}
	}
	c.last++
	one := &capture{
		id: c.last, dumps: map[string]*dump{}, ended: make(chan struct{}), file: file,
		blocks: map[string]int{}, counts: map[string]*PortCount{},
	}
	for port, large := range c.ports {
		if err := one.attach(port, large); err != nil {
			for _, d := range one.dumps {
				d.stop()
			}
			return nil, errors.Join(err, file.Close())
		}
	}
	c.all[one.id] = one
	go one.flushOften()
	return one, nil
}

// plugged puts every running capture on a new port. large tells whether
// segmentation offload gives it frames larger than its MTU.
func (c *captures) plugged(port string, large bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ports == nil {
		c.ports = map[string]bool{}
	}
	c.ports[port] = large
	for _, one := range c.all {
		if err := one.attach(port, large); err != nil {
			return err
		}
	}
	return nil
}

// unplugging ends the dumps on a port that is about to go.
func (c *captures) unplugging(port string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ports, port)
	for _, one := range c.all {
		one.detach(port)
	}
}

// end stops a capture and returns what it saw. It is safe to call twice.
func (c *captures) end(one *capture) CaptureResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, running := c.all[one.id]; running {
		delete(c.all, one.id)
		for port := range one.dumps {
			one.detach(port)
		}
		one.close()
		close(one.ended)
	}
	return one.result()
}

// endAll ends every capture of a world that goes.
func (c *captures) endAll() {
	c.mu.Lock()
	all := make([]*capture, 0, len(c.all))
	for _, one := range c.all {
		all = append(all, one)
	}
	c.mu.Unlock()
	for _, one := range all {
		c.end(one)
	}
}

// attach starts a dump on port.
func (one *capture) attach(port string, large bool) error {
	block, err := one.block(port)
	if err != nil {
		return err
	}
	d, err := startDump(port, large, func(info gopacket.CaptureInfo, data []byte) error {
		info.InterfaceIndex = block
		one.mu.Lock()
		defer one.mu.Unlock()
		one.written++
		return one.ng.WritePacket(info, data)
	})
	if err != nil {
		return err
	}
	one.dumps[port] = d
	return nil
}

// detach ends the dump on port, if there is one.
func (one *capture) detach(port string) {
	d := one.dumps[port]
	if d == nil {
		return
	}
	delete(one.dumps, port)
	missed := d.stop()
	one.mu.Lock()
	defer one.mu.Unlock()
	n := one.counts[port]
	n.Frames += d.frames.Load()
	n.Bytes += d.bytes.Load()
	n.KernelDrops += d.kernelDrops
	n.Missed += missed
	if d.err != nil {
		one.errs = append(one.errs, fmt.Errorf("port %s: %w", port, d.err))
	}
	if err := one.ng.Flush(); err != nil {
		one.errs = append(one.errs, err)
	}
}

// block returns the interface block of a port, writing it the first time.
func (one *capture) block(port string) (int, error) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if id, ok := one.blocks[port]; ok {
		return id, nil
	}
	intf := pcapgo.NgInterface{Name: port, Comment: "frames that the machine sent", LinkType: layers.LinkTypeEthernet, TimestampResolution: 9}
	var id int
	var err error
	if one.ng == nil {
		options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{OS: "linux", Application: "rempart-lab"}}
		one.ng, err = pcapgo.NewNgWriterInterface(one.file, intf, options)
	} else {
		id, err = one.ng.AddInterface(intf)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot write %s: %w", one.file.Name(), err)
	}
	one.blocks[port] = id
	one.counts[port] = &PortCount{Port: port}
	return id, nil
}

// close finishes the file. A capture that never had a port is a valid file
// with the bridge as its one, silent interface.
func (one *capture) close() {
	if _, err := one.block(bridgeName); err != nil {
		one.errs = append(one.errs, err)
	}
	delete(one.counts, bridgeName)
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.ng != nil {
		one.errs = append(one.errs, one.ng.Flush())
	}
	one.closed = true
	one.errs = append(one.errs, one.file.Close())
}

// flushOften lets a reader of the file see frames soon after they were sent.
func (one *capture) flushOften() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-one.ended:
			return
		case <-tick.C:
		}
		one.mu.Lock()
		if one.ng != nil && !one.closed {
			_ = one.ng.Flush() // the last flush reports what stays wrong
		}
		one.mu.Unlock()
	}
}

// result describes an ended capture.
func (one *capture) result() CaptureResult {
	one.mu.Lock()
	defer one.mu.Unlock()
	r := CaptureResult{File: one.file.Name(), Ports: []PortCount{}}
	for _, n := range one.counts {
		r.Ports = append(r.Ports, *n)
	}
	sort.Slice(r.Ports, func(i, j int) bool { return r.Ports[i].Port < r.Ports[j].Port })
	if err := errors.Join(one.errs...); err != nil {
		r.Error = err.Error()
	}
	return r
}

// serveStart captures for one client, for as long as it stays.
func (c *captures) serveStart(w http.ResponseWriter, r *http.Request) {
	var want struct {
		File string `json:"file"`
	}
	if e := httpsock.ReadBody(r, &want); e != nil {
		httpsock.WriteError(w, e)
		return
	}
	one, err := c.start(want.File)
	if err != nil {
		answer(w, err, nil)
		return
	}
	if stream(w, captureNote{Ready: one.id}) == nil {
		select {
		case <-one.ended:
		case <-r.Context().Done():
		}
	}
	result := c.end(one)
	_ = stream(w, captureNote{Result: &result}) // a client that left does not want it
}

// serveStop ends a capture; its client gets the result.
func (c *captures) serveStop(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	c.mu.Lock()
	one := c.all[id]
	c.mu.Unlock()
	if err != nil || one == nil {
		httpsock.WriteError(w, &httpsock.Error{Status: http.StatusNotFound, Message: "no such capture"})
		return
	}
	c.end(one)
	answer(w, nil, nil)
}

// Capture is a running capture of the internet's link.
type Capture struct {
	w    *World
	id   int
	body io.ReadCloser
	line *bufio.Reader
}

// Capture starts a capture of every frame that any machine sends, into a
// pcapng file with one interface block per port, without a filter. It returns
// when it captures; a machine that is switched on later is captured from
// before its first frame. The capture ends with [Capture.Stop], with ctx, or
// with the world.
func (w *World) Capture(ctx context.Context, file string) (*Capture, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("cannot capture to %s: %w", file, err)
	}
	resp, err := w.post(ctx, "/v1/captures", map[string]string{"file": path})
	if err != nil {
		return nil, err
	}
	c := &Capture{w: w, body: resp.Body, line: bufio.NewReader(resp.Body)}
	note, err := c.next()
	if err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	c.id = note.Ready
	return c, nil
}

// End asks for the end of the capture; Wait tells when it came. One that
// ended already, with its world, is not an error.
func (c *Capture) End() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// If the keeper does not answer, Wait says so.
	_ = c.w.call(ctx, http.MethodPost, "/v1/captures/"+strconv.Itoa(c.id)+"/stop", nil, nil)
}

// Stop ends the capture and returns what it saw.
func (c *Capture) Stop() (CaptureResult, error) {
	c.End()
	return c.Wait()
}

// Wait waits for the end of the capture and returns what it saw.
func (c *Capture) Wait() (CaptureResult, error) {
	defer c.body.Close()
	note, err := c.next()
	if err != nil {
		return CaptureResult{}, fmt.Errorf("cannot learn how the capture ended: %w", err)
	}
	if note.Result == nil {
		return CaptureResult{}, errors.New("cannot learn how the capture ended: no result")
	}
	return *note.Result, nil
}

// next reads one note.
func (c *Capture) next() (captureNote, error) {
	line, err := c.line.ReadBytes('\n')
	if err != nil {
		return captureNote{}, fmt.Errorf("the world went away: %w", err)
	}
	var note captureNote
	if err := json.Unmarshal(line, &note); err != nil {
		return captureNote{}, fmt.Errorf("cannot read the keeper's answer: %w", err)
	}
	if note.Error != "" {
		return captureNote{}, errors.New(note.Error)
	}
	return note, nil
}
