package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mount is one file system of the guest.
type mount struct {
	what, where, kind string
	flags             uintptr
	data              string
}

func (m mount) do() error {
	if err := unix.Mount(m.what, m.where, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("cannot mount %s at %s: %w", m.kind, m.where, err)
	}
	return nil
}

// early mounts what is needed to find the port.
func early() error {
	for _, m := range []mount{{"proc", "/proc", "proc", 0, ""}, {"sysfs", "/sys", "sysfs", 0, ""}, {"devtmpfs", "/dev", "devtmpfs", 0, ""}} {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// enterDesk makes the desk's root, under an overlay, the root of everything. modules is
// the desk's folder of the kernel's modules.
func enterDesk(modules string) error {
	const share = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []mount{
		{"desk", "/desk", "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=524288,cache=loose"},
		{"memory", "/memory", "tmpfs", 0, "mode=0755"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir("/memory/upper", 0o755), os.Mkdir("/memory/work", 0o755)); err != nil {
		return err
	}
	if err := (mount{"root", "/root", "overlay", 0, "lowerdir=/desk,upperdir=/memory/upper,workdir=/memory/work"}).do(); err != nil {
		return err
	}
	if err := os.MkdirAll("/root/lib/modules", 0o755); err != nil {
		return err
	}
	for _, m := range []mount{
		{filepath.Join("/root", modules), "/root/lib/modules", "", unix.MS_BIND, ""},
		{"tmpfs", "/root/run", "tmpfs", share, "mode=0755"},
		{"proc", "/root/proc", "proc", share, ""},
		{"sysfs", "/root/sys", "sysfs", share, ""},
		{"devtmpfs", "/root/dev", "devtmpfs", 0, ""},
		{"bpf", "/root/sys/fs/bpf", "bpf", share, "mode=0700"},
		{"cgroup2", "/root/sys/fs/cgroup", "cgroup2", share, ""},
		{"securityfs", "/root/sys/kernel/security", "securityfs", share, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := errors.Join(os.MkdirAll("/root/dev/pts", 0o755), os.MkdirAll("/root/dev/shm", 0o755), os.MkdirAll("/root/dev/net", 0o755)); err != nil {
		return err
	}
	for _, m := range []mount{{"devpts", "/root/dev/pts", "devpts", 0, "ptmxmode=0666"}, {"tmpfs", "/root/dev/shm", "tmpfs", share, "mode=1777"}} {
		if err := m.do(); err != nil {
			return err
		}
	}
	// As switch_root does: pivot_root, which handsets use, does not work on the RAM disk.
	if err := errors.Join(os.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("cannot enter the desk's root: %w", err)
	}
	return os.Symlink("/proc/self/fd", "/dev/fd")
}

// network brings lo up; there is nothing else.
func network() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("cannot bring lo up: %w", err)
	}
	return os.WriteFile("/proc/sys/kernel/hostname", []byte("guest"), 0)
}
