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
and backward, no recomputation. The teacher is in no sum, its features are cached.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import about
from step_parts import PARTS, Parts, Row, Run, Step, build, read_row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW, Muon
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.diffusion.config import SolverConfig
from selfdistill.distributed import joined
from selfdistill.networks.dinov3 import Teacher
from selfdistill.pipelines.train import optim
from selfdistill.pipelines.train.muon import BatchedMuon

RESULTS = Path(__file__).parent / "results"
PARAMETERS = Path(__file__).parents[1] / "conf" / "base" / "parameters"
# Dense bfloat16 FLOP/s of the SXM modules, from the makers' data sheets.
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12, "A800": 312e12}
SWEEP = (32, 64, 128, 256, 384)
SOLVER_STEPS = 4
# torch's Muon rounds to bfloat16, which this many seconds a matrix on a CPU allows for few.
MATRICES_ON_CPU = 4


def count_flops(row: Row) -> dict[str, int]:
    """Return FLOP an image: of the whole step, of its parts, of the teacher; of Muon a step."""
    no_autocast = mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext())
    no_adamw = mock.patch.object(optim, "AdamW")  # element by element: no product to count
    with no_autocast, no_adamw, sdpa_kernel(SDPBackend.MATH):
        step = Step(row, 1, "meta")
        flops = {"step": _flops(step.backward)}
        flops |= {name: _flops(run) for name, run in Parts(step).runs().items()}
        with torch.device("meta"):
            teacher = Teacher(row.teacher, row.network.root.resolution)
            flops["teacher"] = _flops(partial(teacher, step.batch.images))
    return flops


def _flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_flops(device: str) -> float | None:
    """Return dense FLOP/s: bfloat16 by the GPU's name; a CPU's float32 as measured now."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((peak for part, peak in PEAKS.items() if part in name), None)
    n = 2048
    x = torch.randn(n, n)
    return 2 * n**3 / min(timed(partial(torch.mm, x, x), device) for _ in range(5))


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
    """Build a step and take two, so that memory is taken and layers are compiled."""
    step = Step(
        row, size, options.device,
        bf16=options.precision == "bf16", compiled=options.compile, recompute=options.recompute,
    )  # fmt: skip
    for _ in range(2 if options.device == "cuda" else 1):
        step()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return step


def try_size(row: Row, size: int, options: argparse.Namespace) -> dict[str, float] | None:
    """Return speed and memory at a batch size; None if it does not fit."""
    _free(options.device)
    try:
        step = make_step(row, size, options)
        seconds = statistics.median(timed(step, options.device) for _ in range(options.repeats))
    except torch.OutOfMemoryError:
        return None
    memory = peak_memory(options.device)
    return {"batch_size": size, "images_per_s": size / seconds, "peak_memory_gib": memory}


def _free(device: str) -> None:
    """Give back what the last batch size held, and let the next be compiled for its own shape."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()


def sweep(row: Row, options: argparse.Namespace) -> list[dict[str, float]]:
    """Try batch sizes until one does not fit."""
    tried = []
    for size in SWEEP:
        if (found := try_size(row, size, options)) is None:
            break
        tried.append(found)
    return tried


