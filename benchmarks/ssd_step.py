"""What a step of SSD and of iSSD costs beside the passes that it cannot do without.

    python benchmarks/ssd_step.py

Two forward passes of the frozen network, one forward and backward pass of the trained one; of a
DiT-S on 32 x 32 latents. Each step is measured right after its passes, so that a busy machine slows
both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from page import about_run, head, table, write

from selfdistill.data.loader import Batch
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig

NETWORK = NetworkConfig.model_validate(
    {
        "name": "dit", "latent_size": 32, "latent_channels": 4, "patch_size": 2, "width": 384,
        "depth": 12, "num_heads": 6, "num_classes": 1000, "learn_sigma": True,
    }
)  # fmt: skip
TARGETS = {
    "SSD": {"form": "explicit", "weight": "auto"},
    **{
        f"iSSD, {site}": {"form": "implicit", "mix_prev": 0.2, "site": site}
        for site in ("branch", "gated", "block", "output")
    },
}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    about, device, size = about_run(), torch.device(options.device), options.batch_size
    torch.manual_seed(0)
    values = {"name": "ssd", "grid": {"num_steps": 10}, "class_dropout": 0.1}
    batch = Batch(
        torch.randn(size, 4, 32, 32, device=device),
        torch.zeros(size, dtype=torch.int64, device=device),
        None,
        Draws(0, torch.arange(size, device=device)),
    )

    def seconds(run: Callable[[], None]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    rows, found = [], {}
    for name, target in TARGETS.items():
        config = MethodConfig.model_validate({**values, "target": target})
        method = build_method(NETWORK, config, {}).to(device)
        time_of = torch.full((size,), 500, device=device)

        def passes(method=method, time_of=time_of):
            with torch.no_grad():
                for _ in range(2):
                    method.frozen(batch.images, time_of, batch.labels)
            method.network(batch.images, time_of, batch.labels).square().mean().backward()

        def step(method=method):
            method.loss(batch)["distillation"].mean().backward()

        for run in (passes, step):
            run()
        pairs = [(seconds(passes), seconds(step)) for _ in range(options.repeats)]
        ratios = [whole / alone for alone, whole in pairs]
        rows.append([name, statistics.median(ratios), min(ratios), max(ratios)])
        found[name] = pairs
    page = [
        "# A step of SSD and iSSD\n",
        head(about, f"python benchmarks/ssd_step.py --batch-size {size}") + "\n",
        f"DiT-S/2, {size} latents of 32 x 32, float32, on {device.type}. Seconds of the whole loss "
        "and its gradient over those\nof its necessary passes, measured in turns.\n",
        *table("form | median ratio | least | most", rows),
    ]
    where = "cpu" if device.type == "cpu" else "gpu"
    write(options.results, f"ssd_step_{where}", {"about": about, "seconds": found}, "\n".join(page))


if __name__ == "__main__":
    main()
