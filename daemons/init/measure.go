package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"rempart/boot/eventlog"
	"rempart/boot/manifest"
	"rempart/boot/manifest/load"
	"rempart/boot/measure"
	"rempart/boot/report"
	"rempart/boot/stage"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/keystore/extend"
	"rempart/vpn/egress/plan"
)

// openLog opens the extend-only door on a copy of the TPM's descriptor (the door owns its copy; the other goes to keyd) and the
// event log.
func (p *phone) openLog() error {
	fd, err := unix.FcntlInt(p.tpm.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("cannot copy the TPM's descriptor: %w", err)
	}
	if p.door, err = extend.Open(os.NewFile(uintptr(fd), "tpm")); err != nil {
		return run.Hint(err, "is there a TPM?")
	}
	if p.eventFile, err = os.OpenFile(filepath.Join(p.root, report.EventLogPath), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err != nil {
		return fmt.Errorf("cannot begin the event log: %w", err)
	}
	p.log = measure.NewLog(p.door, eventlog.NewWriter(p.eventFile))
	return nil
}

// measureNamed extends one stage of the table.
func (p *phone) measureNamed(name string) error {
	stages := stage.Early()
	if p.policy != nil {
		var err error
		if stages, err = stage.For(p.policy.Role); err != nil {
			return err
		}
	}
	for _, s := range stages {
		if s.Name == name {
			digest, err := p.log.Measure("/", s)
			if err != nil {
				return err
			}
			p.note(s, digest)
			return nil
		}
	}
	return fmt.Errorf("cannot measure %s: it is not in the table of stages", name)
}

func (p *phone) note(s stage.Stage, digest [32]byte) {
	p.measured[s.Name] = digest
	text := hex.EncodeToString(digest[:])
	p.report.Measured = append(p.report.Measured, report.Measured{Name: s.Name, PCR: s.PCR, Digest: text})
	p.journal.Event(eventMeasure, s.Name, journal.Success, "pcr", fmt.Sprint(s.PCR), "sha256", text)
}

// readPolicy verifies the signed policy, refuses one below the TPM's floor, extends the bytes that were verified, and compiles
// the classes that release hands to egressd once every daemon runs.
func (p *phone) readPolicy(ctx context.Context) (string, error) {
	policy, bundle, err := load.Policy(confDir)
	if err != nil {
		return "", run.Hint(err, "put a bundle signed by the key in %s/policy.pub there (rempart-policy sign)", confDir)
	}
	bits, provisioned, err := p.door.Floor()
	if err != nil {
		return "", err
	}
	if provisioned {
		if err := manifest.CheckFloor(policy.Serial, bits); err != nil {
			return "", run.Hint(err, "a newer policy was accepted on this handset before; install one with its serial or a higher one")
		}
	}
	digest := sha256.Sum256(bundle)
	early := stage.Early()
	s := early[len(early)-1]
	if err := p.log.Add(s.PCR, s.Name, digest); err != nil {
		return "", err
	}
	p.note(s, digest)
	p.policy = policy
	p.report.Role = policy.Role
	p.report.Policy = &report.Policy{Name: policy.Name, Serial: policy.Serial, Digest: hex.EncodeToString(digest[:])}
	id, err := cgroupID(p.cgroups["tunneld"])
	if err != nil {
		return "", err
	}
	if p.table, err = plan.Compile(policy, id); err != nil {
		return "", err
	}
	for _, a := range policy.Apps {
		if err := os.MkdirAll(filepath.Join(cgroupDir, "apps", a.Name), 0o755); err != nil {
			return "", err
		}
	}
	if err := errors.Join(p.makeLevels(ctx), p.readLevels()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%q serial %d, %s", policy.Name, policy.Serial, roleOf(policy.Role)), nil
}

// cgroupID is the kernel's id of a cgroup: the inode number of its folder.
func cgroupID(dir *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("cannot tell the id of cgroup %s: %w", dir.Name(), err)
	}
	return st.Ino, nil
}

// measureRest extends every program that comes after the policy, before any of them runs.
func (p *phone) measureRest(context.Context) (string, error) {
	stages, err := stage.For(p.policy.Role)
	if err != nil {
		return "", err
	}
	n := 0
	for _, s := range stages[len(stage.Early()):] {
		if err := p.measureNamed(s.Name); err != nil {
			return "", err
		}
		n++
	}
	if err := p.eventFile.Close(); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d programs extended into PCR %d before any of them runs", n, stage.PCRStages), nil
}

// unchanged compares a program with what was measured: a restart must not run other bytes.
func (p *phone) unchanged(name string) error {
	want, ok := p.measured[name]
	if !ok {
		return fmt.Errorf("cannot run %s: it was never measured", name)
	}
	got, err := measure.File(filepath.Join("/bin", name))
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("cannot run %s: its digest is not the measured one", name)
	}
	return nil
}

// handOver starts keyd with the TPM and closes every descriptor of it that init holds.
func (p *phone) handOver(context.Context) (string, error) {
	if err := own(filepath.Join(stateDir, "keyd"), uidKeyd); err != nil {
		return "", err
	}
	if err := p.listen("keyd"); err != nil {
		return "", err
	}
	if err := p.sup.start("keyd"); err != nil {
		return "", err
	}
	err := errors.Join(p.door.Close(), p.tpm.Close())
	p.door, p.tpm = nil, nil
	if err != nil {
		return "", fmt.Errorf("cannot let go of the TPM: %w", err)
	}
	return "keyd holds the TPM, init keeps nothing", nil
}
