"""Pictures of a run. The only file that imports matplotlib."""

from pathlib import Path


def plot_reward(metrics: list[dict], path: Path) -> bool:
    """The mean reward over the rollout batches, as PNG; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    by_rollout = {line["rollout"]: line["reward_mean"] for line in metrics}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(by_rollout), list(by_rollout.values()), marker=".")
    axes.set_xlabel("rollout batch")
    axes.set_ylabel("mean reward")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True
