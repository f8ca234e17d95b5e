# `make demo` and `make test` are all that a newcomer needs; each installs what it uses into .venv.
PYTHON ?= python3
BIN := .venv/bin
OUT := demo-output

.PHONY: demo test lint format clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/outzoom export-all --target onnxruntime --target openvino-cpu --recipe fp32 --recipe fp16 --out $(OUT)
	$(BIN)/outzoom zoom $(OUT)/openvino-cpu-fp16 --image models/demo/picture.png \
	    --prompt "an underwater reef with orange fish and pink corals" --guidance 3 \
	    --out $(OUT)/zoom.mp4 --strip $(OUT)/zoom.png
	$(BIN)/outzoom bench $(OUT)/onnxruntime-fp32 $(OUT)/openvino-cpu-fp16 --out $(OUT)
	@echo "look at $(OUT)/zoom.mp4, $(OUT)/zoom.png and $(OUT)/report.html"

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(OUT)
