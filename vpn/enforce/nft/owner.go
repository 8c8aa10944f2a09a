package nft

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Owner puts tables in force in one network namespace and owns them. Its methods must
// not be called concurrently; they may be called from any namespace.
type Owner struct {
	conn  *conn
	laid  []Table
	flags uint32
}

// Open makes an owner for the calling thread's network namespace. The error wraps
// [ErrMissing] where the kernel has no nf_tables.
func Open() (*Owner, error) {
	c, err := dial()
	if err != nil {
		return nil, fmt.Errorf("cannot open nf_tables: %w", err)
	}
	return &Owner{conn: c, flags: tableOwned | tablePersist}, nil
}

// Port is the netlink port that owns the tables, for [ReadBack].
func (o *Owner) Port() uint32 { return o.conn.port }

// Persists tells whether the tables outlive their owner.
func (o *Owner) Persists() bool { return o.flags&tablePersist != 0 }

// Put puts tables in force, all at once or none. One that stands keeps its hooks while
// its content is exchanged: at no moment is it not asked.
func (o *Owner) Put(tables ...Table) error {
	err := o.put(tables)
	if errors.Is(err, unix.EOPNOTSUPP) && o.flags&tablePersist != 0 && len(o.laid) == 0 {
		o.flags &^= tablePersist // before 6.9
		err = o.put(tables)
	}
	if errors.Is(err, unix.EOPNOTSUPP) && len(o.laid) == 0 {
		err = fmt.Errorf("%w: %w", ErrMissing, err) // no netdev family, no egress hook (5.16), or no owned tables (5.12)
	}
	if err != nil {
		return fmt.Errorf("cannot put the nft tables in force: %w", err)
	}
	for _, t := range tables {
		o.laid = append(slices.DeleteFunc(o.laid, func(l Table) bool { return l.Name == t.Name }), t)
	}
	return nil
}

func (o *Owner) put(tables []Table) error {
	var all []message
	for _, t := range tables {
		i := slices.IndexFunc(o.laid, func(l Table) bool { return l.Name == t.Name })
		switch {
		case i < 0:
			all = append(all, t.skeleton(o.flags)...)
		case t.sameChains(&o.laid[i]):
			all = append(all, o.laid[i].empty()...)
		default:
			all = append(append(all, o.laid[i].remove()), t.skeleton(o.flags)...)
		}
		all = append(all, t.content()...)
	}
	if len(all) == 0 {
		return nil
	}
	return o.conn.batch(all)
}

// Remove takes the table of a device that is gone away.
func (o *Owner) Remove(t Table) error {
	i := slices.IndexFunc(o.laid, func(l Table) bool { return l.Name == t.Name })
	if i < 0 {
		return nil
	}
	if err := o.conn.batch([]message{o.laid[i].remove()}); err != nil {
		return fmt.Errorf("cannot remove the nft table %s: %w", t.Name, err)
	}
	o.laid = slices.Delete(o.laid, i, i+1)
	return nil
}

// Close gives the tables up: they go with the socket, or stay as they are and are
// anyone's to change, if the kernel lets them.
func (o *Owner) Close() error { return o.conn.close() }
