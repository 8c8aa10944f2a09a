package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"rempart/internal/run"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	// Release is what uname -r says in the guest.
	Release string
	// Package is the Debian package with its version.
	Package string
	image   string // the bootable file
	modules string // the folder lib/modules of the package
}

// FindKernel looks for the kernel that setup unpacked: in the folder REMPART_GUEST, or
// else in out/guest of the source tree that the working folder is in.
func FindKernel() (Kernel, error) {
	folder := os.Getenv("REMPART_GUEST")
	if folder == "" {
		dir, err := os.Getwd()
		if err != nil {
			return Kernel{}, err
		}
		for ; folder == "" && dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				folder = filepath.Join(dir, "out/guest")
			}
		}
	}
	k, err := kernelIn(filepath.Join(folder, "kernel"))
	if err != nil {
		return Kernel{}, run.Hint(fmt.Errorf("cannot find the guest's kernel: %w", err), "run make setup in the source tree, or set REMPART_GUEST to its out/guest")
	}
	return k, nil
}

func kernelIn(folder string) (Kernel, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return Kernel{}, err
	}
	control, err := os.ReadFile(filepath.Join(folder, "package"))
	if err != nil {
		return Kernel{}, err
	}
	images, err := filepath.Glob(filepath.Join(folder, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, errors.Join(fmt.Errorf("%d images in %s", len(images), folder), err)
	}
	k := Kernel{image: images[0], modules: filepath.Join(folder, "lib/modules")}
	k.Release = strings.TrimPrefix(filepath.Base(k.image), "vmlinuz-")
	var name, version string
	for line := range strings.Lines(string(control)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Package":
			name = value
		case "Version":
			version = value
		}
	}
	if name == "" || version == "" {
		return Kernel{}, fmt.Errorf("no name and version in %s", filepath.Join(folder, "package"))
	}
	k.Package = name + " " + version
	return k, nil
}

// before returns the files of the named modules and of all that they need, each after
// what it needs, by the package's modules.dep.
func (k Kernel) before(names []string) ([]string, error) {
	folder := filepath.Join(k.modules, k.Release)
	deps, err := os.ReadFile(filepath.Join(folder, "modules.dep"))
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{} // by the module's own name
	for line := range strings.Lines(string(deps)) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep has the line %q", line)
		}
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		needs[name] = append([]string{file}, strings.Fields(rest)...)
	}
	var order []string
	done := map[string]bool{}
	for _, name := range names {
		files, ok := needs[name]
		if !ok {
			return nil, fmt.Errorf("%s has no module %s", k.Package, name)
		}
		// modules.dep lists what is needed in reverse order of loading.
		for i := len(files) - 1; i >= 0; i-- {
			if !done[files[i]] {
				done[files[i]] = true
				order = append(order, filepath.Join(folder, files[i]))
			}
		}
	}
	return order, nil
}
