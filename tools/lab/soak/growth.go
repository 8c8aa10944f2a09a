package soak

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// held is what a process holds.
type held struct{ memoryKB, files int }

// lookAt reads a process's anonymous memory (the file pages of its program come and go) and counts its descriptors.
func lookAt(pid int) (held, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return held{}, fmt.Errorf("cannot look at a daemon: %w", err)
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return held{}, fmt.Errorf("cannot look at a daemon: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				return held{}, fmt.Errorf("cannot look at a daemon: %w", err)
			}
			return held{kb, len(fds)}, nil
		}
	}
	return held{}, fmt.Errorf("cannot look at a daemon: %s/status has no RssAnon", dir)
}

// lookAgain looks until a process holds no more than before, or has been given the time that a request under way and a
// garbage collection may take.
func lookAgain(ctx context.Context, pid int, before held) (after held, err error) {
	for end := time.Now().Add(2 * time.Second); ; {
		after, err = lookAt(pid)
		if err != nil || after.files <= before.files && after.memoryKB <= before.memoryKB+memoryMayGrow || time.Now().After(end) {
			return after, err
		}
		select {
		case <-ctx.Done():
			return after, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
