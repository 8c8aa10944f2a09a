package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/report"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// followEvery is how often --follow asks. egressd does nothing between.
const followEvery = 500 * time.Millisecond

// Dropped is one refusal, as --json shows it.
type Dropped struct {
	Number    uint64    `json:"number"`
	Time      time.Time `json:"time"`
	By        string    `json:"by"` // gate, levels, floor
	Direction string    `json:"direction"`
	Reason    string    `json:"reason"` // in a word
	Why       string    `json:"why"`    // for a person
	Process   string    `json:"process"`
	Cgroup    uint64    `json:"cgroup"` // id; 0: no socket
	Device    string    `json:"device,omitempty"`
	Protocol  string    `json:"protocol,omitempty"`
	From      string    `json:"from,omitempty"`
	To        string    `json:"to,omitempty"`
}

// DropView is the whole record with what is not in it.
type DropView struct {
	Drops []Dropped `json:"drops"` // oldest first
	// LeftOut were counted and not recorded, Overwritten recorded and gone.
	LeftOut     uint64            `json:"left_out"`
	Overwritten uint64            `json:"overwritten"`
	Refused     map[string]uint64 `json:"refused"` // since the boot, by "who, where: reason"
}

// drops shows the drop record.
func drops(ctx context.Context, args []string, e env) error {
	var asJSON, follow bool
	_, err := parse("drops", args, 0, func(f *flag.FlagSet) {
		f.BoolVar(&asJSON, "json", false, "")
		f.BoolVar(&follow, "follow", false, "")
	})
	if err != nil {
		return err
	}
	r := recordReader{e: e, names: namesOf(e)}
	defer r.close()
	if follow {
		return r.follow(ctx, asJSON)
	}
	v, err := r.all(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(e.stdout, v)
	}
	return v.show(e.stdout)
}

// recordReader reads the record part by part.
type recordReader struct {
	e      env
	names  names
	client *ask.Client // nil between connections
	next   uint64
}

func (r *recordReader) close() {
	if r.client != nil {
		_ = r.client.Close() // a connection that only asked
		r.client = nil
	}
}

