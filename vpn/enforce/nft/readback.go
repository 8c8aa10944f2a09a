package nft

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// listTries is how often a list is asked for again because nf_tables changed meanwhile.
// Who changes it more often than that is a difference by itself.
const listTries = 5

// ReadBack compares all that nf_tables has in the namespace with what should be there:
// every table of every family and owner, its flags, chains, hooks, priorities, policies,
// sets, elements and rules, byte for byte but for counters. owner is the port that must
// own the tables; 0 means any. The tables of the older iptables, of which there should
// be none, are looked for too if the caller is root. The error names each difference.
func ReadBack(owner uint32, want ...Table) error {
	got, err := list(owner)
	if err != nil {
		return fmt.Errorf("cannot read back nf_tables: %w", err)
	}
	var wanted []line
	for _, t := range want {
		for _, m := range append(t.skeleton(tableOwned), t.content()...) {
			l, err := lines(m, owner)
			if err != nil {
				return fmt.Errorf("cannot compare nf_tables with %s: %w", m.what, err)
			}
			wanted = append(wanted, l...)
		}
	}
	var all []string
	have, should := ordered(got), ordered(wanted)
	for _, l := range have {
		if !slices.Contains(should, l) {
			all = append(all, "in force and not wanted: "+l)
		}
	}
	for _, l := range should {
		if !slices.Contains(have, l) {
			all = append(all, "wanted and not in force: "+l)
		}
	}
	old, err := iptables()
	if err != nil {
		return err
	}
	for _, n := range old {
		all = append(all, "in force and not wanted: "+n)
	}
	if len(all) > 0 {
		return fmt.Errorf("nf_tables is not as it should be: %s", strings.Join(all, "; "))
	}
	return nil
}

// line is one object in words. Objects of a series (the rules of a chain) are numbered.
type line struct{ series, text string }

// ordered numbers the lines of each series.
func ordered(all []line) []string {
	n := map[string]int{}
	out := make([]string, 0, len(all))
	for _, l := range all {
		if l.series == "" {
			out = append(out, l.text)
			continue
		}
		out = append(out, fmt.Sprintf("%s %d: %s", l.series, n[l.series], l.text))
		n[l.series]++
	}
	return out
}

// list asks the kernel for all that there is.
func list(owner uint32) ([]line, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	for range listTries {
		all, err := listOnce(c, owner)
		if !errors.Is(err, errChanged) && !errors.Is(err, unix.EINTR) {
			return all, err
		}
	}
	return nil, errChanged
}

func listOnce(c *conn, owner uint32) ([]line, error) {
	before, err := c.generation()
	if err != nil {
		return nil, err
	}
	var all []line
	add := func(found []message) error {
		for _, m := range found {
			l, err := lines(m, owner)
			if err != nil {
				return err
			}
			all = append(all, l...)
		}
		return nil
	}
	var sets []message
	for _, kind := range []uint16{unix.NFT_MSG_GETTABLE, unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_GETRULE, unix.NFT_MSG_GETSET, unix.NFT_MSG_GETOBJ, unix.NFT_MSG_GETFLOWTABLE} {
		found, err := c.dump(kind, unix.NFPROTO_UNSPEC, nil)
		if err != nil {
			return nil, err
		}
		if kind == unix.NFT_MSG_GETSET {
			sets = found
		}
		if err := add(found); err != nil {
			return nil, err
		}
	}
	for _, s := range sets {
		f, err := fields(s.attrs)
		if err != nil {
			return nil, err
		}
		found, err := c.dump(unix.NFT_MSG_GETSETELEM, s.family, slices.Concat(attr(unix.NFTA_SET_ELEM_LIST_TABLE, find(f, unix.NFTA_SET_TABLE)),
			attr(unix.NFTA_SET_ELEM_LIST_SET, find(f, unix.NFTA_SET_NAME))))
		if err != nil {
			return nil, err
		}
		if err := add(found); err != nil {
			return nil, err
		}
	}
	after, err := c.generation()
	if err == nil && after != before {
		err = errChanged
	}
	return all, err
}

// skip are the attributes that differ from one kernel or moment to the next and mean
// nothing: handles, use counts, positions, ids within a batch, how a set is stored.
var skip = map[uint16][]uint16{
	unix.NFT_MSG_NEWTABLE: {tableHandle, unix.NFTA_TABLE_USE, unix.NFTA_TABLE_FLAGS, tableOwner},
	unix.NFT_MSG_NEWCHAIN: {unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_USE, unix.NFTA_CHAIN_HOOK},
	unix.NFT_MSG_NEWRULE:  {unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_POSITION, unix.NFTA_RULE_EXPRESSIONS},
	unix.NFT_MSG_NEWSET:   {unix.NFTA_SET_ID, setHandle, setType, setCount, unix.NFTA_SET_DESC},
}

// What x/sys has no name for (linux/netfilter/nf_tables.h).
const (
	setHandle = 16 // NFTA_SET_HANDLE
	setType   = 19 // NFTA_SET_TYPE, Linux 6.16
	setCount  = 20 // NFTA_SET_COUNT, Linux 6.16
)

