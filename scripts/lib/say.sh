# What the scripts say, on stderr. Colour only for a terminal, and never under NO_COLOR.

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
  C_DIM=$'\033[2m' C_OK=$'\033[32m' C_BAD=$'\033[31m' C_BOLD=$'\033[1m' C_OFF=$'\033[0m'
else
  C_DIM='' C_OK='' C_BAD='' C_BOLD='' C_OFF=''
fi

step() { printf '%s  %s%s\n' "$C_DIM" "$*" "$C_OFF" >&2; }
heading() { printf '\n%s%s%s\n' "$C_BOLD" "$*" "$C_OFF" >&2; }
done_line() { printf '%s✓%s %s\n' "$C_OK" "$C_OFF" "$*" >&2; }
bad_line() { printf '%s✗%s %s\n' "$C_BAD" "$C_OFF" "$*" >&2; }
die() {
  bad_line "$*"
  exit 1
}
