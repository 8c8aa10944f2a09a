package leak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/matrix"
	"rempart/internal/link"
	"rempart/tools/lab/bringup"
)

// stand is one handset of a world that the matrix has for itself.
type stand struct {
	*board
	outside bool     // senders run outside the handset's control group
	frozen  []string // control groups that Enter froze
}

func (s *stand) Name() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "netns"
	}
	return "netns, Linux " + unix.ByteSliceToString(u.Release[:])
}

func (s *stand) File() string { return s.file }

func (s *stand) Plug(ctx context.Context, device string) error { return s.HotPlug(ctx, device) }

// Tunnelled reads the counter of the tunnel's device in red.
func (s *stand) Tunnelled(ctx context.Context) (uint64, error) {
	m, err := s.w.Machine(ctx, s.name)
	if err != nil {
		return 0, err
	}
	red, err := link.Open(m.Paths.Red)
	if err != nil {
		return 0, err
	}
	defer red.Close()
	var n uint64
	err = red.Do(func() (err error) { n, err = link.Transmitted(matrix.TunnelDevice); return err })
	return n, err
}

// crowdWidth is how many attempts of a crowd run at the same time, of those that end by themselves.
const crowdWidth = 6

// Start runs a crowd in the handset, or beside it in its networks alone.
func (s *stand) Start(ctx context.Context, c matrix.Crowd) (scenario.Process, error) {
	m, err := s.w.Machine(ctx, s.name)
	if err != nil {
		return nil, err
	}
	// A namespace made by the sender is made in black.
	place, argv := c.Place, []string{s.self, "crowd", "-width", fmt.Sprint(crowdWidth)}
	if place == matrix.New {
		place, argv = matrix.Black, append(argv, "-behind", s.site.Radio)
	}
	ns := map[matrix.Place]string{matrix.Red: m.Paths.Red, matrix.Black: m.Paths.Black, matrix.Init: m.Paths.Own}[place]
	var cmd *exec.Cmd
	if s.outside {
		cmd = exec.Command("nsenter", append([]string{"--net=" + ns}, argv...)...)
	} else {
		where := netns.Where{Machine: s.name}
		if place != matrix.Init {
			where.Colour = string(place)
		}
		if c.As == matrix.App {
			where.App = App
		}
		if cmd, err = s.w.Command(context.WithoutCancel(ctx), where, argv...); err != nil {
			return nil, err
		}
	}
	all := slices.Clone(c.Jobs)
	for i := range all {
		// An app of the handset has its own uid from its beginning.
		all[i].User = all[i].User && (s.outside || c.As != matrix.App)
	}
	var jobs bytes.Buffer
	if err := attack.WriteJobs(&jobs, all); err != nil {
		return nil, err
	}
	cmd.Stdin = &jobs
	if slices.ContainsFunc(c.Jobs, func(j attack.Job) bool { return j.Kind == attack.Passed }) {
		f, err := packetSocket(ns)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f} // descriptor 3
	}
	return startProcess(cmd)
}

// App is the app that app senders are: one of the tunnel's level.
const App = "notes"

// packetSocket opens a packet socket in a network, as somebody who may.
func packetSocket(ns string) (*os.File, error) {
	in, err := link.Open(ns)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	fd := -1
	if err := in.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		return nil, fmt.Errorf("cannot open a packet socket to pass on: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

// freeze stops or wakes a control group of a machine; "" is the whole machine.
func (s *stand) freeze(ctx context.Context, machine, group string, stop bool) error {
	m, err := s.w.Machine(ctx, machine)
	if err != nil {
		return err
	}
	if m.State != netns.On && !stop {
		return nil // it went with the machine
	}
	word := "0"
	if stop {
		word = "1"
	}
	err = os.WriteFile(filepath.Join(m.Paths.Cgroup, group, "cgroup.freeze"), []byte(word), 0)
	if err != nil && !stop && errors.Is(err, fs.ErrNotExist) {
		return nil // it went with the machine
	}
	if err != nil {
		return fmt.Errorf("cannot freeze or wake %s of %s: %w", group, machine, err)
	}
	return nil
}

// status asks the handset, as its user would.
func (s *stand) status(ctx context.Context) (bringup.PhoneStatus, error) {
	return bringup.StatusOf(ctx, s.w, s.name)
}
