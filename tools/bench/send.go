package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Rounds of the sends, and sends of one block, before and in the time that counts.
const (
	sendRounds = 25
	sendWarm   = 500
	sendBlock  = 10_000
	sendBytes  = 64
)

// sendBlockSample is one block: what one send took, the mean of the block.
type sendBlockSample struct {
	Round int     `json:"round"`
	Arm   string  `json:"arm"`
	NS    float64 `json:"ns"`
	Load  string  `json:"load"`
}

func newBlock(round int, arm string, took time.Duration, sends int) sendBlockSample {
	return sendBlockSample{round, arm, float64(took.Nanoseconds()) / float64(sends), loadAverage()}
}

// emptyCall is in every send. It takes some 500 ns more while a handset on this machine has the guard in the form of
// system calls, which looks at those of all processes: figures of such a run are not the issue's.
const emptyCall = "a system call that does nothing"

// sendPair is a figure: what our arm takes, as a part of the other's in the same round.
type sendPair struct {
	what         string
	ours, theirs string
	limit        float64 // 0: told and not judged
}

// Places that a send is tried in.
const (
	placeNone       = "no layer"
	placeDrop       = "nft, drop"
	placeKillSwitch = "nft, kill switch"
	placeHooks      = "gate and hooks"
	placeAll        = "all layers"
)

// Ways to send.
const (
	wayConnected   = "connected"
	wayUnconnected = "unconnected"
	wayBlocked     = "blocked"
)

// armName names an arm in figures and samples.
func armName(place, way, family string) string { return place + ", " + way + ", " + family }

// sendPairs are the bounds of the issue, on the way that tunneld sends: its IPv4 socket is connected, its IPv6 socket is not
// (package vpn/wireguard). The other way is told beside it.
func sendPairs() (all []sendPair) {
	for _, f := range []struct{ family, way, other string }{{"IPv4", wayConnected, wayUnconnected}, {"IPv6", wayUnconnected, wayConnected}} {
		add := func(what, ours, theirs, way string, limit float64) {
			all = append(all, sendPair{what + ", " + way + ", " + f.family, armName(ours, way, f.family), armName(theirs, way, f.family), limit})
		}
		add("hooks / nft", placeAll, placeDrop, wayBlocked, 0.4)
		add("gate and hooks / nft", placeHooks, placeKillSwitch, f.way, 1)
		add("all layers / nft", placeAll, placeKillSwitch, f.way, 1.25)
		add("gate and hooks / nft", placeHooks, placeKillSwitch, f.other, 0)
		add("all layers / nft", placeAll, placeKillSwitch, f.other, 0)
	}
	return all
}

// sends times single sends behind our layers and behind what a user would write instead, in turn.
func sends(ctx context.Context, _ options, r *result) (err error) {
	r.Settings["a sample"] = fmt.Sprintf("ns of one sendto of %d bytes over UDP, the mean of a block of %d after %d that do not count; the blocks of a round one after another, in the other order in every second round", sendBytes, sendBlock, sendWarm)
	r.Settings["a ratio"] = "of two blocks of the same round"
	r.Settings["receiver"] = "the other end of a veth, in a namespace of its own, drops at once: a floor; its time is in every sample that is not blocked"
	arms, closeArms, err := sendArms()
	defer func() { err = errors.Join(err, closeArms()) }()
	if err != nil {
		return err
	}
	blocks, err := sendAll(ctx, arms, sendRounds, sendBlock)
	if err != nil {
		return err
	}
	r.Raw = blocks
	byArm := map[string][]float64{}
	for _, b := range blocks {
		byArm[b.Arm] = append(byArm[b.Arm], b.NS)
	}
	r.add(emptyCall, "ns", byArm[emptyCall], bound{})
	for _, a := range arms {
		r.add(a.name, "ns", byArm[a.name], bound{})
	}
	addPairs(r, byArm, sendPairs())
	return nil
}

// addPairs adds a figure for each pair, whose samples are in the order of the rounds.
func addPairs(r *result, byArm map[string][]float64, pairs []sendPair) {
	for _, p := range pairs {
		b := bound{Of: p50, Limit: p.limit}
		if p.limit == 0 {
			b = bound{}
		}
		r.add(p.what, "ratio", ratios(byArm[p.ours], byArm[p.theirs]), b)
	}
}

// sendAll runs the rounds on one processor.
func sendAll(ctx context.Context, arms []*arm, rounds, count int) (blocks []sendBlockSample, err error) {
	err = onOneProcessor(func() error {
		for round := range rounds {
			turn := slices.Clone(arms)
			if round%2 == 1 {
				slices.Reverse(turn)
			}
			began := time.Now()
			for range count {
				unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
			}
			blocks = append(blocks, newBlock(round, emptyCall, time.Since(began), count))
			for _, a := range turn {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				took, err := a.block(count)
				if err != nil {
					return err
				}
				blocks = append(blocks, newBlock(round, a.name, took, count))
				time.Sleep(took / 2) // the others' turn
			}
		}
		return nil
	})
	return blocks, err
}

// onOneProcessor runs fn on a thread that stays on one processor and that no ordinary process interrupts.
func onOneProcessor(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			// The thread ends with the goroutine, and its rights with it.
			runtime.LockOSThread()
			var one unix.CPUSet
			if err := unix.SchedGetaffinity(0, &one); err != nil {
				return fmt.Errorf("cannot ask for this thread's processors: %w", err)
			}
			last := 0
			for cpu := range len(one) * 64 {
				if one.IsSet(cpu) {
					last = cpu
				}
			}
			one.Zero()
			one.Set(last)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return fmt.Errorf("cannot keep a thread on one processor: %w", err)
			}
			first := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
			if err := unix.SchedSetAttr(0, &first, 0); err != nil {
				return fmt.Errorf("cannot put a thread before the others: %w", err)
			}
			return fn()
		}()
	}()
	return <-done
}
