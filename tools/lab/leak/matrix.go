package leak

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/hostile"
	"rempart/board/scenario/matrix"
	"rempart/board/scenario/watch"
	"rempart/internal/run"
	"rempart/tools/lab/bringup"
)

// MatrixOptions say which part of the matrix to run, and where its files go.
type MatrixOptions struct {
	// Out is the folder of the captures. Required.
	Out string
	// Bin is the folder of the daemons and of rempart-lab, which sends; "" means
	// that of this program.
	Bin string
	// World is the name of the handset's world; "" means leakmatrix. The twin's
	// is named after it. Both are made and taken down.
	World string
	// Accepted is the text of docs/known-limits.md. Required.
	Accepted string
	// Pairwise picks the part that holds every pair of values, by Seed.
	Pairwise bool
	Seed     uint64
	// State, Sender and Row pick rows of that state, sender or ID; "" is all.
	State, Sender, Row string
	// Guest runs the attack table that needs another kernel; nil leaves it out.
	Guest func(context.Context) ([]hostile.Row, error)
	// Log is told of each step; nil is silent.
	Log func(string)
}

// Whole says that the options mean every row.
func (o MatrixOptions) Whole() bool { return o.State == "" && o.Sender == "" && o.Row == "" }

// daemonsOf are the daemons of a handset, in boot order.
func daemonsOf() []string { return []string{"egressd", "watchd", "tunneld", "voiced", "keyd"} }

// pick returns the rows that the options mean, and those that each layer is tried against alone.
func (o MatrixOptions) pick() (rows, alone []matrix.Row, err error) {
	all, _ := matrix.All(daemonsOf())
	rows = all
	if o.Pairwise {
		rows = matrix.Pairwise(all, o.Seed)
	}
	rows = slices.DeleteFunc(slices.Clone(rows), func(r matrix.Row) bool {
		return o.State != "" && string(r.State) != o.State || o.Sender != "" && r.Sender != o.Sender || o.Row != "" && r.ID() != o.Row
	})
	if len(rows) == 0 {
		known := []string{}
		for _, s := range matrix.States(daemonsOf()) {
			known = append(known, string(s))
		}
		return nil, nil, run.Hint(errors.New("cannot run the matrix: no row matches"), "the states are %s; --row takes an ID of matrix.json",
			strings.Join(known, ", "))
	}
	if o.Whole() {
		alone = aloneRows(all, o.Pairwise)
	}
	return rows, alone, nil
}

// aloneRows are the rows that each layer is tried against alone: root's, in the tunnel's best state; in a part, one family each.
func aloneRows(all []matrix.Row, part bool) []matrix.Row {
	var rows []matrix.Row
	for i, r := range all {
		if r.State != matrix.Connected || r.As != matrix.Root || r.Device == matrix.Tunnel {
			continue
		}
		if part && (r.Family == attack.IPv4) != (i%4 < 2) {
			continue
		}
		rows = append(rows, r)
	}
	return rows
}

// Matrix brings a handset and a twin up, each in a world of its own, runs the matrix on them and takes them down.
func Matrix(ctx context.Context, o MatrixOptions) (report *matrix.Report, err error) {
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if o.World == "" {
		o.World = "leakmatrix"
	}
	rows, alone, err := o.pick()
	if err != nil {
		return nil, err
	}
	accepted, err := matrix.Accept(o.Accepted, daemonsOf())
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if o.Bin != "" {
		self, err = filepath.Abs(filepath.Join(o.Bin, "rempart-lab"))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find the sender: %w", err)
	}
	if o.Out, err = filepath.Abs(o.Out); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the folder of the captures: %w", err)
	}
	dir, err := os.MkdirTemp("", "rempart-matrix-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a folder for the matrix: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	began := time.Now()
	handset, err := o.stand(ctx, o.World, dir, self, "handset")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, down(o.World)) }()
	twin, err := o.stand(ctx, o.World+"-twin", dir, self, "twin")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, down(o.World+"-twin")) }()
	o.Log(fmt.Sprintf("a handset and its twin are up  (%.1f s)", time.Since(began).Seconds()))
	m := matrix.Run{Board: handset, Twin: &bare{stand: twin}, Rows: rows, Alone: alone, Accepted: accepted, Picked: !o.Whole(), Seed: o.Seed, Pairwise: o.Pairwise, Progress: o.Log, Guest: o.Guest}
	return m.Matrix(ctx)
}

// stand brings up a world with one handset.
func (o MatrixOptions) stand(ctx context.Context, world, dir, self, name string) (*stand, error) {
	state := filepath.Join(dir, name)
	w, err := netns.Start(ctx, world, state)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*stand, error) { return nil, errors.Join(err, down(world)) }
	if err := bringup.Up(ctx, w, bringup.Options{State: state, Handsets: 1, Bin: o.Bin, Spare: true}, nil); err != nil {
		return fail(err)
	}
	status, err := w.Status(ctx)
	if err != nil {
		return fail(err)
	}
	m, ok := status.Machine("a")
	if !ok {
		return fail(errors.New("the world has no handset a"))
	}
	b := &board{options: Options{World: w, Machine: m.Name, Bin: o.Bin, PIN: bringup.DefaultPIN, Log: o.Log}, w: w, name: m.Name, dir: dir, self: self,
		site: withSpare(siteOf(status, m)), file: filepath.Join(o.Out, name+".pcapng")}
	return &stand{board: b}, nil
}

// withSpare adds the policy's second gateway to what may be on the link.
func withSpare(s scenario.Site) scenario.Site {
	radio := netns.RadioOf(bringup.SpareName, bringup.SpareNumber)
	for _, a := range []netip.Addr{radio.V4.Addr(), radio.V6.Addr()} {
		s.Rules.Classes = append(s.Rules.Classes, watch.Class{Name: "tunnel", Gateway: a, Protocol: 17, Port: TunnelPort, WireGuard: true})
	}
	return s
}

// down takes a world of the matrix down.
func down(world string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return netns.Down(ctx, world)
}
