# Two commands matter: `make run` and `make test`. Both install what is missing (tests/tools.sh).

.PHONY: run test demo tools prove lint soak chaos model fuzz
.DEFAULT_GOAL := run

# Starts nsqdelayd with a Redis and an nsqd of its own; ends with Ctrl-C.
run: tools-run
	cargo run --release --locked -- dev

# Everything: units, properties, scripts against a real Redis, end to end with a real nsqd.
test: tools
	cargo test --locked

# 1,000 messages, 100 of them cancelled, and what came of them.
demo: tools
	@tests/demo.sh

.PHONY: tools-run
tools-run:
	@tests/tools.sh run

tools:
	@tests/tools.sh test

# Simulation seeds, many; a failing one prints its trace and how to play it again.
SEEDS ?= 100000
soak:
	SIM_SEEDS=$(SEEDS) cargo test --release --locked --test sim -- every_promise --nocapture

# Whole instances under faults: three of them, Redis and two nsqds, killed, frozen and cut off by a schedule
# that follows from SEED (none: from the clock). Prints the schedule and a report; fails if a promise is broken.
SEED ?=
MINUTES ?= 10
chaos: tools
	SEED=$(SEED) MINUTES=$(MINUTES) cargo test --locked --test chaos -- \
		--nocapture --exact every_promise_holds_under_faults

# The protocol's model, searched further than `make test` does.
MODEL_BOUND ?= 1
model: tools-run
	MODEL_BOUND=$(MODEL_BOUND) cargo test --release --locked --test protocol -- --nocapture

# What reads untrusted bytes is given bytes that nobody would write, each target for so many seconds.
FUZZ_SECONDS ?= 600
fuzz:
	@tests/tools.sh fuzz
	@tests/fuzz.sh $(FUZZ_SECONDS)

# The checks of .ci/run that need no tests.
lint:
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

# What is promised, shown at full size; each prints its figures. `make test` runs the same with
# smaller numbers. One at a time: they measure.
PROOFS := lateness cancel-race backlog-memory drain-kill nsqd-restart rolling-restart idle packs

.PHONY: $(addprefix prove-,$(PROOFS))
prove: $(addprefix prove-,$(PROOFS))

# prove-cancel-race runs the tests whose names start with proof_cancel_race.
$(addprefix prove-,$(PROOFS)): prove-%: tools
	PROOF_SIZE=full cargo test --release --locked --test it -- \
		--nocapture --test-threads 1 "proof_$(subst -,_,$*)"
