#!/usr/bin/env bash
# Gives a Debian machine without a container engine one for the tests in this folder: podman and runc behind a socket, and
# docker-compose. Run as root; safe to run again. Where images cannot be pulled it makes a base image with debootstrap.
set -euo pipefail
socket=/run/tristage-podman.sock
base=localhost/debian:bookworm-slim
export DEBIAN_FRONTEND=noninteractive CONTAINERS_CONF=/run/tristage-containers.conf

missing=()
for program in podman runc docker-compose debootstrap iptables; do
  [ -x "$(command -v "$program" || echo "/usr/sbin/$program")" ] || missing+=("$program")
done
[ -x /usr/lib/podman/netavark ] || missing+=(netavark aardvark-dns)
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

cat >"$CONTAINERS_CONF" <<'CONF'
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
CONF

if ! podman image exists "$base"; then
  if timeout 120 podman pull -q docker.io/library/debian:bookworm-slim >/dev/null 2>&1; then
    podman tag docker.io/library/debian:bookworm-slim "$base"
  else
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >/dev/null
    # builds reach the package index as this machine does
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    changes=()
    for name in SSL_CERT_FILE REQUESTS_CA_BUNDLE PIP_CERT PIP_DEFAULT_TIMEOUT; do
      [ -z "${!name:-}" ] || changes+=(--change "ENV $name=${!name}")
    done
    tar -C "$root" -c . | podman import "${changes[@]}" - "$base" >/dev/null
  fi
fi

if ! timeout 10 podman --remote --url "unix://$socket" version >/dev/null 2>&1; then
  rm -f "$socket"
  setsid podman system service --time=0 "unix://$socket" >/dev/null 2>&1 </dev/null &
  for _ in $(seq 100); do [ -S "$socket" ] && break; sleep 0.1; done
fi

# an engine that cannot run a container with a port of its own (in a container without privileges, say) is none
if ! timeout 60 podman --remote --url "unix://$socket" run --rm --publish 127.0.0.1::9 "$base" true; then
  rm -f "$socket"
  exit 1
fi
