package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"rempart/internal/journal"
	"rempart/internal/sock"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// raiseLevels opens the drop record and puts the level hooks on the handset's cgroup,
// or takes over those of an earlier egressd. Their table is empty then: everything is
// refused until init gives another. What is there already is left as it is.
func (e *engine) raiseLevels() (err error) {
	if e.levels != nil {
		return nil
	}
	defer func() {
		outcome, reason := journal.Success, ""
		if err != nil {
			outcome, reason = journal.Failure, err.Error()
		}
		e.journal.Event(eventHooks, e.cgroup, outcome, "reason", reason)
	}()
	if e.record == nil {
		record, err := enforce.OpenRecord(e.pinDir)
		if err != nil {
			return err
		}
		e.mu.Lock()
		e.record = record
		e.mu.Unlock()
	}
	levels, err := enforce.AttachLevels(e.cgroup, e.pinDir, e.record)
	if err != nil {
		return err
	}
	e.setHooks(levels)
	return nil
}

func (e *engine) setHooks(l *enforce.Levels) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.levels = l
}

// setLevels puts a level table in force. Hooks that someone took off are put on again:
// init, which reads back, decides what that means.
func (e *engine) setLevels(t egress.LevelTable) error {
	if err := e.raiseLevels(); err != nil {
		return err
	}
	err := e.levels.Swap(t)
	if errors.Is(err, enforce.ErrDetached) {
		old := e.levels
		e.setHooks(nil)
		if err = errors.Join(old.Release(), e.raiseLevels()); err == nil {
			err = e.levels.Swap(t)
		}
	}
	digest := t.Digest()
	outcome, reason := journal.Success, ""
	if err != nil {
		outcome, reason = journal.Failure, err.Error()
	}
	e.journal.Event(eventLevels, "init", outcome, "rows", strconv.Itoa(len(t.Rows)), "digest", hex.EncodeToString(digest[:8]), "reason", reason)
	return err
}

// levelStatus adds what the level hooks have in force to s.
func (e *engine) levelStatus(s *egress.Status) error {
	var table egress.LevelTable
	if e.levels != nil {
		table = e.levels.Table()
		var err error
		if s.Decided, err = e.levels.Counters(); err != nil {
			return err
		}
	}
	s.Levels, s.Rights = table.Digest(), table.Rights()
	return nil
}

// answer does one request and returns the bytes of the reply.
func (e *engine) answer(peer sock.Peer, r egress.Request) ([]byte, error) {
	if r.Op != egress.OpDrops {
		return egress.MarshalStatus(e.do(peer, r))
	}
	drops, err := e.drops(r.Since)
	if err != nil {
		return egress.MarshalDrops(egress.Drops{}, err.Error())
	}
	return egress.MarshalDrops(drops, "")
}

// drops reads the record. Whoever may ask for the status may ask for it.
func (e *engine) drops(since uint64) (egress.Drops, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.record == nil {
		return egress.Drops{}, fmt.Errorf("there is no drop record")
	}
	return e.record.Read(since)
}

// leaveLevels refuses everything and lets go; the hooks stay at the cgroup.
func (e *engine) leaveLevels() error {
	var errs []error
	if old := e.levels; old != nil {
		e.setHooks(nil)
		errs = append(errs, old.Close())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.record != nil {
		errs = append(errs, e.record.Close())
		e.record = nil
	}
	return errors.Join(errs...)
}
