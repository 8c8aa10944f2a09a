package xfrm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What the netlink library has no name for (linux/xfrm.h).
const (
	setDefault  = 0x27 // XFRM_MSG_SETDEFAULT
	getDefault  = 0x28 // XFRM_MSG_GETDEFAULT
	blockAction = 1    // XFRM_USERPOLICY_BLOCK
)

// ErrMissing says that this kernel has no such layer.
var ErrMissing = errors.New("the kernel has no IPsec policies with a default")

// raw is a message body that is encoded already.
type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

// ask sends one request and returns the answers' bodies.
func ask(kind, flags int, answer uint16, body []byte) ([][]byte, error) {
	r := nl.NewNetlinkRequest(kind, flags)
	r.AddData(raw(body))
	all, err := r.Execute(unix.NETLINK_XFRM, answer)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return all, err
}

// block sets the default of all three directions (struct xfrm_userpolicy_default).
func block() error {
	_, err := ask(setDefault, unix.NLM_F_ACK, 0, []byte{blockAction, blockAction, blockAction})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ErrMissing, err) // before 5.15
	}
	return err
}

// Put sets the default to block and makes the wanted policies the only ones. Others go
// first; each one that comes allows no more than is wanted, so that no moment is looser
// than both what was and what will be. The error wraps [ErrMissing] where the kernel has
// no such thing.
func Put(want []Policy) error {
	if err := put(want); err != nil {
		return fmt.Errorf("cannot put the IPsec policies in force: %w", err)
	}
	return nil
}

func put(want []Policy) error {
	if err := block(); err != nil {
		return fmt.Errorf("default: %w", err)
	}
	have, err := list()
	if err != nil {
		return err
	}
	wanted := map[string]Policy{}
	for _, p := range want {
		wanted[identity(p.info(), nil)] = p
	}
	strange := slices.ContainsFunc(have, func(l listed) bool { _, ok := wanted[l.identity]; return !ok })
	if strange {
		if _, err := ask(nl.XFRM_MSG_FLUSHPOLICY, unix.NLM_F_ACK, 0, nil); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		// A connected socket that was allowed keeps its route without asking again, and
		// that a policy goes is no reason for the kernel to ask; that the default is set
		// is one.
		if err := block(); err != nil {
			return fmt.Errorf("default: %w", err)
		}
		have = nil
	}
	for _, l := range have {
		delete(wanted, l.identity)
	}
	for _, p := range want {
		if _, ok := wanted[identity(p.info(), nil)]; !ok {
			continue
		}
		if _, err := ask(nl.XFRM_MSG_NEWPOLICY, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, p.info()); err != nil {
			return fmt.Errorf("policy %v: %w", p, err)
		}
	}
	return nil
}

// listed is a policy that the kernel has.
type listed struct{ identity, text string }

func list() ([]listed, error) {
	all, err := ask(nl.XFRM_MSG_GETPOLICY, unix.NLM_F_DUMP, nl.XFRM_MSG_NEWPOLICY, nil)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var have []listed
	for _, b := range all {
		if len(b) < infoSize {
			return nil, fmt.Errorf("list: a policy of %d bytes", len(b))
		}
		info, attributes := b[:infoSize], others(b[infoSize:])
		have = append(have, listed{identity(info, attributes), describe(info, attributes)})
	}
	return have, nil
}

// others are a policy's attributes without the one that says that it is a main policy.
func others(b []byte) []byte {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return b
	}
	var rest []byte
	for _, a := range attrs {
		if a.Attr.Type == nl.XFRMA_POLICY_TYPE && len(a.Value) > 0 && a.Value[0] == 0 {
			continue
		}
		rest = append(append(rest, byte(a.Attr.Type), byte(a.Attr.Type>>8)), a.Value...)
	}
	return rest
}

// ReadBack compares the defaults, the policies and the states of the namespace with what
// should be there: block, want, and none. The error names each difference.
func ReadBack(want []Policy) error {
	diffs, err := differences(want)
	if err != nil {
		return fmt.Errorf("cannot read back the IPsec policies: %w", err)
	}
	if len(diffs) > 0 {
		return fmt.Errorf("the IPsec policies are not as they should be: %s", strings.Join(diffs, "; "))
	}
	return nil
}

func differences(want []Policy) (diffs []string, err error) {
	defaults, err := ask(getDefault, 0, getDefault, make([]byte, 3))
	if err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	if len(defaults) != 1 || len(defaults[0]) < 3 {
		return nil, errors.New("default: the kernel does not tell")
	}
	for i, d := range []Direction{In, Forward, Out} { // in the order of the structure
		if defaults[0][i] != blockAction {
			diffs = append(diffs, fmt.Sprintf("default of %v is not block", d))
		}
	}
	have, err := list()
	if err != nil {
		return nil, err
	}
	wanted := map[string]Policy{}
	for _, p := range want {
		wanted[identity(p.info(), nil)] = p
	}
	for _, l := range have {
		if _, ok := wanted[l.identity]; !ok {
			diffs = append(diffs, "in force and not wanted: "+l.text)
		}
		delete(wanted, l.identity)
	}
	for _, p := range want {
		if _, missing := wanted[identity(p.info(), nil)]; missing {
			diffs = append(diffs, fmt.Sprintf("wanted and not in force: %v", p))
		}
	}
	states, err := ask(nl.XFRM_MSG_GETSA, unix.NLM_F_DUMP, nl.XFRM_MSG_NEWSA, nil)
	if err != nil {
		return nil, fmt.Errorf("states: %w", err)
	}
	if len(states) > 0 {
		diffs = append(diffs, fmt.Sprintf("%d states, want none", len(states)))
	}
	exempt, err := exempt()
	return append(diffs, exempt...), err
}

// exempt names the devices of the namespace, loopback aside, that a setting has taken out
// of the policies.
func exempt() ([]string, error) {
	var all []string
	for _, pattern := range []string{"ipv4/conf/*/disable_xfrm", "ipv4/conf/*/disable_policy", "ipv6/conf/*/disable_policy"} {
		paths, err := filepath.Glob(filepath.Join("/proc/sys/net", pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			if filepath.Base(filepath.Dir(path)) == "lo" {
				continue
			}
			b, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				continue // the device went away
			}
			if err != nil {
				return nil, fmt.Errorf("devices: %w", err)
			}
			if v := strings.TrimSpace(string(b)); v != "0" {
				all = append(all, path+" is "+v)
			}
		}
	}
	return all, nil
}
