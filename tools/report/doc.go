// Package report turns what a run of the demo or the bench showed into a file
// for programs (summary.json), one self-contained page for people (report.html)
// and a board for the terminal. The page loads nothing, runs no script, and
// says in words whatever it also says in colour.
package report
