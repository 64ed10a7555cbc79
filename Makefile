# Every target does its own set-up in .venv; PYTHON names the interpreter to start from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
NERFSTUDIO := .venv-nerfstudio

.PHONY: demo test lint test-ray gpu-wheels gpu gpu-table torture pictures test-nerfstudio clean
.PHONY: bench bench-scenes bench-table bench-stages bench-lenses bench-repeats bench-ray bench-film
.PHONY: bench-keyframes bench-add bench-localise bench-captures bench-long-film bench-motion-masks bench-retrieval bench-known-poses
.PHONY: bench-scale bench-models bench-two-view bench-training

demo: $(READY) ## render a small scene, reconstruct it, compare with its true poses
	SFMPREP_OFFLINE=1 $(BIN)/sfmprep demo demo

# Bytecode is kept: without, each of some hundred processes compiles sfmprep anew.
test: $(READY) ## the whole test suite, one process a core
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY) ## ruff, the workflows, and mypy on the wheel as a user gets it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/zizmor --offline --quiet .github
	rm -rf build
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w build/lint .
	$(BIN)/pip install -q --no-deps --target build/lint/site build/lint/*.whl
	cd build/lint && MYPYPATH=site ../../$(BIN)/mypy --config-file ../../pyproject.toml -p sfmprep

bench: $(READY) ## speed against the plain way, into bench.json; needs ../shared or SFMPREP_SHARED
	$(BIN)/python -m tests.bench.engine

bench-scenes: $(READY) ## sfmprep and COLMAP on the scenes of ../shared; BOARD="--minutes 60", BOARD="--folder DIR"
	$(BIN)/python -m tests.bench.scoreboard $(BOARD)

bench-table: $(READY) ## its results, into the README and examples/scoreboard.md
	$(BIN)/python -m tests.bench.scoreboard --table

bench-stages: $(READY) ## where the time goes, stage by stage, into examples/speed.md; STAGES="--scenes fox"
	$(BIN)/python -m tests.bench.stages $(STAGES)

bench-lenses: $(READY) ## lenses that nobody told against true calibration, into examples/lenses.md
	$(BIN)/python -m tests.bench.lenses

bench-repeats: $(READY) ## scenes that repeat themselves: wrong models, into examples/repeats.md
	$(BIN)/python -m tests.bench.repeats $(REPEATS)

bench-ray: $(READY) ## matching on 1 to 8 Ray workers, into examples/cluster.md; needs the extra cluster
	$(BIN)/python -m tests.bench.ray_cluster

test-ray: $(READY) ## the executor on clusters that are killed; installs the extra cluster
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[cluster]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/executors/test_ray.py

bench-film: $(READY) ## films by flow and features, and in sequence, into examples/film.md; FILM="--minutes 60"
	$(BIN)/python -m tests.bench.film $(FILM)

bench-keyframes: $(READY) ## frames that are taken of films, against every nth; KEYFRAMES="--minutes 60"
	$(BIN)/python -m tests.bench.keyframes $(KEYFRAMES)

bench-captures: $(READY) ## films of drones, films and parts of spheres, known poses of spheres; CAPTURES="--minutes 30"
	$(BIN)/python -m tests.bench.captures $(CAPTURES)

bench-add: $(READY) ## one photograph added, against all at once, into examples/add.md; ADD="--recipe sift"
	$(BIN)/python -m tests.bench.add $(ADD)

bench-localise: $(READY) ## single photographs against models of the others, into examples/localise.md; needs ../shared; LOCALISE="--scenes fox"
	$(BIN)/python -m tests.bench.localise $(LOCALISE)

bench-known-poses: $(READY) ## known poses, off by so much, against none, into examples/refine.md; needs ../shared
	$(BIN)/python -m tests.bench.known_poses $(POSES)

bench-motion-masks: $(READY) ## masks of what moves against true ones, into examples/motion_masks.md
	$(BIN)/python -m tests.bench.motion_masks build/motion $(MOTION)

bench-retrieval: $(READY) ## views that overlap, found by likeness, into examples/retrieval.md; needs ../shared
	$(BIN)/python -m tests.bench.retrieval $(RETRIEVAL)

bench-long-film: $(READY) ## 4K films of minutes: time against decoding, and memory, into examples/long_film.md; LONG="--minutes 1 10"
	$(BIN)/python -m tests.bench.long_film $(LONG)

bench-scale: $(READY) ## captures of any size, stage by stage; SCALE="--images 1000 10000 --minutes 60"
	$(BIN)/python -m tests.bench.scale $(SCALE)

bench-models: $(READY) ## every network: licence, size, speed, wide pairs, into examples/models.md
	$(BIN)/python -m tests.bench.models

bench-training: $(READY) ## heads and losses at equal cost, into the model card; TRAINING="--minutes 40"
	$(BIN)/python -m tests.bench.training $(TRAINING)

bench-two-view: $(READY) ## COLMAP's and PoseLib's estimators on wide pairs, into examples/two_view.md; TWO="--pairs 60"
	$(BIN)/python -m tests.bench.two_view $(TWO)

gpu-wheels: $(READY) ## what a bare machine with a GPU lacks, into wheels-gpu/
	$(BIN)/python -m tests.bench.gpu.collect wheels-gpu

# Runs with what is there: the machine has a PyTorch of its own, and no network.
gpu: ## there: tests, benchmark, training, into gpu-results/; GPU="--minutes 9"
	$(PYTHON) -m tests.bench.gpu $(GPU)

gpu-table: $(READY) ## its results, into the README and examples/gpu.md
	$(BIN)/python -m tests.bench.gpu.table

torture: $(READY) ## faults in real runs, counted; TORTURE="--minutes 20 --seed 1"
	$(BIN)/python -m tests.torture --page examples/torture.md $(TORTURE)

pictures: demo ## the README's pictures of report and viewer; needs Chromium
	$(BIN)/python -m tests.bench.pictures

test-nerfstudio: $(READY) $(NERFSTUDIO)/.ready ## the exports and the plugin, in nerfstudio
	SFMPREP_NERFSTUDIO_PYTHON=$(abspath $(NERFSTUDIO))/bin/python \
		$(BIN)/python -m pytest tests/export

$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "setuptools>=77" wheel
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[dev]"
	rm -f $(VENV)/.ready-*
	touch $@

# nerfstudio pins numpy 1.26 and pulls CUDA torch: 8 GB, in a venv of its own. sfmprep is
# resolved with it, so that a conflict ends here. open3d, which reads its point clouds,
# needs libusb beside it where the system has none.
$(NERFSTUDIO)/.ready: pyproject.toml
	$(PYTHON) -m venv $(NERFSTUDIO)
	$(NERFSTUDIO)/bin/pip install -q -e . nerfstudio==1.1.5 libusb-package
	cd $(NERFSTUDIO)/lib/python*/site-packages && \
		ln -sf ../libusb_package/libusb-1.0.so open3d/libusb-1.0.so.0
	touch $@

clean:
	rm -rf $(VENV) $(NERFSTUDIO) build demo .pytest_cache .mypy_cache .ruff_cache
