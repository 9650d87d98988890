"""The checks of benchmarks/gpu_first_hour.sh, their expectations, and the tables that they leave.

    python benchmarks/gpu_first_hour.py [--device cuda|cpu] [--out runs/gpu_first_hour] [--seconds 580] PART ...

A check runs the project's own programs, compares what they print and record with what is expected, and returns what was
seen; `Surprise` ends the call. Expectations are losses of other ways to take the same steps, the memory of `csm plan`,
and for speed shares of the GPU's peak, so that they hold on any card. Exit codes: 0, everything of the parts was as
expected; 1, a surprise; 3, out of time, so run the same command again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_session import Session, Surprise, final, within

Body = Callable[[Session], str]


@dataclass(frozen=True)
class Check:
    """body: returns what was seen, or raises Surprise; minutes: what it takes on a GPU, so that it is not begun too
    late; gpu_only: left out with --device cpu."""

    part: int
    name: str
    expected: str
    minutes: float
    body: Body
    gpu_only: bool = False


CHECKS: list[Check] = []


def check(part: int, name: str, expected: str, minutes: float, gpu_only: bool = False) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        CHECKS.append(Check(part, name, expected, minutes, body, gpu_only))
        return body

    return add


# ------------------------------------------------------------------------------------- part 1: does everything run


@check(1, "imports and versions", "torch 2.9 or later, on a GPU that computes in bf16", 0.5)
def imports(session: Session) -> str:
    versions = session.probe("versions")
    major, minor = (int(part) for part in versions["torch"].split(".")[:2])
    if (major, minor) < (2, 9):
        raise Surprise(f"torch {versions['torch']}")
    if session.cuda and not versions["bf16"]:
        raise Surprise(f"{versions['device']} does not compute in bf16")
    session.versions = versions
    return f"{versions['device']}, torch {versions['torch']}, transformers {versions['transformers']}"


def quick(session: Session) -> list[str]:
    """40 steps of the quickstart, the same data in the same order on every device."""
    words = ["experiment=quickstart", *session.data, *([] if session.cuda else session.tiny), "data.num_workers=0"]
    words += ["trainer.max_steps=40", "trainer.val_every_steps=40", "trainer.checkpoint_every_steps=0"]
    return [*words, "trainer.sample_every_steps=0"]


@check(1, "40 steps in fp32", "losses of the CPU's fp32 run within 1 %", 2)
def quickstart_fp32(session: Session) -> str:
    cpu = session.train("cpu_fp32", *quick(session), "trainer.precision=32-true")
    here = session.train(
        "fp32", *quick(session), *session.trainer, "trainer.compile=false", "trainer.precision=32-true"
    )
    return within(cpu, here, 0.01)


@check(1, "40 steps in bf16", "losses of the fp32 run within 2 %", 1)
def quickstart_bf16(session: Session) -> str:
    bf16 = session.train(
        "bf16", *quick(session), *session.trainer, "trainer.compile=false", "trainer.precision=bf16-mixed"
    )
    return within(session.metrics("fp32"), bf16, 0.02)


@check(1, "40 steps compiled", "losses of the bf16 run within 1 %; the first step takes 60 to 90 s", 3, gpu_only=True)
def quickstart_compiled(session: Session) -> str:
    start = time.perf_counter()
    words = [*quick(session), *session.trainer, "trainer.compile=true", "trainer.precision=bf16-mixed"]
    compiled = session.train("compiled", *words)
    return f"{within(session.metrics('bf16'), compiled, 0.01)}; {time.perf_counter() - start:.0f} s in all"


@check(1, "recompilations", "none after the first validation; up to 3 before", 3, gpu_only=True)
def recompilations(session: Session) -> str:
    """Both stacks without gradients, and the depth decoder: blocks of both stacks run the same code."""
    words = [*session.data, *session.tiny, *session.trainer, "trainer.compile=true"]
    words += ["trainer.log_every_steps=1", "trainer.val_every_steps=4", "trainer.max_steps=12"]
    log = session.train_log("recompiles", *words, environment={"TORCH_LOGS": "recompiles"})
    _, found, after = log.partition("step 5/12 ")
    total, late = log.count("Recompiling function"), after.count("Recompiling function")
    if not found or total > 3 or late:
        raise Surprise(f"{total} recompilations, {late} of them after the first validation")
    return f"{total}"


def short(session: Session) -> list[str]:
    words = [*session.data, *session.tiny, *session.trainer, "trainer.compile=false", "optim.schedule=wsd"]
    words += ["trainer.val_every_steps=0", "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=0"]
    return [*words, "trainer.sample_every_steps=0"]


@check(1, "strategies", "6 steps and 3 more after a restart; losses of one process within 2 %", 4)
def strategies(session: Session) -> str:
    one = session.train("single", *short(session), "trainer.max_steps=9")
    names = ["ddp", "fsdp"]
    names += ["fsdp_offload", "deepspeed_zero2", "deepspeed_zero2_offload", "deepspeed_zero3"] if session.cuda else []
    seen = []
    for name in names:
        words = [*short(session), f"strategy={name}"]
        session.train(name, *words, "trainer.max_steps=6")
        resumed = session.train(name, *words, "trainer.max_steps=9", fresh=False)
        steps = [record["step"] for record in resumed if "train/loss" in record]
        if steps != list(range(1, 10)):
            raise Surprise(f"{name}: steps {steps} in metrics.jsonl")
        seen.append(f"{name} {within(one, resumed, 0.02)}")
    return "; ".join(seen)


@check(
    1,
    "attention",
    "equal results; on a GPU compiled flex attention at least 5 times as fast as a dense mask with GQA",
    2,
)
def attention(session: Session) -> str:
    found = session.probe("attention")
    if found["difference"] > 0.02:
        raise Surprise(f"results differ by {found['difference']:.3f}")
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found["milliseconds"].items())
    if session.cuda and found["milliseconds"]["dense mask, GQA"] < 5 * found["milliseconds"]["flex, compiled"]:
        raise Surprise(times)
    return times


# ----------------------------------------------------------------------------------- part 2: a step of the large model


@check(2, "a step", "42 to 55 % MFU; twice the speed of transformers; memory of `csm plan` within 10 %", 4)
def step(session: Session) -> str:
    ours = session.step(session.rows, 16)
    theirs = session.step(session.rows, 16, system="transformers")
    seen = f"{ours.text}; transformers {theirs.text}"
    if session.cuda and (theirs.seconds < 2 * ours.seconds or not 0.42 <= (ours.mfu or 0.42) <= 0.65):
        raise Surprise(seen)
    return seen


@check(
    2, "rows and activation checkpointing", "memory of `csm plan` within 10 %; selective +8 %, full +35 % at most", 6
)
def variants(session: Session) -> str:
    base, seen = session.step(session.rows, 16), []
    for level, limit in (("selective", 1.08), ("full", 1.35)):
        found = session.step(session.rows, 16, f"trainer.activation_checkpointing={level}")
        seen.append(f"{level} {found.text}, x{found.seconds / base.seconds:.2f}")
        if session.cuda and found.seconds > limit * base.seconds:
            raise Surprise(seen[-1])
    if session.cuda:
        seen += [
            session.step(rows, 16).text for rows in (session.rows // 2 or 1, 2 * session.rows) if session.fits(rows)
        ]
        seen.append(session.step(session.rows, 1).text)
    return "; ".join(seen)


@check(2, "profile", "the GPU idle for less than 10 % of a step; the costliest operations are in profile.txt", 2)
def profile(session: Session) -> str:
    found = session.probe("profile", rows=session.rows, positions=session.positions, size=session.size)
    (session.out / "profile.txt").write_text(found["table"], encoding="utf-8")
    if session.cuda and found["busy"] < 0.9:
        raise Surprise(f"busy for {found['busy']:.0%} of the step")
    return f"busy {found['busy']:.0%}; most time in {', '.join(found['costliest'])}" if session.cuda else "written"


# --------------------------------------------------------------------------------------------- part 3: real training

LOGGED = ["trainer.log_every_steps=10", "trainer.checkpoint_every_steps=0", "trainer.sample_every_steps=0"]


def large_run(session: Session, name: str, *words: str) -> str:
    """30 steps of two microbatches; what is the same for all strategies: memory, losses, no step skipped."""
    rows = session.rows
    common = [*session.data, *session.large, f"data.max_seq_len={session.positions}", f"data.micro_batch_size={rows}"]
    common += ["optim.warmup_steps=5", *([] if session.cuda else ["optim.lr=3e-3"])]
    common += [f"data.global_batch_size={2 * rows}", *LOGGED, "trainer.max_steps=30", "trainer.val_every_steps=0"]
    records = session.train(name, *common, *session.trainer, *words)
    (losses, last) = [record["train/loss"] for record in records if "train/loss" in record], final(records)
    if last["train/skipped_steps"] or not all(losses) or losses[-1] >= losses[0]:
        raise Surprise(f"losses {losses}, {last['train/skipped_steps']:.0f} steps skipped")
    memory = session.check_memory(last, common, *words)
    speed = last["throughput/positions_per_second"]
    wait = last["throughput/data_wait_share"]
    if session.cuda and wait > 0.05:
        raise Surprise(f"throughput/data_wait_share={wait:.2f}")
    return f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {speed:,.0f} positions/s, {memory}, waiting for data {wait:.0%}"


@check(
    3, "training, single", "losses fall; memory of `csm plan` within 10 %; at most 5 % of the time waiting for data", 4
)
def training(session: Session) -> str:
    return large_run(session, "one")


@check(3, "training, ddp", "as before; losses of the single run within 1 %", 3)
def training_ddp(session: Session) -> str:
    seen = large_run(session, "one_ddp", "strategy=ddp")
    return f"{seen}; {within(session.metrics('one'), session.metrics('one_ddp', keep=False), 0.01)}"


@check(3, "training, fsdp", "as before; losses of the single run within 2 %, its residual stream being bf16", 3)
def training_fsdp(session: Session) -> str:
    seen = large_run(session, "one_fsdp", "strategy=fsdp")
    return f"{seen}; {within(session.metrics('one'), session.metrics('one_fsdp', keep=False), 0.02)}"


@check(3, "the same run twice", "equal losses to the last digit with trainer.deterministic=true", 2)
def determinism(session: Session) -> str:
    words = [*short(session), "trainer.max_steps=9", "trainer.deterministic=true", "trainer.ema_decay=0.99"]
    first, second = (session.train(f"deterministic_{n}", *words) for n in (1, 2))
    losses = [[record["train/loss"] for record in records if "train/loss" in record] for records in (first, second)]
    if losses[0] != losses[1]:
        raise Surprise(f"{losses[0]} and {losses[1]}")
    return f"{len(losses[0])} losses are equal"


@check(3, "tests", "tests/gpu and the test of synchronizations pass", 4)
def tests(session: Session) -> str:
    if session.probe("versions")["pytest"] == "not installed":
        return "not run: pytest is not installed"
    output = session.run(
        "tests", "-m", "pytest", "-n", "0", "-o", "addopts=", "tests/gpu", "tests/training/test_no_sync.py"
    )
    summary = output.strip().splitlines()[-1]
    if session.cuda and "passed" not in summary:
        raise Surprise(summary)
    return summary


@check(3, "generation", "faster than speech: less than 80 ms a frame, batch 1", 3)
def generation(session: Session) -> str:
    """Two lengths, so that loading the model cancels out."""
    timed = []
    for milliseconds in (2_000, 10_000):
        words = [str(session.out / "one" / "export"), "--text", "Hello there.", "--device", session.device]
        words += ["--max-audio-length-ms", str(milliseconds), "--seed", "1", "--out", str(session.out / "said.wav")]
        start = time.perf_counter()
        output = session.run(f"generate_{milliseconds}", "-m", "csm.cli", "generate", *words)
        seconds = float(output.strip().splitlines()[-1].split(": ")[1].split(" s")[0])
        timed.append((time.perf_counter() - start, seconds * 12.5))
    (short, few), (long, many) = timed
    if many <= few:
        return f"{few:.0f} frames: the model ended its turn too early to be timed"
    per_frame = (long - short) / (many - few)
    seen = f"{1000 * per_frame:.1f} ms a frame, {per_frame * 12.5:.2f} of real time"
    if session.cuda and per_frame > 0.08:
        raise Surprise(seen)
    return seen


# ------------------------------------------------------------------------------------------------------------ running


def run_parts(session: Session, parts: list[int], seconds: float, checks: list[Check]) -> int:
    """Runs what has not passed yet; returns the exit code."""
    deadline = time.monotonic() + seconds
    session.start()
    for one in checks:
        if one.part not in parts or one.name in session.passed or (one.gpu_only and not session.cuda):
            continue
        if session.cuda and time.monotonic() + 60 * one.minutes > deadline:
            print(f"out of time before: {one.name}; run the same command again", flush=True)
            return 3
        start = time.monotonic()
        print(f"... {one.name}: {one.expected}", flush=True)
        try:
            seen = one.body(session)
        except Surprise as surprise:
            print(f"\nSURPRISE  {one.name}\n  expected  {one.expected}\n  seen      {surprise}", file=sys.stderr)
            print(f"  logs      {session.out}", file=sys.stderr, flush=True)
            return 1
        session.record(one.part, one.name, one.expected, seen, time.monotonic() - start)
        print(f"ok  {one.name}: {seen}", flush=True)
    print(f"as expected; {session.write_tables()}")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=int, nargs="+", choices=[1, 2, 3], metavar="PART")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_first_hour"))
    parser.add_argument("--seconds", type=float, default=580, help="of this call, on a GPU")
    parser.add_argument("--again", action="store_true", help="forget what has passed")
    options = parser.parse_args()
    if options.again:
        shutil.rmtree(options.out, ignore_errors=True)
    try:
        session = Session(options.device, options.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_parts(session, options.parts, options.seconds, CHECKS))


if __name__ == "__main__":
    main()
