package sip

import (
	"errors"
	"fmt"
	"strings"

	gosip "github.com/emiago/sipgo/sip"

	"rempart/keystore/client/identity"
)

// AOR is an address of record in its one spelling, "sip:name@domain": lower
// case ASCII letters, digits and inner hyphens, exactly one "@", no port, no
// parameters, no quotes, no escapes. Two AORs are the same party if and only if
// their bytes are equal; nothing ever compares anything else. (One reader and
// one string: a gate whose two readers disagree can be walked through.)
type AOR string

// ErrNotAOR is in the chain of every refusal of an address.
var ErrNotAOR = errors.New("not an address of record of this network")

// NewAOR joins a handset name and a domain. What a name and a domain are is
// said in one place, the package that reads certificates.
func NewAOR(name, domain string) (AOR, error) {
	if !identity.ValidName(name) {
		return "", fmt.Errorf("cannot use name %.70q: %w", name, ErrNotAOR)
	}
	if !identity.ValidDomain(domain) {
		return "", fmt.Errorf("cannot use domain %.70q: %w", domain, ErrNotAOR)
	}
	return AOR("sip:" + name + "@" + domain), nil
}

// ParseAOR accepts exactly the strings NewAOR makes.
func ParseAOR(s string) (AOR, error) {
	rest, ok := strings.CutPrefix(s, "sip:")
	name, domain, at := strings.Cut(rest, "@")
	if !ok || !at {
		return "", fmt.Errorf("cannot use address %.70q: %w", s, ErrNotAOR)
	}
	return NewAOR(name, domain)
}

// Name is the part before "@".
func (a AOR) Name() string {
	name, _, _ := strings.Cut(strings.TrimPrefix(string(a), "sip:"), "@")
	return name
}

// Domain is the part after "@".
func (a AOR) Domain() string {
	_, domain, _ := strings.Cut(string(a), "@")
	return domain
}

// URI is the AOR as the library's value; its String is the AOR again.
func (a AOR) URI() gosip.Uri {
	return gosip.Uri{Scheme: "sip", User: a.Name(), Host: a.Domain()}
}

// AOROf reads the AOR out of a parsed URI. The URI is written out again by the
// library and that string, the one that would be forwarded, is what is checked:
// a port, a password, parameters or headers make it something else than an AOR.
func AOROf(u *gosip.Uri) (AOR, error) {
	if u == nil {
		return "", fmt.Errorf("cannot use a missing address: %w", ErrNotAOR)
	}
	return ParseAOR(u.String())
}

// From is the AOR in the one From header of a message.
func From(m gosip.Message) (AOR, error) {
	h := m.From()
	if h == nil || len(m.GetHeaders("From")) != 1 {
		return "", fmt.Errorf("cannot find one From header: %w", ErrNotAOR)
	}
	return AOROf(&h.Address)
}

// To is the AOR in the one To header of a message.
func To(m gosip.Message) (AOR, error) {
	h := m.To()
	if h == nil || len(m.GetHeaders("To")) != 1 {
		return "", fmt.Errorf("cannot find one To header: %w", ErrNotAOR)
	}
	return AOROf(&h.Address)
}

// maxCallID bounds a Call-ID, in bytes.
const maxCallID = 128

// CallID is the one Call-ID of a message, printable ASCII without spaces.
func CallID(m gosip.Message) (string, error) {
	h := m.CallID()
	if h == nil || len(m.GetHeaders("Call-ID")) != 1 || h.Value() == "" || len(h.Value()) > maxCallID {
		return "", errors.New("cannot find one Call-ID of usable length")
	}
	for i := range len(h.Value()) {
		if c := h.Value()[i]; c <= ' ' || c > '~' {
			return "", errors.New("cannot use a Call-ID with other than printable characters")
		}
	}
	return h.Value(), nil
}
