#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Run ivpci's KUnit tests on this machine, in a user-mode Linux.
#
# usage: kunit.sh KERNEL-SOURCE BUILD-FOLDER
#
# Builds a small ARCH=um kernel in BUILD-FOLDER (once, some minutes; later runs
# use it again), the tests as a module, and an initramfs that loads it. Prints
# what the tests say (KTAP). Exit status 0 only if every test ran and passed.
set -eu

if [ $# -ne 2 ]; then
	echo "usage: $0 KERNEL-SOURCE BUILD-FOLDER" >&2
	exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$1" && pwd)
mkdir -p "$2"
build=$(cd "$2" && pwd)
jobs=${JOBS:-$(nproc)}

# run COMMAND...: silent unless it fails
run() {
	if ! "$@" >"$build/kunit.log" 2>&1; then
		tail -n 30 "$build/kunit.log" >&2
		echo "failed: $*" >&2
		exit 1
	fi
}

um() {
	run make -C "$source" ARCH=um SUBARCH="$(uname -m)" O="$build/um" \
		-j"$jobs" "$@"
}

# What was built is used again if it was built from the same configuration
cmp -s "$here/kunit.config" "$build/kunit.config" || {
	rm -rf "$build/um"
	mkdir -p "$build/um"
	um allnoconfig KCONFIG_ALLCONFIG="$here/kunit.config"
	cp "$here/kunit.config" "$build/kunit.config"
}
um linux modules

mkdir -p "$build/module" "$build/root"
um M="$here" MO="$build/module" modules

# /init loads the module and ends the machine
cat >"$build/init.c" <<'END'
#include <fcntl.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	syscall(SYS_finit_module, open("/ivpci_test.ko", O_RDONLY), "", 0);
	reboot(RB_POWER_OFF);
	return 1;
}
END
run "${CC:-cc}" -static -O2 -o "$build/root/init" "$build/init.c"
cp "$build/module/ivpci_test.ko" "$build/root/"
(cd "$build/root" && printf '%s\n' init ivpci_test.ko |
	cpio --quiet -o -H newc) >"$build/initrd.cpio"

timeout "${TIMEOUT:-300}" "$build/um/linux" mem=256M con=null con0=fd:0,fd:1 \
	initrd="$build/initrd.cpio" loglevel=8 kunit.enable=1 \
	kunit.autorun=1 </dev/null \
	>"$build/console.log" 2>&1 || true
sed -n 's/^\(\[[ 0-9.]*\] \)\?//; /^KTAP/,/^\(not \)\?ok 2 /p' \
	"$build/console.log" >"$build/ktap.log"
cat "$build/ktap.log"

if grep -q '^ *not ok ' "$build/ktap.log" ||
   ! grep -q '^ok 1 ivpci$' "$build/ktap.log" ||
   ! grep -q '^ok 2 ivpci-poll$' "$build/ktap.log" ||
   grep -q 'BUG:\|WARNING:\|Kernel panic' "$build/console.log"; then
	tail -n 20 "$build/console.log" >&2
	exit 1
fi
