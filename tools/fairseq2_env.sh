#!/usr/bin/env bash
# Makes an environment with fairseq2, which pins a PyTorch of its own, and runs tests/with_fairseq2 in it.
#
#   tools/fairseq2_env.sh [FOLDER]            as its wheels ask: PyTorch 2.9.1 for CUDA, 7 GB (default .venv-fairseq2)
#   tools/fairseq2_env.sh --light [FOLDER]    fairseq2's Python over the PyTorch and transformers that PYTHON has, 40 MB
#
# `--light` leaves out fairseq2n, the native half, which reads data sets and which no model of ours calls; in its place
# stands an empty module. It is for tests: to work with fairseq2, make the full one. PYTHON chooses the interpreter
# (default: the project's .venv, else python3). An environment that is complete is used again.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.8.1
light=
if [ "${1:-}" = --light ]; then light=1; shift; fi
folder=${1:-.venv-fairseq2${light:+-light}}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

if [ ! -e "$folder/.ready-$VERSION" ]; then
  "$python" -m venv --clear "$folder"
  if [ "$light" ]; then
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$(echo "$folder"/lib/python3*/site-packages)/base.pth"
    "$folder/bin/python" -m pip install --quiet --no-deps "fairseq2==$VERSION" clusterscope torcheval sacrebleu portalocker \
      editdistance tiktoken "importlib_metadata~=7.0" zipp "importlib_resources~=6.4" "mypy-extensions~=1.0" \
      "ruamel.yaml~=0.18"
    stub=$(echo "$folder"/lib/python3*/site-packages)/fairseq2n
    mkdir "$stub"
    printf '"""Stands for the native half of fairseq2, which is not installed here."""\n__version__ = "%s"\nDOC_MODE = True\n' \
      "$VERSION" > "$stub/__init__.py"
  else
    "$folder/bin/python" -m pip install "fairseq2==$VERSION" "numpy>=1.26" "soundfile>=0.12.1" "safetensors>=0.4.3" \
      "pyyaml>=6" "tqdm>=4.66" "pytest>=8" "hypothesis>=6.100"
  fi
  touch "$folder/.ready-$VERSION"
fi

# The rooms as one package, without installing anything: links, as the strict editable install has them.
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
mkdir "$links/vivavoce"
for path in "$PWD"/vivavoce/*; do ln -s "$path" "$links/vivavoce/"; done
for room in core codec units lm recipes eval pretrained; do ln -s "$PWD/$room" "$links/vivavoce/$room"; done
PYTHONPATH="$links" "$folder/bin/python" -m pytest -q -p no:cacheprovider tests/with_fairseq2