def measure_step(row: Row, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time parts and step in turn."""
    device = options.device
    step = make_step(row, size, options)
    step()
    memory = peak_memory(device)
    with torch.device(device):
        teacher = Teacher(row.teacher, row.network.root.resolution)
    parts = Parts(step).runs()
    runs = {"teacher": partial(_teach, teacher, step), **parts, "step": step}
    times = in_turn(runs, device, options.repeats)
    sums = [sum(together) for together in zip(*(times[part] for part in parts), strict=True)]
    around = [sum(pair) / 2 for pair in pairwise(times["step"])]
    return {
        "batch_size": size,
        "images_per_s": size / _median(times["step"]),
        "peak_memory_gib": memory,
        "seconds": {name: _median(each) for name, each in times.items()},
        "sum_of_parts_seconds": _median(sums),
        "hidden_work": statistics.median(
            a / b for a, b in zip(around, sums[1:], strict=True)
        ),
    }


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
    runs = {
        "plain": partial(method.sample, eps, labels, plain),
        "guided": partial(method.sample, eps, labels, plain.model_copy(update={"guidance": 1.5})),
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
        "adamw": AdamW(rest, lr=config.lr),
    }
    runs = {name: optimizer.step for name, optimizer in optimizers.items()}
    times = in_turn(runs, options.device, options.repeats)
    return {
        "num_matrices": len(matrices),
        "seconds": {name: _median(each) for name, each in times.items()},
        "muon_ratio": _ratio(times["torch_muon"], times["muon"]),
        "adamw_ratio": _ratio(times["adamw"], times["adamw_fused"]),
    }


def measure_row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all that is asked for of a row."""
    row = read_row(name, options.parameters)
    flops, size, tried = count_flops(row), options.batch_size, []
    if size is None:
        tried = sweep(row, options)
        size = max(tried, key=lambda each: each["images_per_s"])["batch_size"]
    _free(options.device)
    found = {"flops": flops, "sweep": tried, "peak_flops": peak_flops(options.device)}
    found |= measure_step(row, size, options)
    if found["peak_flops"]:
        found["mfu"] = flops["step"] * found["images_per_s"] / found["peak_flops"]
    _free(options.device)
    found["sampling"] = measure_sampling(row, options)
    if options.compare_muon:
        _free(options.device)
        found["optimizers"] = compare_optimizers(row, options)
    return found


def to_markdown(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    machine, on_gpu = result["about"], result["device"] == "cuda"
    peak = "its bfloat16 peak, dense" if on_gpu else "a large float32 product in the same run"
    lines = [
        "# Training step",
        "",
        f"{machine['date']}, commit {machine['commit']}{', edited' * machine['edited']}, "
        f"{machine['gpu' if on_gpu else 'cpu']}, {machine['threads']} threads, torch "
        f"{machine['versions']['torch']}; {result['precision']}, `{result['command']}`.",
        "Random images, features and weights, no loader. Medians of runs that take turns; "
        f"utilisation: FLOP of forward and backward by seconds, of {peak}. "
        "Step / parts: what a step takes by what its parts take alone; goal on a CPU: at most 1.15.",
        "",
        "| row | batch | images/s | TFLOP an image | utilisation | GiB | step, s | parts, s "
        "| step / parts |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    rows = result["rows"]
    for name, row in rows.items():
        cells = [
            f"{row['batch_size']}", f"{row['images_per_s']:.3g}",
            f"{row['flops']['step'] / 1e12:.3f}", _percent(row.get("mfu")),
            f"{row['peak_memory_gib']:.1f}", f"{row['seconds']['step']:.3f}",
            f"{row['sum_of_parts_seconds']:.3f}", f"**{row['hidden_work']:.2f}**",
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, row in rows.items():
        lines += ["", *_parts_table(name, row)]
    return "\n".join([*lines, "", *_sampling_table(rows), *_optimizers_table(rows)]) + "\n"


def _parts_table(name: str, row: dict[str, Any]) -> list[str]:
    """Return the table of a row's parts; the optimizer's FLOP are a step's, shared by its batch."""
    lines = [
        f"| {name} | s | of the parts | GFLOP an image | utilisation |",
        "| --- | --: | --: | --: | --: |",
    ]
    size, seconds, flops = row["batch_size"], row["seconds"], dict(row["flops"])
    flops["optimizer"] /= size
    for part in [part for part in (*PARTS, "step", "teacher") if part in seconds]:
        rate = size * flops[part] / seconds[part] / row["peak_flops"] if row["peak_flops"] else 0
        share = "" if part in ("step", "teacher") else seconds[part] / row["sum_of_parts_seconds"]
        title = {"step": "**step**", "teacher": "teacher, cached"}.get(part, part)
        cells = [f"{seconds[part]:.4f}", _percent(share), f"{flops[part] / 1e9:.1f}"]
        lines.append(f"| {title} | {' | '.join(cells)} | {_percent(rate)} |")
    for each in row["sweep"]:
        speed, memory = f"{each['images_per_s']:.3g} images/s", f"{each['peak_memory_gib']:.1f} GiB"
        lines += ["" if each is row["sweep"][0] else "", f"batch {each['batch_size']}: {speed}, {memory}"]
    return lines


def _percent(share: float | str | None) -> str:
    return f"{100 * share:.1f} %" if share else ""


def _sampling_table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "Sampling in float32, a solver step of Euler's; goal of guided / plain: at most 1.25.",
        "",
        "| row | batch | plain, s a step | guided, s a step | guided / plain | decode, s |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, row in rows.items():
        batch, plain, guided, ratio, decode = row["sampling"].values()
        lines.append(
            f"| {name} | {batch} | {plain:.4f} | {guided:.4f} | **{ratio:.2f}** | {decode:.4f} |"
        )
    return lines


def _optimizers_table(rows: dict[str, Any]) -> list[str]:
    compared = {name: row["optimizers"] for name, row in rows.items() if "optimizers" in row}
    lines = [
        "",
        "| optimizers | matrices | Muon, s | torch's, s | ratio | AdamW fused, s | default, s | ratio |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, row in compared.items():
        muon, torch_muon, fused, adamw = (f"{each:.4f}" for each in row["seconds"].values())
        cells = [muon, torch_muon, f"{row['muon_ratio']:.2f}"]
        cells += [fused, adamw, f"{row['adamw_ratio']:.2f}"]
        lines.append(f"| {name} | {row['num_matrices']} | {' | '.join(cells)} |")
    return lines if compared else []
