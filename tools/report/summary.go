package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"rempart/board/scenario"
	"rempart/board/scenario/watch"
	"rempart/boot/stage"
	"rempart/tools/sound"
	"rempart/voice/record"
)

// Version of summary.json. Within a version fields are added, never renamed or
// given another meaning.
const Version = 1

// Summary is all that a run showed. A nil or empty part was not run and is
// left out; it is the caller who says in Failures what had to be run.
type Summary struct {
	Version int `json:"version"`
	// Title is the page's heading; "" is "Rempart: the first secure call".
	Title   string    `json:"title,omitempty"`
	Made    time.Time `json:"made"`
	Machine string    `json:"machine"` // kernel and processors, for the reader of the figures
	Seconds float64   `json:"seconds"`
	Passed  bool      `json:"passed"`
	// Failures says in words which promises did not hold.
	Failures []string `json:"failures"`

	Steps      []Step               `json:"steps"`
	Handsets   []Handset            `json:"handsets"` // the gateway included
	Leaks      *scenario.LeakReport `json:"leaks,omitempty"`
	Call       *Call                `json:"call,omitempty"`
	Records    *Records             `json:"records,omitempty"` // of the call, by both handsets
	Outside    *Outside             `json:"outside,omitempty"`
	Statistics []Statistic          `json:"statistics,omitempty"`
}

// Step is one line of the run or of a boot, in milliseconds.
type Step struct {
	Name string `json:"name"`
	// Start since the run's or the boot's beginning.
	Start  float64 `json:"start_ms"`
	Took   float64 `json:"took_ms"`
	OK     bool    `json:"ok"`
	Detail string  `json:"detail,omitempty"`
}

// Handset is one handset, or the gateway, after its boot.
type Handset struct {
	Name     string        `json:"name"`
	Role     string        `json:"role"` // handset or gateway
	TPM      TPM           `json:"tpm"`
	Measured []Measurement `json:"measured"`
	// LogReplays says that the event log replays to the TPM's PCRs.
	LogReplays bool `json:"log_replays"`
	// Predicted says that the PCRs are those computed from the image without a TPM.
	Predicted bool   `json:"predicted"`
	Gate      Gate   `json:"gate"`
	Tunnel    Tunnel `json:"tunnel"`
	// Boot is the timeline from init's first line.
	Boot []Step `json:"boot"`
	// Doctor is what `rempart doctor` found on it.
	Doctor []Finding `json:"doctor,omitempty"`
}

// Finding is one promise and what the handset itself can see of it.
type Finding struct {
	Promise string `json:"promise"`
	OK      bool   `json:"ok"`
	Why     string `json:"why"`
	Hint    string `json:"hint,omitempty"`
}

// Records are what both handsets wrote down about the call.
type Records struct {
	From record.Record `json:"from"`
	To   record.Record `json:"to"`
}

// TPM is what the handset's TPM holds.
type TPM struct {
	Manufacturer string `json:"manufacturer"`
	EKIssuer     string `json:"ek_issuer"`
	Vault        string `json:"vault"` // keyd's state
	// Keys as lines such as "LDevID ECDSA P-256, in the TPM, sha256:…".
	Keys  []Key `json:"keys"`
	Tries int   `json:"pin_tries_left"`
}

// Key is one key of the TPM; never a secret.
type Key struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Where string `json:"where"`
	// Print is a fingerprint or certificate subject.
	Print string `json:"print,omitempty"`
}

// Measurement is one line of the event log.
type Measurement struct {
	PCR    int    `json:"pcr"`
	Stage  string `json:"stage"`
	Digest string `json:"digest"` // hexadecimal SHA-256
}

// Gate is the state of the gate as it was read back from the kernel.
type Gate struct {
	Device   string            `json:"device"`
	Floor    bool              `json:"floor"`
	InForce  bool              `json:"in_force"`
	ReadBack []string          `json:"differences"` // between the kernel and the policy; empty is right
	Policy   string            `json:"policy"`      // "admitted: gateway" or "deny all"
	Digest   string            `json:"digest"`
	Classes  []string          `json:"classes"`
	Passed   uint64            `json:"passed"`
	Drops    map[string]uint64 `json:"drops"`
}

