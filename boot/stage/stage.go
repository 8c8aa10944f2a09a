// Package stage is the one table of what a boot measures: the names of the
// stages in order, the PCR of each, the file each one digests and the roles
// it belongs to. Init runs by it, package measure logs by it, package predict
// computes by it; none has a list of its own, so they cannot disagree.
package stage

import (
	"fmt"
	"slices"
)

// The PCRs that Rempart uses, SHA-256 bank. 11 is where systemd measures a
// unified kernel image too; see docs/measurement-registry.md.
const (
	PCRImage  = 11 // init and the root, by the firmware (on the netns board: the lab)
	PCRStages = 13 // every later program and the policy, by init, before use
	PCRCap    = 15 // zero until the boot secrets are opened; keyd extends it to close them
)

// The roles of an image, as the policy spells them.
const (
	Handset = "handset"
	Gateway = "gateway"
)

// Kind says what a stage is and with it what is done after it was measured.
type Kind int

const (
	Program  Kind = iota + 1 // a daemon that init starts
	Document                 // a file that init reads
	Command                  // a program that a user starts; init does not
	Root                     // the whole image, by measure.RootDigest
)

// String returns the kind in one word.
func (k Kind) String() string {
	switch k {
	case Program:
		return "program"
	case Document:
		return "document"
	case Command:
		return "command"
	case Root:
		return "root"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Stage is one measured thing.
type Stage struct {
	Name string // also the event's data in the log
	Kind Kind
	PCR  int
	Path string // inside the image, relative, with slashes; "." for the root
}

// entry adds the roles that have the stage; nil means every role.
type entry struct {
	Stage
	roles []string
}

// table returns the stages in the order in which they are measured.
//
// DO NOT REARRANGE: the order is part of every PCR 13 value that an image key
// has approved.
func table() []entry {
	return []entry{
		{Stage{"init", Program, PCRImage, "bin/init"}, nil},
		{Stage{"root", Root, PCRImage, "."}, nil},
		{Stage{"egressd", Program, PCRStages, "bin/egressd"}, nil},
		{Stage{"policy", Document, PCRStages, "etc/rempart/policy"}, nil},
		{Stage{"watchd", Program, PCRStages, "bin/watchd"}, nil},
		{Stage{"keyd", Program, PCRStages, "bin/keyd"}, nil},
		{Stage{"linkd", Program, PCRStages, "bin/linkd"}, []string{Handset}},
		{Stage{"tunneld", Program, PCRStages, "bin/tunneld"}, nil},
		{Stage{"voiced", Program, PCRStages, "bin/voiced"}, []string{Handset}},
		{Stage{"gatewayd", Program, PCRStages, "bin/gatewayd"}, []string{Gateway}},
		{Stage{"rempart", Command, PCRStages, "bin/rempart"}, nil},
	}
}

// Firmware returns the stages that are measured before init runs, in order,
// into [PCRImage]. They are the same in every role.
func Firmware() []Stage { return pick(PCRImage, "") }

// Early returns the stages that init measures before it can know the role,
// because the policy that says it is the last of them: in order, into
// [PCRStages].
func Early() []Stage {
	stages := pick(PCRStages, "")
	end := slices.IndexFunc(stages, func(s Stage) bool { return s.Name == "policy" })
	return stages[:end+1]
}

// For returns every stage of a role that init measures, in order, into
// [PCRStages]; [Early] is its beginning. An unknown role is an error.
func For(role string) ([]Stage, error) {
	if role != Handset && role != Gateway {
		return nil, fmt.Errorf("cannot list the stages of role %q: it is neither %s nor %s", role, Handset, Gateway)
	}
	return pick(PCRStages, role), nil
}

// Daemons returns the names of the programs that init starts in a role, in
// order.
func Daemons(role string) ([]string, error) {
	stages, err := For(role)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range stages {
		if s.Kind == Program {
			names = append(names, s.Name)
		}
	}
	return names, nil
}

// pick returns the stages of a PCR that every role has and those of role.
func pick(pcr int, role string) []Stage {
	var stages []Stage
	for _, e := range table() {
		if e.PCR == pcr && (e.roles == nil || slices.Contains(e.roles, role)) {
			stages = append(stages, e.Stage)
		}
	}
	return stages
}
