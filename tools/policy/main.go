package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"rempart/internal/run"
)

const program = "rempart-policy"

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }

// command is one subcommand: its usage line and what it does with the
// arguments behind its name.
type command struct {
	name, usage, about string
	run                func(args []string, stdout, stderr io.Writer) error
}

func commands() []command {
	return []command{
		{"init", "init [-role handset|gateway] [-image-key FILE] [-policy-key FILE] [-authority FILE] [-gateway-key FILE] [-tunnel-key BASE64] > policy.json",
			"write an example document to begin with, with the keys given", initDocument},
		{"key", "key -o FILE",
			"make an ECDSA P-256 key pair: FILE (private, mode 0600) and FILE.pub", makeKey},
		{"check", "check FILE…",
			"print every fault of documents or bundles, each with its line", check},
		{"explain", "explain FILE",
			"say in sentences what a document or bundle permits", explain},
		{"sign", "sign -key FILE -in policy.json -out policy",
			"check a document and sign it with a policy key", sign},
		{"approve", "approve -key IMAGEKEY -image DIR -out approval",
			"predict the boot of an image and sign it for every TPM with an image key", approve},
	}
}

// execute runs one command and returns the exit code.
func execute(args []string, stdout, stderr io.Writer) int {
	err := dispatch(args, stdout, stderr)
	if errors.Is(err, errSaid) {
		return 1
	}
	return run.Report(stderr, program, err)
}

// errSaid ends a command that has printed its faults itself.
var errSaid = errors.New("faults were printed")

func dispatch(args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return run.Hint(errors.New("no command given"), "%s help lists the commands", program)
	}
	name, args := args[0], args[1:]
	if name == "help" || name == "-h" || name == "-help" || name == "--help" {
		return help(args, stdout)
	}
	for _, c := range commands() {
		if c.name == name {
			err := c.run(args, stdout, stderr)
			if errors.Is(err, flag.ErrHelp) {
				return help([]string{name}, stdout)
			}
			return err
		}
	}
	return run.Hint(fmt.Errorf("unknown command %q", name), "%s help lists the commands", program)
}

func help(args []string, stdout io.Writer) error {
	if len(args) == 0 {
		fmt.Fprintf(stdout, "%s: the policy of a Rempart handset or gateway\n\n", program)
		for _, c := range commands() {
			fmt.Fprintf(stdout, "  %-8s %s\n", c.name, c.about)
		}
		fmt.Fprintf(stdout, "\n%s help COMMAND shows how to call one, %s help document every field.\n", program, program)
		return nil
	}
	if args[0] == "document" {
		_, err := io.WriteString(stdout, documentHelp)
		return err
	}
	for _, c := range commands() {
		if c.name == args[0] {
			fmt.Fprintf(stdout, "usage: %s %s\n\n%s\n", program, c.usage, c.about)
			return nil
		}
	}
	return run.Hint(fmt.Errorf("unknown command %q", args[0]), "%s help lists the commands", program)
}

// parse reads flags and returns what is left; more than most words are an
// error. Every flag named in required must be given and not empty.
func parse(fs *flag.FlagSet, args []string, most int, required ...string) ([]string, error) {
	fs.SetOutput(io.Discard)
	hint := func(err error) error { return run.Hint(err, "%s help %s shows how to call it", program, fs.Name()) }
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, hint(err)
	}
	for _, name := range required {
		if fs.Lookup(name).Value.String() == "" {
			return nil, hint(fmt.Errorf("%s needs -%s", fs.Name(), name))
		}
	}
	if fs.NArg() > most {
		return nil, hint(fmt.Errorf("%s does not know what to do with %q", fs.Name(), fs.Arg(most)))
	}
	return fs.Args(), nil
}

// flags returns an empty flag set of a command.
func flags(name string) *flag.FlagSet { return flag.NewFlagSet(name, flag.ContinueOnError) }