// Tunnel is tunneld's status.
type Tunnel struct {
	State     string  `json:"state"`
	Peer      string  `json:"peer"`
	Endpoint  string  `json:"endpoint"`
	Handshake float64 `json:"handshake_age_s"`
	RX        uint64  `json:"rx_bytes"`
	TX        uint64  `json:"tx_bytes"`
}

// Call is the call from both ends.
type Call struct {
	From     string  `json:"from"`
	To       string  `json:"to"`
	Level    string  `json:"level"`
	SASFrom  string  `json:"sas_from"`
	SASTo    string  `json:"sas_to"`
	Seconds  float64 `json:"seconds"`
	Codec    string  `json:"codec"`
	DialToMS float64 `json:"dial_to_audio_ms"` // dial to first decoded audio
	// Ways are the directions, From to To first.
	Ways []Way `json:"ways"`
}

// Way is one direction of a call.
type Way struct {
	From        string         `json:"from"`
	To          string         `json:"to"`
	OneWayMS    float64        `json:"one_way_ms"`
	BoundMS     float64        `json:"bound_ms"` // 0: none
	Sent        int            `json:"frames_sent"`
	Received    int            `json:"frames_received"`
	Lost        int            `json:"frames_lost"`
	PacketBytes int            `json:"packet_bytes"`
	Correlation float64        `json:"correlation"`
	Quality     *sound.Quality `json:"quality,omitempty"`
	BitExact    bool           `json:"bit_exact,omitempty"` // equals a local decode of the same packets
	// Unheard says that what was received does not hold what was sent.
	Unheard bool `json:"unheard,omitempty"`
	// Note says why a figure is missing.
	Note         string   `json:"note,omitempty"`
	SentWave     []Extent `json:"-"`
	ReceivedWave []Extent `json:"-"`
	WaveSeconds  float64  `json:"-"`
}

// Loss is the share of lost frames, 0 … 1.
func (w Way) Loss() float64 {
	if w.Sent == 0 {
		return 0
	}
	return float64(w.Lost) / float64(w.Sent)
}

// Extent is the lowest and highest sample of one column of a waveform.
type Extent struct{ Low, High float64 }

// Wave puts both recordings, aligned, into the way: at most columns columns of
// the stretch of the sent recording.
func (w *Way) Wave(sent, received sound.Clip, a sound.Alignment, columns int) {
	n := len(sent.Samples)
	moved := make([]float64, n)
	for i := range moved {
		if k := i + a.Lag; k >= 0 && k < len(received.Samples) {
			moved[i] = received.Samples[k]
		}
	}
	w.SentWave, w.ReceivedWave = extents(sent.Samples, columns), extents(moved, columns)
	w.WaveSeconds = sent.Length().Seconds()
}

func extents(s []float64, columns int) []Extent {
	columns = min(columns, len(s))
	out := make([]Extent, columns)
	for i := range out {
		part := s[i*len(s)/columns : (i+1)*len(s)/columns]
		out[i] = Extent{slices.Min(part), slices.Max(part)}
	}
	return out
}

// Outside is what a stranger on the internet link saw.
type Outside struct {
	watch.Summary
	// Shape of the stream of one handset during the call.
	Shape *watch.Shape `json:"call_shape,omitempty"`
	// Window is the part of the run that the plot shows, the call by default.
	Window string        `json:"window,omitempty"`
	Points []watch.Point `json:"-"`
	Notes  []string      `json:"notes,omitempty"`
}

// Statistic is a measured figure over several runs, with its bound.
type Statistic struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	Samples []float64 `json:"samples"`
	Median  float64   `json:"median"`
	P95     float64   `json:"p95"`
	Max     float64   `json:"max"`
	// Bound on the figure named by On ("p95", "median" or "max"); with Least it is a lower
	// bound, otherwise an upper one. 0 is none.
	Bound float64 `json:"bound"`
	On    string  `json:"on"`
	Least bool    `json:"least,omitempty"`
	OK    bool    `json:"ok"`
}

