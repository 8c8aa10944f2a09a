package nft

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// What x/sys has no name for (linux/netfilter/nf_tables.h).
const (
	tableOwned   = 0x2 // NFT_TABLE_F_OWNER, Linux 5.12
	tablePersist = 0x4 // NFT_TABLE_F_PERSIST, Linux 6.9
	tableOwner   = 7   // NFTA_TABLE_OWNER
	tableHandle  = 4   // NFTA_TABLE_HANDLE
	chainFlags   = 10  // NFTA_CHAIN_FLAGS
	hookDevices  = 4   // NFTA_HOOK_DEVS
)

// Table is one table as it should be. The zero value is none.
type Table struct {
	Name   string
	family uint8
	chains []chain
	sets   []set
}

// chain is a base chain with policy drop and, as its last rule, a counter of what it drops.
type chain struct {
	name     string
	hook     uint32
	priority int32
	device   string // of a netdev table
	rules    []rule
}

// set is a constant set of keys.
type set struct {
	name string
	kind uint32 // how nft(8) shows its keys
	size uint32 // bytes of a key
	keys [][]byte
}

// Types of nft(8), and how it writes a key of several: 6 bits each.
const (
	typeIPv4     = 7
	typeIPv6     = 8
	typeProtocol = 12
	typePort     = 13
	typeUID      = 24
)

// addSet adds a set of one key or more, all of one size. A key of several parts fills
// whole registers with each, a key of one part is as long as it is.
func (t *Table) addSet(name string, keys [][]byte, types ...uint32) {
	s := set{name: name, keys: keys, size: uint32(len(keys[0]))}
	for _, k := range types {
		s.kind = s.kind<<6 | k
	}
	slices.SortFunc(s.keys, bytes.Compare)
	s.keys = slices.CompactFunc(s.keys, bytes.Equal)
	t.sets = append(t.sets, s)
}

// skeleton are the messages that make the table and its chains.
func (t *Table) skeleton(flags uint32) []message {
	all := []message{{kind: unix.NFT_MSG_NEWTABLE, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: t.family, what: "table " + t.Name,
		attrs: bytes.Join([][]byte{text(unix.NFTA_TABLE_NAME, t.Name), number(unix.NFTA_TABLE_FLAGS, flags)}, nil)}}
	for _, c := range t.chains {
		hook := [][]byte{number(unix.NFTA_HOOK_HOOKNUM, c.hook), number(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))}
		if c.device != "" {
			hook = append(hook, text(unix.NFTA_HOOK_DEV, c.device))
		}
		all = append(all, message{kind: unix.NFT_MSG_NEWCHAIN, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: t.family, what: "chain " + c.name + " of " + t.Name,
			attrs: bytes.Join([][]byte{text(unix.NFTA_CHAIN_TABLE, t.Name), text(unix.NFTA_CHAIN_NAME, c.name), attr(unix.NFTA_CHAIN_HOOK, hook...),
				number(unix.NFTA_CHAIN_POLICY, verdictDrop), text(unix.NFTA_CHAIN_TYPE, "filter"), number(chainFlags, chainBase)}, nil)})
	}
	return all
}

// chainBase is NFT_CHAIN_BASE.
const chainBase = 1

// content are the messages that fill sets and chains.
func (t *Table) content() []message {
	var all []message
	for i, s := range t.sets {
		all = append(all, message{kind: unix.NFT_MSG_NEWSET, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: t.family, what: "set " + s.name + " of " + t.Name,
			attrs: bytes.Join([][]byte{text(unix.NFTA_SET_TABLE, t.Name), text(unix.NFTA_SET_NAME, s.name), number(unix.NFTA_SET_FLAGS, unix.NFT_SET_CONSTANT),
				number(unix.NFTA_SET_KEY_TYPE, s.kind), number(unix.NFTA_SET_KEY_LEN, s.size), number(unix.NFTA_SET_ID, uint32(i+1)),
				attr(unix.NFTA_SET_DESC, number(unix.NFTA_SET_DESC_SIZE, uint32(len(s.keys))))}, nil)})
		var elements [][]byte
		for _, k := range s.keys {
			elements = append(elements, attr(unix.NFTA_LIST_ELEM, value(unix.NFTA_SET_ELEM_KEY, k)))
		}
		all = append(all, message{kind: unix.NFT_MSG_NEWSETELEM, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: t.family, what: "elements of set " + s.name + " of " + t.Name,
			attrs: bytes.Join([][]byte{text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name), text(unix.NFTA_SET_ELEM_LIST_SET, s.name),
				attr(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elements...)}, nil)})
	}
	for _, c := range t.chains {
		for i, r := range append(slices.Clone(c.rules), rule{counter(), verdict(verdictDrop)}) {
			all = append(all, message{kind: unix.NFT_MSG_NEWRULE, flags: unix.NLM_F_CREATE | unix.NLM_F_APPEND, family: t.family, what: fmt.Sprintf("rule %d of chain %s of %s", i, c.name, t.Name),
				attrs: bytes.Join([][]byte{text(unix.NFTA_RULE_TABLE, t.Name), text(unix.NFTA_RULE_CHAIN, c.name), attr(unix.NFTA_RULE_EXPRESSIONS, r...)}, nil)})
		}
	}
	return all
}

// empty are the messages that take the content of a table that stands out again; its
// chains stay hooked, and drop.
func (t *Table) empty() []message {
	all := []message{{kind: unix.NFT_MSG_DELRULE, family: t.family, what: "rules of " + t.Name, attrs: text(unix.NFTA_RULE_TABLE, t.Name)}}
	for _, s := range t.sets {
		all = append(all, message{kind: unix.NFT_MSG_DELSET, family: t.family, what: "set " + s.name + " of " + t.Name,
			attrs: bytes.Join([][]byte{text(unix.NFTA_SET_TABLE, t.Name), text(unix.NFTA_SET_NAME, s.name)}, nil)})
	}
	return all
}

func (t *Table) remove() message {
	return message{kind: unix.NFT_MSG_DELTABLE, family: t.family, what: "table " + t.Name, attrs: text(unix.NFTA_TABLE_NAME, t.Name)}
}

// sameChains tells whether two tables differ in their content at most.
func (t *Table) sameChains(o *Table) bool {
	return t.family == o.family && slices.EqualFunc(t.chains, o.chains, func(a, b chain) bool {
		return a.name == b.name && a.hook == b.hook && a.priority == b.priority && a.device == b.device
	})
}
