package backstop

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

// Space is a network namespace and what kind of place it is.
type Space struct {
	Place Place
	NS    *link.NS
}

// Backstop keeps both layers in force in all namespaces of a handset. Its methods must not
// be called concurrently. It must be kept as long as the handset runs: it owns the tables.
type Backstop struct {
	spaces  map[string]Space
	owners  map[string]*nft.Owner // by name of the space; of black and red
	wanted  Wanted
	missing map[Layer]error
}

// Lay puts the layers in force, closed: nothing leaves or enters any of the namespaces but
// on loopback. There must be one black and one red.
func Lay(spaces map[string]Space) (*Backstop, error) {
	b := &Backstop{spaces: spaces, owners: map[string]*nft.Owner{}, missing: map[Layer]error{}}
	for _, name := range b.names() {
		if err := b.do(name, b.layXFRM); err != nil {
			return nil, errors.Join(err, b.close())
		}
		if b.spaces[name].Place == Other {
			continue
		}
		if err := b.do(name, b.own); err != nil {
			return nil, errors.Join(err, b.close())
		}
	}
	return b, nil
}

// names are the spaces' names in a fixed order.
func (b *Backstop) names() []string { return slices.Sorted(maps.Keys(b.spaces)) }

// do runs fn in a space; a layer that the kernel does not have is noted, not an error.
func (b *Backstop) do(name string, fn func(name string) error) error {
	err := b.spaces[name].NS.Do(func() error { return fn(name) })
	for layer, missing := range map[Layer]error{NFT: nft.ErrMissing, XFRM: xfrm.ErrMissing} {
		if errors.Is(err, missing) {
			b.missing[layer], err = err, nil
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (b *Backstop) own(name string) error {
	if b.missing[NFT] != nil {
		return nil
	}
	o, err := nft.Open()
	if err != nil {
		return err
	}
	b.owners[name] = o
	return b.layNFT(name)
}

func (b *Backstop) layNFT(name string) error {
	if b.missing[NFT] != nil {
		return nil
	}
	return b.owners[name].Put(b.wanted.tables(b.spaces[name].Place)...)
}

func (b *Backstop) layXFRM(name string) error {
	if b.missing[XFRM] != nil {
		return nil
	}
	return xfrm.Put(b.wanted.policies(b.spaces[name].Place))
}

// put makes a place what is wanted: at a closing first the layer that takes one message,
// at an opening last.
func (b *Backstop) put(p Place, closing bool) error {
	steps := []func(string) error{b.layXFRM, b.layNFT}
	if closing {
		slices.Reverse(steps)
	}
	var all error
	for _, name := range b.names() {
		if b.spaces[name].Place != p {
			continue
		}
		for _, step := range steps {
			if err := b.do(name, step); err != nil {
				if !closing {
					return err
				}
				all = errors.Join(all, err) // the other layer closes all the same
			}
		}
	}
	return all
}

// AddDevice lays a table under a black device that is still down, whose fixed addresses are
// own; one that leases its addresses has none yet. What is released stays so, on the new
// device too.
func (b *Backstop) AddDevice(name string, own ...netip.Addr) error {
	if slices.Contains(b.wanted.Devices, name) {
		return nil
	}
	b.wanted.Devices = append(slices.Clone(b.wanted.Devices), name)
	if len(own) > 0 {
		b.wanted.Own = maps.Clone(b.wanted.Own)
		if b.wanted.Own == nil {
			b.wanted.Own = map[string][]netip.Addr{}
		}
		b.wanted.Own[name] = own
	}
	if err := b.put(Black, false); err != nil {
		return fmt.Errorf("cannot lay the backstop under %s: %w", name, err)
	}
	return nil
}

// RemoveDevice forgets a black device that is gone; its name may come back as another's.
func (b *Backstop) RemoveDevice(name string) error {
	i := slices.Index(b.wanted.Devices, name)
	if i < 0 {
		return nil
	}
	b.wanted.Devices = slices.Delete(slices.Clone(b.wanted.Devices), i, i+1)
	b.wanted.Own, b.wanted.Links = maps.Clone(b.wanted.Own), maps.Clone(b.wanted.Links)
	delete(b.wanted.Own, name)
	delete(b.wanted.Links, name)
	for space, o := range b.owners {
		if b.spaces[space].Place != Black {
			continue
		}
		if err := o.Remove(nft.Closed(name)); err != nil {
			return err
		}
	}
	return nil
}

// SetLink lets the link-layer minimum of a device through, closed or not: what its facts
// say, with sockets opened by uid. No facts let nothing through.
func (b *Backstop) SetLink(device string, facts egress.LinkFacts, uid uint32) error {
	b.wanted.Links = maps.Clone(b.wanted.Links)
	if b.wanted.Links == nil {
		b.wanted.Links = map[string]nft.Link{}
	}
	b.wanted.Links[device] = nft.Link{Facts: facts, UID: uid}
	if err := b.put(Black, false); err != nil {
		return fmt.Errorf("cannot tell the backstop of %s's link: %w", device, err)
	}
	return nil
}

// Tunnel opens red to the tunnel's networks: inbound for the services input and, if there
// are any, through it for the services forward.
func (b *Backstop) Tunnel(device string, networks []netip.Prefix, input, forward []nft.Port) error {
	b.wanted.Tunnel, b.wanted.Networks, b.wanted.Input, b.wanted.Forward = device, networks, input, forward
	if err := b.put(Red, false); err != nil {
		return fmt.Errorf("cannot open red to %s: %w", device, err)
	}
	return nil
}

// Release lets the classes through on black's devices, from sockets opened by uid. If that
// fails part of the way, black is closed again, and the error says so if it could not be.
func (b *Backstop) Release(classes egress.Policy, uid uint32) error {
	b.wanted.Admitted, b.wanted.UID = classes, uid
	if err := b.put(Black, false); err != nil {
		return errors.Join(fmt.Errorf("cannot release the backstop: %w", err), b.Close())
	}
	return nil
}

// Close lets nothing through in black any more. It asks no other process.
func (b *Backstop) Close() error {
	b.wanted.Admitted, b.wanted.UID = egress.DenyAll(), 0
	if err := b.put(Black, true); err != nil {
		return fmt.Errorf("cannot close the backstop: %w", err)
	}
	return nil
}

// close gives the tables up.
func (b *Backstop) close() error {
	var all error
	for _, o := range b.owners {
		all = errors.Join(all, o.Close())
	}
	return all
}

// Wanted is what should be in force now, and Owner the port that owns a space's tables, for
// another process to compare with.
func (b *Backstop) Wanted() Wanted { return b.wanted }

// Owner is the netlink port that owns the tables of a space; 0 if it has none.
func (b *Backstop) Owner(space string) uint32 {
	if o := b.owners[space]; o != nil {
		return o.Port()
	}
	return 0
}

// There are the layers that this kernel has.
func (b *Backstop) There() []Layer {
	var there []Layer
	for _, l := range []Layer{NFT, XFRM} {
		if b.missing[l] == nil {
			there = append(there, l)
		}
	}
	return there
}

// ReadBack compares one layer of every namespace with what should be.
func (b *Backstop) ReadBack(l Layer) error {
	if b.missing[l] != nil {
		return nil
	}
	var all error
	for _, name := range b.names() {
		s := b.spaces[name]
		if err := s.NS.Do(func() error { return ReadBack(s.Place, b.wanted, b.Owner(name), l) }); err != nil {
			all = errors.Join(all, fmt.Errorf("%s: %w", name, err))
		}
	}
	return all
}

// Missing is why this kernel does not have a layer; nil if it has it.
func (b *Backstop) Missing(l Layer) error { return b.missing[l] }

// State says in words what a layer does now.
func (b *Backstop) State(l Layer) string {
	if err := b.missing[l]; err != nil {
		return err.Error()
	}
	state := "drops all"
	if n := len(b.wanted.Admitted.Classes); n > 0 {
		state = fmt.Sprintf("admits %d classes", n)
	}
	if l == XFRM {
		return fmt.Sprintf("blocks by default in %d namespaces, in black %s", len(b.spaces), state)
	}
	state += " on " + strings.Join(b.wanted.Devices, ", ")
	for _, o := range b.owners {
		if !o.Persists() {
			return state + ", and goes with its owner"
		}
	}
	return state + ", and outlives its owner"
}

// Drops is how many packets the tables of black and red have dropped since their content
// last changed, by table and chain.
func (b *Backstop) Drops() (map[string]uint64, error) {
	all := map[string]uint64{}
	if b.missing[NFT] != nil {
		return all, nil
	}
	for name := range b.owners {
		err := b.spaces[name].NS.Do(func() error {
			d, err := nft.Drops()
			maps.Copy(all, d)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
