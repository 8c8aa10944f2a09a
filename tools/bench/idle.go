package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/tools/lab/bringup"
)

// How long egressd is watched, and how many packets are dropped meanwhile in the second watch.
const (
	idleQuiet = 15 * time.Second // after the last question: egressd ends a connection that is silent for 10 s
	idleWatch = 3 * time.Minute  // longer than the two minutes after which a Go program collects garbage anyway
	idleSends = 10000
	idleDrop  = 10 * time.Second
	idleAsked = 2 * time.Second
	idleLives = 15 // minutes: how often watchd asks whether egressd lives (daemons/watchd askEvery)
)

// idleSample is what one watch of egressd saw.
type idleSample struct {
	What     string  `json:"what"`
	Seconds  float64 `json:"seconds"`
	Wakeups  int     `json:"wakeups"` // voluntary context switches of all its threads
	MemoryKB int     `json:"memory_kb"`
	AnonKB   int     `json:"anonymous_kb"`
	FileKB   int     `json:"file_kb"`
	Dropped  uint64  `json:"dropped"` // by the gate, in this watch
	Sent     int     `json:"sent"`
}

// idle watches egressd of a phone that is up and left alone: every daemon of it runs, and asks egressd what it asks.
func idle(ctx context.Context, o options, r *result) error {
	r.Settings["egressd"] = "handset a, tunnel up, every daemon running, no rempart command; wakeups are voluntary_ctxt_switches of all threads"
	return inWorld(ctx, o, r, false, func(w *netns.World, _ *air) error {
		m, err := w.Machine(ctx, "a")
		if err != nil {
			return err
		}
		before, err := bringup.StatusOf(ctx, w, "a")
		if err != nil {
			return err
		}
		var after bringup.PhoneStatus
		samples, err := watchIdle(ctx, o, m, func() (err error) { after, err = bringup.StatusOf(ctx, w, "a"); return err })
		r.Raw = samples
		if err != nil {
			return err
		}
		samples[1].Dropped = dropped(after) - dropped(before)
		r.Raw = samples
		still, sending, asked := samples[0], samples[1], samples[2]
		perMinute := float64(still.Wakeups) / still.Seconds * 60
		r.add("wakeups of egressd, all else runs", "1/min", []float64{perMinute}, bound{Of: largest, Limit: 2})
		// The watch is shorter than the time between two of watchd's questions, so their part is added.
		r.add("wakeups with the part of watchd's question", "1/min", []float64{perMinute + float64(asked.Wakeups)/idleLives}, bound{Of: largest, Limit: 2})
		r.add(fmt.Sprintf("wakeups while %d packets are dropped", sending.Sent), "1/10 s", []float64{float64(sending.Wakeups)}, bound{Of: largest, Limit: 2})
		r.add("packets tried meanwhile", "packets", []float64{float64(sending.Sent)}, bound{Of: largest, AtLeast: true, Limit: idleSends})
		r.add("memory of egressd (RSS)", "MB", []float64{float64(max(still.MemoryKB, sending.MemoryKB)) / 1024}, bound{Of: largest, Limit: 8})
		return nil
	})
}

// dropped is what the gate has dropped on its way out.
func dropped(s bringup.PhoneStatus) (n uint64) {
	if s.Gate == nil {
		return 0
	}
	for _, d := range s.Gate.Devices {
		for reason, count := range d.Egress {
			if reason != "admitted" {
				n += count
			}
		}
	}
	return n
}

func watchIdle(ctx context.Context, o options, m netns.Machine, ask func() error) ([]idleSample, error) {
	text, err := os.ReadFile(filepath.Join(m.Paths.Cgroup, "egressd", "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	pid := strings.TrimSpace(string(text))
	watch := func(what string, during func() (int, error)) (idleSample, error) {
		s := idleSample{What: what}
		from, began := 0, time.Now()
		if from, err = wakeups(pid); err != nil {
			return s, err
		}
		if s.Sent, err = during(); err != nil {
			return s, err
		}
		to, err := wakeups(pid)
		s.Wakeups, s.Seconds = to-from, time.Since(began).Seconds()
		return s, errors.Join(err, s.memory(pid))
	}
	wait := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	if err := wait(idleQuiet); err != nil {
		return nil, err
	}
	still, err := watch("left alone", func() (int, error) { return 0, wait(o.idle) })
	if err != nil {
		return nil, err
	}
	sending, err := watch("packets are dropped", func() (int, error) {
		began := time.Now()
		n, err := sendDropped(ctx, o, m)
		return n, errors.Join(err, wait(idleDrop-time.Since(began)))
	})
	if err != nil {
		return nil, err
	}
	if err := wait(idleQuiet); err != nil {
		return nil, err
	}
	asked, err := watch("one question", func() (int, error) { return 0, errors.Join(ask(), wait(idleAsked)) })
	return []idleSample{still, sending, asked}, err
}

// sendDropped sends frames on the radio from outside the handset's control group: only what judges packets meets them.
func sendDropped(ctx context.Context, o options, m netns.Machine) (sent int, err error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return 0, err
	}
	for i := 0; sent < idleSends; i++ {
		j := attack.Job{Kind: attack.Packet, Family: attack.IPv4, Marker: attack.Marker{1, byte(i)}, Target: netns.InternetHosts()[0], Source: m.Radio.V4.Addr(),
			Device: m.Radio.Device, Count: 1000}
		argv := append([]string{"--net=" + m.Paths.Black, filepath.Join(bin, "rempart-lab"), "attempt"}, j.Args()...)
		out, err := exec.CommandContext(ctx, "nsenter", argv...).Output()
		if err != nil {
			return sent, fmt.Errorf("cannot send: %w", err)
		}
		result, err := attack.ParseResult([]byte(strings.TrimSpace(string(out))))
		if err != nil {
			return sent, err
		}
		// A packet socket is told of the drop.
		if result.Sent != 0 || result.Errno != "ENOBUFS" {
			return sent, fmt.Errorf("cannot send packets that are dropped: %d went, %s", result.Sent, result.Note)
		}
		sent += j.Count
	}
	return sent, nil
}

// wakeups adds up how often the threads of a process gave up the processor and came back.
func wakeups(pid string) (n int, err error) {
	threads, err := filepath.Glob("/proc/" + pid + "/task/*/status")
	if err != nil || len(threads) == 0 {
		return 0, errors.Join(fmt.Errorf("cannot find the threads of process %s", pid), err)
	}
	for _, path := range threads {
		v, err := statusField(path, "voluntary_ctxt_switches:")
		if err != nil {
			return 0, err
		}
		n += v
	}
	return n, nil
}

func (s *idleSample) memory(pid string) (err error) {
	path := "/proc/" + pid + "/status"
	for field, to := range map[string]*int{"VmRSS:": &s.MemoryKB, "RssAnon:": &s.AnonKB, "RssFile:": &s.FileKB} {
		v, ferr := statusField(path, field)
		*to, err = v, errors.Join(err, ferr)
	}
	return err
}

// statusField reads a number of proc_pid_status(5).
func statusField(path, field string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("cannot look at a process: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == field {
			return strconv.Atoi(words[1])
		}
	}
	return 0, fmt.Errorf("cannot look at a process: %s has no %s", path, field)
}
