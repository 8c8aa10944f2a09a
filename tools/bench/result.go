package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/watch"
	"rempart/internal/atomicfile"
)

// machine says on what, and how busy, the figures were taken.
type machine struct {
	Cores      int    `json:"cores"`
	Processor  string `json:"processor"`
	Kernel     string `json:"kernel"`
	Go         string `json:"go"`
	LoadBefore string `json:"load_before"` // load average over 1, 5 and 15 minutes
	LoadAfter  string `json:"load_after"`
}

// describe returns the facts at the start of a run.
func describe() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version(), LoadBefore: loadAverage()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	info, _ := os.ReadFile("/proc/cpuinfo") // a fact less if it cannot be read
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.Processor = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// loadAverage returns the load average over 1, 5 and 15 minutes.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg") // a fact less if it cannot be read
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// result is one run of one benchmark, as out/bench/NAME.json keeps it. Fields
// are added, never renamed.
type result struct {
	Name        string            `json:"name"`
	Started     time.Time         `json:"started"`
	Machine     machine           `json:"machine"`
	Percentiles string            `json:"percentiles"`
	Settings    map[string]string `json:"settings"`
	Figures     []figure          `json:"figures"`
	Breakdown   []breakdown       `json:"breakdown,omitempty"`
	Air         *watch.Summary    `json:"air,omitempty"` // what an outsider saw
	Raw         any               `json:"raw"`
	Error       string            `json:"error,omitempty"`
	Kept        bool              `json:"kept"`
}

// breakdown is one part of a figure: when it begins and ends after the start,
// and how long it takes, each the p50 of its own, in milliseconds.
type breakdown struct {
	What   string  `json:"what"`
	N      int     `json:"n"`
	FromMS float64 `json:"from_ms"`
	ToMS   float64 `json:"to_ms"`
	TookMS float64 `json:"took_ms"`
	P95MS  float64 `json:"took_p95_ms"`
}

// add judges a figure and keeps it.
func (r *result) add(what, unit string, samples []float64, b bound) {
	r.Figures = append(r.Figures, figure{What: what, Unit: unit, Samples: samples, Bound: b}.judged())
}

// finish gives the verdict. err is what kept the benchmark from its end.
func (r *result) finish(err error) {
	r.Machine.LoadAfter = loadAverage()
	r.Kept = err == nil && len(r.Figures) > 0
	if err != nil {
		r.Error = err.Error()
	}
	for _, f := range r.Figures {
		r.Kept = r.Kept && f.Kept
	}
}

// write keeps the result in dir.
func (r *result) write(dir string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("cannot encode the results of %s: %w", r.Name, err)
	}
	return atomicfile.Write(filepath.Join(dir, r.Name+".json"), append(text, '\n'), 0o644)
}

// show prints the result for a person.
func (r *result) show(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "\n%s: %d cores, %s, Linux %s, %s, load %s before, %s after\n", r.Name, m.Cores, m.Processor, m.Kernel, m.Go, m.LoadBefore, m.LoadAfter)
	for _, k := range sortedKeys(r.Settings) {
		fmt.Fprintf(w, "  %s: %s\n", k, r.Settings[k])
	}
	t := tabwriter.NewWriter(w, 2, 0, 2, ' ', 0)
	fmt.Fprintf(t, "  FIGURE\tUNIT\tN\tP50\tP95\tMIN\tMAX\tBOUND\tVERDICT\n")
	for _, f := range r.Figures {
		verdict := "kept"
		switch {
		case f.Bound.Of == "":
			verdict = "-"
		case !f.Kept:
			verdict = "BROKEN"
		}
		fmt.Fprintf(t, "  %s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", f.What, f.Unit, len(f.Samples), short(f.P50), short(f.P95), short(f.Min), short(f.Max), f.Bound, verdict)
	}
	if len(r.Breakdown) > 0 {
		fmt.Fprintf(t, "  \t\t\t\t\t\t\t\t\n  PART (ms)\t\tN\tFROM\tTO\tTOOK\tTOOK P95\t\t\n")
		for _, b := range r.Breakdown {
			fmt.Fprintf(t, "  %s\t\t%d\t%s\t%s\t%s\t%s\t\t\n", b.What, b.N, short(b.FromMS), short(b.ToMS), short(b.TookMS), short(b.P95MS))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if r.Air != nil {
		for i, s := range r.Air.Strange[:min(3, len(r.Air.Strange))] {
			fmt.Fprintf(w, "  outside %d: %s on %s, %d bytes\n", i+1, s.What, s.Interface, s.Size)
		}
	}
	if r.Error != "" {
		fmt.Fprintf(w, "  did not end: %s\n", r.Error)
	}
	return nil
}

// short writes a number in at most five digits or so.
func short(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%d", int64(v))
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
