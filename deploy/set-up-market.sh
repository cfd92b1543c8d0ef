#!/bin/sh
# Makes a market's keys, certificate and contracts where they are missing, and leaves its join string for the node.
set -eu
: "${MARKET_PUBLIC_URL:?}" "${BLOCKCHAIN_RPC:?}" "${PARITY_JOIN_FILE:?}"
join=$(parity market init --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["join"])')
umask 022
printf '%s\n' "$join" >"$PARITY_JOIN_FILE.new"
mv "$PARITY_JOIN_FILE.new" "$PARITY_JOIN_FILE"