// ask has one question answered. An egressd that was started again is asked anew: the
// record outlives it.
func (r *recordReader) ask(ctx context.Context, question func(context.Context, *ask.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if r.client == nil {
		c, err := ask.Dial(r.e.socket("egressd"))
		if err != nil {
			return explain("egressd", err)
		}
		r.client = c
	}
	if err := question(ctx, r.client); err != nil {
		r.close()
		return explain("egressd", err)
	}
	return nil
}

// part reads the next samples; none if there are no more.
func (r *recordReader) part(ctx context.Context) (d egress.Drops, err error) {
	err = r.ask(ctx, func(ctx context.Context, c *ask.Client) (err error) { d, err = c.Drops(ctx, r.next); return err })
	if err == nil {
		r.next = d.Next
	}
	return d, err
}

func (r *recordReader) all(ctx context.Context) (DropView, error) {
	v := DropView{Drops: []Dropped{}, Refused: map[string]uint64{}}
	for {
		was := r.next
		d, err := r.part(ctx)
		if err != nil {
			return v, err
		}
		v.LeftOut, v.Overwritten = d.LeftOut, v.Overwritten+d.Missed
		for _, s := range d.Samples {
			v.Drops = append(v.Drops, r.names.dropped(s, r.e.now()))
		}
		if r.next == was {
			break
		}
	}
	return v, r.ask(ctx, func(ctx context.Context, c *ask.Client) error {
		s, err := c.Status(ctx)
		if err == nil {
			r.names.refused(s, v.Refused)
		}
		return err
	})
}

// follow shows samples as they come until ctx ends, which is a clean end.
func (r *recordReader) follow(ctx context.Context, asJSON bool) error {
	var leftOut uint64
	first := true
	for {
		was := r.next
		d, err := r.part(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			// egressd is being started again: what it drops meanwhile is recorded.
		default:
			if err := r.tell(d, d.LeftOut-min(leftOut, d.LeftOut), asJSON); err != nil {
				return fmt.Errorf("cannot write the drops: %w", err)
			}
			leftOut, first = d.LeftOut, false
		}
		if err == nil && r.next != was {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

func (r *recordReader) tell(d egress.Drops, leftOut uint64, asJSON bool) error {
	var errs []error
	for _, s := range d.Samples {
		one := r.names.dropped(s, r.e.now())
		if asJSON {
			errs = append(errs, json.NewEncoder(r.e.stdout).Encode(one))
			continue
		}
		errs = append(errs, one.show(r.e.stdout))
	}
	if leftOut+d.Missed == 0 {
		return errors.Join(errs...)
	}
	if asJSON {
		return errors.Join(append(errs, json.NewEncoder(r.e.stdout).Encode(map[string]uint64{"left_out": leftOut, "overwritten": d.Missed}))...)
	}
	return errors.Join(append(errs, notThere(r.e.stdout, leftOut, d.Missed))...)
}

func (v DropView) show(w io.Writer) error {
	var errs []error
	for _, d := range v.Drops {
		errs = append(errs, d.show(w))
	}
	errs = append(errs, notThere(w, v.LeftOut, v.Overwritten))
	if len(v.Drops)+len(v.Refused) == 0 {
		_, err := fmt.Fprintln(w, "nothing was refused")
		errs = append(errs, err)
	}
	for _, what := range slices.Sorted(maps.Keys(v.Refused)) {
		_, err := fmt.Fprintf(w, "%8d  %s\n", v.Refused[what], what)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// notThere says what the record does not show.
func notThere(w io.Writer, leftOut, overwritten uint64) error {
	if leftOut+overwritten == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%d more were counted and not recorded (at most %d of a reason a second), %d were overwritten\n", leftOut, egress.RecordBurst, overwritten)
	return err
}

func (d Dropped) show(w io.Writer) error {
	place := strings.TrimSpace(d.Direction + " " + d.Device)
	ends := ""
	if d.To != "" {
		ends = " " + d.From + " > " + d.To
	}
	_, err := fmt.Fprintf(w, "%s  %-6s  %-12s  %-14s %s%s: %s\n", d.Time.Format("15:04:05.000"), d.By, d.Process, place, d.Protocol, ends, d.Why)
	return err
}

// names turn the kernel's numbers into names.
type names struct {
	processes map[uint64]string // by cgroup
	red       map[int]string    // devices by index
	black     map[int]string
}

// namesOf reads the cgroups and init's report. What cannot be read stays a number.
func namesOf(e env) names {
	n := names{processes: map[uint64]string{}, red: map[int]string{egress.Loopback: "lo"}, black: map[int]string{egress.Loopback: "lo"}}
	_ = filepath.WalkDir(e.cgroups, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == e.cgroups {
			return nil
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			name, _ := filepath.Rel(e.cgroups, path)
			n.processes[st.Ino] = strings.TrimPrefix(name, "apps/")
		}
		return nil
	})
	if b, err := report.Read(e.report); err == nil {
		for _, d := range b.Devices {
			n.black[d.Index] = d.Name
		}
		for _, d := range b.Tunnels {
			n.red[d.Index] = d.Name
		}
	}
	return n
}

// inBlack are the processes whose devices are those of black.
var inBlack = map[string]bool{"tunneld": true, "linkd": true}

func (n names) dropped(s egress.Sample, now int64) Dropped {
	d := Dropped{Number: s.Seq, Time: time.Now().Add(s.Time - time.Duration(now)), By: s.Program.String(), Direction: s.Direction.String(),
		Reason: s.Why(), Why: s.Words(), Process: n.process(s.Cgroup), Cgroup: s.Cgroup, Protocol: protocol(s.Proto), From: end(s.Src, s.SrcPort), To: end(s.Dst, s.DstPort)}
	if s.Ifindex == 0 {
		return d
	}
	devices := n.red
	if s.Program != egress.ProgramLevels || inBlack[d.Process] {
		devices = n.black
	}
	if d.Device = devices[s.Ifindex]; d.Device == "" {
		d.Device = fmt.Sprintf("device %d", s.Ifindex)
	}
	return d
}

func (n names) process(cgroup uint64) string {
	switch name := n.processes[cgroup]; {
	case cgroup == 0:
		return "no socket"
	case name == "":
		return fmt.Sprintf("cgroup %d", cgroup)
	default:
		return name
	}
}

// refused adds up egressd's counters by where and why.
func (n names) refused(s egress.Status, into map[string]uint64) {
	for _, d := range s.Devices {
		for dir, reasons := range d.Counters {
			for r := egress.Admitted + 1; r < egress.Reasons; r++ {
				if reasons[r] > 0 {
					into[fmt.Sprintf("gate, %s %v: %s", n.black[d.Ifindex], egress.Direction(dir), r.Words())] += reasons[r]
				}
			}
		}
	}
	for h := range egress.LevelHooks {
		for r := egress.LevelAllowed + 1; r < egress.LevelReasons; r++ {
			if k := s.Decided[h][r]; k > 0 {
				into[fmt.Sprintf("levels, %v: %s", h, r.Words())] += k
			}
		}
	}
}

// end is an address with its port; "" if it is not known.
func end(a netip.Addr, port uint16) string {
	switch {
	case !a.IsValid():
		return ""
	case port == 0:
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// protocol names the usual ones.
func protocol(p uint8) string {
	switch p {
	case 0:
		return ""
	case unix.IPPROTO_ICMP:
		return "icmp"
	case egress.TCP:
		return "tcp"
	case egress.UDP:
		return "udp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return fmt.Sprintf("protocol %d", p)
}
