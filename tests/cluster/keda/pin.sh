#!/usr/bin/env bash
# Writes go.mod and go.sum for another version of KEDA: ./pin.sh v2.20.0
#
# KEDA is built with versions that its own go.mod pins by `replace`, which a module that only requires it does not inherit.
set -euo pipefail
cd "$(dirname "$0")"
release=${1:?allowed is a release such as v2.20.0}
module=github.com/kedacore/keda/v2
upstream=$(go mod download -json "$module@$release" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')

{
    printf 'module gpufn.dev/tests/cluster/keda\n\n'
    sed -n '/^go /p' "$upstream"
    printf '\ntool (\n\t%s/cmd/adapter\n\t%s/cmd/operator\n)\n\nrequire %s %s\n\n' "$module" "$module" "$module" "$release"
    sed -n '/^replace (/,/^)/p; /^replace [^(]/p' "$upstream" | sed 's#[[:space:]]*//.*##; /^$/d'
} >go.mod.new
mv go.mod.new go.mod
go mod tidy
