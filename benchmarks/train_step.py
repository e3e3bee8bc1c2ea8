"""One optimizer step of a row, taken apart: speed, FLOP, memory, and where the time goes.

    python benchmarks/train_step.py --rows dsd_b --device cpu
    python benchmarks/train_step.py --device cuda --compare-muon

A step is what `pipelines/train/loop.py` does with a batch that is there: loss, backward, clip, Muon
and AdamW, average. Images, labels and teacher features are random, and so are the weights, VGG16's
at its full width among them: the published files would need a download, and time does not depend
on values. Only a weight that starts at zero gets noise, because a GPU multiplies zeros faster.

`step_parts.py` says how the step is cut: every operation is in one part and in no other. Step and
parts take turns, so that a machine that is busy for a while is busy for all of them; the parts of a
round are held against the steps before and after it. FLOP are counted on the meta device: forward
and backward, no recomputation. The teacher is in no sum, its features are cached. Muon's products
belong to a step, not to an image: with few images a step they are most of it, so the loss with its
gradient is held against its parts once more without the updates.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import about
from step_parts import PARTS, UPDATES, Parts, Row, Run, Step, build, read_row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW, Muon
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.diffusion.config import SolverConfig
from selfdistill.distributed import Job, joined
from selfdistill.draws import Draws
from selfdistill.networks.dinov3 import Teacher
from selfdistill.pipelines.train import optim
from selfdistill.pipelines.train.muon import BatchedMuon

RESULTS = Path(__file__).parent / "results"
PARAMETERS = Path(__file__).parents[1] / "conf" / "base" / "parameters"
# Dense bfloat16 FLOP/s of the SXM modules, from the makers' data sheets.
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12, "A800": 312e12}
SWEEP = (32, 64, 128, 256, 384)
SOLVER_STEPS = 4
# torch's Muon computes in bfloat16: on many a CPU half a minute for one matrix of 1024 x 1024.
MATRICES_ON_CPU = 4


def count_flops(row: Row) -> dict[str, int]:
    """Return FLOP an image: of the whole step, of its parts, of the teacher; of Muon a step."""
    no_autocast = mock.patch.object(torch, "autocast", return_value=nullcontext())
    no_adamw = mock.patch.object(optim, "AdamW")  # element by element: no product to count
    with no_autocast, no_adamw, sdpa_kernel(SDPBackend.MATH):
        step = Step(row, 1, "meta")
        flops = {"step": _flops(step.backward)}
        runs = Parts(step).runs() | {"optimizer": step.optimizers[0].step}
        flops |= {"loss": flops["step"]} | {name: _flops(run) for name, run in runs.items()}
        with torch.device("meta"):
            teacher = Teacher(row.teacher, row.network.root.resolution)
            flops["teacher"] = _flops(partial(teacher, step.batch.images))
    return flops


def _flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def timed(run: Run, device: str) -> float:
    """Return the seconds that a run takes, the device's included."""
    _synchronise(device)
    began = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - began


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turn(runs: dict[str, Run], device: str, repeats: int) -> dict[str, list[float]]:
    """Time every run in turn; the first of each list is of the round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            times[name].append(timed(run, device))
    return times


def _median(times: Sequence[float]) -> float:
    return statistics.median(times[1:])


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    return _median([a / b for a, b in zip(times, others, strict=True)])


def peak_memory(device: str) -> float:
    """Return GiB: the most that was allocated on the GPU, or that the process has held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_step(row: Row, size: int, options: argparse.Namespace) -> Step:
    """Build a step and take one or two, so that memory is taken and layers are compiled."""
    step = Step(
        row, size, options.device,
        bf16=options.precision == "bf16", compiled=options.compile, recompute=options.recompute,
    )  # fmt: skip
    for _ in range(2 if options.device == "cuda" else 1):
        step()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return step


def sweep(row: Row, options: argparse.Namespace) -> list[dict[str, float]]:
    """Return speed and memory of batch sizes, until one does not fit."""
    tried = []
    for size in SWEEP:
        _free(options)
        try:
            tried.append(_speed(row, size, options))
        except torch.OutOfMemoryError:
            break
    return tried


