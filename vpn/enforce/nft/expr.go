package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Registers of 4 bytes, filled one after another: together they are the key of a set.
// The first has two names; this is the one that the kernel reads back.
const (
	reg0 = unix.NFT_REG_1
	reg1 = unix.NFT_REG32_01
	reg2 = unix.NFT_REG32_02
)

// rule is a list of expressions, each asked while the one before it held.
type rule [][]byte

func expression(name string, attrs ...[]byte) []byte {
	return attr(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), attr(unix.NFTA_EXPR_DATA, attrs...))
}

func value(kind uint16, data []byte) []byte { return attr(kind, attr(unix.NFTA_DATA_VALUE, data)) }

// meta loads what the kernel knows of a packet.
func meta(key, into uint32) []byte {
	return expression("meta", number(unix.NFTA_META_KEY, key), number(unix.NFTA_META_DREG, into))
}

// load loads bytes of a packet.
func load(base, offset, length, into uint32) []byte {
	return expression("payload", number(unix.NFTA_PAYLOAD_DREG, into), number(unix.NFTA_PAYLOAD_BASE, base),
		number(unix.NFTA_PAYLOAD_OFFSET, offset), number(unix.NFTA_PAYLOAD_LEN, length))
}

func compare(op, from uint32, data ...byte) []byte {
	return expression("cmp", number(unix.NFTA_CMP_SREG, from), number(unix.NFTA_CMP_OP, op), value(unix.NFTA_CMP_DATA, data))
}

func equal(from uint32, data ...byte) []byte { return compare(unix.NFT_CMP_EQ, from, data...) }

// outside holds if a value is not between two others, both included.
func outside(from uint32, low, high []byte) []byte {
	return expression("range", number(unix.NFTA_RANGE_SREG, from), number(unix.NFTA_RANGE_OP, unix.NFT_RANGE_NEQ),
		value(unix.NFTA_RANGE_FROM_DATA, low), value(unix.NFTA_RANGE_TO_DATA, high))
}

// mask keeps some bits of a register.
func mask(reg uint32, bits []byte) []byte {
	return expression("bitwise", number(unix.NFTA_BITWISE_SREG, reg), number(unix.NFTA_BITWISE_DREG, reg),
		number(unix.NFTA_BITWISE_LEN, uint32(len(bits))), value(unix.NFTA_BITWISE_MASK, bits), value(unix.NFTA_BITWISE_XOR, make([]byte, len(bits))))
}

// in holds if the registers from the first on are an element of a set.
func in(set string) []byte {
	return expression("lookup", text(unix.NFTA_LOOKUP_SET, set), number(unix.NFTA_LOOKUP_SREG, reg0))
}

// tracked loads the state of a packet's connection.
func tracked(into uint32) []byte {
	return expression("ct", number(unix.NFTA_CT_KEY, unix.NFT_CT_STATE), number(unix.NFTA_CT_DREG, into))
}

// fragmentOffset6 loads the offset field of an IPv6 fragment header, if there is one.
func fragmentOffset6(into uint32) []byte {
	return expression("exthdr", number(unix.NFTA_EXTHDR_DREG, into), attr(unix.NFTA_EXTHDR_TYPE, []byte{unix.IPPROTO_FRAGMENT}),
		number(unix.NFTA_EXTHDR_OFFSET, 2), number(unix.NFTA_EXTHDR_LEN, 2))
}

func counter() []byte { return expression("counter") }

// Verdicts of netfilter (linux/netfilter.h).
const (
	verdictDrop   = 0
	verdictAccept = 1
)

func verdict(code uint32) []byte {
	return expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		attr(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VERDICT, number(unix.NFTA_VERDICT_CODE, code))))
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// pad fills a part of a key up to whole registers.
func pad(b []byte) []byte { return append(b[:len(b):len(b)], make([]byte, -len(b)&3)...) }

// host32 is a 32-bit value in the machine's order, as "meta skuid" and the state of a
// connection are.
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
