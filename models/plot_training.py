"""Plot the demo model's loss curves: python models/plot_training.py (reads models/demo/training.json)."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Write docs/demo-training.png; a run that started from another comes after it."""
    log = json.loads((ROOT / "models" / "demo" / "training.json").read_text())
    runs = [log["start"], log] if "start" in log else [log]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, (part, what) in zip(axes, {"vae": "VAE", "unet": "UNet and text encoder"}.items(), strict=True):
        begin, minutes = 0, 0.0
        for run in (run[part] for run in runs if part in run):
            losses = run["loss_every_50_steps"]
            axis.plot([begin + 50 * (i + 1) for i in range(len(losses))], losses)
            begin, minutes = begin + run["steps"], minutes + run["seconds"] / 60
        axis.set(title=f"{what}: {minutes:.0f} min", xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(ROOT / "docs" / "demo-training.png", dpi=110)


if __name__ == "__main__":
    main()
