// Package report is what init publishes of a boot, for `rempart status`, `rempart doctor` and the lab: facts as init saw them,
// at Path, replaced atomically. It claims nothing that init did not do or read back itself.
package report

import (
	"encoding/json"
	"fmt"
	"os"
)

// Path is where init publishes the report, inside the handset.
const Path = "/run/rempart/status.json"

// EventLogPath is where init publishes the TCG event log of this boot, inside the handset.
const EventLogPath = "/run/rempart/eventlog"

// JournalPath is where init collects the audit events of every daemon of this boot, inside the handset.
const JournalPath = "/run/rempart/journal.log"

// max bounds a report, in bytes.
const max = 256 << 10

// GuardInForce begins Report.Guard where a guard is in force; the form follows in parentheses: "in force (LSM)" or
// "in force (system calls)".
const GuardInForce = "in force"

// LevelsInForce begins Report.Levels where the level hooks are what they should be.
const LevelsInForce = "in force"

// Report is the state of one boot. Times are CLOCK_MONOTONIC in nanoseconds.
type Report struct {
	StartedNS int64      `json:"started_ns"` // init's first line
	ReadyNS   int64      `json:"ready_ns"`   // every step done; 0 before
	Role      string     `json:"role"`       // "" before the policy was verified
	Policy    *Policy    `json:"policy"`     // null before the policy was verified
	Steps     []Step     `json:"steps"`      // in the order in which they ran
	Measured  []Measured `json:"measured"`   // in the order in which they were extended
	Guard     string     `json:"guard"`      // GuardInForce and its form, or why it is not
	Levels    string     `json:"levels"`     // LevelsInForce and what they let pass, or the difference that init found
	Devices   []Device   `json:"devices"`    // every black device
	Tunnels   []Tunnel   `json:"tunnels"`    // the devices of red, lo left out
	Backstop  []Layer    `json:"backstop"`   // what stands behind the gate in every namespace
	Daemons   []Daemon   `json:"daemons"`
	Closed    bool       `json:"closed"` // init holds the gate at deny-all
	Reason    string     `json:"reason"` // why it is closed or why the boot stopped; "" otherwise
}

// Policy names the signed policy in force.
type Policy struct {
	Name   string `json:"name"`
	Serial int    `json:"serial"`
	Digest string `json:"digest"` // SHA-256 of the bundle, hex
}

// Step is one step of the boot flow.
type Step struct {
	Name    string `json:"name"`
	StartNS int64  `json:"start_ns"`
	EndNS   int64  `json:"end_ns"` // 0 while it runs
	Detail  string `json:"detail"` // what was done, for a person
	Error   string `json:"error,omitempty"`
}

// Measured is one extend that init did. The log at EventLogPath has the firmware's no more than init knows them.
type Measured struct {
	Name   string `json:"name"`
	PCR    int    `json:"pcr"`
	Digest string `json:"digest"` // hex
}

// Device is a black device.
type Device struct {
	Name      string   `json:"name"`
	Index     int      `json:"index"`
	Addresses []string `json:"addresses"`
	Up        bool     `json:"up"`
	Floor     bool     `json:"floor"`         // drop-all classifier seen by init
	Gate      string   `json:"gate"`          // what init read back, or the difference it found
	ReadNS    int64    `json:"read_ns"`       // when it was read back
	InForce   bool     `json:"gate_in_force"` // the read-back found exactly what should be there
}

// Layer is one of the layers behind the gate: "nft", "xfrm".
type Layer struct {
	Name    string            `json:"name"`
	State   string            `json:"state"`           // what it does, why this kernel does not have it, or the difference that was found
	InForce bool              `json:"in_force"`        // the read-back found exactly what should be there
	Drops   map[string]uint64 `json:"drops,omitempty"` // packets by table and chain, since its content last changed
}

// Tunnel is a device of red.
type Tunnel struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
}

// Daemon is one supervised process.
type Daemon struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"` // in the handset's pid namespace; 0 when down
	Running  bool   `json:"running"`
	Restarts int    `json:"restarts"`
	SinceNS  int64  `json:"since_ns"`
	LastExit string `json:"last_exit,omitempty"`
}

// Read returns the report at path.
func Read(path string) (*Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the boot report: %w", err)
	}
	if len(data) > max {
		return nil, fmt.Errorf("cannot read the boot report: %d bytes are more than %d", len(data), max)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("cannot read the boot report %s: %w", path, err)
	}
	return &r, nil
}

// Marshal returns the report as it is published.
func (r *Report) Marshal() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("cannot encode the boot report: %w", err)
	}
	return append(b, '\n'), nil
}

// Daemon returns the daemon of that name.
func (r *Report) Daemon(name string) (Daemon, bool) {
	for _, d := range r.Daemons {
		if d.Name == name {
			return d, true
		}
	}
	return Daemon{}, false
}
