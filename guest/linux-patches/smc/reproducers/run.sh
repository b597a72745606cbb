#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Runs the reproducers, all or those that are named, and says of each whether SMC-D does what TCP does.
#
#   run.sh build DIRECTORY   builds them, statically, into DIRECTORY: it has all that is needed then, this script included
#   run.sh [NAME...]         runs those beside the script; as root, on a kernel with SMC, SMC_DIAG and DIBS_LO
#
# 0015 takes an unpatched kernel down: it is run last.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

if [ "${1-}" = build ]; then
    mkdir -p "$2"
    for source in "$here"/*.c; do
        name=$(basename "$source" .c)
        "${CC:-cc}" -O2 -Wall -Wextra -Wno-missing-field-initializers -static -o "$2/$name" "$source" -pthread
    done
    cp "$here/run.sh" "$2/"
    exit
fi

if [ $# = 0 ]; then
    for program in "$here"/[0-9]*-*; do
        name=${program##*/}
        case $name in
        *.* | 0015-*) ;;
        *) set -- "$@" "$name" ;;
        esac
    done
    set -- "$@" 0015-listen-again
fi
outcome=0
told=
for name; do
    echo "== $name"
    status=0
    "$here/$name" || status=$?
    case $status in
    0) said="as TCP" ;;
    1) said="NOT as TCP" outcome=1 ;;
    *) said="could not be run" outcome=1 ;;
    esac
    told="$told$name: $said
"
done
printf '\n%s' "$told"
exit $outcome
