# `make demo` and `make test` are all that a newcomer needs; each installs what it uses into .venv.
PYTHON ?= python3
BIN := .venv/bin
OUT := demo-output

.PHONY: demo test test-web lint format clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/outzoom export-all --target onnxruntime --target openvino-cpu --recipe fp32 --recipe fp16 --out $(OUT)/bundles
	$(BIN)/outzoom zoom $(OUT)/bundles/openvino-cpu-fp16 --image models/demo/picture.png --guidance 3 \
	    --prompt "an underwater reef with red fish and red corals" --out $(OUT)/zoom.mp4 --strip $(OUT)/zoom.png
	$(BIN)/outzoom bench $(OUT)/bundles/*/ --out $(OUT)
	@echo "look at $(OUT)/zoom.mp4, $(OUT)/zoom.png and $(OUT)/report.html"

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-web: .venv/installed # needs npm and Chromium
	$(BIN)/python -m pytest -m web

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .venv/check && ln -sfn ../.. .venv/check/outzoom # mypy wants the folder to be called as the package
	cd .venv/check && ../bin/mypy --config-file ../../pyproject.toml outzoom
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(OUT)
