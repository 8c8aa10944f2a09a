package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"rempart/internal/link"
)

// dump is one tcpdump on one port: the frames that the machine sent.
type dump struct {
	port   string
	drain  time.Duration // how late a frame may come
	cmd    *exec.Cmd
	before uint64 // the port's counter when the dump became ready
	frames atomic.Uint64
	bytes  atomic.Uint64
	done   chan struct{}
	// Set before done is closed.
	kernelDrops uint64
	err         error
}

// droppedLine is how tcpdump ends: "0 packets dropped by kernel".
var droppedLine = regexp.MustCompile(`(?m)^(\d+) packets? dropped by kernel`)

// startDump starts a tcpdump without any filter and returns when it captures.
// each is called for every frame, from one goroutine.
//
// In immediate mode libpcap's ring has one slot of the snapshot length per
// frame, so that length must be near that of a frame, or a burst overruns the
// ring. Where frames may be large the ring is one of bytes, and frames come up
// to a second late.
func startDump(port string, large bool, each func(gopacket.CaptureInfo, []byte) error) (*dump, error) {
	d := &dump{port: port, done: make(chan struct{}), drain: 500 * time.Millisecond}
	args := []string{"-i", port, "-Q", "in", "-n", "-U", "-B", "16384", "--time-stamp-precision=nano", "-Z", "root", "-w", "-"}
	if large {
		d.drain = 1500 * time.Millisecond
	} else {
		args = append(args, "--immediate-mode", "-s", "2048")
	}
	d.cmd = exec.Command("tcpdump", args...)
	d.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot capture on %s: %w", port, err)
	}
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot capture on %s: %w", port, err)
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot capture on %s: %w", port, err)
	}
	ready, said := make(chan struct{}), make(chan string, 1)
	go func() {
		var all strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if strings.Contains(lines.Text(), "listening on") {
				close(ready)
			}
			fmt.Fprintln(&all, lines.Text())
		}
		said <- all.String()
	}()
	read := make(chan error, 1)
	go func() { read <- d.read(stdout, each) }()
	go func() {
		defer close(d.done)
		err := <-read
		text := <-said
		_ = d.cmd.Wait() // it says what went wrong on its standard error
		if m := droppedLine.FindStringSubmatch(text); m != nil {
			d.kernelDrops, _ = strconv.ParseUint(m[1], 10, 64) // digits, by the pattern
		} else {
			err = errors.Join(err, fmt.Errorf("tcpdump ended: %s", lastLines(text, 3)))
		}
		d.err = err
	}()
	select {
	case <-ready:
	case <-d.done:
		return nil, fmt.Errorf("cannot capture on %s: %w", port, d.err)
	case <-time.After(10 * time.Second):
		_ = d.cmd.Process.Kill() // it may end just now
		<-d.done
		return nil, fmt.Errorf("cannot capture on %s: tcpdump did not get ready in 10 s", port)
	}
	d.before, _ = link.Received(port)
	return d, nil
}

// read takes frames from tcpdump until it ends.
func (d *dump) read(r io.Reader, each func(gopacket.CaptureInfo, []byte) error) error {
	pcap, err := pcapgo.NewReader(r)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil // it ended before it began, and says why elsewhere
		}
		return fmt.Errorf("cannot read what tcpdump captured: %w", err)
	}
	for {
		data, info, err := pcap.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read what tcpdump captured: %w", err)
		}
		if err := each(info, data); err != nil {
			_ = d.cmd.Process.Kill() // nowhere to write to
			return err
		}
		d.frames.Add(1)
		d.bytes.Add(uint64(info.Length))
	}
}

// stop waits, for as long as a frame may take, until every frame that the port received
// has been read, then ends tcpdump, which would leave unread ones behind. It
// returns how many frames the port counted and tcpdump did not show, beyond
// those that the kernel says it dropped.
func (d *dump) stop() (missed uint64) {
	var want uint64
	for end := time.Now().Add(d.drain); ; time.Sleep(2 * time.Millisecond) {
		now, err := link.Received(d.port)
		if err != nil {
			break // the port is gone
		}
		want = now - d.before
		if d.frames.Load() >= want || time.Now().After(end) {
			break
		}
	}
	_ = d.cmd.Process.Signal(os.Interrupt) // it may have ended with its port
	select {
	case <-d.done:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill() // as above
		<-d.done
	}
	if seen := d.frames.Load() + d.kernelDrops; seen < want {
		missed = want - seen
	}
	return missed
}
