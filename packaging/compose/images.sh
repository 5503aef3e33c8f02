#!/usr/bin/env bash
# The base images of Dockerfile where no registry is reachable: made by debootstrap from the mirror that apt uses here.
#
#   packaging/compose/images.sh FOLDER     FOLDER keeps the Debian that was fetched, for the next time
#
# ravada-snapshots-base is a plain Debian of this machine's release; ravada-snapshots-build has this machine's Rust in it as well.
# The daemon is the one that DOCKER_HOST names.
set -euo pipefail
folder=$1
[ "$(id -u)" = 0 ] || { echo "images: debootstrap needs root" >&2; exit 1; }
mkdir -p "$folder"
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $codename" |
  sed -n '/^cdrom:/!{p;q}')
[ -n "$mirror" ] || { echo "images: apt has no source for $codename; apt-get update first" >&2; exit 1; }

base=$folder/$codename.tar
if [ ! -e "$base" ]; then
  draft=$(mktemp -d "$folder/draft.XXXXXX")
  trap 'rm -rf "$draft"' EXIT
  debootstrap --variant=minbase --include=ca-certificates "$codename" "$draft/root" "$mirror" >"$draft/log" ||
    { tail "$draft/log" >&2; exit 1; }
  # How this machine reaches its mirrors, so that the image does, too.
  cp -a /etc/apt/apt.conf.d/. "$draft/root/etc/apt/apt.conf.d/"
  cp -a /usr/local/share/ca-certificates/. "$draft/root/usr/local/share/ca-certificates/"
  chroot "$draft/root" update-ca-certificates >>"$draft/log" 2>&1
  rm -rf "$draft/root/var/cache/apt/archives" "$draft/root/var/lib/apt/lists"
  mkdir -p "$draft/root/var/cache/apt/archives/partial" "$draft/root/var/lib/apt/lists/partial"
  tar -C "$draft/root" --numeric-owner --one-file-system -cf "$base.new" .
  mv "$base.new" "$base"
fi
docker import "$base" ravada-snapshots-base >/dev/null

toolchain=$(rustc --print sysroot)
tar -C / -c --exclude="*/share/doc" --transform "s,^${toolchain#/},opt/rust," "${toolchain#/}" |
  docker import - ravada-snapshots-rust >/dev/null
docker build -q -t ravada-snapshots-build - <<'D' >/dev/null
FROM ravada-snapshots-base
COPY --from=ravada-snapshots-rust /opt/rust /opt/rust
ENV PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
D
