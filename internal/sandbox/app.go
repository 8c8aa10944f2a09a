package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// BecomeApp makes the calling process an app of a person: an unprivileged uid with no further group, no capability and none to
// be had again, no_new_privs, and a filter that leaves no way to a packet socket. What it executes afterwards has the same.
// It must be root, with every capability, in the app's cgroup already.
//
// An app is any program, so its filter allows all calls but those that are listed as refused, where a daemon's allows the
// listed ones alone.
func BecomeApp(uid uint32) error {
	if err := becomeApp(int(uid)); err != nil {
		return fmt.Errorf("cannot become an app: %w", err)
	}
	return nil
}

func becomeApp(uid int) error {
	if uid == 0 {
		return errors.New("an app never runs as root")
	}
	policy, err := appFilter()
	if err != nil {
		return err
	}
	if err := dropBounding(nil); err != nil {
		return err
	}
	// Package syscall's forms change every thread. With the uid of root the kernel takes the capabilities too.
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(uid, uid, uid), syscall.Setresuid(uid, uid, uid)); err != nil {
		return fmt.Errorf("uid %d: %w", uid, err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy}); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// refused is what no app may call: other namespaces and mounts, programs in the kernel, calls that no filter sees (io_uring),
// other processes' memory and descriptors, key rings, and what needs a capability anyway.
const refused = `bpf io_uring_setup io_uring_enter io_uring_register unshare setns mount umount2 pivot_root chroot
 fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
 userfaultfd perf_event_open keyctl add_key request_key init_module finit_module delete_module kexec_load kexec_file_load
 iopl ioperm modify_ldt swapon swapoff reboot settimeofday clock_settime clock_adjtime adjtimex acct quotactl syslog
 open_by_handle_at lookup_dcookie vhangup nfsservctl personality`

func appFilter() (seccomp.Policy, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return seccomp.Policy{}, fmt.Errorf("seccomp: %w", err)
	}
	judged := []string{"socket", "setsockopt", "clone", "clone3"}
	var names []string
	for _, n := range slices.Sorted(maps.Keys(info.SyscallNames)) {
		if !slices.Contains(judged, n) && !slices.Contains(strings.Fields(refused), n) {
			names = append(names, n)
		}
	}
	conditions := append(allowed("socket", 0, []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}), allowed("setsockopt", 1, append(slices.Clone(optionLevels), unix.SOL_NETLINK))...)
	conditions = append(conditions,
		// The C library looks at addresses and routes through it; without a capability it changes nothing.
		seccomp.NameWithConditions{Name: "socket", Conditions: seccomp.ArgumentConditions{
			{Argument: 0, Operation: seccomp.Equal, Value: unix.AF_NETLINK}, {Argument: 2, Operation: seccomp.Equal, Value: unix.NETLINK_ROUTE}}},
		seccomp.NameWithConditions{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsNotSet, Value: newNamespaces}}})
	return seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{
		{Action: seccomp.ActionAllow, Names: names, NamesWithCondtions: conditions},
		// Its flags lie in memory, where no filter looks. This errno sends the C library to clone.
		{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
	}}, nil
}
