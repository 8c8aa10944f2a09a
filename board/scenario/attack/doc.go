// Package attack is the sender of the leak test: it tries, in one way named by
// its kind, to get sixteen marked bytes out of a handset past its tunnel.
//
// It runs as a hidden command of rempart-lab inside a handset's namespaces and
// cgroup, as root, with every capability the handset lets it keep. It only
// tries and reports; whether anything came out is judged outside, by package
// watch. A refusal is an answer and not an error: the result names the errno.
//
// Every kind is one small file and one row of the table in kinds.go.
package attack