// lines puts an object, as sent or as listed, into words: what is equal reads equal.
func lines(m message, owner uint32) ([]line, error) {
	f, err := fields(m.attrs)
	if err != nil {
		return nil, err
	}
	at := fmt.Sprintf("family %d ", m.family)
	rest := plain(f, skip[m.kind]...)
	switch m.kind {
	case unix.NFT_MSG_NEWTABLE:
		return []line{{text: at + "table " + str(find(f, unix.NFTA_TABLE_NAME)) + " " + owned(f, owner) + " " + rest}}, nil
	case unix.NFT_MSG_NEWCHAIN:
		hook, err := fields(find(f, unix.NFTA_CHAIN_HOOK))
		return []line{{text: at + "table " + str(find(f, unix.NFTA_CHAIN_TABLE)) + " chain " + str(find(f, unix.NFTA_CHAIN_NAME)) + " " + rest +
			" hook " + plain(hook, hookDevices)}}, err
	case unix.NFT_MSG_NEWRULE:
		text, err := expressions(find(f, unix.NFTA_RULE_EXPRESSIONS))
		return []line{{at + "table " + str(find(f, unix.NFTA_RULE_TABLE)) + " chain " + str(find(f, unix.NFTA_RULE_CHAIN)) + " rule", rest + text}}, err
	case unix.NFT_MSG_NEWSET:
		return []line{{text: at + "table " + str(find(f, unix.NFTA_SET_TABLE)) + " set " + str(find(f, unix.NFTA_SET_NAME)) + " " + rest}}, nil
	case unix.NFT_MSG_NEWSETELEM:
		elements, err := fields(find(f, unix.NFTA_SET_ELEM_LIST_ELEMENTS))
		if err != nil {
			return nil, err
		}
		var all []line
		for _, e := range elements {
			parts, err := fields(e.data)
			if err != nil {
				return nil, err
			}
			all = append(all, line{text: at + "table " + str(find(f, unix.NFTA_SET_ELEM_LIST_TABLE)) + " set " + str(find(f, unix.NFTA_SET_ELEM_LIST_SET)) +
				" element " + plain(parts)})
		}
		return all, nil
	}
	return []line{{text: fmt.Sprintf("%sobject of kind %d %s", at, m.kind, plain(f))}}, nil
}

// owned is what a table's flags mean to us. A table as sent names no owner: it gets the
// one that is asked for.
func owned(f []field, owner uint32) string {
	var flags uint32
	if b := find(f, unix.NFTA_TABLE_FLAGS); len(b) == 4 {
		flags = binary.BigEndian.Uint32(b)
	}
	text := "changed by anyone"
	if flags&tableOwned != 0 {
		text = "owned"
		if b := find(f, tableOwner); len(b) == 4 && owner != 0 && binary.BigEndian.Uint32(b) != owner {
			text = fmt.Sprintf("owned by port %d", binary.BigEndian.Uint32(b))
		}
	}
	if other := flags &^ (tableOwned | tablePersist); other != 0 {
		text += fmt.Sprintf(" with flags %#x", other)
	}
	return text
}

// plain is a list of attributes in the order of their kinds. One that is all zero reads
// as one that is not there, since the kernel writes out what it was not told.
func plain(all []field, without ...uint16) string {
	var out []string
	for _, f := range all {
		if slices.Contains(without, f.kind) || len(strings.Trim(string(f.data), "\x00")) == 0 {
			continue
		}
		out = append(out, fmt.Sprintf("%03d=%s", f.kind, hex.EncodeToString(f.data)))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// expressions puts the body of a rule into words; what a counter counted is left out.
func expressions(b []byte) (string, error) {
	list, err := fields(b)
	if err != nil {
		return "", err
	}
	var out []string
	for _, e := range list {
		parts, err := fields(e.data)
		if err != nil {
			return "", err
		}
		name, content := str(find(parts, unix.NFTA_EXPR_NAME)), ""
		if name != "counter" {
			inner, err := fields(find(parts, unix.NFTA_EXPR_DATA))
			if err != nil {
				return "", err
			}
			content = plain(inner)
		}
		out = append(out, name+"("+content+")")
	}
	return strings.Join(out, " "), nil
}

// iptables names the tables of the older packet filters in the calling thread's namespace.
func iptables() ([]string, error) {
	var all []string
	for _, kind := range []string{"ip", "ip6", "arp"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + kind + "_tables_names")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			continue // root alone may look: init does, the watcher cannot
		}
		if err != nil {
			return nil, fmt.Errorf("cannot look for %stables: %w", kind, err)
		}
		for _, n := range strings.Fields(string(b)) {
			all = append(all, kind+"tables "+n)
		}
	}
	return all, nil
}

// Drops is how many packets each chain of our tables has dropped in the namespace, by
// table and chain: "rempart-wwan0 egress". A change of a table's content begins anew.
func Drops() (map[string]uint64, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	rules, err := c.dump(unix.NFT_MSG_GETRULE, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot read the counters of nf_tables: %w", err)
	}
	drops := map[string]uint64{}
	for _, m := range rules {
		f, err := fields(m.attrs)
		if err != nil {
			return nil, err
		}
		n, ok, err := counted(find(f, unix.NFTA_RULE_EXPRESSIONS))
		if err != nil {
			return nil, err
		}
		if table := str(find(f, unix.NFTA_RULE_TABLE)); ok && strings.HasPrefix(table, "rempart-") {
			drops[table+" "+str(find(f, unix.NFTA_RULE_CHAIN))] += n
		}
	}
	return drops, nil
}

// counted returns what the counter of a rule counted, if it has one.
func counted(b []byte) (uint64, bool, error) {
	list, err := fields(b)
	if err != nil {
		return 0, false, err
	}
	for _, e := range list {
		parts, err := fields(e.data)
		if err != nil {
			return 0, false, err
		}
		if str(find(parts, unix.NFTA_EXPR_NAME)) != "counter" {
			continue
		}
		inner, err := fields(find(parts, unix.NFTA_EXPR_DATA))
		if packets := find(inner, unix.NFTA_COUNTER_PACKETS); err == nil && len(packets) == 8 {
			return binary.BigEndian.Uint64(packets), true, nil
		}
		return 0, false, err
	}
	return 0, false, nil
}
