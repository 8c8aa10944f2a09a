package egress

// MaxSamples is how many samples one answer carries.
const MaxSamples = 32

// Drops is a part of the drop record.
type Drops struct {
	// Samples are the samples behind the number that was asked for, oldest first.
	Samples []Sample
	// Next is the number to ask with for the rest.
	Next uint64
	// Missed is how many numbers between the one asked for and Next are not there:
	// overwritten before they were read.
	Missed uint64
	// LeftOut is how many drops were counted and never recorded, of all reasons, since
	// the handset started.
	LeftOut uint64
}
