"""One line in plain words when a run is not learning, or is about to stop."""

from gspo.config import GSPOConfig


def health(metrics: dict, config: GSPOConfig) -> str | None:
    """What is wrong with a step, and what to do; None where nothing stands out."""
    found = [sentence for sentence in _findings(metrics, config) if sentence]
    return " ".join(found) or None


def _findings(m: dict, config: GSPOConfig) -> list[str | None]:
    narrow = min(config.clip_range_left, config.clip_range_right)
    dead, truncated, unscored = (
        m["dead_group_fraction"],
        m["truncated_fraction"] or 0.0,
        m["unscored_fraction"],
    )
    return [
        dead >= 0.6
        and f"{dead:.0%} of the groups have no spread in their rewards and teach nothing: the "
        "prompts are too easy or too hard for this model, or the reward cannot tell.",
        truncated >= 0.3
        and f"{truncated:.0%} of the responses are cut off at max_response_tokens = "
        f"{config.max_response_tokens}.",
        unscored > 0
        and f"{unscored:.0%} of the responses are unscored: the reward gave NaN or None.",
        m["clip_fraction"] >= 0.4
        and f"{m['clip_fraction']:.0%} of the responses are clipped: the band is narrow for "
        f"responses of {m['response_tokens_mean']:.0f} tokens (3e-4 and 4e-4 fit ten thousand).",
        (m["ratio_noise"] or 0.0) > narrow / 3
        and f"numerical noise in the ratio ({m['ratio_noise']:.1e}) is more than a third of the "
        "band: it is clipped by chance; widen the band or raise the precision.",
    ]
