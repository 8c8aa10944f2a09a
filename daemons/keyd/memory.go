package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rempart/internal/run"
)

// swaps is the kernel's list of where memory may go: a heading, then a line for
// each swap area.
const swaps = "/proc/swaps"

// hideMemory keeps secrets out of swap, core files and debuggers: the process
// cannot be dumped or traced by its own uid, has no core file, and its memory,
// also what it gets later, is locked (MCL_ONFAULT: as it is touched). Locking
// takes an unlimited RLIMIT_MEMLOCK, which init cannot give everywhere; without
// it keyd runs only on a machine that has no swap, where there is nothing to
// lock against.
func hideMemory() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("cannot forbid core files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot forbid dumps: %w", err)
	}
	lockErr := lockMemory()
	if lockErr == nil {
		return nil
	}
	list, err := os.ReadFile(swaps)
	if err != nil {
		return fmt.Errorf("cannot lock memory: %w, nor tell whether there is swap: %w", lockErr, err)
	}
	if !swapless(string(list)) {
		return run.Hint(fmt.Errorf("cannot lock memory, and there is swap: %w", lockErr),
			"switch swap off, or let init give keyd an unlimited RLIMIT_MEMLOCK (hard)")
	}
	return nil
}

func lockMemory() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return err
	}
	if limit.Max != unix.RLIM_INFINITY {
		return fmt.Errorf("its limit is %d bytes", limit.Max)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return err
	}
	return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
}

// swapless reads /proc/swaps. A list that is not understood has swap.
func swapless(list string) bool {
	heading, areas, found := strings.Cut(list, "\n")
	return found && strings.HasPrefix(heading, "Filename") && strings.TrimSpace(areas) == ""
}
