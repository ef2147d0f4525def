# `make demo` converts the shipped samples; `make test` checks everything. Each makes its own environment in .venv
# first. PYTHON chooses the interpreter (3.10 or newer). On Linux, pip's default PyTorch brings CUDA along (3 GB); pip's
# own PIP_EXTRA_INDEX_URL can point at PyTorch's index of small CPU builds.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
ROOMS := vivavoce core codec units lm recipes eval pretrained

# A strict editable install is a tree of links, one a file, which type checkers and "go to definition" follow. It has to
# be made again when a file comes or goes; so the stamp is named after the list of files and pyproject.toml.
STAMP := .venv/.ready-$(shell (cat pyproject.toml; find $(ROOMS) -type f ! -path '*/__pycache__/*' | LC_ALL=C sort) | cksum | cut -d' ' -f1)

.PHONY: demo test
demo: $(STAMP)
	$(BIN)/python -m vivavoce.demo

test: $(STAMP)
	$(BIN)/ruff check .
	cd "$$(cat .venv/lib/python3*/site-packages/__editable__.vivavoce-*.pth)" && \
		$(BIN)/mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p vivavoce
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not realtime"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m realtime
	OMP_NUM_THREADS=1 tools/fairseq2_env.sh --light

$(STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -f .venv/.ready-*
	$(BIN)/python -m pip install --quiet "pip>=23.1"
	$(BIN)/python -m pip install --config-settings editable_mode=strict -e ".[train,hubert,live,serve,eval,cascade,dev]"
	$(BIN)/python -m pip install --no-deps resemblyzer==0.1.4 encodec==0.1.1  # the latter for tests: torchaudio stays out
	touch $@
