#!/bin/sh
# What the tests need of the system and PyPI does not have: the reference CNI plugins, ip, ping, curl, systemd's tools,
# Prometheus, a C compiler, git; in CI and for `make e2e` also a container runtime.
# Installs it when that is possible (root, apt); otherwise says what is missing, and the tests that need it fail in CI
# and are skipped elsewhere with the same words. Never fails itself.
set -eu

missing=""
need() { missing="$missing $*"; }
[ -x /usr/lib/cni/ptp ] || [ -x /opt/cni/bin/ptp ] || need containernetworking-plugins
command -v ip >/dev/null 2>&1 || need iproute2
command -v ping >/dev/null 2>&1 || need iputils-ping
command -v systemd-socket-activate >/dev/null 2>&1 || need systemd
command -v curl >/dev/null 2>&1 || need curl
command -v promtool >/dev/null 2>&1 || need prometheus
command -v cc >/dev/null 2>&1 || need gcc libc6-dev
command -v git >/dev/null 2>&1 || need git
if [ -n "${CI:-}${IPAMD_E2E:-}" ]; then
    command -v containerd >/dev/null 2>&1 || need containerd
    command -v runc >/dev/null 2>&1 || need runc
    { program=$(command -v busybox) && ! ldd "$program" >/dev/null 2>&1; } || need busybox-static
fi
if [ -n "${IPAMD_E2E:-}" ]; then
    command -v debootstrap >/dev/null 2>&1 || need debootstrap
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing for the tests:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of package names
    if { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null 2>&1; then
        exit 0
    fi
    echo "that failed; to see why: apt-get update && apt-get install$missing"
else
    echo "missing for some tests (install it as root):$missing"
fi
