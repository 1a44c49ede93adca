# make sweep: set up, build the embedded data and run the main job.   make check: lint, format, types.   make test: run the tests.   make whole: whole runs.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
S3 := $(VENV)/s3/.ready

.PHONY: sweep check test whole slow notebook clean
sweep: $(READY)
	$(VENV)/bin/python workloads/sweep.py $(ARGS)

check: $(READY)
	$(VENV)/bin/ruff check -q .
	$(VENV)/bin/ruff format -q --check .
	$(VENV)/bin/mypy

test: $(READY) $(S3)
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

whole: $(READY) $(S3)
	$(VENV)/bin/python -m pytest -q -m 'whole and not slow' -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

slow: $(READY) $(S3)
	$(VENV)/bin/python -m pytest -q -m slow $(ARGS)

# pip compiles one file at a time: compileall takes all cores. torch first, by its pin: a looser one would pull gigabytes of GPU packages on a machine without a GPU
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-compile --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(VENV)/bin/pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[sweep,methods,search,loggers,test]'
	$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true # templates in packages are no Python
	touch $@

# what tests of object storage run against: its boto3 asks for another python-dateutil than matplotlib has
$(S3): $(READY) tests/object_storage.txt
	$(PYTHON) -m venv $(VENV)/s3
	$(VENV)/s3/bin/pip install -q --disable-pip-version-check -r tests/object_storage.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache
