package sandbox

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// Profile is what a daemon keeps. The zero value keeps nothing but plain files, unix sockets and IP sockets.
type Profile struct {
	Name         string // daemon, for messages
	Capabilities []int  // unix.CAP_*; effective, permitted, inheritable, ambient and bounding set are exactly these
	Netlink      bool   // may open AF_NETLINK sockets (reading routes)
	BPF          bool   // may call bpf(2)
	NoIP         bool   // may not even open IP sockets
	Setns        bool   // may enter network namespaces whose descriptors it holds
}

// Enter checks the process against p and gives up the rest: no_new_privs, then seccomp on every thread. It must be called
// before the daemon reads anything from outside. Any difference is an error and the daemon must end.
func Enter(p Profile) error {
	if err := enter(p); err != nil {
		return fmt.Errorf("cannot enter the sandbox of %s: %w", p.Name, err)
	}
	return nil
}

func enter(p Profile) error {
	if os.Geteuid() == 0 || os.Getuid() == 0 {
		return errors.New("it runs as root")
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("its capabilities are not known: %w", err)
	}
	if err := exactCapabilities(string(status), p.Capabilities); err != nil {
		return err
	}
	policy, err := filter(p)
	if err != nil {
		return err
	}
	if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy}); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// exactCapabilities compares the five sets in the text of /proc/self/status with want, and no_new_privs with 1.
func exactCapabilities(status string, want []int) error {
	var mask uint64
	for _, c := range want {
		mask |= 1 << c
	}
	found := 0
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			found++
			got, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return fmt.Errorf("%s is %q: %w", key, value, err)
			}
			if extra := got &^ mask; extra != 0 {
				return fmt.Errorf("%s holds capability %d, which the profile does not list", key, bits.TrailingZeros64(extra))
			}
			if missing := mask &^ got; missing != 0 {
				return fmt.Errorf("%s lacks capability %d", key, bits.TrailingZeros64(missing))
			}
		case "NoNewPrivs":
			found++
			if value != "1" {
				return fmt.Errorf("no_new_privs is %q", value)
			}
		}
	}
	if found != 6 {
		return fmt.Errorf("the process status names %d of 6 fields", found)
	}
	return nil
}

// newNamespaces are the clone flags that no daemon may use.
const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// calls is what a Go program needs to compute, keep time, use files it may reach and sockets it holds. There is no execve, no
// mount, no namespace, no ptrace, no io_uring, no key ring. Names that an architecture lacks (arm64 has no epoll_wait) are
// left out there.
const calls = `read write close fstat stat lstat newfstatat statx lseek mmap mprotect munmap mremap brk madvise mincore mlock mlockall munlock munlockall
 rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack restart_syscall ioctl pread64 pwrite64 readv writev
 pipe2 dup dup3 nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday getpid getppid gettid getuid geteuid getgid getegid getgroups
 connect accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown bind listen getsockname getpeername socketpair getsockopt
 exit exit_group kill tgkill uname fcntl flock fsync fdatasync ftruncate fallocate getdents64 getcwd
 mkdirat rename renameat renameat2 unlink unlinkat mkdir readlink readlinkat fchmod fchmodat umask utimensat access faccessat faccessat2
 getrlimit setrlimit prlimit64 sysinfo prctl arch_prctl futex sched_yield sched_getaffinity set_tid_address set_robust_list rseq membarrier
 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 poll ppoll timer_create timer_settime timer_delete setitimer
 getrandom open openat openat2 pidfd_open pidfd_send_signal inotify_init1 inotify_add_watch inotify_rm_watch capget`

func filter(p Profile) (seccomp.Policy, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return seccomp.Policy{}, fmt.Errorf("seccomp: %w", err)
	}
	var names []string
	for _, n := range strings.Fields(calls) {
		if _, ok := info.SyscallNames[n]; ok {
			names = append(names, n)
		}
	}
	if p.BPF {
		names = append(names, "bpf")
	}
	families, levels := []uint64{unix.AF_UNIX}, slices.Clone(optionLevels)
	if !p.NoIP {
		families = append(families, unix.AF_INET, unix.AF_INET6)
	}
	if p.Netlink {
		families, levels = append(families, unix.AF_NETLINK), append(levels, unix.SOL_NETLINK)
	}
	conditions := append(allowed("socket", 0, families), allowed("setsockopt", 1, levels)...)
	conditions = append(conditions, seccomp.NameWithConditions{Name: "clone", Conditions: seccomp.ArgumentConditions{
		{Argument: 0, Operation: seccomp.BitsNotSet, Value: newNamespaces},
	}})
	if p.Setns {
		conditions = append(conditions, allowed("setns", 1, []uint64{unix.CLONE_NEWNET})...)
	}
	// The default refuses, also for calls through another architecture's table (i386, x32).
	return seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{
		{Action: seccomp.ActionAllow, Names: names, NamesWithCondtions: conditions},
	}}, nil
}

// optionLevels are the socket options that anyone may set. It is a list of what is allowed: with PACKET_QDISC_BYPASS or a ring,
// a packet socket that somebody passed over would pass the gate by, and setting them takes no capability.
var optionLevels = []uint64{unix.SOL_SOCKET, unix.IPPROTO_IP, unix.IPPROTO_IPV6, unix.IPPROTO_TCP, unix.IPPROTO_UDP}

// allowed allows a call if its argument is one of values. All 64 bits count: the kernel reads an int, and a comparison for
// "not equal" would let the same int with other high bits pass.
func allowed(call string, argument uint32, values []uint64) (list []seccomp.NameWithConditions) {
	for _, v := range values {
		list = append(list, seccomp.NameWithConditions{Name: call, Conditions: seccomp.ArgumentConditions{
			{Argument: argument, Operation: seccomp.Equal, Value: v},
		}})
	}
	return list
}
