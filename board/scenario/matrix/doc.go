// Package matrix is the leak matrix: every way to send, from every place, as
// everybody, on every device, in every state of a handset.
//
// A [Row] is one point of these axes. What makes no sense is excluded by a rule
// with a reason, and the report lists the rules: there is no silent gap. Each
// row is tried on the handset as it is, where its marker must never be seen on
// the internet link, and on a throwaway twin in the same state from which every
// layer was stripped, where the marker must be seen. Beside that each layer is
// shown alone, with all others removed: what it still holds and, as honestly,
// what it does not ([Holds] is the table of expectations).
//
// Rows of one state run together as a crowd, each with a random marker of its
// own: what was seen outside is known by row, although a thousand rows took
// seconds. States that are over in a moment (a killed daemon, a restart) have
// their senders at work before, during and after.
//
// [All] is the whole matrix; [Pairwise] picks a part that holds every value of
// each axis and every allowed pair of values.
//
// The package decides and judges; it reaches machines through [Board] only.
package matrix
