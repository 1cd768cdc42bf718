#!/bin/sh
# What the tests need of the system and PyPI does not have: the reference CNI plugins, ip, and a C compiler.
# Installs it when that is possible (root, apt); otherwise says what is missing, and the tests that need it fail or,
# outside CI, are skipped with the same words.
set -eu

missing=""
[ -x /usr/lib/cni/host-local ] || [ -x /opt/cni/bin/host-local ] || missing="$missing containernetworking-plugins"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
command -v ping >/dev/null 2>&1 || missing="$missing iputils-ping"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing for the tests:$missing"
    apt-get update -qq >/dev/null
    # shellcheck disable=SC2086 # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
else
    echo "missing for some tests (install it as root):$missing"
fi
