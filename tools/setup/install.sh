#!/bin/bash
# Installs the Debian packages that a target needs and says which; does nothing when all are there.
# usage: install.sh demo|test|bench|generate
set -eu

what=${1:-}
# program:package, one that shows the package is there; a path stands for a file
demo="swtpm:swtpm swtpm_setup:swtpm-tools certtool:gnutls-bin tcpdump:tcpdump ip:iproute2 /usr/share/sounds/alsa/Front_Center.wav:alsa-utils /etc/ssl/certs/ca-certificates.crt:ca-certificates"
test="$demo tpm2_pcrread:tpm2-tools gcc:gcc /usr/include/stdlib.h:libc6-dev ping:iputils-ping openssl:openssl dnsmasq:dnsmasq-base radvd:radvd /usr/bin/python3:python3-minimal curl:curl qemu-system-x86_64:qemu-system-x86 depmod:kmod nft:nftables wg:wireguard-tools cpio:cpio"
bench="$demo iperf3:iperf3 nft:nftables"
generate="clang-14:clang-14 llvm-strip-14:llvm-14"
# Only Debian 12 has the pinned clang; elsewhere the test that needs it skips.
case $(cat /etc/debian_version 2>/dev/null) in 12*) test="$test $generate" ;; esac
case $what in
demo) list=$demo ;;
test) list=$test ;;
bench) list=$bench ;;
generate) list=$generate ;;
*)
	echo "install.sh: unknown target \"$what\"" >&2
	echo "hint: one of demo, test, bench, generate" >&2
	exit 2
	;;
esac

missing=
for pair in $list; do
	probe=${pair%:*} package=${pair#*:}
	case $probe in
	/*) [ -e "$probe" ] || missing="$missing $package" ;;
	*) command -v "$probe" >/dev/null || missing="$missing $package" ;;
	esac
done
missing=$(echo $missing | tr ' ' '\n' | sort -u | tr '\n' ' ' | sed 's/ $//')
if ! command -v go >/dev/null; then
	echo "setup: cannot go on without Go${missing:+; also missing: $missing}" >&2
	echo "hint: install Go $(sed -n 's/^go //p' "$(dirname "$0")/../../go.mod") or newer and put it on the PATH" >&2
	exit 1
fi
[ -n "$missing" ] || exit 0
if [ ! -e /etc/debian_version ] || ! command -v apt-get >/dev/null; then
	echo "setup: cannot install on a system that is not Debian; missing: $missing" >&2
	echo "hint: install what these Debian packages hold, then run this again" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: cannot install without root; missing: $missing" >&2
	echo "hint: run as root, or: sudo apt-get install $missing" >&2
	exit 1
fi
echo "setup: installing $missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get -q update && apt-get -q install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "setup: cannot install $missing" >&2
	echo "hint: the lines above are what apt-get said" >&2
	rm -f "$log"
	exit 1
fi
rm -f "$log"
