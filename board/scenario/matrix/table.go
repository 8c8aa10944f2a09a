package matrix

import (
	"slices"

	"rempart/board/scenario"
)

// CellKey is one field of the table of states and senders.
type CellKey struct{ State, Sender string }

// Cell is what its rows have become.
type Cell struct {
	Rows, Good int
	// Worst is the status that asks for the most attention.
	Worst Status
}

// worse orders statuses from the one to be looked at last.
var worse = []Status{Held, Accepted, Unproven, Nowhere, Failed}

// Cells sums the rows by state and sender.
func (r *Report) Cells() map[CellKey]Cell {
	cells := map[CellKey]Cell{}
	for _, row := range r.Rows {
		k := CellKey{string(row.State), row.Sender}
		c := cells[k]
		c.Rows++
		if row.Status.good() {
			c.Good++
		}
		if slices.Index(worse, row.Status) >= slices.Index(worse, c.Worst) {
			c.Worst = row.Status
		}
		cells[k] = c
	}
	return cells
}

// AloneTable is what each layer does with all others removed.
type AloneTable struct {
	Layers []scenario.Layer
	Rows   []AloneRow
}

// AloneRow is one way to send from one place.
type AloneRow struct {
	Sender string
	Place  Place
	Cells  []AloneCell // by layer
}

// AloneCell is one layer against it.
type AloneCell struct {
	// Word is "holds", "leaks", "4 leaks" (of the two families one), or "–"
	// where the layer is not in the way.
	Word string
	// Wrong says that it is not what was expected.
	Wrong bool
}

// AloneTable puts the alone rows of both families together.
func (r *Report) AloneTable() AloneTable {
	var t AloneTable
	type key struct {
		sender string
		place  Place
	}
	var order []key
	sums := map[key]map[scenario.Layer][]Alone{}
	for _, a := range r.Alone {
		if !slices.Contains(t.Layers, a.Layer) {
			t.Layers = append(t.Layers, a.Layer)
		}
		k := key{a.Sender, a.Place}
		if sums[k] == nil {
			order, sums[k] = append(order, k), map[scenario.Layer][]Alone{}
		}
		sums[k][a.Layer] = append(sums[k][a.Layer], a)
	}
	for _, k := range order {
		row := AloneRow{Sender: k.sender, Place: k.place}
		for _, l := range t.Layers {
			row.Cells = append(row.Cells, aloneCell(sums[k][l]))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func aloneCell(all []Alone) AloneCell {
	c := AloneCell{Word: "–"}
	holds := 0
	for _, a := range all {
		if a.Holds {
			holds++
		}
		c.Wrong = c.Wrong || a.Holds != a.Expected
	}
	switch {
	case len(all) == 0:
	case holds == len(all):
		c.Word = "holds"
	case holds == 0:
		c.Word = "leaks"
	default:
		c.Word = "in part"
	}
	return c
}
