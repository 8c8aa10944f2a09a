#!/bin/bash
# Unpacks Debian's kernel for the guest board into a folder and does nothing when it is there.
# usage: kernel.sh FOLDER; then FOLDER/kernel holds boot/, lib/modules/ and the file `package` with name and version.
set -eu

folder=${1:?usage: kernel.sh FOLDER}
meta=linux-image-6.12-amd64
[ ! -e "$folder/kernel/package" ] || exit 0

# Without it the guest board's tests are skipped at a desk and fail in CI.
give_up() {
	echo "setup: cannot get $meta${1:+ $1}; without it the tests of board/guest are skipped" >&2
	[ "${CI:-}" != true ] || exit 1
	exit 0
}

if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
	give_up "on a system that is not Debian"
fi
mkdir -p "$folder"
work=$(mktemp -d "$folder/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
name=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)$/\1/p' | head -n 1)
if [ -z "$name" ]; then
	apt-get -q update >"$work/log" 2>&1 || true
	name=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)$/\1/p' | head -n 1)
fi
echo "setup: unpacking ${name:-$meta} for the guest board"
# Every step is one that can fail for want of the network or of a program.
if ! (
	cd "$work" && apt-get -q download "$name" && dpkg -x "$name"_*.deb kernel && depmod -b kernel "${name#linux-image-}" &&
		dpkg-deb -f "$name"_*.deb Package Version >kernel/package
) >"$work/log" 2>&1; then
	tail -n 20 "$work/log" >&2
	give_up "(the lines above are what apt-get, dpkg and depmod said)"
fi
# A second run beside this one may have been first.
mv -T "$work/kernel" "$folder/kernel" 2>/dev/null || [ -e "$folder/kernel/package" ]