def _speed(row: Row, size: int, options: argparse.Namespace) -> dict[str, float]:
    step = make_step(row, size, options)
    seconds = statistics.median(timed(step, options.device) for _ in range(options.repeats))
    memory = peak_memory(options.device)
    return {"batch_size": size, "images_per_s": size / seconds, "peak_memory_gib": memory}


def _free(options: argparse.Namespace) -> None:
    """Give back what the last batch size held, and let the next be compiled for its own shape."""
    gc.collect()
    if options.compile:
        torch.compiler.reset()
    if options.device == "cuda":
        torch.cuda.empty_cache()


def measure_step(row: Row, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time parts and step in turn, and beside them the teacher and a product of large matrices."""
    device = options.device
    step = make_step(row, size, options)
    step()
    memory = peak_memory(device)
    with torch.device(device):
        teacher, x = Teacher(row.teacher, row.network.root.resolution), torch.randn(2048, 2048)
    parts = Parts(step).runs()
    runs = {
        "product": partial(torch.mm, x, x), "teacher": partial(_teach, teacher, step),
        "loss": partial(_lose, step), **parts, "step": step,
    }  # fmt: skip
    times = in_turn(runs, device, options.repeats)
    product = times.pop("product")
    sums = _sums(times, parts)
    of_loss = _sums(times, parts.keys() - UPDATES)
    around = [sum(pair) / 2 for pair in pairwise(times["step"])]
    return {
        "batch_size": size,
        "images_per_s": size / _median(times["step"]),
        "peak_memory_gib": memory,
        "peak_flops": _peak_of_gpu() if device == "cuda" else 2 * len(x) ** 3 / min(product),
        "seconds": {name: _median(each) for name, each in times.items()},
        "sum_of_parts_seconds": _median(sums),
        "hidden_work": _ratio([0.0, *around], sums),
        "hidden_work_of_loss": _ratio(times["loss"], of_loss),
    }


def _sums(times: dict[str, list[float]], parts: Iterable[str]) -> list[float]:
    """Return what the parts took together in each round."""
    return [sum(together) for together in zip(*(times[part] for part in parts), strict=True)]


def _lose(step: Step) -> None:
    """Take the loss and its gradient, and drop that: the rest of the round makes its own."""
    step.backward()
    step.method.network.zero_grad(set_to_none=True)


def _peak_of_gpu() -> float | None:
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def _teach(teacher: Teacher, step: Step) -> None:
    with step.autocast():
        teacher(step.batch.images)


def measure_sampling(row: Row, options: argparse.Namespace) -> dict[str, float]:
    """Time the solver's steps without and with guidance, and the decoder, as the stage samples."""
    device, size = options.device, options.sample_batch_size
    method = build(row, device)
    with torch.device(device):
        eps = torch.randn(size, *method.noise_shape())
        labels = torch.arange(size) % row.network.root.num_classes
    plain = SolverConfig(
        solver="euler", num_steps=SOLVER_STEPS, timestep_shift=1, guidance=1,
        guidance_interval=(0, 1),
    )  # fmt: skip
    guided = plain.model_copy(update={"guidance": 1.5})
    draws = Draws(0, torch.arange(size, device=device))
    runs = {
        "plain": partial(method.sample, eps, labels, plain, draws),
        "guided": partial(method.sample, eps, labels, guided, draws),
        "decode": partial(method.decode, eps),
    }
    times = in_turn(runs, device, options.repeats)
    decode = times["decode"]
    plain_step, guided_step = (
        [(whole - d) / SOLVER_STEPS for whole, d in zip(times[name], decode, strict=True)]
        for name in ("plain", "guided")
    )
    return {
        "batch_size": size,
        "plain_step_seconds": _median(plain_step),
        "guided_step_seconds": _median(guided_step),
        "guided_by_plain": _ratio(guided_step, plain_step),
        "decode_seconds": _median(decode),
    }


def compare_optimizers(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Time our Muon and AdamW beside torch's on the same weights."""
    network, config = build(row, options.device).network, row.train.optimizer
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    matrices = network.hidden_matrices()
    chosen = {id(matrix) for matrix in matrices}
    rest = [weight for weight in network.parameters() if id(weight) not in chosen]
    if options.device == "cpu":
        matrices = matrices[:MATRICES_ON_CPU]
    muon = {
        "lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum,
        "ns_steps": config.num_newton_schulz,
    }  # fmt: skip
    optimizers = {
        "muon": BatchedMuon(matrices, **muon),
        "torch_muon": Muon(matrices, **muon, adjust_lr_fn="match_rms_adamw"),
        "adamw_fused": AdamW(rest, lr=config.lr, fused=True),
        "adamw": AdamW(rest, lr=config.lr),  # not fused: one by one, on CUDA in groups
    }
    runs = {name: optimizer.step for name, optimizer in optimizers.items()}
    times = in_turn(runs, options.device, options.repeats)
    return {
        "num_matrices": len(matrices),
        "muon_seconds": _median(times["muon"]),
        "torch_muon_seconds": _median(times["torch_muon"]),
        "muon_ratio": _ratio(times["torch_muon"], times["muon"]),
        "adamw_fused_seconds": _median(times["adamw_fused"]),
        "adamw_seconds": _median(times["adamw"]),
        "adamw_ratio": _ratio(times["adamw"], times["adamw_fused"]),
    }


def measure_row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all that is asked for of a row."""
    row = read_row(name, PARAMETERS)
    flops, size, tried = count_flops(row), options.batch_size, []
    if size is None:
        tried = sweep(row, options)
        if not tried:
            raise ValueError(f"{name} does not fit in batches of {SWEEP[0]}; give a --batch-size")
        size = max(tried, key=lambda each: each["images_per_s"])["batch_size"]
    _free(options)
    found = {"flops": flops, "sweep": tried} | measure_step(row, size, options)
    rate, peak = flops["step"] * found["images_per_s"], found["peak_flops"]
    found["utilisation"] = peak and rate / peak
    _free(options)
    found["sampling"] = measure_sampling(row, options)
    if options.compare_muon:
        _free(options)
        found["optimizers"] = compare_optimizers(row, options)
    return found


def to_markdown(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    machine, rows, on_gpu = result["about"], result["rows"], result["device"] == "cuda"
    peak = "the GPU's dense bfloat16 peak" if on_gpu else "a large float32 product in this run"
    lines = [
        "# Training step",
        "",
        f"{machine['date']}, commit {machine['commit']}{', edited' * machine['edited']}, "
        f"{machine['gpu' if on_gpu else 'cpu']}, {machine['threads']} threads, torch "
        f"{machine['versions']['torch']}, {result['precision']}; `{result['command']}`.",
        "Random images, features and weights, no loader. Medians of runs in turn. Utilisation: "
        f"FLOP of forward and backward a second, of {peak}. Step / parts: seconds of a step by "
        "those of its parts alone, goal on a CPU at most 1.15; loss / parts: without the updates.",
        "",
        *_table(
            "row | batch | images/s | TFLOP an image | utilisation | GiB | step, s | parts, s | "
            "step / parts | loss / parts",
            [_step_cells(name, row) for name, row in rows.items()],
        ),
    ]
    for name, row in rows.items():
        lines += _table(f"{name} | s | share | GFLOP an image | utilisation", _part_cells(row))
    swept = [[name, *each.values()] for name, row in rows.items() for each in row["sweep"]]
    if swept:
        lines += _table("row | batch | images/s | GiB", swept)
    lines += ["Sampling in float32, Euler's steps; guided / plain: goal at most 1.25.", ""]
    lines += _table(
        "row | batch | s a plain step | s a guided step | guided / plain | s to decode",
        [[name, *row["sampling"].values()] for name, row in rows.items()],
    )
    compared = {name: row["optimizers"] for name, row in rows.items() if "optimizers" in row}
    if compared:
        lines += _table(
            "row | matrices | Muon, s | torch's, s | ratio | fused AdamW, s | plain, s | ratio",
            [[name, *row.values()] for name, row in compared.items()],
        )
    return "\n".join(lines)


def _table(header: str, rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a table and an empty line."""
    marks = ["---"] + ["--:"] * header.count("|")
    lines = [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in ([header], marks, *lines)] + [""]


def _step_cells(name: str, row: dict[str, Any]) -> list[Any]:
    return [
        name, row["batch_size"], row["images_per_s"], row["flops"]["step"] / 1e12,
        _percent(row["utilisation"]), f"{row['peak_memory_gib']:.1f}", row["seconds"]["step"],
        row["sum_of_parts_seconds"], f"{row['hidden_work']:.3f}",
        f"{row['hidden_work_of_loss']:.3f}",
    ]  # fmt: skip


def _part_cells(row: dict[str, Any]) -> list[list[Any]]:
    """Return a line a part; the optimizer's FLOP are a step's, divided among its images."""
    seconds, size = row["seconds"], row["batch_size"]
    flops = row["flops"] | {"optimizer": row["flops"]["optimizer"] / size}
    titles = {part: part for part in PARTS if part in seconds}
    titles |= {"loss": "loss and gradient", "step": "step", "teacher": "teacher, cached"}
    return [
        [
            title, seconds[part],
            _percent(seconds[part] / row["sum_of_parts_seconds"] if part in PARTS else None),
            flops[part] / 1e9,
            _percent(row["peak_flops"] and size * flops[part] / seconds[part] / row["peak_flops"]),
        ]
        for part, title in titles.items()
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options; what is not given follows the device, as in the loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", nargs="+", help="all three; on a CPU dsd_b")
    parser.add_argument("--batch-size", type=int, help=f"best of {SWEEP}; on a CPU 2")
    parser.add_argument("--sample-batch-size", type=int, help="128; on a CPU 2")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="bf16; a CPU has fp32 alone")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="on CUDA alone")
    parser.add_argument("--recompute", action="store_true", help="activations in the backward pass")
    parser.add_argument(
        "--deterministic", action=argparse.BooleanOptionalAction, default=True,
        help="on CUDA, as in a training",
    )  # fmt: skip
    parser.add_argument("--compare-muon", action="store_true", help="optimizers beside torch's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", help="of the results files; train_step_<device>")
    options = parser.parse_args(argv)
    on_gpu = options.device == "cuda"
    if not on_gpu and (options.compile or options.precision == "bf16"):
        parser.error("on a CPU the loop neither compiles nor takes bf16; leave both out")
    defaults = {
        "rows": ["dsd_s", "dsd_m", "dsd_b"] if on_gpu else ["dsd_b"],
        "batch_size": None if on_gpu else 2,
        "sample_batch_size": 128 if on_gpu else 2,
        "precision": "bf16" if on_gpu else "fp32",
        "compile": on_gpu,
        "name": f"train_step_{options.device}",
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def write(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Write what is there and return it as a page."""
    page = to_markdown(result)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{options.name}.md").write_text(page, encoding="utf-8")
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write down, row by row."""
    options = parse(argv)
    one_rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with mock.patch.dict(os.environ, one_rank), joined(Job("", "", options.device, "ddp")):
        if not options.deterministic:
            torch.use_deterministic_algorithms(False)
        result = {
            "about": about("timm"),
            "command": " ".join(
                ["benchmarks/train_step.py", *(sys.argv[1:] if argv is None else argv)]
            ),
            "device": options.device,
            "precision": options.precision,
            "compile": options.compile,
            "recompute": options.recompute,
            "deterministic": options.deterministic and options.device == "cuda",
            "rows": {},
        }
        for name in options.rows:
            result["rows"][name] = measure_row(name, options)
            page = write(result, options)
    print(page)


if __name__ == "__main__":
    main()
