package main

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"rempart/boot/report"
	"rempart/internal/atomicfile"
	"rempart/internal/journal"
)

// record is the report while it is being made.
type record struct{ report.Report }

func (r *record) begin(name string) int {
	r.Steps = append(r.Steps, report.Step{Name: name, StartNS: mono()})
	return len(r.Steps) - 1
}

func (r *record) end(i int, detail string, err error) {
	r.Steps[i].EndNS, r.Steps[i].Detail = mono(), detail
	if err != nil {
		r.Steps[i].Error = err.Error()
	}
}

// publish writes the report. Failing to tell is not failing to hold: it is journalled and the boot goes on.
func (p *phone) publish() {
	p.report.Daemons = p.sup.report()
	b, err := p.report.Marshal()
	if err == nil {
		err = atomicfile.Write(filepath.Join(p.root, report.Path), b, 0o644)
	}
	if err != nil {
		p.journal.Event("report.publish", "status", journal.Failure, "reason", err.Error())
	}
}

// mono is CLOCK_MONOTONIC in nanoseconds.
func mono() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
