package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario/watch"
	"rempart/tools/lab/leak"
	"rempart/tools/report"
	"rempart/voice/record"
)

// rules are what the policy admits, asked while the world still runs.
func (s *show) rules(ctx context.Context) (watch.Rules, error) {
	status, err := s.w.Status(ctx)
	if err != nil {
		return watch.Rules{}, err
	}
	return leak.Rules(status), nil
}

// incomplete says in words what a capture lacks.
func incomplete(r netns.CaptureResult) error {
	var lost []string
	for _, p := range r.Ports {
		if n := p.KernelDrops + p.Missed; n > 0 {
			lost = append(lost, fmt.Sprintf("%d frames of %s", n, p.Port))
		}
	}
	if r.Error != "" {
		lost = append(lost, r.Error)
	}
	return errors.New("it is not whole: " + strings.Join(lost, ", "))
}

// outside judges every frame of the whole run.
func (s *show) outside(ctx context.Context, rules watch.Rules) (string, error) {
	f, err := os.Open(s.file("internet.pcapng"))
	if err != nil {
		return "", fmt.Errorf("cannot read the capture: %w", err)
	}
	defer f.Close()
	w, err := watch.New(rules)
	if err != nil {
		return "", err
	}
	// A capture that breaks off is told by the summary's own check.
	readErr := w.Read(ctx, f)
	o := &report.Outside{Summary: w.Summary()}
	if s.o.Keep {
		o.Notes = append(o.Notes, "The world was kept running (--keep): the capture ends before power-off.")
	}
	s.sum.Outside = o
	if s.sum.Records != nil {
		during(o, w.Points(), s.sum.Records.From, "radio-"+s.sum.Call.From)
	}
	if readErr != nil {
		return "", readErr
	}
	span := "from before power-on to after power-off"
	if s.o.Keep {
		span = "since before power-on"
	}
	return fmt.Sprintf("%d frames %s, %d outside the admitted classes", o.Frames, span, o.Summary.Outside), nil
}

// during keeps of the points those of the call, and measures the shape of what
// one handset sent in it.
func during(o *report.Outside, points []watch.Point, r record.Record, port string) {
	if r.Started == 0 {
		return
	}
	// The record has one wall clock time; the rest is monotonic.
	from := r.At.Add(time.Duration(r.Started - r.DialNS))
	to := r.At.Add(time.Duration(r.EndedNS - r.DialNS))
	o.Window = "from dialling to the end of the call"
	for _, p := range points {
		if !p.At.Before(r.At.Add(-100*time.Millisecond)) && !p.At.After(to.Add(100*time.Millisecond)) {
			o.Points = append(o.Points, p)
		}
	}
	shape := watch.ShapeOf(o.Points, func(p watch.Point) bool {
		return p.Interface == port && p.Direction == watch.Out && !p.At.Before(from) && !p.At.After(to)
	})
	if shape.Frames > 0 {
		o.Shape = &shape
	}
}

// figures are the times that this run shows, several where there are several.
func figures(s report.Summary) []report.Statistic {
	var ready, tunnel []float64
	for _, h := range s.Handsets {
		for _, b := range h.Boot {
			switch b.Name {
			case stepPIN:
				ready = append(ready, b.Start)
			case stepTunnel:
				tunnel = append(tunnel, b.Took)
			}
		}
	}
	var all []report.Statistic
	if len(ready) > 0 {
		all = append(all, report.NewStatistic("Power-on (init's first line) to ready for the PIN", "ms", ready, "max", 0, false))
	}
	if len(tunnel) > 0 {
		all = append(all, report.NewStatistic("PIN accepted to tunnel up", "ms", tunnel, "max", 0, false))
	}
	if s.Call != nil {
		all = append(all, report.NewStatistic("Dialling to the first decoded audio", "ms", []float64{s.Call.DialToMS}, "max", dialMS, false))
		var ways []float64
		for _, w := range s.Call.Ways {
			ways = append(ways, w.OneWayMS)
		}
		all = append(all, report.NewStatistic("One way, mouth to ear", "ms", ways, "max", oneWayMS, false))
	}
	return all
}
