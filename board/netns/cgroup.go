package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupTop is the folder, below the cgroup2 root, of all worlds.
const cgroupTop = "rempart-lab"

// hierarchy is the machine's cgroup2 file system.
type hierarchy struct {
	root string // a path that holds for this process only
	f    *os.File
}

// openHierarchy finds the cgroup2 file system in mountinfo. Where none is
// mounted it gets a detached mount of its own, which has no name anywhere and
// goes with its descriptor.
func openHierarchy(mountinfo string) (*hierarchy, error) {
	data, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, fmt.Errorf("cannot look for the cgroup2 file system: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		// 40 30 0:37 /root /mount/point options … - type source superoptions
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) >= 5 && len(kind) > 0 && kind[0] == "cgroup2" && fields[3] == "/" {
			return &hierarchy{root: fields[4]}, nil
		}
	}
	fsfd, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot mount cgroup2: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("cannot mount cgroup2: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot mount cgroup2: %w", err)
	}
	return &hierarchy{root: "/proc/self/fd/" + strconv.Itoa(fd), f: os.NewFile(uintptr(fd), "cgroup2")}, nil
}

// path returns the folder of a control group of a world.
func (h *hierarchy) path(world string, parts ...string) string {
	return filepath.Join(append([]string{h.root, cgroupTop, world}, parts...)...)
}

// close lets go of a mount of its own.
func (h *hierarchy) close() {
	if h.f != nil {
		_ = h.f.Close() // only a reference
	}
}

// makeGroup makes a control group and returns it open, for
// SysProcAttr.CgroupFD.
func makeGroup(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make control group %s: %w", dir, err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open control group %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// members returns the processes in a control group and below, as seen from
// this process's PID namespace.
func members(dir string) []int {
	var pids []int
	// A group that goes while it is walked has no processes.
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		f, err := os.Open(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil
		}
		defer f.Close()
		for scan := bufio.NewScanner(f); scan.Scan(); {
			if pid, err := strconv.Atoi(scan.Text()); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// killGroup kills every process in a control group and below, forks in flight
// included (cgroup.kill, Linux 5.14), and waits until none is left. A group
// that does not exist is empty.
func killGroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot kill control group %s: %w", dir, err)
	}
	return waitEmpty(context.Background(), dir, 10*time.Second)
}

// waitEmpty waits until no process, dead but unreaped ones aside, is in the
// group or below.
func waitEmpty(ctx context.Context, dir string, limit time.Duration) error {
	end := time.Now().Add(limit)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot watch control group %s: %w", dir, err)
		}
		if strings.Contains(string(data), "populated 0") {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("control group %s is not empty after %s: processes %v", dir, limit, members(dir))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// removeGroup removes an empty control group and all groups below it. One
// that does not exist is not an error.
func removeGroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sort.Sort(sort.Reverse(sort.StringSlice(dirs))) // children before parents
	for _, d := range dirs {
		// Directly after the last process the kernel may still say "busy".
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			err := unix.Rmdir(d)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
				return fmt.Errorf("cannot remove control group %s: %w", d, err)
			}
		}
	}
	return nil
}
