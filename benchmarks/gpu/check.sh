#!/usr/bin/env bash
# The GPU check on a machine without a network.
#
#   benchmarks/gpu/check.sh PYTHON WHEELS [options of python -m benchmarks.gpu]
#
# PYTHON   an interpreter that has torch with CUDA.
# WHEELS   a folder with wheels of what else is missing there (transformers, peft, trl, accelerate, datasets, math-verify
#          and what they need); they are installed into a temporary folder, the interpreter stays as it is. An empty
#          folder installs nothing.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//'
  exit 2
fi
python=$1 wheels=$(cd "$2" && pwd)
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
fi
PYTHONPATH="$PWD/src:$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" "$python" -m benchmarks.gpu "$@"