// NewStatistic computes the figures. on is "median", "p95" or "max". Without
// samples it is not OK.
func NewStatistic(name, unit string, samples []float64, on string, bound float64, least bool) Statistic {
	s := Statistic{Name: name, Unit: unit, Samples: samples, Bound: bound, On: on, Least: least}
	if len(samples) == 0 {
		return s
	}
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	s.Median = (sorted[(n-1)/2] + sorted[n/2]) / 2
	s.P95 = sorted[int(math.Ceil(0.95*float64(n)))-1]
	s.Max = sorted[n-1]
	v, known := map[string]float64{"median": s.Median, "p95": s.P95, "max": s.Max}[on]
	s.OK = known && (bound == 0 || least && v >= bound || !least && v <= bound)
	return s
}

// Finish fills in Version, Passed and the failures that the parts themselves
// show, behind those that the caller has already put in. Call it once.
func (s *Summary) Finish() {
	s.Version = Version
	if s.Failures == nil {
		s.Failures = []string{}
	}
	fail := func(format string, args ...any) {
		s.Failures = append(s.Failures, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "))
	}
	for _, st := range s.Steps {
		if !st.OK {
			fail("step %q failed: %s", st.Name, st.Detail)
		}
	}
	for _, h := range s.Handsets {
		h.check(fail)
	}
	if s.Leaks != nil {
		for _, f := range s.Leaks.Failures {
			fail("leak test: %s", f)
		}
		if !s.Leaks.Passed && len(s.Leaks.Failures) == 0 {
			fail("leak test: not passed")
		}
	}
	if s.Call != nil {
		s.Call.check(fail)
	}
	if s.Outside != nil {
		if err := s.Outside.Check(); err != nil {
			fail("outside: %v", err)
		}
	}
	for _, st := range s.Statistics {
		if !st.OK {
			fail("%s: %s of %s is beyond the bound of %s %s", st.Name, st.On, number(st.figure()), number(st.Bound), st.Unit)
		}
	}
	s.Passed = len(s.Failures) == 0
}

func (st Statistic) figure() float64 {
	return map[string]float64{"median": st.Median, "p95": st.P95, "max": st.Max}[st.On]
}

// tunnelGood: a handset's tunnel is up, a gateway listens for handsets.
func (h Handset) tunnelGood() bool {
	return h.Tunnel.State == "up" || h.Role == stage.Gateway && h.Tunnel.State == "listening"
}

func (h Handset) check(fail func(string, ...any)) {
	if !h.LogReplays {
		fail("%s: the event log does not replay to the PCRs", h.Name)
	}
	if !h.Predicted {
		fail("%s: the PCRs are not the predicted ones", h.Name)
	}
	if !h.Gate.Floor || !h.Gate.InForce {
		fail("%s: gate or floor not in force on %s", h.Name, h.Gate.Device)
	}
	for _, d := range h.Gate.ReadBack {
		fail("%s: the kernel differs from the policy: %s", h.Name, d)
	}
	if !h.tunnelGood() {
		fail("%s: the tunnel is %q", h.Name, h.Tunnel.State)
	}
	for _, d := range h.Doctor {
		if !d.OK {
			fail("%s: doctor: %s: %s", h.Name, d.Promise, d.Why)
		}
	}
	for _, b := range h.Boot {
		if !b.OK {
			fail("%s: boot step %q failed: %s", h.Name, b.Name, b.Detail)
		}
	}
}

// Broken says which promises of a call do not hold.
func (c *Call) Broken() []string {
	var broken []string
	c.check(func(format string, args ...any) {
		broken = append(broken, strings.TrimPrefix(fmt.Sprintf(format, args...), "call: "))
	})
	return broken
}

func (c *Call) check(fail func(string, ...any)) {
	if c.SASFrom == "" || c.SASFrom != c.SASTo {
		fail("call: the short authentication strings differ: %q and %q", c.SASFrom, c.SASTo)
	}
	if c.Level == "" {
		fail("call: no level")
	}
	if len(c.Ways) == 0 {
		fail("call: no audio was measured")
	}
	for _, w := range c.Ways {
		switch {
		case w.Received == 0:
			fail("call: %s heard nothing of %s", w.To, w.From)
		case w.Unheard:
			fail("call: %s did not hear what %s said: %s", w.To, w.From, w.Note)
		}
		if w.BoundMS > 0 && w.OneWayMS > w.BoundMS {
			fail("call: %s to %s takes %s ms, bound %s ms", w.From, w.To, number(w.OneWayMS), number(w.BoundMS))
		}
	}
}

// number prints a figure with about three significant digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || a == math.Trunc(a):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
