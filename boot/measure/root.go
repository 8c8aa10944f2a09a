package measure

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// approvalPath is the one file that the root digest leaves out: it carries the
// PCR values that follow from the digest, so it cannot be part of it. It needs
// no measuring, since the TPM verifies its signature.
const approvalPath = "etc/rempart/approval"

// RootDigest returns the digest of a whole image folder: SHA-256 over one line
// per regular file, sorted by path as bytes,
//
//	<mode as four octal digits> <path from the image's root> <SHA-256 as hex> LF
//
// where the mode is the permission, setuid, setgid and sticky bits. The file
// etc/rempart/approval is left out. A link, device, socket or pipe, or a name
// with a control character, is an error, since the digest could not say what
// it means; so is an image without files. On the netns board this stands in for the dm-verity root hash
// of real hardware, where directories and owners are covered too; here they
// are not.
func RootDigest(dir string) ([32]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return [32]byte{}, fmt.Errorf("cannot digest the image %s: %w", dir, err)
	}
	defer root.Close()
	// Sorted by the path, not by the line: the mode stands first in it.
	lines := map[string]string{}
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if name == approvalPath && entry.Type().IsRegular() {
			return nil
		}
		line, err := rootLine(root, name)
		if err != nil {
			return err
		}
		lines[name] = line
		return nil
	})
	if err != nil {
		return [32]byte{}, fmt.Errorf("cannot digest the image %s: %w", dir, err)
	}
	if len(lines) == 0 {
		return [32]byte{}, fmt.Errorf("cannot digest the image %s: it has no files", dir)
	}
	names := make([]string, 0, len(lines))
	for name := range lines {
		names = append(names, name)
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		io.WriteString(h, lines[name])
	}
	return [32]byte(h.Sum(nil)), nil
}

func rootLine(root *os.Root, name string) (string, error) {
	if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) || path.Clean(name) != name {
		return "", fmt.Errorf("the name %q cannot be written on one line", name)
	}
	info, err := root.Lstat(name)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is %s, only regular files and folders can be measured", name, info.Mode().Type())
	}
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%04o %s %x\n", unixMode(info.Mode()), name, h.Sum(nil)), nil
}

// unixMode returns the twelve mode bits as chmod(2) numbers them.
func unixMode(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}
