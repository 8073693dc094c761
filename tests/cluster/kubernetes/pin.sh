#!/usr/bin/env bash
# Writes go.mod and go.sum for another version of Kubernetes: ./pin.sh v1.37.2
#
# k8s.io/kubernetes requires its own staging modules at v0.0.0 and replaces them by folders, which a dependent module
# inherits neither of. Each is published under the release's version (v1.37.2 as v0.37.2), so that is what is put in.
set -euo pipefail
cd "$(dirname "$0")"
release=${1:?allowed is a release such as v1.37.2}
staging=v0.${release#v1.}
upstream=$(go mod download -json "k8s.io/kubernetes@$release" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')

{
    printf 'module gpufn.dev/tests/cluster/kubernetes\n\n'
    sed -n '/^go /p; /^godebug /p' "$upstream"
    printf '\nrequire k8s.io/kubernetes %s\n\nreplace (\n' "$release"
    sed -n "s#^[[:space:]]*\(k8s.io/[^ ]*\) => ./staging/src/.*#\t\1 => \1 $staging#p" "$upstream"
    printf ')\n'
} >go.mod.new
mv go.mod.new go.mod
go mod tidy
