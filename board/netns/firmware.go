package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// firmwareSpec is what the firmware stage of one machine is told.
type firmwareSpec struct {
	Name  string   // the host name
	Image string   // the image folder, absolute
	Root  string   // an empty folder to build on; only ever mounted over inside the machine
	State string   // becomes /state
	Audio string   // becomes /dev/rempart-audio
	Args  []string // init's arguments: the "kernel command line"
}

// The firmware's descriptors.
const (
	fdTPM  = iota // the TPM, which init gets as descriptor 3
	fdGo          // readable when the radio is in place
	fdFail        // says why the firmware stopped; closes when init runs
)

// mountPoints are the folders that an image must have for the board to put
// its own on.
var mountPoints = [...]string{"dev", "proc", "run", "state", "sys"}

// firmwareMain is the first process of a machine. It builds the root and
// becomes init. It runs on one locked thread; what it mounts is seen by the
// machine's mount namespace only.
func firmwareMain(text string) error {
	runtime.LockOSThread()
	fail := inherited(fdFail, "failures")
	err := firmware(text)
	fmt.Fprint(fail, err) // the keeper reports it; the console may have no reader
	return err
}

func firmware(text string) error {
	var spec firmwareSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fmt.Errorf("cannot read the machine's description: %w", err)
	}
	if os.Getpid() != 1 {
		return errors.New("cannot be the firmware: not the first process of a machine")
	}
	if _, err := io.ReadFull(inherited(fdGo, "go"), make([]byte, 1)); err != nil {
		return fmt.Errorf("cannot switch on: the keeper went away: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("cannot set the host name: %w", err)
	}
	unix.Umask(0)
	if err := buildRoot(spec); err != nil {
		return err
	}
	unix.Umask(0o022)
	// Descriptors: 0 is the machine's own null device, 1 and 2 the console, 3
	// the TPM, and nothing else survives the exec.
	null, err := unix.Open("/dev/null", unix.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot open the machine's null device: %w", err)
	}
	if err := errors.Join(unix.Dup3(null, 0, 0), unix.CloseRange(4, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)); err != nil {
		return fmt.Errorf("cannot set up init's descriptors: %w", err)
	}
	if _, err := unix.FcntlInt(3+fdTPM, unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("cannot hand over the TPM: %w", err)
	}
	env := []string{"PATH=/bin", "REMPART_FDS=tpm"}
	err = unix.Exec("/bin/init", append([]string{"/bin/init"}, spec.Args...), env)
	return fmt.Errorf("cannot start /bin/init: %w", err)
}

// mount is one mount with an error that names the target.
func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("cannot mount %s: %w", target, err)
	}
	return nil
}

// buildRoot makes the machine's file system and moves into it. Of the desk's
// files only the image (read-only), the state folder and the sound card's
// folder are reachable afterwards.
func buildRoot(spec firmwareSpec) error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	at := func(path string) string { return filepath.Join(spec.Root, path) }
	for _, dir := range mountPoints {
		if st, err := os.Stat(filepath.Join(spec.Image, dir)); err != nil || !st.IsDir() {
			return fmt.Errorf("cannot use image %s: it has no folder /%s", spec.Image, dir)
		}
	}
	if err := errors.Join(
		mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		mount(spec.Image, spec.Root, "", unix.MS_BIND|unix.MS_REC, ""),
	); err != nil {
		return err
	}
	// A bind mount takes its flags in a second step, and MS_REMOUNT reaches
	// the top mount only.
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(unix.AT_FDCWD, spec.Root, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("cannot make image %s read-only: %w", spec.Image, err)
	}
	if err := errors.Join(
		mount("tmpfs", at("dev"), "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k"),
		mount("tmpfs", at("run"), "tmpfs", quiet, "mode=755,size=16m"),
		mount("proc", at("proc"), "proc", quiet, ""),
		mount("sysfs", at("sys"), "sysfs", quiet|unix.MS_RDONLY, ""),
		mount("bpf", at("sys/fs/bpf"), "bpf", quiet, "mode=711"),
		mount("cgroup2", at("sys/fs/cgroup"), "cgroup2", quiet, ""),
		bind(spec.State, at("state"), quiet),
		devices(at("dev")),
		bind(spec.Audio, at("dev/rempart-audio"), quiet),
		mount("", at("dev"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""),
	); err != nil {
		return err
	}
	// pivot_root onto itself stacks the old root on top; detaching it leaves
	// the new one, with no folder needed for the old.
	if err := unix.Chdir(spec.Root); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot remove the desk's root: %w", err)
	}
	return os.Chdir("/")
}

// bind mounts a folder of the desk with flags.
func bind(source, target string, flags uintptr) error {
	return errors.Join(mount(source, target, "", unix.MS_BIND, ""),
		mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""))
}

// devices makes the machine's device nodes and the sound card's folder.
func devices(dev string) error {
	for _, n := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{ // numbers: Documentation/admin-guide/devices.txt
		{"null", 0o666, 1, 3}, {"zero", 0o666, 1, 5}, {"random", 0o666, 1, 8}, {"urandom", 0o666, 1, 9}, {"net/tun", 0o600, 10, 200},
	} {
		path := filepath.Join(dev, n.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := unix.Mknod(path, unix.S_IFCHR|n.mode, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return fmt.Errorf("cannot make device /dev/%s: %w", n.name, err)
		}
	}
	return os.Mkdir(filepath.Join(dev, "rempart-audio"), 0o755)
}
