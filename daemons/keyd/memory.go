package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"rempart/internal/run"
)

// hideMemory keeps secrets out of swap, core files and debuggers: the process
// cannot be dumped or traced by its own uid, has no core file, and all its
// memory, also what it gets later, is locked (MCL_ONFAULT: as it is touched).
// keyd does not run without any of it.
func hideMemory() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("cannot forbid core files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot forbid dumps: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("cannot read the limit of locked memory: %w", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("cannot raise the limit of locked memory: %w", err)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return run.Hint(fmt.Errorf("cannot lock memory: %w", err),
			"init must give keyd an unlimited RLIMIT_MEMLOCK (hard) before it starts it")
	}
	return nil
}
